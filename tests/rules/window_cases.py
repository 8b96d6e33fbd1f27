"""Operators that cut a window out of a tensor or pad it."""

from __future__ import annotations

from typing import Any

from tests.rules.case import Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

ALL = (11, 13, 17, 21)


def window(b: ModelBuilder, channels: int) -> tuple[int, int]:
    """Bounds of some channels, counted from either end, or far beyond the last."""
    start = b.choose(channels - 1)
    stop = b.between(start + 1, channels)
    low = start - channels if b.chance(3) else start
    high = b.one_of((stop, stop - channels if stop < channels else 1 << 40))
    return low, high


def slice_inputs(b: ModelBuilder) -> None:
    channels = b.between(3, 5)
    low, high = window(b, channels)
    steps = [b.ints(1)] if b.chance(2) else []
    b.subject("Slice", [b.image(channels, 2, 3), b.ints(low), b.ints(high), b.ints(b.one_of((1, -3))), *steps])


def slice_without_axes(b: ModelBuilder) -> None:
    """The first axes in order."""
    channels = b.between(3, 5)
    low, high = window(b, channels)
    b.subject("Slice", [b.image(channels, 2, 3), b.ints(0, low), b.ints(9, high)])


def slice_attributes(b: ModelBuilder) -> None:
    """Before operator set 10."""
    b.free = False
    channels = b.between(3, 5)
    low, high = window(b, channels)
    axes = b.one_of(([1], None))
    bounds = ([low], [min(high, 99)]) if axes else ([0, low], [9, min(high, 99)])
    b.subject("Slice", [b.image(channels, 2, 3)], starts=bounds[0], ends=bounds[1], axes=axes)


def slice_several(b: ModelBuilder) -> None:
    """Some channels and, with a step or backwards, some pixels."""
    channels = b.between(3, 5)
    low, high = window(b, channels)
    pixels = b.one_of(((0, 9, 2), (-1, -(1 << 40), -1), (3, 0, -1), (-1, -9, -2)))
    rows = [(low, high, 1, 1), (*pixels[:2], 3, pixels[2])]
    rows = rows[::-1] if b.chance(2) else rows
    b.subject("Slice", [b.image(channels, 2, 4), *(b.ints(*column) for column in zip(*rows, strict=True))])


def slice_heads(b: ModelBuilder) -> None:
    """Some heads, or some channels of each head."""
    axis = b.one_of((2, 3))
    b.subject("Slice", [b.headed(3, 3, 2), b.ints(1), b.ints(3), b.ints(axis), b.ints(1)])


def slice_pixels(b: ModelBuilder) -> None:
    steps = b.one_of((1, 2))
    b.subject("Slice", [b.image(b.between(2, 4), 4, 3), b.ints(1), b.ints(4), b.ints(2), b.ints(steps)])


def slice_step(b: ModelBuilder) -> None:
    """Every n-th channel, forwards or backwards, and all of the pixels."""
    start, end, step = b.one_of(((0, 5, 2), (1, 9, 3), (-1, -9, -1), (4, 0, -2), (-1, -(1 << 40), -1)))
    rows = [(start, end, b.one_of((1, -3)), step), *b.one_of(((), ((0, 2, 2, 1),)))]
    b.subject("Slice", [b.image(5, 2, 3), *(b.ints(*column) for column in zip(*rows, strict=True))])


def slice_step_and_pixels(b: ModelBuilder) -> None:
    bounds = [b.ints(0, 0), b.ints(5, 1), b.ints(1, 2), b.ints(2, 1)]
    b.subject("Slice", [b.image(5, 2, 3), *bounds])


def slice_step_of_two(b: ModelBuilder) -> None:
    b.subject("Slice", [b.headed(3, 2, 2), b.ints(0), b.ints(3), b.ints(2), b.ints(2)])


def pad_channels(b: ModelBuilder) -> None:
    before, after = b.one_of(((1, 0), (0, 2), (2, 1)))
    value = b.one_of(([], [b.scalar(0.0)], [b.scalar(0.6)]))
    pads = b.ints(0, before, 0, 0, 0, after, 0, 0)
    b.subject("Pad", [b.image(b.between(2, 4), 2, 3), pads, *value], mode=b.one_of(("constant", None)))


def pad_both(b: ModelBuilder) -> None:
    """Channels and pixels at once."""
    pads = b.ints(0, 1, 0, 1, 0, 0, 1, 0)
    b.subject("Pad", [b.image(b.between(2, 4), 2, 3), pads, b.scalar(0.3)])


