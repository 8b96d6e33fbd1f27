"""Operators that move data without changing it."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from leanonnx.rules.call import Call, Effect
from leanonnx.rules.table import DEFAULT_RULES
from tests.rules import mistakes
from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

ALL = (11, 13, 17, 21)

OLD = (11,)

NEW = (13, 17, 21)


def sizes(b: ModelBuilder, form: str, data: str, channels: int) -> list[int]:
    """Targets of a Reshape from [N, channels, 2, 3]."""
    batch = 0 if b.free else b.one_of((0, b.batch))
    targets = {
        "flat": b.one_of(([batch, -1], [batch, channels * 6], [-1, channels * 6])),
        "pixels": b.one_of(([batch, channels, -1], [0, 0, -1], [batch, 0, 6], [-1, channels, 6])),
        "groups": b.one_of(([batch, 2, channels // 2, 2, 3], [0, 2, -1, 2, 3], [0, -1, channels // 2, 6])),
        "shifted zero": [batch, channels, 3, 2],
        "more": b.one_of(([batch, channels, 2, 3, 1], [0, 0, 0, 0, 1], [batch, -1, 1, 2, 3])),
    }
    return targets[form]


def reshape(form: str) -> Build:
    def build(b: ModelBuilder) -> None:
        channels = 2 * b.between(1, 3)
        data = b.image(channels, 2, 3)
        b.subject("Reshape", [data, b.ints(*sizes(b, form, data, channels))])

    return build


def reshape_by_attribute(b: ModelBuilder) -> None:
    """Before operator set 5 the target is an attribute."""
    b.free = False
    channels = b.between(2, 4)
    b.subject(
        "Reshape", [b.image(channels, 2, 3)], shape=b.one_of(([0, channels, 6], [0, 0, -1], [b.batch, channels, 3, 2]))
    )


def reshape_allowzero(b: ModelBuilder) -> None:
    """A 0 that would be a size; the target has none."""
    channels = b.between(2, 4)
    b.subject("Reshape", [b.image(channels, 2, 3), b.ints(-1, channels, 6)], allowzero=1)


def reshape_computed(b: ModelBuilder) -> None:
    """A target made from the shape of the data."""
    channels = b.between(2, 4)
    data = b.image(channels, 2, 3)
    shape = b.node("Shape", [data])
    lead = b.node("Slice", [shape, b.ints(0), b.ints(b.between(1, 2)), b.ints(0)])
    tail = [b.ints(-1)] if b.chance(2) else [b.ints(-1), b.ints(3)]
    b.subject("Reshape", [data, b.node("Concat", [lead, *tail], axis=0)])


def reshape_last(b: ModelBuilder) -> None:
    """Channels last, split over two axes."""
    channels = 2 * b.between(1, 3)
    b.subject("Reshape", [b.tokens(channels, 3), b.ints(0, *b.one_of(((3, 2, -1), (3, channels // 2, 2), (-1,))))])


def flatten(b: ModelBuilder) -> None:
    b.whole = True
    data = b.image(b.between(2, 4), 2, 3)
    b.subject("Flatten", [data], axis=b.one_of((1, 2, 3, -1, -3, None)))


def squeeze(by_input: bool) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.image(b.between(2, 4), 1, 3, 1)
        axes = b.one_of(([2], [2, 4], [-1], [-3, -1]))
        b.subject("Squeeze", [data, b.ints(*axes)] if by_input else [data], axes=None if by_input else axes)

    return build


def squeeze_all(b: ModelBuilder) -> None:
    """Remove all axes of size 1."""
    b.whole = True
    b.batch, b.free = 2, False
    b.subject("Squeeze", [b.image(b.between(2, 4), 1, 3)])


def unsqueeze(by_input: bool) -> Build:
    def build(b: ModelBuilder) -> None:
        b.whole = True
        data = b.image(b.between(2, 4), 3)
        axes = b.one_of(([1], [0], [3], [1, 3], [-1], [-2, 1]))
        b.subject("Unsqueeze", [data, b.ints(*axes)] if by_input else [data], axes=None if by_input else axes)

    return build


def transpose(b: ModelBuilder) -> None:
    b.whole = True
    perm = b.one_of(([0, 2, 3, 1], [0, 3, 1, 2], [2, 0, 1, 3], [1, 2, 3, 0], None))
    b.subject("Transpose", [b.image(b.between(2, 4), 2, 3)], perm=perm)


def shuffle(b: ModelBuilder) -> None:
    """A channel shuffle: the kept set is no rectangle half-way."""
    channels, groups = b.one_of(((4, 2), (6, 2), (6, 3)))
    tail = b.one_of(((2, 3), (3,)))
    data = b.image(channels, *tail)
    folded = b.node("Reshape", [data, b.ints(0, groups, channels // groups, *tail)])
    (turned,) = b.subject("Transpose", [folded], perm=[0, 2, 1, *range(3, 3 + len(tail))])
    b.reads = [b.node("Reshape", [turned, b.ints(0, channels, *tail)])]


def expand(b: ModelBuilder) -> None:
    channels = b.between(2, 4)
    data = b.image(channels, 1, 1)
    batch = 1 if b.free else b.one_of((1, b.batch))
    b.subject("Expand", [data, b.ints(*b.one_of(((batch, channels, 2, 3), (1, 1, 2, 3), (2, 3), (channels, 1, 4))))])


def expand_rank(b: ModelBuilder) -> None:
    """More axes in front."""
    b.whole = True
    b.batch, b.free = 1, False
    channels = b.between(2, 4)
    b.subject("Expand", [b.image(channels, 1), b.ints(2, 1, channels, 3)])


def expand_computed(b: ModelBuilder) -> None:
    """The target names the channels, or leaves them as they come by a 1."""
    channels = b.between(2, 4)
    pixels = b.node("Slice", [b.node("Shape", [b.source(3, 2, 3)]), b.ints(2), b.ints(4)])
    target = b.node("Concat", [b.ints(1, b.one_of((1, channels))), pixels], axis=0)
    b.subject("Expand", [b.image(channels, 1, 1), target])


def tile(b: ModelBuilder) -> None:
    data = b.image(b.between(2, 4), 2, 3)
    b.subject("Tile", [data, b.ints(*b.one_of(((1, 2, 1, 1), (1, 1, 3, 2), (1, 3, 1, 2), (1, 1, 1, 1))))])


def tile_folded(b: ModelBuilder) -> None:
    """Channels on two axes, one of them repeated."""
    folded = b.node("Reshape", [b.image(4, 3), b.ints(0, 2, 2, 3)])
    b.subject("Tile", [folded, b.ints(1, *b.one_of(((2, 1), (1, 2))), 1)])


def depth_to_space(mode: str | None) -> Build:
    def build(b: ModelBuilder) -> None:
        block = b.between(2, 3)
        b.subject("DepthToSpace", [b.image(block * block * b.between(2, 3), 2, 1)], blocksize=block, mode=mode)

    return build


def space_to_depth(b: ModelBuilder) -> None:
    block = b.between(2, 3)
    b.subject("SpaceToDepth", [b.image(b.between(2, 3), block, 2 * block)], blocksize=block)


def fold(rank: int) -> Build:
    """Blocks side by side cover the image."""

    def build(b: ModelBuilder) -> None:
        block = [b.between(1, 3) for _ in range(rank)]
        counts = [b.between(1, 2) for _ in range(rank)]
        data = b.image(prod(block) * b.between(2, 3), prod(counts))
        sizes = b.ints(*(size * n for size, n in zip(block, counts, strict=True)))
        b.subject("Col2Im", [data, sizes, b.ints(*block)], strides=block)

    return build


def fold_overlapping(rank: int) -> Build:
    """Blocks lie over each other and over the border, and have holes.

    No holes but on two axes: on others onnxruntime reads beyond the data (its issue 18156).
    """

    def build(b: ModelBuilder) -> None:
        steps = [b.between(1, 2) for _ in range(rank)]
        holes = [b.between(1, 2) if rank == 2 else 1 for _ in range(rank)]
        pads = [b.choose(2) for _ in range(2 * rank)]
        ends = [4 + pads[k] + pads[k + rank] - holes[k] for k in range(rank)]
        data = b.image(2**rank * b.between(2, 3), prod(-(-end // step) for end, step in zip(ends, steps, strict=True)))
        sizes = [b.ints(*[4] * rank), b.ints(*[2] * rank)]
        b.subject("Col2Im", [data, *sizes], strides=steps, dilations=holes, pads=pads)

    return build


def fold_computed(b: ModelBuilder) -> None:
    """The size of the image is (4, 4), whatever the numbers that it is made from."""
    b.batch, b.free = 1, False
    ones = b.node("Reshape", [b.node("Ceil", [b.node("Sigmoid", [b.rows(2)])]), b.ints(-1)])
    size = b.node("Cast", [b.node("Mul", [ones, b.scalar(4)])], to=7)
    b.subject("Col2Im", [b.image(8, 4), size, b.ints(2, 2)], strides=[2, 2])


def fold_blocks_first(call: Call, effect: Effect) -> Effect:
    """The channels of one output channel lie apart, not side by side."""
    del effect
    data = call.value(0)
    assert data.channel_ids is not None
    turned = data.channel_ids.reshape(-1, call.output_shape()[1]).T.reshape(data.channel_ids.shape)
    return DEFAULT_RULES[call.domain, call.op](
        replace(call, inputs=(replace(data, channel_ids=turned), *call.inputs[1:]))
    )


def shape_of(start: int | None, end: int | None) -> Build:
    """The shape of one tensor is the target size of another."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        data = b.image(channels, 2, 3)
        (found,) = b.subject("Shape", [data], start=start, end=end)
        lead = [b.ints(1)] if start == 1 else [b.ints(1), b.ints(channels)] if start == 2 else []
        tail = [b.ints(3)] if end is not None else []
        target = b.node("Concat", [*lead, found, *tail], axis=0) if lead or tail else found
        other = b.image(channels, 1, 1)
        b.reads = [b.node("Add", [b.node("Expand", [other, target]), data])]

    return build


