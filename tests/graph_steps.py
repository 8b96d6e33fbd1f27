"""Steps by which a random model grows: each adds one operator, or one idiom of exporters, where it is possible."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from tests.graph_builder import Builder, Tensor, dense

Step = Callable[[Builder], object]


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def conv(b: Builder) -> None:
    """Conv of any rank: full, grouped or depthwise; strided, dilated."""
    x = b.image()
    if x is not None:
        groups = b.one_of((1, 1, 1, b.one_of(divisors(x.channels)), x.channels))
        conv_of(b, x, groups * b.between(1, max(1, 12 // groups)), groups)


def conv_of(b: Builder, x: Tensor, out: int, groups: int, same: bool = False) -> Tensor:
    rank = len(x.shape) - 2
    kernel = [1 if b.chance(2) else 3 for _ in range(rank)]
    strides, dilation = [1] * rank, 1
    if not same:
        strides = [b.one_of((1, 1, 2)) for _ in range(rank)]
        dilation = b.one_of((1, 1, 2))
    pads = [dilation * (k - 1) // 2 for k in kernel]
    weight = b.weight((out, x.channels // groups, *kernel), x.channels // groups * math.prod(kernel))
    inputs = [x.name, weight, *([] if b.chance(3) else [b.vector(out)])]
    plain = set(kernel) == set(strides) == {1}
    attributes = {} if plain else {"pads": pads * 2, "strides": strides, "dilations": [dilation] * rank}
    size = [(n - 1) // s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    return b.put((x.shape[0], out, *size), "Conv", inputs, **attributes, **({"group": groups} if groups > 1 else {}))


def conv_transpose(b: Builder) -> None:
    x = b.image()
    if x is None:
        return
    groups = b.one_of((1, 1, b.one_of(divisors(x.channels))))
    per_group, rank = b.between(1, max(1, 8 // groups)), len(x.shape) - 2
    kernel, stride = b.one_of((1, 2, 3)), b.one_of((1, 2))
    pad = int(kernel == 3)
    size = [(n - 1) * stride + kernel - 2 * pad for n in x.shape[2:]]
    weight = b.weight((x.channels, per_group, *[kernel] * rank), x.channels // groups, out_axis=1)
    inputs = [x.name, weight, *([b.vector(per_group * groups)] if b.chance(2) else [])]
    attributes = {"group": groups, "strides": [stride] * rank, "pads": [pad] * (2 * rank)}
    b.put((x.shape[0], per_group * groups, *size), "ConvTranspose", inputs, **attributes)


def gemm(b: Builder) -> None:
    x = b.pick(lambda t: math.prod(t.shape[1:]) <= 300)
    if x is not None:
        b.offer(dense(b, x, b.between(2, 10)))


def matmul(b: Builder) -> None:
    """A matrix on the last axis, whether or not the channels lie there."""
    x = b.pick(lambda t: t.axis == len(t.shape) - 1 or b.chance(4))
    if x is None:
        return
    out = b.between(2, 10)
    y = b.put((*x.shape[:-1], out), "MatMul", [x.name, b.weight((x.shape[-1], out), x.shape[-1], 1)], x.axis)
    if b.chance(2):
        b.put(y.shape, "Add", [y.name, b.vector(out)], y.axis)


def product_of_two(b: Builder) -> None:
    """An attention map: two computed operands, so it pins."""
    x = b.pick(lambda t: len(t.shape) == 3)
    if x is not None:
        (turned,) = b.node("Transpose", [x.name], perm=[0, 2, 1])
        b.put((x.shape[0], x.shape[1], x.shape[1]), "MatMul", [x.name, turned], 2)


def batch_norm(b: Builder) -> None:
    x = b.pick(lambda t: t.axis == 1)
    if x is not None:
        n = x.channels
        scale, variance = (b.constant(b.rng.uniform(0.5, 1.5, n).astype(np.float32)) for _ in range(2))
        b.put(x.shape, "BatchNormalization", [x.name, scale, b.vector(n), b.constant(b.normal((n,))), variance])


def instance_norm(b: Builder) -> None:
    x = b.pick(lambda t: t.is_image and math.prod(t.shape[2:]) > 3)
    if x is not None:
        b.put(x.shape, "InstanceNormalization", [x.name, b.vector(x.channels), b.vector(x.channels)], epsilon=1e-2)


def group_norm(b: Builder) -> None:
    x = b.pick(lambda t: t.is_image and math.prod(t.shape[2:]) > 3)
    if x is not None and b.opset >= 21:
        inputs = [x.name, b.vector(x.channels), b.vector(x.channels)]
        b.put(x.shape, "GroupNormalization", inputs, num_groups=b.one_of(divisors(x.channels)), epsilon=1e-2)


def layer_norm(b: Builder) -> None:
    """Over the last axis: free on images, a pin where the channels lie there."""
    x = b.pick(lambda t: t.shape[-1] > 3)
    if x is not None and b.opset >= 17:
        b.put(x.shape, "LayerNormalization", [x.name, b.vector(x.shape[-1])], x.axis, axis=-1, epsilon=1e-2)


def prelu(b: Builder) -> None:
    x = b.image()
    if x is not None:
        tail = [1] * (len(x.shape) - 2)
        slope = b.parameter(b.one_of(([x.channels, *tail], [1, x.channels, *tail], [1])), 0.3)
        b.put(x.shape, "PRelu", [x.name, slope])


def unary(b: Builder) -> None:
    x = b.pick(lambda t: True)
    op = b.one_of(
        ("Relu", "Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Neg", "Abs", "Softplus", "Identity", "Erf", "Elu")
    )
    if x is not None:
        b.put(x.shape, op, [x.name], x.axis)


def clip(b: Builder) -> None:
    x = b.pick(lambda t: True)
    if x is not None:
        low, high = (b.constant(np.array(v, np.float32)) for v in (-1, 6))
        b.put(x.shape, "Clip", [x.name, low, high], x.axis)


def cast(b: Builder) -> None:
    x = b.pick(lambda t: True)
    if x is not None:
        (wide,) = b.node("Cast", [x.name], to=TensorProto.DOUBLE)
        b.put(x.shape, "Cast", [wide], x.axis, to=TensorProto.FLOAT)


def dropout(b: Builder) -> None:
    x = b.pick(lambda t: True)
    if x is not None:
        ratio = [b.constant(np.array(0.3, np.float32))] if b.opset >= 12 and b.chance(2) else []
        b.put(x.shape, "Dropout", [x.name, *ratio], x.axis)


def quantised(b: Builder) -> None:
    """QuantizeLinear and DequantizeLinear on an activation, per tensor or per channel."""
    x = b.pick(lambda t: t.axis == 1)
    if x is None:
        return
    per_channel = b.opset >= 13 and b.chance(2)
    size = (x.channels,) if per_channel else ()
    inputs = [b.constant(np.full(size, 1 / 16, np.float32)), b.constant(np.full(size, 128, np.uint8))]
    attributes = {"axis": 1} if per_channel else {}
    (narrow,) = b.node("QuantizeLinear", [x.name, *inputs], **attributes)
    b.put(x.shape, "DequantizeLinear", [narrow, *inputs], **attributes)


def like(b: Builder, x: Tensor) -> Tensor:
    """A tensor of the same shape: an existing one, or one made by a convolution of its own."""
    found = b.pick(lambda t: t.shape == x.shape and t.axis == x.axis and t.name != x.name)
    if found is not None and not b.chance(4):
        return found
    return conv_of(b, x, x.channels, 1, same=True) if x.is_image else found or x


def join(b: Builder) -> None:
    x = b.pick(lambda t: True)
    if x is not None:
        op = b.one_of(("Add", "Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"))
        others = [like(b, x) for _ in range(b.between(1, 2) if op in ("Max", "Min", "Sum", "Mean") else 1)]
        operands = [x.name, *(t.name for t in others)]
        b.put(x.shape, op, operands[::-1] if b.chance(2) else operands, x.axis)


def division(b: Builder) -> None:
    x = b.pick(lambda t: True)
    if x is not None:
        (size,) = b.node("Abs", [like(b, x).name])
        (divisor,) = b.node("Add", [size, b.constant(np.array([1], np.float32))])
        b.put(x.shape, "Div", [x.name, divisor], x.axis)


def join_constant(b: Builder) -> None:
    """A constant per channel, one for all, one per position, or one for the whole tensor."""
    x = b.pick(lambda t: True)
    if x is None:
        return
    rank = len(x.shape)
    per_channel = [n if k == x.axis else 1 for k, n in enumerate(x.shape)]
    pixels = [1 if k in (0, x.axis) else n for k, n in enumerate(x.shape)]
    shape = b.one_of((per_channel, per_channel[x.axis :], [], [1] * rank, pixels, [1, *x.shape[1:]]))
    constant = b.parameter(shape, 0.2, 1.0)
    op = b.one_of(("Add", "Mul", "Sub", "Div", "Max", "Min"))
    operands = [x.name, constant]
    b.put(x.shape, op, operands[::-1] if op not in ("Div",) and b.chance(2) else operands, x.axis)


def filled(b: Builder) -> None:
    """A constant that is computed from the shape of its tensor."""
    x = b.pick(lambda t: True)
    if x is not None:
        (shape,) = b.node("Shape", [x.name])
        (full,) = b.node("ConstantOfShape", [shape])
        b.put(x.shape, "Add", [x.name, full], x.axis)


def where(b: Builder) -> None:
    x = b.pick(lambda t: True)
    if x is None:
        return
    limit = b.one_of((np.array(0.1, np.float32), None))
    (test,) = b.node("Greater", [x.name, like(b, x).name if limit is None else b.constant(limit)])
    shape = [n if k == x.axis else 1 for k, n in enumerate(x.shape)]
    other = like(b, x).name if b.chance(2) else b.parameter(shape)
    branches = [x.name, other]
    b.put(x.shape, "Where", [test, *(branches[::-1] if b.chance(2) else branches)], x.axis)


def squeeze_excite(b: Builder) -> None:
    x = b.image()
    if x is not None:
        tail = [1] * (len(x.shape) - 2)
        pooled = b.put((*x.shape[:2], *tail), "GlobalAveragePool", [x.name])
        inner = conv_of(b, pooled, b.between(1, 4), 1, same=True)
        hidden = b.put(inner.shape, "Relu", [inner.name])
        wide = conv_of(b, hidden, x.channels, 1, same=True)
        gate = b.put(wide.shape, "Sigmoid", [wide.name])
        b.put(x.shape, "Mul", [gate.name, x.name] if b.chance(2) else [x.name, gate.name])


def spatial_gate(b: Builder) -> None:
    x = b.image()
    if x is not None:
        narrow = conv_of(b, x, 1, 1, same=True)
        gate = b.put(narrow.shape, "Sigmoid", [narrow.name])
        b.put(x.shape, "Mul", [gate.name, x.name] if b.chance(2) else [x.name, gate.name])


def broadcast_join(b: Builder) -> None:
    """A tensor with one pixel joined to one with many."""
    x = b.image()
    if x is not None:
        found = b.pick(lambda t: t.is_image and t.shape == (*x.shape[:2], *[1] * (len(x.shape) - 2)))
        if found is not None:
            b.put(x.shape, b.one_of(("Add", "Mul")), [x.name, found.name])


def pool(b: Builder) -> None:
    x = b.pick(lambda t: t.is_image and min(t.shape[2:]) > 1)
    if x is not None:
        rank, stride = len(x.shape) - 2, b.one_of((1, 2))
        size = [(n - 2) // stride + 1 for n in x.shape[2:]]
        op = b.one_of(("MaxPool", "AveragePool"))
        b.put((*x.shape[:2], *size), op, [x.name], kernel_shape=[2] * rank, strides=[stride] * rank)


def global_pool(b: Builder) -> None:
    x = b.image()
    if x is not None:
        shape = (*x.shape[:2], *[1] * (len(x.shape) - 2))
        b.put(shape, b.one_of(("GlobalAveragePool", "GlobalMaxPool")), [x.name])


def resize(b: Builder) -> None:
    x = b.image()
    if x is None:
        return
    spatial = [2 * n for n in x.shape[2:]]
    roi = b.constant(np.zeros(0, np.float32)) if b.opset < 13 else ""
    by_axes = b.opset >= 18 and b.chance(2)
    lead = [] if by_axes else [*x.shape[:2]]
    attributes = {"axes": [*range(2, len(x.shape))]} if by_axes else {}
    if b.chance(2):
        inputs = [x.name, roi, "" if b.opset >= 13 else roi, b.ints(*lead, *spatial)]
    else:
        inputs = [x.name, roi, b.constant(np.array([1] * len(lead) + [2] * len(spatial), np.float32))]
    modes = ("nearest", "linear") if len(spatial) == 2 and not by_axes else ("nearest",)
    b.put((*x.shape[:2], *spatial), "Resize", inputs, mode=b.one_of(modes), **attributes)


def reduce_pixels(b: Builder) -> None:
    x = b.image()
    if x is not None:
        axes, keep = list(range(2, len(x.shape))), b.choose(2)
        op = b.one_of(("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"))
        name = b.axes_node(op, [x.name], axes, 13 if op == "ReduceSum" else 18, keepdims=keep)
        b.offer(Tensor(name, (*x.shape[:2], *[1] * (len(axes) * keep))))


def reduce_channels(b: Builder) -> None:
    """A mean over the channels: a pin."""
    x = b.image()
    if x is not None:
        b.offer(Tensor(b.axes_node("ReduceMean", [x.name], [1], 18, keepdims=1), x.resized(1)))


def softmax(b: Builder) -> None:
    """Over pixels, or over channels (a pin)."""
    x = b.pick(lambda t: len(t.shape) > 2)
    if x is not None:
        b.put(x.shape, "Softmax", [x.name], x.axis, axis=b.one_of((-1, -1, -1, 2, 1)))


def local_response(b: Builder) -> None:
    """LRN mixes neighbouring channels and has no rule: a pin."""
    x = b.pick(lambda t: t.is_image and len(t.shape) == 4)
    if x is not None:
        b.put(x.shape, "LRN", [x.name], size=3)


STEPS: list[Step] = [
    *(conv, conv_transpose, gemm, matmul, product_of_two, batch_norm, instance_norm, group_norm, layer_norm, prelu),
    *(unary, unary, clip, cast, dropout, quantised, join, join, division, join_constant, join_constant, filled, where),
    *(squeeze_excite, spatial_gate, broadcast_join, pool, global_pool, resize, softmax),
    *(reduce_pixels, reduce_channels, local_response),
]
