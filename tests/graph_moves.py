"""Steps of a random model that move data: joining, cutting, turning, folding and padding tensors."""

from __future__ import annotations

import math

import numpy as np

from tests.graph_builder import Builder, Tensor
from tests.graph_steps import Step, conv_of, divisors


def concat(b: Builder) -> None:
    """Along the channels; operands may repeat, one may be a constant."""
    x = b.pick(lambda t: True)
    if x is None:
        return
    operands = [x]
    for _ in range(b.between(1, 2)):
        found = b.pick(lambda t: t.axis == x.axis and t.resized(1) == x.resized(1) and t.channels < 20)
        if found is None or b.chance(4):
            found = conv_of(b, x, b.between(1, 6), 1, same=True) if x.is_image else x
        operands.append(found)
    names, size = [t.name for t in operands], sum(t.channels for t in operands)
    if b.fixed_batch and b.chance(6):
        names.insert(b.choose(len(names) + 1), b.constant(b.normal(x.resized(2))))
        size += 2
    b.put(x.resized(size), "Concat", names, x.axis, axis=b.one_of((x.axis, x.axis - len(x.shape))))


def concat_pixels(b: Builder) -> None:
    """Along an axis without channels."""
    x = b.pick(lambda t: len(t.shape) > 2 and t.axis != 2)
    if x is not None:
        y = b.pick(lambda t: len(t.shape) == len(x.shape) and t.axis == x.axis and t.resized(1, 2) == x.resized(1, 2))
        other = y or x
        b.put(x.resized(x.shape[2] + other.shape[2], 2), "Concat", [x.name, other.name], x.axis, axis=2)


