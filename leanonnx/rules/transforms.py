"""Transforms without weights, along one axis of the data."""

from __future__ import annotations

from leanonnx.rules.call import Call, Effect, Unsupported, combine_axes, pin_side_inputs

ATTRIBUTE_AXIS, INPUT_AXIS = 1, -2
"""Default axis of a DFT before and from operator set 20 on, where the axis is an input."""
INPUT_AXIS_OPSET = 20
AXIS_SLOT = 2


def dft(call: Call) -> Effect:
    """Discrete Fourier transform along an axis; the last axis holds real and imaginary parts.

    Flow: channels on other axes pass through.
    Ties: channels that are transformed together, if other axes hold channels too (heads).
    Pins: channels on the transformed axis, or on that of real and imaginary parts, if no other axis holds channels; a
        length that is computed from a graph input.
    Limits: the axis is a constant.
    Specification: ONNX DFT-20.
    """
    rank = len(call.shape(0))
    given = call.ints(AXIS_SLOT) if call.opset >= INPUT_AXIS_OPSET else [int(call.attribute("axis", ATTRIBUTE_AXIS))]
    (axis,) = given or [INPUT_AXIS]
    if axis % rank == rank - 1:
        raise Unsupported("it transforms real and imaginary parts", "transform another axis")
    effect = combine_axes(call, {axis % rank, rank - 1}, "it transforms the channels")
    return pin_side_inputs(call, effect, "reads its length at run time")


TRANSFORM_RULES = {("", "DFT"): dft}