def shape_channels(b: ModelBuilder) -> None:
    """The number of channels, as a factor."""
    data = b.image(b.between(2, 4), 2, 3)
    (found,) = b.subject("Shape", [data])
    count = b.node("Cast", [b.node("Gather", [found, b.ints(1)], axis=0)], to=1)
    b.reads = [b.node("Mul", [data, count])]


def size(b: ModelBuilder) -> None:
    """Of a tensor without channels."""
    data = b.image(b.between(2, 4), 2, 3)
    plain = b.plain(2, 3)
    (found,) = b.subject("Size", [plain])
    b.reads = [b.node("Mul", [data, b.node("Cast", [found], to=1)]), plain]


def size_of_channels(b: ModelBuilder) -> None:
    data = b.image(b.between(2, 4), 2, 3)
    (found,) = b.subject("Size", [data])
    b.reads = [b.node("Mul", [data, b.node("Cast", [found], to=1)])]


def crop(b: ModelBuilder) -> None:
    b.subject("Crop", [b.image(b.between(2, 4), 4, 5)], border=[1, 0, 1, 2])


def crop_turned(b: ModelBuilder) -> None:
    b.subject("Crop", [b.node("Transpose", [b.image(4, 3, 4)], perm=[0, 2, 3, 1])], border=[1, 0, 1, 0])


