"""Steps of a random model with free axes that fold one axis into another: the batch, pixels, groups, heads, windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.graph_builder import Tensor
from tests.graph_free import FreeBuilder, free
from tests.graph_sizes import as_float, tokens_of
from tests.graph_steps import Step, conv_of, divisors

EPSILON = np.float32(0.05)


def moved(b: FreeBuilder, name: str, before: Sequence[int], perm: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """A Transpose, and its shape."""
    return b.node("Transpose", [name], perm=list(perm))[0], tuple(before[k] for k in perm)


def rows_changed(b: FreeBuilder, name: str, shape: Sequence[int]) -> str:
    """Something that depends on the last axis as a whole, in the same shape."""
    last = len(shape) - 1
    form = b.choose(5)
    if form == 0:
        return b.node("Sub", [name, b.axes_node("ReduceMax", [name], [last], 18, keepdims=1)])[0]
    if form == 1:
        return b.node("Softmax", [name], axis=last)[0]
    if form == 2:
        return normalised(b, name, last)
    if form == 3:
        (numbers,) = b.node("Div", [name, as_float(b, b.measured(shape[-1]))])
        return b.node("Sub", [name, b.axes_node("ReduceSum", [numbers], [last], 13, keepdims=1)])[0]
    return b.node("Tanh", [name])[0]


def normalised(b: FreeBuilder, name: str, axis: int) -> str:
    """Normalisation along an axis, written as elementary operators."""
    (centred,) = b.node("Sub", [name, b.axes_node("ReduceMean", [name], [axis], 18, keepdims=1)])
    (square,) = b.node("Mul", [centred, centred])
    (raised,) = b.node("Add", [b.axes_node("ReduceMean", [square], [axis], 18, keepdims=1), b.constant(EPSILON)])
    return b.node("Div", [centred, b.node("Sqrt", [raised])[0]])[0]


def unfolded(b: FreeBuilder, name: str, before: Sequence[int], x: Tensor) -> None:
    """Back to the shape of an earlier tensor: by its Shape itself, or entry by entry."""
    if b.chance(2):
        b.put(x.shape, "Reshape", [name, b.shape_of(x)], x.axis)
    else:
        b.offer(Tensor(b.reshaped(name, before, x.shape), x.shape, x.axis))


def folded_rows(b: FreeBuilder) -> None:
    """Batch, channels or groups of them, and pixels multiplied into one or two axes, changed there and unfolded."""
    x = b.image()
    if x is None:
        return
    n, c, *pixels = x.shape
    area, groups = math.prod(pixels), b.one_of(divisors(c))
    shapes = [
        *((n * c, area), (n * groups, c // groups * area), (n * c * pixels[0], math.prod(pixels[1:]))),
        *((n, c * pixels[0], *pixels[1:]), (n, c, area), (n, c * area), (n * groups, c // groups, *pixels)),
        *((n * c, 1, *pixels), (n, groups, c // groups * area), (n * c, *pixels), (c * n, area, 1)),
    ]
    shape = b.one_of(shapes)
    folded = b.reshaped(x.name, x.shape, shape)
    unfolded(b, rows_changed(b, folded, shape), shape, x)


def flattened_rows(b: FreeBuilder) -> None:
    """Flatten at any axis, so that batch and channels share an axis."""
    x = b.image()
    if x is None:
        return
    axis = b.between(1, len(x.shape) - 1)
    shape = (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    (flat,) = b.node("Flatten", [x.name], axis=axis)
    unfolded(b, rows_changed(b, flat, shape), shape, x)


def group_norm_by_hand(b: FreeBuilder) -> None:
    """Groups of channels on the batch's axis or one of their own, normalised, then a scale per channel."""
    x = b.image()
    if x is None:
        return
    n, c, *pixels = x.shape
    groups = b.one_of(divisors(c))
    shape = b.one_of(((n * groups, c // groups * math.prod(pixels)), (n, groups, c // groups * math.prod(pixels))))
    folded = b.reshaped(x.name, x.shape, shape)
    name = b.reshaped(normalised(b, folded, len(shape) - 1), shape, x.shape)
    scale = b.parameter((c, *[1] * len(pixels)), 0.3, 1.0)
    b.put(x.shape, "Mul", [name, scale])


def instances_as_channels(b: FreeBuilder) -> None:
    """Batch and groups as the channels of one image, as exporters write a group norm."""
    x = b.image()
    if x is None:
        return
    n, c, *pixels = x.shape
    groups = b.one_of(divisors(c))
    shape = (n, groups, c // groups * math.prod(pixels))
    folded = b.reshaped(x.name, x.shape, shape)
    ones, zeros = (b.constant(np.full(groups, v, np.float32)) for v in (1, 0))
    (even,) = b.node("InstanceNormalization", [folded, ones, zeros], epsilon=1e-2)
    unfolded(b, even, shape, x)


def groups_in_batch(b: FreeBuilder) -> None:
    """b (g c) h w → (b g) c h w, one convolution for all groups, and back."""
    x = b.image()
    if x is None:
        return
    n, c, *pixels = x.shape
    groups = b.one_of(divisors(c))
    shape = (n * groups, c // groups, *pixels)
    folded = Tensor(b.reshaped(x.name, x.shape, shape), shape)
    out = conv_of(b, folded, b.between(1, 4), 1, same=True)
    b.tensors.remove(out)
    joined = (n, groups * out.channels, *pixels)
    b.offer(Tensor(b.reshaped(out.name, out.shape, joined), joined))


def left_folded(b: FreeBuilder) -> None:
    """Groups on the batch's axis, left there."""
    x = b.image()
    if x is not None and len(x.shape) < 5:
        groups = b.one_of(divisors(x.channels))
        shape = (x.shape[0] * groups, x.channels // groups, *x.shape[2:])
        b.offer(Tensor(b.reshaped(x.name, x.shape, shape), shape))


def rows_as_sequences(b: FreeBuilder) -> None:
    """b c h w → (b h) w c or (b w) c h: attention, recurrence or a convolution along one axis."""
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1)
    if x is None:
        return
    n, c, h, w = x.shape
    out = b.between(2, 6)
    if b.chance(2):
        turned, shape = moved(b, x.name, x.shape, (0, 3, 1, 2))
        long = Tensor(b.reshaped(turned, shape, (n * w, c, h)), (n * w, c, h))
        y = conv_of(b, long, out, 1, same=True)
        b.tensors.remove(y)
        apart = b.reshaped(y.name, y.shape, (n, w, out, h))
        b.put((n, out, h, w), "Transpose", [apart], perm=[0, 2, 3, 1])
        return
    turned, shape = moved(b, x.name, x.shape, (0, 2, 3, 1))
    folded = b.reshaped(turned, shape, (n * h, w, c))
    (mixed,) = b.node("MatMul", [folded, b.weight((c, out), c, 1)])
    if b.chance(2):
        (across,) = b.node("Transpose", [mixed], perm=[0, 2, 1])
        (scores,) = b.node("Softmax", [b.node("MatMul", [mixed, across])[0]], axis=2)
        (mixed,) = b.node("MatMul", [scores, mixed])
    apart = b.reshaped(mixed, (n * h, w, out), (n, h, w, out))
    b.put((n, out, h, w), "Transpose", [apart], perm=[0, 3, 1, 2])


def tokens_in_batch(b: FreeBuilder) -> None:
    """b t c → (b t) c, a dense layer, and back."""
    x = tokens_of(b)
    if x is None:
        return
    n, length, width = x.shape
    out = b.between(2, 6)
    flat = b.reshaped(x.name, x.shape, (n * length, width))
    (mixed,) = b.node("Gemm", [flat, b.weight((width, out), width, 1), b.vector(out)])
    b.offer(Tensor(b.reshaped(mixed, (n * length, out), (n, length, out)), (n, length, out), 2))


def heads_in_batch(b: FreeBuilder) -> None:
    """Attention whose heads lie on the batch's axis."""
    x = tokens_of(b)
    if x is None:
        return
    n, length, width = x.shape
    heads, depth = b.between(1, 3), b.between(1, 3)
    inner = heads * depth
    by_length = b.chance(2)

    def part() -> str:
        (wide,) = b.node("MatMul", [x.name, b.weight((width, inner), width, 1)])
        apart = b.reshaped(wide, (n, length, inner), (n, length, heads, depth))
        turned, shape = moved(b, apart, (n, length, heads, depth), (0, 2, 1, 3))
        return b.reshaped(turned, shape, (n * heads, length, depth))

    queries, keys, values = part(), part(), part()
    (across,) = b.node("Transpose", [keys], perm=[0, 2, 1])
    (scores,) = b.node("MatMul", [queries, across])
    if by_length:
        (scores,) = b.node("Div", [scores, b.node("Sqrt", [as_float(b, b.measured(depth))])[0]])
    (weights,) = b.node("Softmax", [scores], axis=2)
    (mixed,) = b.node("MatMul", [weights, values])
    apart = b.reshaped(mixed, (n * heads, length, depth), (n, heads, length, depth))
    turned, shape = moved(b, apart, (n, heads, length, depth), (0, 2, 1, 3))
    joined = b.reshaped(turned, shape, (n, length, inner))
    out = b.one_of((width, b.between(2, 6)))
    y = b.put((n, length, out), "MatMul", [joined, b.weight((inner, out), inner, 1)], 2)
    if out == width:
        b.put(x.shape, "Add", [x.name, y.name], 2)


def windows(b: FreeBuilder) -> None:
    """Windows of 2 by 2 pixels on the batch's axis, mixed within, and put back (as Swin does)."""
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1 and t.shape[2] % 2 == t.shape[3] % 2 == 0)
    if x is None:
        return
    n, c, h, w = x.shape
    last, shape = moved(b, x.name, x.shape, (0, 2, 3, 1))
    parts = (n, h // 2, 2, w // 2, 2, c)
    turned, shape = moved(b, b.reshaped(last, shape, parts), parts, (0, 1, 3, 2, 4, 5))
    folded = (n * (h // 2) * (w // 2), 4, c)
    out = b.between(2, 6)
    inside = b.reshaped(turned, shape, folded)
    (mixed,) = b.node("MatMul", [inside, b.weight((c, out), c, 1)])
    if b.chance(2):
        (across,) = b.node("Transpose", [mixed], perm=[0, 2, 1])
        (mixed,) = b.node("MatMul", [b.node("Softmax", [b.node("MatMul", [mixed, across])[0]], axis=2)[0], mixed])
    apart = (n, h // 2, w // 2, 2, 2, out)
    back, shape = moved(b, b.reshaped(mixed, (*folded[:2], out), apart), apart, (0, 1, 3, 2, 4, 5))
    whole = b.reshaped(back, shape, (n, h, w, out))
    b.put((n, out, h, w), "Transpose", [whole], perm=[0, 3, 1, 2])


def patches(b: FreeBuilder) -> None:
    """Blocks of 2 by 2 pixels as channels, or as tokens."""
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1 and t.shape[2] % 2 == t.shape[3] % 2 == 0)
    if x is None or x.channels > 8:
        return
    n, c, h, w = x.shape
    parts = (n, c, h // 2, 2, w // 2, 2)
    folded = b.reshaped(x.name, x.shape, parts)
    if b.chance(2):
        turned, shape = moved(b, folded, parts, b.one_of(((0, 1, 3, 5, 2, 4), (0, 3, 5, 1, 2, 4))))
        after = (n, 4 * c, h // 2, w // 2)
        b.offer(Tensor(b.reshaped(turned, shape, after), after))
        return
    turned, shape = moved(b, folded, parts, (0, 2, 4, 3, 5, 1))
    after = (n, (h // 2) * (w // 2), 4 * c)
    b.offer(Tensor(b.reshaped(turned, shape, after), after, 2))


def detections(b: FreeBuilder) -> None:
    """Anchors and classes of every pixel in one list [N, pixels·A, K]."""
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1)
    if x is None:
        return
    anchors, classes = b.between(1, 3), b.between(2, 4)
    y = conv_of(b, x, anchors * classes, 1, same=True)
    n, _, h, w = y.shape
    parts = (n, anchors, classes, h, w)
    turned, shape = moved(b, b.reshaped(y.name, y.shape, parts), parts, (0, 1, 3, 4, 2))
    after = (n, anchors * h * w, classes)
    b.offer(Tensor(b.reshaped(turned, shape, after), after, 2))


def shuffled(b: FreeBuilder) -> None:
    """A channel shuffle whose targets are computed, with the batch folded in or not."""
    x = b.image()
    if x is None:
        return
    n, c, *pixels = x.shape
    groups = b.one_of(divisors(c))
    if b.chance(2):
        parts = (n, groups, c // groups, *pixels)
        turned, shape = moved(b, b.reshaped(x.name, x.shape, parts), parts, (0, 2, 1, *range(3, len(parts))))
    else:
        area = math.prod(pixels)
        parts = (n, groups, c // groups, area) if free(n) else (groups, c // groups, n * area)
        perm = (0, 2, 1, 3) if len(parts) == 4 else (1, 0, 2)
        if len(parts) == 3 and n != 1:
            return
        turned, shape = moved(b, b.reshaped(x.name, x.shape, parts), parts, perm)
    b.offer(Tensor(b.reshaped(turned, shape, x.shape), x.shape))


FOLDS: list[Step] = [
    *(folded_rows, folded_rows, flattened_rows, group_norm_by_hand, instances_as_channels, groups_in_batch),
    *(left_folded, rows_as_sequences, tokens_in_batch, heads_in_batch, windows, patches, detections, shuffled),
]
