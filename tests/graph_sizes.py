"""Steps of a random model with free axes, which compute from the shapes of tensors how large others become."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.graph_blocks import projected, sequence
from tests.graph_builder import Tensor
from tests.graph_free import COUNT, FAR, FreeBuilder, free
from tests.graph_steps import Step, conv_of, divisors


def sliced(b: FreeBuilder, name: str, start: int, stop: int, axis: int) -> str:
    """A window whose bounds are computed where they are free."""
    return b.node("Slice", [name, b.ints(start), b.ints(stop), b.ints(axis)])[0]


def counted(b: FreeBuilder, size: int, start: int = 0) -> str:
    """The numbers from ``start`` up to a size, as a vector of integers."""
    first, step = (b.constant(np.array(n)) for n in (start, 1))
    return b.node("Range", [first, b.scalar(size), step])[0]


def as_float(b: FreeBuilder, name: str) -> str:
    return b.node("Cast", [name], to=TensorProto.FLOAT)[0]


def tokens_of(b: FreeBuilder) -> Tensor | None:
    """Tokens [N, T, C]: an existing tensor or an image reshaped to a computed target."""
    x = b.pick(lambda t: len(t.shape) == 3 and t.axis == 2)
    if x is not None and b.chance(2):
        return x
    x = b.image()
    if x is None:
        return sequence(b)
    length = math.prod(x.shape[2:])
    flat = b.reshaped(x.name, x.shape, (*x.shape[:2], length))
    return b.put((x.shape[0], length, x.channels), "Transpose", [flat], 2, perm=[0, 2, 1])


# sizes by which tensors are cut, bordered, repeated and resized


def cut_by_size(b: FreeBuilder) -> None:
    """A part of a free axis, or the first half of the channels, by computed bounds."""
    x = b.pick(lambda t: len(t.shape) > 2)
    if x is None:
        return
    axis = b.one_of([k for k in range(1, len(x.shape)) if k != x.axis] + [x.axis])
    size = x.shape[axis]
    half = b.one_of((size // 2, (size + 1) // 2, size - 1))
    if half < 1:
        return
    start, stop = b.one_of(((0, half), (size - half, size), (size - half, FAR)))
    b.offer(Tensor(sliced(b, x.name, start, stop, axis), x.resized(half, axis), x.axis))


def chunks(b: FreeBuilder) -> None:
    """The channels in halves, by bounds that are computed from their number."""
    x = b.pick(lambda t: t.channels > 1)
    if x is None:
        return
    channels = b.size_of(x, x.axis)
    (more,) = b.node("Add", [channels, b.constant(np.array([1]))])
    (half,) = b.node("Div", [more, b.constant(np.array([2]))])
    count = (x.channels + 1) // 2
    axis = b.ints(x.axis)
    first = b.put(x.resized(count), "Slice", [x.name, b.constant(np.array([0])), half, axis], x.axis)
    (end,) = b.node("Mul", [half, b.constant(np.array([2]))])
    second = b.put(x.resized(x.channels - count), "Slice", [x.name, half, end, axis], x.axis)
    if b.chance(2) and x.channels % 2 == 0:
        b.put(first.shape, "Mul", [first.name, b.node("Sigmoid", [second.name])[0]], x.axis)


def split_by_size(b: FreeBuilder) -> None:
    """Parts whose sizes are computed."""
    x = b.pick(lambda t: len(t.shape) > 2)
    if x is None or b.opset < 13:
        return
    axis = b.one_of((len(x.shape) - 1, x.axis, 1))
    first = x.shape[axis] // 2
    sizes = (first, x.shape[axis] - first)
    if first > 0:
        names = b.node("Split", [x.name, b.ints(*sizes)], 2, axis=axis)
        for name, size in zip(names, sizes, strict=True):
            b.offer(Tensor(name, x.resized(size, axis), x.axis))


def padded_to_multiple(b: FreeBuilder) -> None:
    """Pixels bordered up to a multiple, something done to them, the border cut off again (as windows need it)."""
    x = b.image()
    if x is None:
        return
    axis, step = b.between(2, len(x.shape) - 1), b.one_of((3, 4))
    size = x.shape[axis]
    more = (step - size % step) % step
    pads = [0] * (2 * len(x.shape))
    pads[len(x.shape) + axis] = more
    (wide,) = b.node("Pad", [x.name, b.ints(*pads)])
    y = Tensor(wide, x.resized(size + more, axis))
    y = conv_of(b, y, b.between(2, 6), 1, same=True) if b.chance(2) else y
    b.offer(Tensor(sliced(b, y.name, 0, size, axis), y.resized(size, axis)))


def resized_to(b: FreeBuilder) -> None:
    """To the sizes of another tensor, or to computed ones; and joined to what has that size."""
    x = b.image()
    if x is None:
        return
    y = b.pick(lambda t: t.is_image and len(t.shape) == len(x.shape) and t.shape[0] == x.shape[0])
    pixels = y.shape[2:] if y is not None and b.chance(2) else tuple(n * 3 // 2 for n in x.shape[2:])
    empty = b.constant(np.zeros(0, np.float32))
    by_axes = b.opset >= 18 and b.chance(2)
    target = b.ints(*pixels) if by_axes else b.ints(*x.shape[:2], *pixels)
    attributes = {"axes": [*range(2, len(x.shape))]} if by_axes else {}
    more = {"coordinate_transformation_mode": b.one_of(("asymmetric", "half_pixel"))}
    z = b.put((*x.shape[:2], *pixels), "Resize", [x.name, empty, empty, target], mode="nearest", **attributes, **more)
    if y is not None and y.shape[2:] == z.shape[2:]:
        b.put(z.resized(z.channels + y.channels), "Concat", [z.name, y.name], axis=1)


def resized_by_ratio(b: FreeBuilder) -> None:
    """Scales that are the ratios of two tensors' sizes."""
    x = b.image()
    y = b.pick(lambda t: x is not None and t.is_image and len(t.shape) == len(x.shape))
    if x is None or y is None:
        return
    wanted, old = (as_float(b, b.ints(*t.shape[2:])) for t in (y, x))
    (ratio,) = b.node("Div", [wanted, old])
    (scales,) = b.node("Concat", [b.constant(np.ones(2, np.float32)), ratio], axis=0)
    roi = b.constant(np.zeros(0, np.float32))
    mode = "asymmetric"
    inputs = [x.name, roi, scales]
    b.put((*x.shape[:2], *y.shape[2:]), "Resize", inputs, mode="nearest", coordinate_transformation_mode=mode)


