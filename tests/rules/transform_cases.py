"""Fourier transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules.case import Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

BOTH = (17, 19, 20, 21)


def transformed(b: ModelBuilder, data: str, axis: int | None, **attributes: Any) -> None:
    """The axis as an input where the operator set wants it so; perhaps with a length."""
    length = b.one_of(("", b.scalar(b.one_of((2, 3, 5)), np.int64)))
    if b.opset >= 20:
        b.subject("DFT", [data, length, *([] if axis is None else [b.scalar(axis, np.int64)])], **attributes)
    else:
        b.subject("DFT", [data, *([length] if length else [])], axis=axis, **attributes)


def complex_image(b: ModelBuilder) -> str:
    """[batch, channels, positions, 1 or 2]."""
    return b.image(b.between(2, 4), b.between(3, 4), b.between(1, 2))


def pixels(b: ModelBuilder) -> None:
    transformed(b, complex_image(b), b.one_of((2, -2)), inverse=b.one_of((None, 0, 1)))


def both_axes(b: ModelBuilder) -> None:
    """The last axis appears: [batch, channels, height, width, 1]."""
    data = b.node("Unsqueeze", [b.image(b.between(2, 3), 3, 4), b.ints(4)])
    transformed(b, data, b.one_of((2, 3, -2)))


def one_sided(b: ModelBuilder) -> None:
    transformed(b, b.image(b.between(2, 3), 4, 1), 2, onesided=1)


def default_axis(b: ModelBuilder) -> None:
    """Axis 1, or from operator set 20 on the last but one."""
    if b.opset < 20:
        data = b.node("Transpose", [complex_image(b)], perm=[0, 2, 1, 3])
    else:
        data = complex_image(b)
    transformed(b, data, None)


def heads(b: ModelBuilder) -> None:
    """[batch, heads, width, length] with a part axis behind: the channels of a head are transformed together."""
    data = b.headed(b.between(2, 3), 3, 2, (0, 2, 3, 1))
    transformed(b, b.node("Unsqueeze", [data, b.ints(4)]), 2)


def channels(b: ModelBuilder) -> None:
    transformed(b, b.image(3, 2, b.between(1, 2)), 1)


def parts(b: ModelBuilder) -> None:
    """Channels lie on the axis of real and imaginary parts."""
    transformed(b, b.tokens(2, 4), 1)


def steered(b: ModelBuilder) -> None:
    """The axis is no constant."""
    b.batch, b.free = 1, False
    axis = b.node("Add", [b.node("Squeeze", [b.places(b.plain(1))]), b.scalar(2, np.int64)])
    axis = b.node("Min", [axis, b.scalar(2, np.int64)])
    b.subject("DFT", [b.image(3, 4, 2), "", axis])


CASES = [
    Case(
        "DFT",
        (
            Form("pixels", pixels, BOTH, exact=False),
            Form("both axes", both_axes, BOTH, exact=False),
            Form("one side", one_sided, BOTH, exact=False),
            Form("default axis", default_axis, BOTH, exact=False),
            Form("heads", heads, BOTH, exact=False),
        ),
        (
            Refusal("channels", channels, "it transforms the channels", BOTH),
            Refusal("parts", parts, "it transforms the channels", BOTH),
            Refusal("axis at run time", steered, "computed from a graph input", (20, 21)),
        ),
    )
]
