"""QuantizeLinear and DequantizeLinear on activations."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder


def one(op: str) -> Build:
    """One scale, as a scalar or a vector of one number; the zero point may be left out."""

    def build(b: ModelBuilder) -> None:
        data = b.image(b.between(2, 4), 2, 3)
        data = b.quantised(data) if op == "DequantizeLinear" else data
        vector = b.chance(2)
        zero = [b.const(np.full([1] * vector, 100, np.uint8))] if b.chance(2) else []
        b.subject(op, [data, b.const(np.full([1] * vector, 0.05, np.float32)), *zero])

    return build


def per_channel(op: str) -> Build:
    """A scale for each channel, on axis 1 unless an axis is named."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        last = b.chance(2)
        data = b.tokens(channels, 3) if last else b.image(channels, 2, 3)
        data = b.quantised(data) if op == "DequantizeLinear" else data
        zero = [b.const(b.rng.integers(100, 150, channels).astype(np.uint8))] if b.chance(2) else []
        axis = b.one_of((2, -1)) if last else b.one_of((1, -3, None))
        b.subject(op, [data, b.const(0.05 * b.positive(channels)), *zero], axis=axis)

    return build


def by_default(op: str) -> Build:
    """A scale for each channel, no axis named."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        data = b.image(channels, 2, 3)
        data = b.quantised(data) if op == "DequantizeLinear" else data
        b.subject(op, [data, b.const(0.05 * b.positive(channels)), b.const(np.full(channels, 120, np.uint8))])

    return build


def per_pixel(op: str) -> Build:
    """A scale for each row of pixels."""

    def build(b: ModelBuilder) -> None:
        data = b.image(b.between(2, 4), 3, 2)
        data = b.quantised(data) if op == "DequantizeLinear" else data
        b.subject(op, [data, b.const(0.05 * b.positive(3)), b.const(np.full(3, 120, np.uint8))], axis=2)

    return build


def computed(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.image(3, 2, 3)
        data = b.quantised(data) if op == "DequantizeLinear" else data
        b.subject(op, [data, b.number(0.05)])

    return build


def computed_zero(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.image(3, 2, 3)
        data = b.quantised(data) if op == "DequantizeLinear" else data
        b.subject(op, [data, b.scalar(0.05), b.node("Cast", [b.number(100.0)], to=TensorProto.UINT8)])

    return build


def blocks(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.batch, b.free = 1, False
        data = b.image(4, 2, 3)
        data = b.quantised(data) if op == "DequantizeLinear" else data
        zero = b.const(np.full((1, 2, 2, 3), 120, np.uint8))
        b.subject(op, [data, b.const(0.05 * b.positive(1, 2, 2, 3)), zero], axis=1, block_size=2)

    return build


def dynamic(b: ModelBuilder) -> None:
    """A tensor without channels, output with its scale and zero point."""
    data = b.image(b.between(2, 4), 2, 3)
    names = b.subject("DynamicQuantizeLinear", [b.plain(2, 3)], 3)
    b.reads = [data, b.node("DequantizeLinear", names)]


def dynamic_channels(b: ModelBuilder) -> None:
    """The last channel sets the scale of all."""
    loud = b.node("Mul", [b.image(3, 2, 3), b.const(np.array([1, 1, 300], np.float32).reshape(3, 1, 1))])
    b.reads = b.subject("DynamicQuantizeLinear", [loud], 3)[:1]


CASES = [
    Case(
        "DynamicQuantizeLinear",
        (Form("no channels", dynamic, (11, 13, 17, 21), exact=False, beside=True),),
        (Refusal("channels", dynamic_channels, "its scale is taken over all channels"),),
    ),
    *(
        Case(
            op,
            (
                Form("one scale", one(op), (11, 13, 17, 21)),
                Form("scale per channel", per_channel(op), (13, 17, 21)),
                Form("default axis", by_default(op), (13, 17, 21)),
                Form("scale per pixel", per_pixel(op), (13, 17, 21)),
            ),
            (
                Refusal("computed scale", computed(op), "its scale is computed at run time"),
                Refusal("computed zero point", computed_zero(op), "its scale is computed at run time"),
                Refusal("blocks", blocks(op), "it is quantised in blocks", (21,)),
            ),
        )
        for op in ("QuantizeLinear", "DequantizeLinear")
    ),
]
