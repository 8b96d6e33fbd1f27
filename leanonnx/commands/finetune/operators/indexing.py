"""Torch functions of operators that look up and scatter, sort and accumulate."""

from __future__ import annotations

import torch

from leanonnx.commands.finetune.operators.call import Call, Operator, Tensor, together


def gather(call: Call) -> Tensor:
    """Slices along an axis, in the shape of the indices."""
    x, indices, axis = call.x(), call.x(1).to(torch.int64), call.attr("axis", 0) % call.x().ndim
    if indices.device.type == "cpu" and indices.ndim == 0:
        return x.select(axis, int(indices))
    places = torch.where(indices < 0, indices + x.shape[axis], indices).to(x.device)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def gather_elements(call: Call) -> Tensor:
    """One element for each index."""
    x, indices = together(call.x(0), call.x(1).to(torch.int64))
    axis = call.attr("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _places(x: Tensor, indices: Tensor, lead: int) -> tuple[Tensor, ...]:
    """Index tensors of the axes that the last axis of ``indices`` addresses, those of the batch before them."""
    indices = indices.to(torch.int64)
    shape = indices.shape[:-1]
    found = []
    for axis in range(lead):
        line = torch.arange(shape[axis], device=indices.device)
        found.append(line.reshape(-1, *[1] * (len(shape) - axis - 1)).expand(shape))
    for k in range(indices.shape[-1]):
        part = indices[..., k]
        found.append(torch.where(part < 0, part + x.shape[lead + k], part))
    return tuple(found)


def gather_nd(call: Call) -> Tensor:
    """Slices addressed by tuples of indices."""
    x, indices = together(call.x(0), call.x(1))
    return x[_places(x, indices, call.attr("batch_dims", 0))]


def scatter_nd(call: Call) -> Tensor:
    """A copy with slices addressed by tuples of indices replaced."""
    x, indices, updates = together(call.x(0), call.x(1), call.x(2))
    reduction = call.attr("reduction", "none")
    if reduction not in ("none", "add"):
        raise call.refused(f"its reduction is {reduction}")
    return x.index_put(_places(x, indices, 0), updates.to(x.dtype), accumulate=reduction == "add")


def scatter_elements(call: Call) -> Tensor:
    """A copy with single elements replaced."""
    x, indices, updates = together(call.x(0), call.x(1).to(torch.int64), call.x(2))
    axis, reduction = call.attr("axis", 0), call.attr("reduction", "none")
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    kinds = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, indices, updates, kinds[reduction])


def top_k(call: Call) -> tuple[Tensor, Tensor]:
    """Largest or smallest values along an axis and where they stand; of equal ones, the first."""
    x, axis = call.x(), call.attr("axis", -1)
    count = call.ints(1)[0] if call.has(1) else call.attr("k")
    values, places = torch.sort(x, dim=axis, descending=bool(call.attr("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def cumulative_sum(call: Call) -> Tensor:
    """Running sums along an axis."""
    x, axis = call.x(), call.ints(1)[0]
    x = x.flip(axis) if call.attr("reverse", 0) else x
    found = torch.cumsum(x, axis, dtype=x.dtype)
    found = found - x if call.attr("exclusive", 0) else found
    return found.flip(axis) if call.attr("reverse", 0) else found


def reverse_sequence(call: Call) -> Tensor:
    """The first elements of each sequence in reverse."""
    x, lengths = call.x(), call.x(1).to(call.x().device)
    time, batch = call.attr("time_axis", 0), call.attr("batch_axis", 1)
    line = torch.arange(x.shape[time], device=x.device)
    places = torch.where(line < lengths[:, None], lengths[:, None] - 1 - line, line)  # [batch, time]
    places = places if batch < time else places.T
    shape = [n if axis in (time, batch) else 1 for axis, n in enumerate(x.shape)]
    return torch.gather(x, time, places.reshape(shape).expand(x.shape))


INDEXING: dict[tuple[str, str], Operator] = {
    ("", "Gather"): gather,
    ("", "GatherElements"): gather_elements,
    ("", "GatherND"): gather_nd,
    ("", "ScatterND"): scatter_nd,
    ("", "ScatterElements"): scatter_elements,
    ("", "Scatter"): scatter_elements,
    ("", "TopK"): top_k,
    ("", "CumSum"): cumulative_sum,
    ("", "ReverseSequence"): reverse_sequence,
    ("", "NonZero"): lambda call: torch.nonzero(call.x()).T,
}
