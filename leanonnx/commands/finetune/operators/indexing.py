"""Torch functions of gather, scatter, sort and cumulative operators."""

from __future__ import annotations

import torch

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall, on_one_device


def _gather(call: TorchCall) -> Tensor:
    """Select slices along an axis, in the shape of the indices."""
    x, indices, axis = call.value(), call.value(1).to(torch.int64), call.attribute("axis", 0) % call.value().ndim
    if indices.device.type == "cpu" and indices.ndim == 0:
        return x.select(axis, int(indices))
    places = torch.where(indices < 0, indices + x.shape[axis], indices).to(x.device)
    rows = x.index_select(axis, places.reshape(-1))
    return rows.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _gather_elements(call: TorchCall) -> Tensor:
    """Select one element for each index."""
    x, indices = on_one_device(call.value(0), call.value(1).to(torch.int64))
    axis = call.attribute("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _index_tensors(x: Tensor, indices: Tensor, lead: int) -> tuple[Tensor, ...]:
    """Index tensors of the batch axes, then of the axes that the last axis of ``indices`` addresses."""
    indices = indices.to(torch.int64)
    shape = indices.shape[:-1]
    index = []
    for axis in range(lead):
        line = torch.arange(shape[axis], device=indices.device)
        index.append(line.reshape(-1, *[1] * (len(shape) - axis - 1)).expand(shape))
    for k in range(indices.shape[-1]):
        part = indices[..., k]
        index.append(torch.where(part < 0, part + x.shape[lead + k], part))
    return tuple(index)


def _gather_nd(call: TorchCall) -> Tensor:
    """Select slices by tuples of indices."""
    x, indices = on_one_device(call.value(0), call.value(1))
    return x[_index_tensors(x, indices, call.attribute("batch_dims", 0))]


def _scatter_nd(call: TorchCall) -> Tensor:
    """Replace slices selected by tuples of indices, or add to them."""
    x, indices, updates = on_one_device(call.value(0), call.value(1), call.value(2))
    reduction = call.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        raise call.error(f"its reduction is {reduction}")
    return x.index_put(_index_tensors(x, indices, 0), updates.to(x.dtype), accumulate=reduction == "add")


def _scatter_elements(call: TorchCall) -> Tensor:
    """Replace single elements, or combine them with updates."""
    x, indices, updates = on_one_device(call.value(0), call.value(1).to(torch.int64), call.value(2))
    axis, reduction = call.attribute("axis", 0), call.attribute("reduction", "none")
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    kinds = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, indices, updates, kinds[reduction])


def _top_k(call: TorchCall) -> tuple[Tensor, Tensor]:
    """Largest or smallest values along an axis and their positions; the first of equal values."""
    x, axis = call.value(), call.attribute("axis", -1)
    count = call.required_ints(1)[0] if call.has(1) else call.attribute("k")
    values, places = torch.sort(x, dim=axis, descending=bool(call.attribute("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def _cumulative_sum(call: TorchCall) -> Tensor:
    """Cumulative sum along an axis."""
    x, axis = call.value(), call.required_ints(1)[0]
    x = x.flip(axis) if call.attribute("reverse", 0) else x
    sums = torch.cumsum(x, axis, dtype=x.dtype)
    sums = sums - x if call.attribute("exclusive", 0) else sums
    return sums.flip(axis) if call.attribute("reverse", 0) else sums


def _reverse_sequence(call: TorchCall) -> Tensor:
    """Reverse the first elements of each sequence."""
    x, lengths = call.value(), call.value(1).to(call.value().device)
    time, batch = call.attribute("time_axis", 0), call.attribute("batch_axis", 1)
    line = torch.arange(x.shape[time], device=x.device)
    places = torch.where(line < lengths[:, None], lengths[:, None] - 1 - line, line)  # [batch, time]
    places = places if batch < time else places.T
    shape = [n if axis in (time, batch) else 1 for axis, n in enumerate(x.shape)]
    return torch.gather(x, time, places.reshape(shape).expand(x.shape))


INDEXING_OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "GatherND"): _gather_nd,
    ("", "ScatterND"): _scatter_nd,
    ("", "ScatterElements"): _scatter_elements,
    ("", "Scatter"): _scatter_elements,
    ("", "TopK"): _top_k,
    ("", "CumSum"): _cumulative_sum,
    ("", "ReverseSequence"): _reverse_sequence,
    ("", "NonZero"): lambda call: torch.nonzero(call.value()).T,
}
