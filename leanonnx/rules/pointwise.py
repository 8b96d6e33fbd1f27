"""Elementwise functions.

Unary (activations, casts): channels pass through.
Joins (Add, Mul, Where, comparisons …): channels at the same position are tied; an operand that is broadcast over the
channels is not.  A constant operand is sliced with its tensor.
"""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, compact_ids, varied_axes
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_with, standard_keys
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, FixedEdges, Slice, Unsupported, pin_side_inputs
from leanonnx.rules.joins import broadcast_factor, join_operands

SCALING = names_with(Trait.SCALES)


def unary(call: Call) -> Effect:
    """Activations, casts and other elementwise functions of one tensor.

    Flow: channels pass through; further outputs (a dropout mask) hold the same channels.
    Ties: none.
    Pins: computed parameters (for example the bounds of a Clip).
    Limits: none.
    Specification: ONNX Relu-14, Clip-13, Cast-21 and the other unary operators; com.microsoft.QuickGelu-1,
        QLinearSigmoid-1, QLinearLeakyRelu-1.
    """
    return pin_side_inputs(call, Effect((call.channel_ids(0),) * len(call.output_shapes)), "reads it as a parameter")


def elementwise(call: Call) -> Effect:
    """Elementwise functions of several tensors, with broadcasting.

    Flow: the channels of each operand lead to those of the output; a multiplication by one constant per channel
        scales them.
    Ties: channels at the same position; an operand that is broadcast over the channels is not tied.
    Pins: nothing.
    Limits: none; constants are sliced with the tensor that they are combined with.
    Specification: ONNX Add-14, Mul-14, Where-16 and the other elementwise operators.
    """
    return join_slots(call, tuple(k for k in range(len(call.inputs)) if call.has_input(k)))


def join_slots(call: Call, slots: tuple[int, ...]) -> Effect:
    """Tie the computed operands in these slots and slice the constant ones."""
    effect = join_operands(call, slots, {k: call.shape(k) for k in slots})
    (out,) = effect.outputs
    computed = [k for k in slots if not call.is_constant(k)]
    if call.op in SCALING and len(computed) == 1 and len(slots) == 2 and varied_axes(out):
        scaled = _scale_channels(call, out, next(k for k in slots if k not in computed))
        if scaled is not None:
            minted, edges = scaled
            ties = (*effect.ties, (out, minted))
            return Effect((minted,), ties, fixed_edges=(edges,), slices=_slice_by(call, effect.slices, minted))
    return effect


def _scale_channels(call: Call, channel_ids: ChannelIds, slot: int) -> tuple[ChannelIds, FixedEdges] | None:
    """New channels of a product with (or quotient by) one constant per channel; None for other constants.

    A factor that is the same for all channels does not change the order of the chains through a layer.
    """
    constant = call.array(slot)
    shape = (1,) * (channel_ids.ndim - constant.ndim) + constant.shape
    elsewhere = any(size != 1 and axis not in varied_axes(channel_ids) for axis, size in enumerate(shape))
    if constant.size < 2 or elsewhere or constant.dtype.kind != "f" or (call.op == "Div" and slot == 0):
        return None
    unique, inverse = np.unique(channel_ids, return_inverse=True)
    gains = np.zeros(unique.size)
    np.maximum.at(gains, inverse.ravel(), np.broadcast_to(np.abs(constant.reshape(shape)), channel_ids.shape).ravel())
    if call.op == "Div":
        gains = 1 / np.maximum(gains, np.finfo(np.float32).tiny)
    minted = call.mint(unique.size)
    return minted[inverse].reshape(channel_ids.shape), FixedEdges(unique, minted, gains.astype(np.float32))


def _slice_by(call: Call, slices: tuple[Slice, ...], channel_ids: ChannelIds) -> tuple[Slice, ...]:
    """Slices of the same constants by new channel ids."""
    return tuple(Slice(s.slot, (broadcast_factor(channel_ids, call.shape(s.slot))[0],)) for s in slices)


def prelu(call: Call) -> Effect:
    """Leaky rectifier with one slope per channel, or one for all.

    Flow: channels pass through.
    Ties: channels that share a slope.
    Pins: nothing.
    Limits: the slope is a constant.
    Specification: ONNX PRelu-16.
    """
    if not call.is_constant(1):
        raise Unsupported("the slope is computed at run time", advice.MAKE_CONSTANT)
    factor, ties = broadcast_factor(call.channel_ids(0), call.shape(1))
    return Effect((call.channel_ids(0),), tuple(ties), slices=(Slice(1, (factor,)),) if varied_axes(factor) else ())


def qlinear_join(call: Call) -> Effect:
    """Quantised addition and multiplication: A, a_scale, a_zero, B, b_scale, b_zero, c_scale, c_zero.

    Flow: as Add.
    Ties: as Add.
    Pins: nothing.
    Limits: none.
    Specification: com.microsoft.QLinearAdd-1, QLinearMul-1.
    """
    return join_slots(call, (0, 3))


def image_scaler(call: Call) -> Effect:
    """Scale, with one bias per channel as an attribute.

    Flow: channels pass through.
    Ties: none.
    Pins: nothing.
    Limits: the input has one channel, or none that can be removed.
    Specification: ONNX ImageScaler-1 (experimental).
    """
    channel_ids = call.channel_ids(0)
    if varied_axes(channel_ids):
        raise Unsupported("its bias per channel is an attribute", "export it as Mul and Add")
    return Effect((compact_ids(channel_ids),))


def bias_gelu(call: Call) -> Effect:
    """Addition followed by Gelu.

    Flow: as Add.
    Ties: as Add.
    Pins: nothing.
    Limits: none.
    Specification: com.microsoft.BiasGelu-1.
    """
    return join_slots(call, (0, 1))


POINTWISE_RULES = {
    **dict.fromkeys(standard_keys(Family.UNARY), unary),
    **dict.fromkeys(standard_keys(Family.JOIN), elementwise),
    ("", "PRelu"): prelu,
    ("", "ImageScaler"): image_scaler,
    ("com.microsoft", "QLinearAdd"): qlinear_join,
    ("com.microsoft", "QLinearMul"): qlinear_join,
    ("com.microsoft", "QLinearSigmoid"): unary,
    ("com.microsoft", "QLinearLeakyRelu"): unary,
    ("com.microsoft", "QuickGelu"): unary,
    ("com.microsoft", "Gelu"): unary,
    ("com.microsoft", "BiasGelu"): bias_gelu,
}