MOVE: dict[str, Any] = {"linear": True, "moves": True}

NOTHING = "it only moves data, whatever the axes"

CASES = [
    Case(
        "Reshape",
        (
            *(
                Form(form, reshape(form), ALL, linear=True, moves=True)
                for form in ("flat", "pixels", "groups", "shifted zero", "more")
            ),
            Form("by attribute", reshape_by_attribute, (4,), **MOVE),
            Form("allowzero", reshape_allowzero, (17, 21), **MOVE),
            Form("computed target", reshape_computed, ALL, linear=True),
            Form("channels last", reshape_last, **MOVE),
        ),
        whole=NOTHING,
    ),
    Case(
        "Flatten",
        (Form("any axis", flatten, ALL, **MOVE),),
        whole=NOTHING,
        wrong={"pixels first": mistakes.pixels_first},
    ),
    Case(
        "Squeeze",
        (
            Form("axes by attribute", squeeze(False), OLD, **MOVE),
            Form("axes by input", squeeze(True), NEW, **MOVE),
            Form("all axes", squeeze_all, ALL, **MOVE),
        ),
        whole=NOTHING,
    ),
    Case(
        "Unsqueeze",
        (Form("axes by attribute", unsqueeze(False), OLD, **MOVE), Form("axes by input", unsqueeze(True), NEW, **MOVE)),
        whole=NOTHING,
    ),
    Case(
        "Transpose",
        (Form("any order", transpose, ALL, **MOVE), Form("shuffle", shuffle, ALL, **MOVE)),
        whole=NOTHING,
        wrong={"inverse order": mistakes.inverse_order},
    ),
    Case(
        "Expand",
        (
            Form("any target", expand, ALL, **MOVE),
            Form("higher rank", expand_rank, **MOVE),
            Form("computed target", expand_computed, ALL, linear=True),
        ),
        whole="it only repeats data",
    ),
    Case(
        "Tile",
        (Form("any axis", tile, ALL, **MOVE), Form("two axes", tile_folded, **MOVE)),
        whole="it only repeats data",
        wrong={"repeated": mistakes.repeated},
    ),
    Case(
        "DepthToSpace",
        tuple(
            Form(str(mode), depth_to_space(mode), ALL, exact=False, linear=True, moves=True)
            for mode in ("DCR", "CRD", None)
        ),
        whole="its members are tied, whatever they are",
        wrong={"other mode": mistakes.other_mode},
    ),
    Case(
        "SpaceToDepth",
        (Form("any block", space_to_depth, ALL, **MOVE),),
        whole=NOTHING,
        wrong={"repeated": mistakes.repeated},
    ),
    Case(
        "Col2Im",
        (
            *(
                Form(f"side by side, {rank}", fold(rank), (18, 21), False, linear=True, moves=True)
                for rank in (1, 2, 3)
            ),
            *(Form(f"overlapping, {rank}", fold_overlapping(rank), (18, 21), exact=False) for rank in (1, 2, 3)),
        ),
        (Refusal("computed size", fold_computed, "takes a size from it", (18, 21)),),
        wrong={"blocks first": fold_blocks_first},
    ),
    Case(
        "Shape",
        (
            Form("all", shape_of(None, None), ALL),
            Form("from 1", shape_of(1, None), (15, 17, 21)),
            Form("to the last", shape_of(None, -1), (15, 17, 21)),
            Form("pixels", shape_of(2, None), (15, 17, 21)),
            Form("number of channels", shape_channels, ALL),
        ),
        whole="it keeps answering with the sizes of the original",
    ),
    Case(
        "Size",
        (Form("no channels", size, ALL, beside=True),),
        (Refusal("channels", size_of_channels, "counts the elements"),),
    ),
    Case(
        "Crop",
        (Form("pixels", crop, (9,), **MOVE),),
        (Refusal("channels last", crop_turned, "its channels lie on a cropped axis", (9,)),),
    ),
]
