"""Torch functions of pooling and grid sampling."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall
from leanonnx.commands.finetune.operators.linear import CONV_BY_RANK, pad_image, strides_and_dilations, window_padding

_MAX_POOL_BY_RANK = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_GRID_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
_GRID_MODES |= {"bicubic": "bicubic"}


def _window(call: TorchCall) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, pads, and the extra padding at the ends that ``ceil_mode`` needs."""
    x, kernel = call.value(), list(call.attribute("kernel_shape"))
    strides, dilations = strides_and_dilations(call, len(kernel))
    sizes = list(x.shape[2:])
    pads = window_padding(call, sizes, kernel, strides, dilations)
    extra = []
    for k, size in enumerate(sizes):
        reach, padded = (kernel[k] - 1) * dilations[k] + 1, size + pads[k] + pads[k + len(kernel)]
        count = (padded - reach) / strides[k]
        count = (math.ceil(count) if call.attribute("ceil_mode", 0) else math.floor(count)) + 1
        count -= (count - 1) * strides[k] >= size + pads[k] and bool(call.attribute("ceil_mode", 0))
        extra.append(max((count - 1) * strides[k] + reach - padded, 0))
    return kernel, strides, dilations, pads, extra


def _max_pool(call: TorchCall) -> Tensor:
    """Maximum of each window."""
    if len([name for name in call.node.output if name]) > 1:
        raise call.error("it outputs the indices of the maxima")
    x = call.value()
    kernel, strides, dilations, pads, extra = _window(call)
    count = len(kernel)
    if not any(extra) and pads[:count] == pads[count:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        return _MAX_POOL_BY_RANK[count](x, kernel, strides, pads[:count], dilations)
    ends = [p + e for p, e in zip(pads[count:], extra, strict=True)]
    return _MAX_POOL_BY_RANK[count](pad_image(x, pads[:count] + ends, -math.inf), kernel, strides, 0, dilations)


def _window_sums(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Sum of each window, channel by channel."""
    count = len(kernel)
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    sums = CONV_BY_RANK[count](flat, ones, None, strides, 0, dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _average_pool(call: TorchCall) -> Tensor:
    """Mean of each window; padding counts with ``count_include_pad``, the extra of ``ceil_mode`` never."""
    x = call.value()
    kernel, strides, dilations, pads, extra = _window(call)
    count = len(kernel)
    beyond = [0] * count + extra
    if not any(pads + extra):
        return _window_sums(x, kernel, strides, dilations) / math.prod(kernel)
    sums = _window_sums(pad_image(pad_image(x, pads), beyond), kernel, strides, dilations)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    around = pad_image(ones, pads, 1.0 if call.attribute("count_include_pad", 0) else 0.0)
    return sums / _window_sums(pad_image(around, beyond), kernel, strides, dilations)


def _lp_pool(call: TorchCall) -> Tensor:
    """p-norm of each window."""
    kernel, strides, dilations, pads, extra = _window(call)
    p = call.attribute("p", 2)
    x = pad_image(pad_image(call.value(), pads), [0] * len(kernel) + extra)
    return _window_sums(x.abs() ** p, kernel, strides, dilations) ** (1 / p)


def _spatial_axes(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _global_lp(call: TorchCall) -> Tensor:
    """p-norm of each channel."""
    x, p = call.value(), call.attribute("p", 2)
    return (x.abs() ** p).sum(_spatial_axes(x), keepdim=True) ** (1 / p)


def _grid_sample(call: TorchCall) -> Tensor:
    """Sample values at the positions of a grid."""
    mode = call.attribute("mode", "bilinear")
    return F.grid_sample(
        call.value(0),
        call.value(1),
        _GRID_MODES[mode],
        call.attribute("padding_mode", "zeros"),
        bool(call.attribute("align_corners", 0)),
    )


SPATIAL_OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "MaxPool"): _max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "LpPool"): _lp_pool,
    ("", "GlobalAveragePool"): lambda call: call.value().mean(_spatial_axes(call.value()), keepdim=True),
    ("", "GlobalMaxPool"): lambda call: call.value().amax(_spatial_axes(call.value()), keepdim=True),
    ("", "GlobalLpPool"): _global_lp,
    ("", "GridSample"): _grid_sample,
}
