"""Torch functions of operators with weights: convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Call, Operator, Tensor

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": F.hardswish,
}


def border(call: Call, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Numbers laid around an image before a window goes over it: all begins, then all ends."""
    auto = call.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * (2 * len(kernel))
    if auto == "NOTSET":
        return list(call.attr("pads", [0] * (2 * len(kernel))))
    begins, ends = [], []
    for size, k, step, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // step) - 1) * step + (k - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return begins + ends


def bordered(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    """An image with a border of one value (all begins, then all ends); negative pads cut off."""
    count = len(pads) // 2
    flat = [pads[axis + side * count] for axis in reversed(range(count)) for side in (0, 1)]
    return F.pad(x, flat, value=value) if any(flat) else x


def steps(call: Call, count: int) -> tuple[list[int], list[int]]:
    """Strides and dilations of a window of so many axes."""
    return list(call.attr("strides", [1] * count)), list(call.attr("dilations", [1] * count))


def conv(call: Call) -> Tensor:
    """Convolution of 1, 2 or 3 axes."""
    x, weight = call.x(), call.x(1)
    count = weight.ndim - 2
    if count not in CONVOLUTIONS:
        raise call.refused(f"it convolves over {count} axes, expected 1 to 3")
    strides, dilations = steps(call, count)
    pads = border(call, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    if pads[:count] == pads[count:] and min(pads) >= 0:
        padding = pads[:count]
    else:
        x, padding = bordered(x, pads), [0] * count
    return CONVOLUTIONS[count](x, weight, call.get(2), strides, padding, dilations, call.attr("group", 1))


def conv_transpose(call: Call) -> Tensor:
    """Transposed convolution: the full one, cut to size."""
    x, weight = call.x(), call.x(1)
    count = weight.ndim - 2
    if count not in TRANSPOSED:
        raise call.refused(f"it convolves over {count} axes, expected 1 to 3")
    strides, dilations = steps(call, count)
    full = TRANSPOSED[count](x, weight, None, strides, 0, 0, call.attr("group", 1), dilations)
    spare = list(call.attr("output_padding", [0] * count))
    pads = _cut(call, list(x.shape[2:]), [n + s for n, s in zip(full.shape[2:], spare, strict=True)], strides)
    full = bordered(full, [-p for p in pads[:count]] + [s - p for s, p in zip(spare, pads[count:], strict=True)])
    bias = call.get(2)
    return full if bias is None else full + bias.reshape(-1, *[1] * count)


def _cut(call: Call, sizes: list[int], full: list[int], strides: list[int]) -> list[int]:
    """What a transposed convolution leaves out at the edges: all begins, then all ends."""
    auto, shape = call.attr("auto_pad", "NOTSET"), call.attr("output_shape")
    if shape is None and auto in ("NOTSET", "VALID"):
        return list(call.attr("pads", [0] * (2 * len(sizes)))) if auto == "NOTSET" else [0] * (2 * len(sizes))
    wanted = list(shape)[-len(sizes) :] if shape else [n * s for n, s in zip(sizes, strides, strict=True)]
    totals = [n - w for n, w in zip(full, wanted, strict=True)]
    begins = [max(t // 2 if auto == "SAME_UPPER" else t - t // 2, 0) for t in totals]
    return begins + [t - b for t, b in zip(totals, begins, strict=True)]


def activated(call: Call, value: Tensor) -> Tensor:
    """What onnxruntime's fused operators do after their sum."""
    name = call.attr("activation", "")
    if not name:
        return value
    if name not in ACTIVATIONS:
        raise call.refused(f"its activation is {name}")
    named = [call.attr(f"activation_{key}") for key in ("alpha", "beta")]
    return ACTIVATIONS[name](value, *call.attr("activation_params", [n for n in named if n is not None]))


def fused_conv(call: Call) -> Tensor:
    """Convolution, sum with a fourth input and activation."""
    value = conv(call)
    added = call.get(3)
    return activated(call, value if added is None else value + added)


def gemm(call: Call) -> Tensor:
    """alpha A B + beta C."""
    a, b = call.x(0), call.x(1)
    a = a.T if call.attr("transA", 0) else a
    b = b.T if call.attr("transB", 0) else b
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    c = call.get(2)
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else beta * c)


def fused_matmul(call: Call) -> Tensor:
    """alpha A B, either transposed first."""
    a, b = call.x(0), call.x(1)
    if call.attr("transBatchA", 0) or call.attr("transBatchB", 0):
        raise call.refused("it turns its batch axes")
    a = a.mT if call.attr("transA", 0) else a
    b = b.mT if call.attr("transB", 0) else b
    return call.attr("alpha", 1.0) * torch.matmul(a, b)


LINEAR: dict[tuple[str, str], Operator] = {
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "Gemm"): gemm,
    ("", "MatMul"): lambda call: torch.matmul(*call.given),
    ("", "Einsum"): lambda call: torch.einsum(call.attr("equation"), *call.given),
    ("com.microsoft", "FusedConv"): fused_conv,
    ("com.microsoft", "FusedGemm"): lambda call: activated(call, gemm(call)),
    ("com.microsoft", "FusedMatMul"): fused_matmul,
}