def split(b: Builder) -> None:
    """Even or uneven parts, by an attribute, an input or a number of outputs."""
    x = b.pick(lambda t: t.channels > 1)
    if x is None:
        return
    axis = b.one_of((x.axis, x.axis, x.axis, len(x.shape) - 1))
    parts = b.between(2, 3) if x.shape[axis] > 2 else x.shape[axis]
    if parts == 1:
        return
    cuts = np.sort(b.rng.permutation(np.arange(1, x.shape[axis]))[: parts - 1])
    sizes = np.diff([0, *cuts, x.shape[axis]]).tolist()
    inputs, attributes = [x.name], {}
    if parts == 2 and x.shape[axis] % 2 == 0 and b.opset < 18 and b.chance(2):
        sizes = [x.shape[axis] // 2] * 2
    elif b.opset >= 18 and b.chance(2):
        chunk = -(-x.shape[axis] // parts)
        sizes = [chunk] * (parts - 1) + [x.shape[axis] - chunk * (parts - 1)]
        attributes = {"num_outputs": parts}
    elif b.opset >= 13:
        inputs.append(b.ints(*sizes))
    else:
        attributes = {"split": sizes}
    if min(sizes) > 0:
        names = b.node("Split", inputs, parts, axis=axis, **attributes)
        for name, size in zip(names, sizes, strict=True):
            b.offer(Tensor(name, x.resized(size, axis), x.axis))


def slice_channels(b: Builder) -> None:
    x = b.pick(lambda t: t.channels > 1)
    if x is None:
        return
    start = b.choose(x.channels)
    stop = b.between(start + 1, x.channels)
    low = start - x.channels if b.chance(3) else start
    high = b.one_of((stop, stop - x.channels if stop < x.channels else 1 << 40))
    axis = b.one_of((x.axis, x.axis - len(x.shape)))
    steps = [b.ints(1)] if b.chance(2) else []
    b.put(x.resized(stop - start), "Slice", [x.name, b.ints(low), b.ints(high), b.ints(axis), *steps], x.axis)


def slice_several(b: Builder) -> None:
    """The first half of the channels and every second pixel, or the pixels backwards."""
    x = b.image()
    if x is None or x.channels < 2:
        return
    last = len(x.shape) - 1
    step = b.one_of((2, -1))
    pixels = (0, 1 << 40, 2) if step == 2 else (-1, -(1 << 40), -1)
    rows = [(0, x.channels // 2, 1, 1), (*pixels[:2], last, pixels[2])]
    rows = rows[::-1] if b.chance(2) else rows
    bounds = [b.ints(*column) for column in zip(*rows, strict=True)]
    size = -(-x.shape[last] // 2) if step == 2 else x.shape[last]
    b.put((x.shape[0], x.channels // 2, *x.shape[2:last], size), "Slice", [x.name, *bounds])


def every_second_channel(b: Builder) -> None:
    """A step over the channels: a pin."""
    x = b.image()
    if x is not None and x.channels > 2:
        bounds = [b.ints(v) for v in (0, x.channels, 1, 2)]
        b.put(x.resized(-(-x.channels // 2)), "Slice", [x.name, *bounds])


def gather(b: Builder) -> None:
    """Some channels, in any order, now and then repeated or counted from the end."""
    x = b.pick(lambda t: t.channels > 1)
    if x is None:
        return
    indices = b.rng.permutation(x.channels)[: b.between(1, x.channels)]
    if b.chance(3):
        indices = b.rng.integers(-x.channels, x.channels, b.between(1, x.channels))
    kind = b.one_of((np.int64, np.int32))
    b.put(x.resized(len(indices)), "Gather", [x.name, b.constant(indices.astype(kind))], x.axis, axis=x.axis)


def gather_one(b: Builder) -> None:
    """A single channel; its axis is removed and added again."""
    x = b.image()
    if x is not None:
        index = b.constant(np.array(b.between(-x.channels, x.channels - 1)))
        (name,) = b.node("Gather", [x.name, index], axis=1)
        b.offer(Tensor(b.axes_node("Unsqueeze", [name], [1], 13), x.resized(1)))


def gather_pixels(b: Builder) -> None:
    x = b.image()
    if x is not None:
        last = len(x.shape) - 1
        indices = b.rng.permutation(x.shape[last])
        b.put(x.shape, "Gather", [x.name, b.constant(indices)], axis=last)


def to_last(b: Builder) -> None:
    """NCHW → NHWC."""
    x = b.image()
    if x is not None:
        perm = [0, *range(2, len(x.shape)), 1]
        b.put([x.shape[k] for k in perm], "Transpose", [x.name], len(x.shape) - 1, perm=perm)


def to_first(b: Builder) -> None:
    """NHWC → NCHW."""
    x = b.pick(lambda t: t.axis == len(t.shape) - 1 and t.axis > 1)
    if x is not None:
        perm = [0, x.axis, *range(1, x.axis)]
        b.put([x.shape[k] for k in perm], "Transpose", [x.name], perm=perm)


def turn(b: Builder) -> None:
    """Any permutation of all axes but the batch."""
    x = b.pick(lambda t: len(t.shape) > 2)
    if x is not None:
        perm = [0, *(1 + b.rng.permutation(len(x.shape) - 1)).tolist()]
        b.put([x.shape[k] for k in perm], "Transpose", [x.name], perm.index(x.axis), perm=perm)


def tokens(b: Builder) -> None:
    """[N, C, H, W] → [N, C, H·W], the target written in one of many ways."""
    x = b.image()
    if x is None:
        return
    pixels = math.prod(x.shape[2:])
    targets = [(0, 0, -1), (0, x.channels, -1), (0, -1, pixels), (-1, x.channels, pixels), (0, 0, pixels)]
    form = b.choose(len(targets) + 2)
    if form < len(targets):
        target = b.ints(*targets[form])
    elif form == len(targets):
        (shape,) = b.node("Shape", [x.name])
        (lead,) = b.node("Slice", [shape, b.ints(0), b.ints(2), b.ints(0)])
        (target,) = b.node("Concat", [lead, b.ints(-1)], axis=0)
    else:
        (shape,) = b.node("Shape", [x.name])
        sizes = [b.node("Gather", [shape, b.constant(np.array([k]))], axis=0)[0] for k in (0, 1)]
        (target,) = b.node("Concat", [*sizes, b.ints(pixels)], axis=0)
    b.put((*x.shape[:2], pixels), "Reshape", [x.name, target])


def grid(b: Builder) -> None:
    """[N, C, L] → [N, C, h, w]."""
    x = b.pick(lambda t: len(t.shape) == 3 and t.axis == 1)
    if x is not None:
        height = b.one_of(divisors(x.shape[2]))
        width = x.shape[2] // height
        target = b.one_of(((0, 0, height, width), (0, x.channels, height, width), (0, -1, height, width)))
        b.put((*x.shape[:2], height, width), "Reshape", [x.name, b.ints(*target)])


def shuffle(b: Builder) -> None:
    """Channel shuffle: Reshape – Transpose – Reshape."""
    x = b.image()
    if x is None:
        return
    tail, groups = x.shape[2:], b.one_of(divisors(x.channels))
    rest = x.channels // groups
    folded = b.node("Reshape", [x.name, b.ints(0, *b.one_of(((groups, rest), (groups, -1))), *tail)])[0]
    (turned,) = b.node("Transpose", [folded], perm=[0, 2, 1, *range(3, 3 + len(tail))])
    b.put(x.shape, "Reshape", [turned, b.ints(0, b.one_of((x.channels, -1)), *tail)])


def fold_channels(b: Builder) -> None:
    """[N, C, …] → [N, g, C/g, …], left so: channels on two axes."""
    x = b.image()
    if x is not None and len(x.shape) < 5:
        groups = b.one_of(divisors(x.channels))
        shape = (x.shape[0], groups, x.channels // groups, *x.shape[2:])
        b.put(shape, "Reshape", [x.name, b.ints(0, *shape[1:])], b.one_of((1, 2)))


def pixel_shuffle(b: Builder) -> None:
    """DepthToSpace as Reshape – Transpose – Reshape."""
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1 and t.channels % 4 == 0)
    if x is None:
        return
    n, c, h, w = x.shape
    if b.chance(2):
        folded, perm = (0, c // 4, 2, 2, h, w), [0, 1, 4, 2, 5, 3]
    else:
        folded, perm = (0, 2, 2, c // 4, h, w), [0, 3, 4, 1, 5, 2]
    (deep,) = b.node("Reshape", [x.name, b.ints(*folded)])
    (turned,) = b.node("Transpose", [deep], perm=perm)
    b.put((n, c // 4, 2 * h, 2 * w), "Reshape", [turned, b.ints(0, b.one_of((c // 4, -1)), 2 * h, 2 * w)])


def unpixel_shuffle(b: Builder) -> None:
    """SpaceToDepth as Reshape – Transpose – Reshape."""
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1 and t.shape[2] % 2 == t.shape[3] % 2 == 0)
    if x is None:
        return
    n, c, h, w = x.shape
    (deep,) = b.node("Reshape", [x.name, b.ints(0, c, h // 2, 2, w // 2, 2)])
    (turned,) = b.node("Transpose", [deep], perm=b.one_of(([0, 1, 3, 5, 2, 4], [0, 3, 5, 1, 2, 4])))
    b.put((n, 4 * c, h // 2, w // 2), "Reshape", [turned, b.ints(0, 4 * c, h // 2, w // 2)])


def depth_to_space(b: Builder) -> None:
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1 and t.channels % 4 == 0)
    if x is not None:
        n, c, h, w = x.shape
        b.put((n, c // 4, 2 * h, 2 * w), "DepthToSpace", [x.name], blocksize=2, mode=b.one_of(("DCR", "CRD")))


def space_to_depth(b: Builder) -> None:
    x = b.pick(lambda t: len(t.shape) == 4 and t.axis == 1 and t.shape[2] % 2 == t.shape[3] % 2 == 0)
    if x is not None:
        n, c, h, w = x.shape
        b.put((n, 4 * c, h // 2, w // 2), "SpaceToDepth", [x.name], blocksize=2)


def squeeze(b: Builder) -> None:
    """Drop the spatial axes of a pooled tensor, or any axis of size 1."""
    x = b.pick(lambda t: len(t.shape) > 2 and 1 in t.shape[1:])
    if x is None:
        return
    axes = [k for k, n in enumerate(x.shape) if n == 1 and k not in (0, x.axis)]
    if axes:
        shape = [n for k, n in enumerate(x.shape) if k not in axes]
        b.offer(
            Tensor(b.axes_node("Squeeze", [x.name], axes, 13), tuple(shape), x.axis - sum(a < x.axis for a in axes))
        )


def unsqueeze(b: Builder) -> None:
    x = b.pick(lambda t: len(t.shape) < 5)
    if x is not None:
        axis = b.between(1, len(x.shape))
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        b.offer(Tensor(b.axes_node("Unsqueeze", [x.name], [axis], 13), shape, x.axis + (axis <= x.axis)))


def expand(b: Builder) -> None:
    """One pixel to many, by a constant target or by another tensor's shape."""
    x = b.pick(lambda t: t.is_image and set(t.shape[2:]) == {1})
    if x is None:
        return
    other = b.pick(lambda t: t.shape[:2] == x.shape[:2] and len(t.shape) == len(x.shape))
    if other is not None and b.chance(3):
        (target,) = b.node("Shape", [other.name])
        b.put(other.shape, "Expand", [x.name, target])
        return
    tail = [3] * (len(x.shape) - 2)
    targets = [(1, x.channels, *tail), (1, 1, *tail), tuple(tail)]
    b.put((*x.shape[:2], *tail), "Expand", [x.name, b.ints(*b.one_of(targets))])


def tile(b: Builder) -> None:
    x = b.pick(lambda t: t.channels < 12)
    if x is not None:
        axis = b.one_of((x.axis, len(x.shape) - 1))
        repeats = [2 if k == axis else 1 for k in range(len(x.shape))]
        b.put(x.resized(2 * x.shape[axis], axis), "Tile", [x.name, b.ints(*repeats)], x.axis)


def pad_pixels(b: Builder) -> None:
    x = b.pick(lambda t: t.is_image and min(t.shape[2:]) > 1)
    if x is None:
        return
    rank = len(x.shape)
    by_axes = b.opset >= 18 and b.chance(2)
    lead = 0 if by_axes else 2
    pads = [*[0] * lead, *[1] * (rank - 2), *[0] * lead, *[0] * (rank - 2)]
    mode = b.one_of(("constant", "reflect", "edge"))
    value = [b.constant(np.array(0.5, np.float32))] if by_axes or b.chance(2) else []
    axes = [b.ints(*range(2, rank))] if by_axes else []
    b.put((*x.shape[:2], *(n + 1 for n in x.shape[2:])), "Pad", [x.name, b.ints(*pads), *value, *axes], mode=mode)


def pad_channels(b: Builder) -> None:
    x = b.pick(lambda t: t.channels > 1)
    if x is None:
        return
    before, after = b.choose(3), b.choose(3)
    rank = len(x.shape)
    pads = [0] * (2 * rank)
    pads[x.axis], pads[x.axis + rank] = before, after
    value = [b.constant(np.array(b.one_of((0.0, 0.7)), np.float32))] if b.chance(2) else []
    b.put(x.resized(x.channels + before + after), "Pad", [x.name, b.ints(*pads), *value], x.axis)


MOVES: list[Step] = [
    *(concat, concat, concat, concat_pixels, split, split, slice_channels, slice_several, every_second_channel),
    *(gather, gather_one, gather_pixels, to_last, to_last, to_first, turn, tokens, grid, shuffle, shuffle),
    *(fold_channels, pixel_shuffle, unpixel_shuffle, depth_to_space, space_to_depth, squeeze, unsqueeze),
    *(expand, tile, pad_pixels, pad_channels),
]
