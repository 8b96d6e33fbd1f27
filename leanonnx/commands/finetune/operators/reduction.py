"""Torch functions of reductions over axes, ArgMax, ArgMin and Softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall

_Reduce: TypeAlias = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, _Reduce] = {
    "Mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "Sum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "Max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "Min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "Prod": _product,
    "L1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "L2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "SumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "LogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "LogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


def _reduction(function: _Reduce) -> Operator:
    def run(call: TorchCall) -> Tensor:
        x, axes = call.value(), call.ints(1, "axes")
        if not x.ndim or (not axes and call.attribute("noop_with_empty_axes", 0)):
            return function(x.unsqueeze(-1), [x.ndim], False)
        axes = [axis % x.ndim for axis in axes] if axes else list(range(x.ndim))
        return function(x, axes, bool(call.attribute("keepdims", 1)))

    return run


def _extremum_index(function: Callable[..., Tensor]) -> Operator:
    def run(call: TorchCall) -> Tensor:
        x, axis = call.value(), call.attribute("axis", 0) % call.value().ndim
        last = call.attribute("select_last_index", 0)
        index = function(x.flip(axis) if last else x, axis, keepdim=bool(call.attribute("keepdims", 1)))
        return x.shape[axis] - 1 - index if last else index

    return run


def _over_axis(function: Callable[[Tensor, int], Tensor]) -> Operator:
    """Operator over one axis; before operator set 13, over all axes from the named one on, flattened."""

    def run(call: TorchCall) -> Tensor:
        x = call.value()
        if call.opset >= 13:
            return function(x, call.attribute("axis", -1))
        axis = call.attribute("axis", 1) % x.ndim
        return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)

    return run


def _hardmax(x: Tensor, axis: int) -> Tensor:
    first = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


REDUCTION_OPERATORS: dict[tuple[str, str], Operator] = {
    **{("", f"Reduce{name}"): _reduction(function) for name, function in _REDUCTIONS.items()},
    ("", "ArgMax"): _extremum_index(torch.argmax),
    ("", "ArgMin"): _extremum_index(torch.argmin),
    ("", "Softmax"): _over_axis(torch.softmax),
    ("", "LogSoftmax"): _over_axis(torch.log_softmax),
    ("", "Hardmax"): _over_axis(_hardmax),
}
