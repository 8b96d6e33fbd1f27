"""Operators that concatenate or split tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules import mistakes
from tests.rules.case import Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

ALL = (11, 13, 17, 21)

OLD = (11,)

NEW = (13, 17, 21)


def concat(b: ModelBuilder) -> None:
    """Along the channels; operands repeat, one may be a constant."""
    operands = [b.image(b.between(1, 3), 2, 3) for _ in range(b.between(1, 2))]
    operands += b.one_of(([], operands, operands[:1]))
    b.subject("Concat", [b.image(2, 2, 3), *operands], axis=b.one_of((1, -3)))


def concat_constant(b: ModelBuilder) -> None:
    b.free = False
    fixed = b.const(b.normal(b.batch, 2, 2, 3) * b.choose(2))
    operands = [b.image(b.between(2, 3), 2, 3)]
    operands.insert(b.choose(2), fixed)
    b.subject("Concat", operands, axis=1)


def concat_pixels(b: ModelBuilder) -> None:
    """Along another axis: channels are tied."""
    channels = b.between(2, 4)
    b.subject("Concat", [b.image(channels, 2, 3), b.image(channels, 2, 2)], axis=b.one_of((3, -1)))


def concat_same_pixels(b: ModelBuilder) -> None:
    data = b.image(b.between(2, 4), 2, 3)
    b.subject("Concat", [data, b.node("Relu", [data])], axis=2)


def concat_constant_pixels(b: ModelBuilder) -> None:
    b.free = False
    channels = b.between(2, 4)
    b.subject("Concat", [b.const(b.normal(b.batch, channels, 1, 3)), b.image(channels, 2, 3)], axis=2)


def concat_last(b: ModelBuilder) -> None:
    b.subject("Concat", [b.tokens(b.between(2, 3), 3), b.tokens(b.between(1, 3), 3)], axis=b.one_of((2, -1)))


def concat_two_axes(b: ModelBuilder) -> None:
    folded = [b.node("Reshape", [b.image(4, 2), b.ints(0, 2, 2, 2)]) for _ in range(2)]
    b.subject("Concat", folded, axis=1)


def parts(b: ModelBuilder, channels: int) -> list[int]:
    cut = b.between(1, channels - 1)
    return [cut, channels - cut]


def split_by_input(b: ModelBuilder) -> None:
    channels = b.between(3, 5)
    sides = parts(b, channels)
    b.subject("Split", [b.image(channels, 2, 3), b.ints(*sides)], 2, axis=b.one_of((1, -3)))


def split_by_attribute(b: ModelBuilder) -> None:
    channels = b.between(3, 5)
    b.subject("Split", [b.image(channels, 2, 3)], 2, axis=b.one_of((1, -3)), split=parts(b, channels))


def split_even(b: ModelBuilder) -> None:
    outputs = b.between(2, 3)
    extra: dict[str, Any] = {"num_outputs": outputs} if b.opset >= 18 else {}
    b.subject("Split", [b.image(2 * outputs, 2, 3)], outputs, axis=1, **extra)


def split_uneven(b: ModelBuilder) -> None:
    """A last part that is smaller."""
    b.subject("Split", [b.image(5, 2, 3)], 3, axis=1, num_outputs=3)


def split_pixels(b: ModelBuilder) -> None:
    """Along an axis without channels; by default the first."""
    axis = b.one_of((2, None))
    b.batch, b.free = 2, False
    extra: dict[str, Any] = {"num_outputs": 2} if b.opset >= 18 else {}
    b.subject("Split", [b.image(b.between(2, 4), 2, 3)], 2, axis=axis, **extra)


def split_dropped(b: ModelBuilder) -> None:
    """Only one of the parts is read."""
    outputs = b.subject("Split", [b.image(4, 2, 3), b.ints(1, 3)], 2, axis=1)
    b.reads = [outputs[b.choose(2)]]


MOVE: dict[str, Any] = {"linear": True, "moves": True}

MERGE: dict[str, Any] = {**MOVE, "exact": False}

NOTHING = "it only moves data, whatever the axes"


def qlinear_operands(b: ModelBuilder, tensors: list[str]) -> list[str]:
    """Each tensor with its scale and zero point, the output's first."""
    found = [b.scalar(0.06), b.scalar(120, np.uint8)]
    for tensor in tensors:
        found += [tensor, b.scalar(0.05), b.scalar(128, np.uint8)]
    return found


def qlinear_concat(b: ModelBuilder) -> None:
    tensors = [b.quantised(b.image(b.between(1, 3), 2, 3)) for _ in range(b.between(1, 2))]
    tensors.append(b.quantised(b.image(2, 2, 3)))
    b.subject("QLinearConcat", qlinear_operands(b, tensors), domain="com.microsoft", axis=b.one_of((1, -3)))


def qlinear_concat_pixels(b: ModelBuilder) -> None:
    channels = b.between(2, 4)
    tensors = [b.quantised(b.image(channels, 2, size)) for size in (2, 3)]
    b.subject("QLinearConcat", qlinear_operands(b, tensors), domain="com.microsoft", axis=3)


def qlinear_concat_two_axes(b: ModelBuilder) -> None:
    tensors = [b.quantised(b.headed(2, 2, 2)) for _ in range(2)]
    b.subject("QLinearConcat", qlinear_operands(b, tensors), domain="com.microsoft", axis=2)


def qlinear_concat_constant(b: ModelBuilder) -> None:
    b.free = False
    fixed = b.const(np.full((b.batch, 2, 2, 3), 99, np.uint8))
    tensors = [b.quantised(b.image(3, 2, 3)), fixed]
    b.subject("QLinearConcat", qlinear_operands(b, tensors), domain="com.microsoft", axis=1)


CASES = [
    Case(
        "Concat",
        (
            Form("channels", concat, ALL, **MOVE),
            Form("constant", concat_constant, ALL, **MOVE),
            Form("pixels", concat_pixels, ALL, **MERGE),
            Form("pixels of the same channels", concat_same_pixels, ALL, exact=False),
            Form("constant pixels", concat_constant_pixels, **MERGE),
            Form("channels last", concat_last, **MOVE),
        ),
        (Refusal("two axes", concat_two_axes, "hold channels on the concatenated axis and on another"),),
    ),
    Case(
        "Split",
        (
            Form("sizes by input", split_by_input, NEW, **MOVE),
            Form("sizes by attribute", split_by_attribute, OLD, **MOVE),
            Form("even", split_even, (11, 13, 17, 18, 21), **MOVE),
            Form("smaller last", split_uneven, (18, 21), **MOVE),
            Form("pixels", split_pixels, ALL, **MOVE),
            Form("one part read", split_dropped, NEW, **MOVE),
        ),
        whole=NOTHING,
        wrong={"parts swapped": mistakes.parts_swapped},
    ),
    Case(
        "QLinearConcat",
        (Form("channels", qlinear_concat), Form("pixels", qlinear_concat_pixels, exact=False)),
        (
            Refusal("two axes", qlinear_concat_two_axes, "hold channels on the concatenated axis and on another"),
            Refusal("constant", qlinear_concat_constant, "input 5 is a constant"),
        ),
        "com.microsoft",
    ),
]