def pooled_grid(b: FreeBuilder) -> None:
    """Every second pixel by folding pixels onto axes of their own: a mean or a maximum over blocks."""
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1 and t.shape[2] % 2 == t.shape[3] % 2 == 0)
    if x is None:
        return
    n, c, h, w = x.shape
    blocks = (n, c, h // 2, 2, w // 2, 2)
    folded = b.reshaped(x.name, x.shape, blocks)
    name = b.axes_node(b.one_of(("ReduceMax", "ReduceMean")), [folded], [3, 5], 18, keepdims=0)
    b.offer(Tensor(name, (n, c, h // 2, w // 2)))


def top_half(b: FreeBuilder) -> None:
    """The larger half of the pixels of each row."""
    x = b.image()
    if x is not None:
        last = len(x.shape) - 1
        count = (x.shape[last] + 1) // 2
        values, _ = b.node("TopK", [x.name, b.measured(count)], 2, axis=-1)
        b.offer(Tensor(values, x.resized(count, last)))


# tensors whose shape is computed


def filled(b: FreeBuilder) -> None:
    """Added or joined along the channels: a tensor of one number, of a computed shape."""
    x = b.pick(lambda t: True)
    if x is None:
        return
    extra = b.between(1, 3) if b.chance(2) else x.channels
    one = b.one_of((1, None))
    shape = x.resized(extra)
    if extra == x.channels and one:
        shape = tuple(1 if k not in (0, x.axis) else n for k, n in enumerate(shape))
    if b.chance(2):
        value = np.array([0.5], np.float32)
        (full,) = b.node("ConstantOfShape", [b.ints(*shape)], value=numpy_helper.from_array(value))
    else:
        (full,) = b.node("Expand", [b.constant(np.array(0.5, np.float32)), b.ints(*shape)])
    if extra == x.channels:
        b.put(x.shape, b.one_of(("Add", "Mul")), [x.name, full], x.axis)
    else:
        b.put(x.resized(x.channels + extra), "Concat", [x.name, full], x.axis, axis=x.axis)


def coordinates(b: FreeBuilder) -> None:
    """A channel that holds each pixel's place on the last axis (CoordConv)."""
    x = b.image()
    if x is None:
        return
    places = as_float(b, counted(b, x.shape[-1]))
    (scaled,) = b.node("Div", [places, as_float(b, b.measured(x.shape[-1]))])
    (wide,) = b.node("Expand", [scaled, b.ints(*x.resized(1))])
    y = b.put(x.resized(x.channels + 1), "Concat", [x.name, wide], axis=1)
    conv_of(b, y, b.between(2, 6), 1, same=True)


def class_token(b: FreeBuilder) -> None:
    """A learned token, expanded or repeated over the batch, before the others; then the others again, or it alone."""
    x = tokens_of(b)
    if x is None or not free(x.shape[0]):
        return
    n, length, width = x.shape
    token = b.parameter((1, 1, width))
    form = b.choose(3)
    if form == 0:
        (wide,) = b.node("Expand", [token, b.ints(n, 1, width)])
    elif form == 1:
        (wide,) = b.node("Expand", [token, b.ints(n, 1, 1)])
    else:
        (wide,) = b.node("Tile", [token, b.ints(n, 1, 1)])
    y = b.put((n, length + 1, width), "Concat", [wide, x.name], 2, axis=1)
    if b.chance(2):
        y = b.put(y.shape, "MatMul", [y.name, b.weight((width, width), width, 1)], 2)
    if b.chance(2):
        (picked,) = b.node("Gather", [y.name, b.constant(np.array(0))], axis=1)
        b.offer(Tensor(picked, (n, width)))
    elif b.chance(2):
        b.offer(Tensor(sliced(b, y.name, 1, b.one_of((FAR, y.shape[1])), 1), x.shape, 2))


def positions(b: FreeBuilder) -> None:
    """A table of positions, cut to the number of tokens."""
    x = tokens_of(b)
    if x is None:
        return
    n, length, width = x.shape
    longest = 3 * max(length.values[:COUNT]) if free(length) else length
    form = b.choose(3)
    if form == 0:
        found = sliced(b, b.parameter((1, longest, width)), 0, length, 1)
    else:
        table, numbers = b.parameter((longest, width)), counted(b, length)
        (found,) = b.node("Gather", [table, numbers], axis=0)
        if form == 2:
            (found,) = b.node("Expand", [found, b.ints(n, length, width)])
    b.put(x.shape, "Add", [x.name, found], 2)


def masked_tokens(b: FreeBuilder) -> None:
    """Tokens beyond half of the length are set to a number."""
    x = tokens_of(b)
    if x is None:
        return
    numbers = counted(b, x.shape[1])
    (test,) = b.node("Less", [numbers, b.measured(x.shape[1] // 2)])
    test = b.axes_node("Unsqueeze", [test], [1], 13)
    if b.chance(2):
        (test,) = b.node("Expand", [test, b.ints(*x.shape)])
    b.put(x.shape, "Where", [test, x.name, b.constant(np.array(0.25, np.float32))], 2)


def masked_channels(b: FreeBuilder) -> None:
    """Channels beyond half of their number, as it is computed, are set to nothing."""
    x = b.image()
    if x is None:
        return
    numbers = counted(b, x.channels)
    (test,) = b.node("Less", [numbers, b.measured(max(1, x.channels // 2))])
    (test,) = b.node("Reshape", [test, b.ints(x.channels, *[1] * (len(x.shape) - 2))])
    b.put(x.shape, "Where", [test, x.name, b.constant(np.array(0.0, np.float32))])


def one_hot_channels(b: FreeBuilder) -> None:
    """A one-hot vector for each token, as long as there are channels, added to it."""
    x = tokens_of(b)
    if x is None:
        return
    (numbers,) = b.node("Mod", [counted(b, x.shape[1]), b.constant(np.array(x.channels))])
    values = b.constant(np.array([0, 1], np.float32))
    (hot,) = b.node("OneHot", [numbers, b.scalar(x.channels), values])
    b.put(x.shape, "Add", [x.name, hot], 2)


def repeated(b: FreeBuilder) -> None:
    """Each channel twice, through an axis of its own (as keys are for several heads)."""
    x = b.image()
    if x is None or x.channels > 12:
        return
    n, c, *pixels = x.shape
    axis = b.one_of((2, 1))
    wide = b.axes_node("Unsqueeze", [x.name], [axis], 13)
    shape = (n, c, 2, *pixels) if axis == 2 else (n, 2, c, *pixels)
    (wide,) = b.node("Expand", [wide, b.ints(*shape)])
    b.offer(Tensor(b.reshaped(wide, shape, (n, 2 * c, *pixels)), (n, 2 * c, *pixels)))


# numbers computed from sizes


def mean_by_hand(b: FreeBuilder) -> None:
    """A sum over pixels or channels, divided by their number as it is computed."""
    x = b.image()
    if x is None:
        return
    axes = b.one_of(([*range(2, len(x.shape))], [1]))
    total = b.axes_node("ReduceSum", [x.name], axes, 13, keepdims=1)
    shape = tuple(1 if k in axes else n for k, n in enumerate(x.shape))
    number = math.prod(x.shape[k] for k in axes)
    count = b.size_of(x, 1) if axes == [1] else b.measured(number)
    mean = b.put(shape, "Div", [total, as_float(b, count)])
    if b.chance(2):
        b.put(x.shape, "Sub", [x.name, mean.name])


def scaled_by_width(b: FreeBuilder) -> None:
    """Divided by the root of the number of channels."""
    x = b.pick(lambda t: True)
    if x is not None:
        (root,) = b.node("Sqrt", [as_float(b, b.size_of(x, x.axis))])
        b.put(x.shape, "Div", [x.name, root], x.axis)


def squeezed_and_back(b: FreeBuilder) -> None:
    """Pooled to vectors, through a dense layer, and to the shape of an image by a computed target."""
    x = b.image()
    if x is None:
        return
    pooled = b.axes_node("ReduceMean", [x.name], [*range(2, len(x.shape))], 18, keepdims=0)
    gate = projected(b, Tensor(pooled, x.shape[:2]), x.channels)
    shape = (*x.shape[:2], *[1] * (len(x.shape) - 2))
    wide = b.reshaped(b.node("Sigmoid", [gate])[0], x.shape[:2], shape)
    if b.chance(2):
        (wide,) = b.node("Expand", [wide, b.ints(*x.shape)])
    b.put(x.shape, "Mul", [x.name, wide])


def per_group(b: FreeBuilder) -> None:
    """One number for each group of channels, brought back to every channel of it."""
    x = b.image()
    if x is None:
        return
    groups = b.one_of(divisors(x.channels))
    n, c, *pixels = x.shape
    parts = (n, groups, c // groups, *pixels)
    folded = b.reshaped(x.name, x.shape, parts)
    top = b.axes_node("ReduceMax", [folded], [2], 18, keepdims=1)
    (lower,) = b.node("Sub", [folded, top])
    b.offer(Tensor(b.reshaped(lower, parts, x.shape), x.shape))


SIZES: list[Step] = [
    *(cut_by_size, chunks, split_by_size, padded_to_multiple, resized_to, resized_by_ratio, pooled_grid),
    *(top_half,),
    *(filled, coordinates, class_token, positions, masked_tokens, masked_channels, one_hot_channels, repeated),
    *(mean_by_hand, scaled_by_width, squeezed_and_back, per_group),
]
