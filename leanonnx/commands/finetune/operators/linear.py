"""Torch functions of convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall

CONV_BY_RANK = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE_BY_RANK = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_FUSED_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": F.hardswish,
}


def window_padding(
    call: TorchCall, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[int]:
    """Padding of an image for a sliding window: all begins, then all ends."""
    auto = call.attribute("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * (2 * len(kernel))
    if auto == "NOTSET":
        return list(call.attribute("pads", [0] * (2 * len(kernel))))
    begins, ends = [], []
    for size, k, step, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // step) - 1) * step + (k - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return begins + ends


def pad_image(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    """Pad an image with one value (all begins, then all ends); negative pads crop."""
    count = len(pads) // 2
    flat = [pads[axis + side * count] for axis in reversed(range(count)) for side in (0, 1)]
    return F.pad(x, flat, value=value) if any(flat) else x


def strides_and_dilations(call: TorchCall, count: int) -> tuple[list[int], list[int]]:
    """Strides and dilations of a window with ``count`` axes."""
    return list(call.attribute("strides", [1] * count)), list(call.attribute("dilations", [1] * count))


def _conv(call: TorchCall) -> Tensor:
    """Convolution over 1, 2 or 3 axes."""
    x, weight = call.value(), call.value(1)
    count = weight.ndim - 2
    if count not in CONV_BY_RANK:
        raise call.error(f"it convolves over {count} axes, expected 1 to 3")
    strides, dilations = strides_and_dilations(call, count)
    pads = window_padding(call, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    if pads[:count] == pads[count:] and min(pads) >= 0:
        padding = pads[:count]
    else:
        x, padding = pad_image(x, pads), [0] * count
    return CONV_BY_RANK[count](x, weight, call.get(2), strides, padding, dilations, call.attribute("group", 1))


def _conv_transpose(call: TorchCall) -> Tensor:
    """Transposed convolution: the full output, cropped."""
    x, weight = call.value(), call.value(1)
    count = weight.ndim - 2
    if count not in _CONV_TRANSPOSE_BY_RANK:
        raise call.error(f"it convolves over {count} axes, expected 1 to 3")
    strides, dilations = strides_and_dilations(call, count)
    full = _CONV_TRANSPOSE_BY_RANK[count](x, weight, None, strides, 0, 0, call.attribute("group", 1), dilations)
    spare = list(call.attribute("output_padding", [0] * count))
    pads = _crop_widths(call, list(x.shape[2:]), [n + s for n, s in zip(full.shape[2:], spare, strict=True)], strides)
    full = pad_image(full, [-p for p in pads[:count]] + [s - p for s, p in zip(spare, pads[count:], strict=True)])
    bias = call.get(2)
    return full if bias is None else full + bias.reshape(-1, *[1] * count)


def _crop_widths(call: TorchCall, sizes: list[int], full: list[int], strides: list[int]) -> list[int]:
    """Widths cropped from the full output of a transposed convolution: all begins, then all ends."""
    auto, shape = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    if shape is None and auto in ("NOTSET", "VALID"):
        return list(call.attribute("pads", [0] * (2 * len(sizes)))) if auto == "NOTSET" else [0] * (2 * len(sizes))
    wanted = list(shape)[-len(sizes) :] if shape else [n * s for n, s in zip(sizes, strides, strict=True)]
    totals = [n - w for n, w in zip(full, wanted, strict=True)]
    begins = [max(t // 2 if auto == "SAME_UPPER" else t - t // 2, 0) for t in totals]
    return begins + [t - b for t, b in zip(totals, begins, strict=True)]


def _activate(call: TorchCall, value: Tensor) -> Tensor:
    """Apply the activation of one of onnxruntime's fused operators."""
    name = call.attribute("activation", "")
    if not name:
        return value
    if name not in _FUSED_ACTIVATIONS:
        raise call.error(f"its activation is {name}")
    named = [call.attribute(f"activation_{key}") for key in ("alpha", "beta")]
    return _FUSED_ACTIVATIONS[name](value, *call.attribute("activation_params", [n for n in named if n is not None]))


def _fused_conv(call: TorchCall) -> Tensor:
    """Convolution, addition of a fourth input, activation."""
    value = _conv(call)
    added = call.get(3)
    return _activate(call, value if added is None else value + added)


def _gemm(call: TorchCall) -> Tensor:
    """alpha A B + beta C."""
    a, b = call.value(0), call.value(1)
    a = a.T if call.attribute("transA", 0) else a
    b = b.T if call.attribute("transB", 0) else b
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    c = call.get(2)
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else beta * c)


def _fused_matmul(call: TorchCall) -> Tensor:
    """alpha A B; either factor may be transposed."""
    a, b = call.value(0), call.value(1)
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise call.error("it transposes its batch axes")
    a = a.mT if call.attribute("transA", 0) else a
    b = b.mT if call.attribute("transB", 0) else b
    return call.attribute("alpha", 1.0) * torch.matmul(a, b)


LINEAR_OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): lambda call: torch.matmul(*call.operands),
    ("", "Einsum"): lambda call: torch.einsum(call.attribute("equation"), *call.operands),
    ("com.microsoft", "FusedConv"): _fused_conv,
    ("com.microsoft", "FusedGemm"): lambda call: _activate(call, _gemm(call)),
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
}
