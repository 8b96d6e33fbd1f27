"""Torch functions of pooling."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Call, Operator, Tensor
from leanonnx.commands.finetune.operators.linear import CONVOLUTIONS, border, bordered, steps

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
GRID_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
GRID_MODES |= {"bicubic": "bicubic"}


def _window(call: Call) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, pads, and what windows that begin inside need beyond the ends (``ceil_mode``)."""
    x, kernel = call.x(), list(call.attr("kernel_shape"))
    strides, dilations = steps(call, len(kernel))
    sizes = list(x.shape[2:])
    pads = border(call, sizes, kernel, strides, dilations)
    extra = []
    for k, size in enumerate(sizes):
        reach, padded = (kernel[k] - 1) * dilations[k] + 1, size + pads[k] + pads[k + len(kernel)]
        count = (padded - reach) / strides[k]
        count = (math.ceil(count) if call.attr("ceil_mode", 0) else math.floor(count)) + 1
        count -= (count - 1) * strides[k] >= size + pads[k] and bool(call.attr("ceil_mode", 0))
        extra.append(max((count - 1) * strides[k] + reach - padded, 0))
    return kernel, strides, dilations, pads, extra


def max_pool(call: Call) -> Tensor:
    """Largest value in each window."""
    if len([name for name in call.node.output if name]) > 1:
        raise call.refused("it puts out where the largest values stand")
    x = call.x()
    kernel, strides, dilations, pads, extra = _window(call)
    count = len(kernel)
    if not any(extra) and pads[:count] == pads[count:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        return POOLS[count](x, kernel, strides, pads[:count], dilations)
    ends = [p + e for p, e in zip(pads[count:], extra, strict=True)]
    return POOLS[count](bordered(x, pads[:count] + ends, -math.inf), kernel, strides, 0, dilations)


def _sums(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Sum over each window, channel by channel."""
    count = len(kernel)
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    found = CONVOLUTIONS[count](flat, ones, None, strides, 0, dilations)
    return found.reshape(*x.shape[:2], *found.shape[2:])


def average_pool(call: Call) -> Tensor:
    """Mean over each window; the border counts with ``count_include_pad``, what lies beyond it never."""
    x = call.x()
    kernel, strides, dilations, pads, extra = _window(call)
    count = len(kernel)
    beyond = [0] * count + extra
    if not any(pads + extra):
        return _sums(x, kernel, strides, dilations) / math.prod(kernel)
    sums = _sums(bordered(bordered(x, pads), beyond), kernel, strides, dilations)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    around = bordered(ones, pads, 1.0 if call.attr("count_include_pad", 0) else 0.0)
    return sums / _sums(bordered(around, beyond), kernel, strides, dilations)


def lp_pool(call: Call) -> Tensor:
    """p-norm of each window."""
    kernel, strides, dilations, pads, extra = _window(call)
    p = call.attr("p", 2)
    x = bordered(bordered(call.x(), pads), [0] * len(kernel) + extra)
    return _sums(x.abs() ** p, kernel, strides, dilations) ** (1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def global_lp(call: Call) -> Tensor:
    """p-norm of each channel."""
    x, p = call.x(), call.attr("p", 2)
    return (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1 / p)


def grid_sample(call: Call) -> Tensor:
    """Values at the positions of a grid."""
    mode = call.attr("mode", "bilinear")
    return F.grid_sample(
        call.x(0),
        call.x(1),
        GRID_MODES[mode],
        call.attr("padding_mode", "zeros"),
        bool(call.attr("align_corners", 0)),
    )


SPATIAL: dict[tuple[str, str], Operator] = {
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): average_pool,
    ("", "LpPool"): lp_pool,
    ("", "GlobalAveragePool"): lambda call: call.x().mean(_spatial(call.x()), keepdim=True),
    ("", "GlobalMaxPool"): lambda call: call.x().amax(_spatial(call.x()), keepdim=True),
    ("", "GlobalLpPool"): global_lp,
    ("", "GridSample"): grid_sample,
}