def pad_axes(b: ModelBuilder) -> None:
    """Amounts for the axes named."""
    axes, pads = b.one_of((((1,), (1, 2)), ((3, 1, 2), (1, 2, 0, 0, 1, 3)), ((-3,), (0, 1))))
    value = b.one_of(("", b.scalar(0.6)))
    b.subject("Pad", [b.image(b.between(2, 4), 2, 3), b.ints(*pads), value, b.ints(*axes)])


def pad_pixel_axes(b: ModelBuilder) -> None:
    """Only axes of pixels are named."""
    axes, pads = b.one_of((((2,), (1, 0)), ((3, 2), (1, 0, 0, 2)), ((-1,), (0, 1))))
    b.subject("Pad", [b.image(b.between(2, 4), 2, 3), b.ints(*pads), "", b.ints(*axes)])


def pad_attributes(b: ModelBuilder) -> None:
    """Before operator set 11."""
    b.free = False
    channels = b.between(2, 4)
    b.subject("Pad", [b.image(channels, 2, 3)], pads=[0, 1, 0, 0, 0, 2, 1, 0], value=b.one_of((None, 0.6)))


def pad_pixels(b: ModelBuilder) -> None:
    pads = b.ints(0, 0, 1, 0, 0, 0, 1, 2)
    b.subject("Pad", [b.image(b.between(2, 4), 2, 3), pads], mode=b.one_of(("constant", "reflect", "edge")))


def pad_crop(b: ModelBuilder) -> None:
    """Pixels are cut off."""
    b.subject("Pad", [b.image(b.between(2, 4), 4, 3), b.ints(0, 0, -1, 0, 0, 0, -1, 0)])


def pad_mirror(b: ModelBuilder) -> None:
    b.subject("Pad", [b.image(4, 2, 3), b.ints(0, 1, 0, 0, 0, 1, 0, 0)], mode="reflect")


def pad_crop_channels(b: ModelBuilder) -> None:
    before, after = b.one_of(((-1, 0), (0, -2), (-1, -1)))
    b.subject("Pad", [b.image(5, 2, 3), b.ints(0, before, 0, 0, 0, after, 0, 0)])


def pad_crop_and_pad(b: ModelBuilder) -> None:
    before, after, row = b.one_of(((-1, 1, 0), (-1, 0, 1)))
    b.subject("Pad", [b.image(5, 2, 3), b.ints(0, before, row, 0, 0, after, 0, 0)])


def pad_crop_one_of_two(b: ModelBuilder) -> None:
    b.subject("Pad", [b.headed(3, 2, 2), b.ints(0, 0, -1, 0, 0, 0, 0, 0)])


def pad_two_axes(b: ModelBuilder) -> None:
    folded = b.node("Reshape", [b.image(4, 3), b.ints(0, 2, 2, 3)])
    b.subject("Pad", [folded, b.ints(0, 1, 1, 0, 0, 0, 0, 0)])


MOVE: dict[str, Any] = {"linear": True, "moves": True}

MERGE: dict[str, Any] = {**MOVE, "exact": False}

CASES = [
    Case(
        "Slice",
        (
            Form("bounds by input", slice_inputs, ALL, **MOVE),
            Form("no axes", slice_without_axes, ALL, **MOVE),
            Form("bounds by attribute", slice_attributes, (9,), **MOVE),
            Form("several axes", slice_several, ALL, **MOVE),
            Form("pixels", slice_pixels, ALL, **MOVE),
            Form("heads", slice_heads, ALL, **MOVE),
            Form("every n-th channel", slice_step, ALL, **MOVE),
        ),
        (
            Refusal("step and pixels", slice_step_and_pixels, "takes every n-th channel and slices another axis"),
            Refusal("step on one of two axes", slice_step_of_two, "takes every n-th channel of several axes"),
        ),
    ),
    Case(
        "Pad",
        (
            Form("channels", pad_channels, ALL, **MOVE),
            Form("channels and pixels", pad_both, ALL, **MERGE),
            Form("axes", pad_axes, (18, 21), **MERGE),
            Form("axes of pixels", pad_pixel_axes, (18, 21), **MERGE),
            Form("amounts by attribute", pad_attributes, (10,), **MERGE),
            Form("pixels", pad_pixels, ALL, exact=False),
            Form("cropped pixels", pad_crop, ALL, **MOVE),
            Form("cropped channels", pad_crop_channels, ALL, **MOVE),
        ),
        (
            Refusal("mirrored", pad_mirror, "it mirrors or repeats channels"),
            Refusal("cropped and padded", pad_crop_and_pad, "it crops channels and pads as well"),
            Refusal("cropped on one of two axes", pad_crop_one_of_two, "it crops channels on one of several axes"),
            Refusal("two axes", pad_two_axes, "it pads several axes that hold channels"),
        ),
    ),
]
