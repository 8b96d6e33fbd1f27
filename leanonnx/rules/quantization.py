"""Quantisation: channels of activations pass through, scales per channel are sliced.

Slices of constants behind these operators (quantised weights) are resolved by ``analysis.constants``.
"""

from __future__ import annotations

import math

from leanonnx.numeric.channel_ids import compact_ids, uniform_ids, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Slice, Unsupported


def quantize_linear(call: Call) -> Effect:
    """Quantise or dequantise, with one scale or one per channel.

    Flow: channels pass through.
    Ties: none.
    Pins: nothing.
    Limits: scale and zero point are constants and not blockwise; those per channel are sliced.
    Specification: ONNX QuantizeLinear-21, DequantizeLinear-21.
    """
    if any(call.has_input(slot) and not call.is_constant(slot) for slot in (1, 2)):
        raise Unsupported("its scale is computed at run time", advice.MAKE_CONSTANT)
    if call.attribute("block_size", 0):
        raise Unsupported("it is quantised in blocks", advice.COMPRESS_FLOAT)
    if math.prod(call.shape(1)) == 1:
        return Effect((call.channel_ids(0),))
    axis = int(call.attribute("axis", 1)) % len(call.shape(0))
    if axis not in varied_axes(call.channel_ids(0)):
        return Effect((call.channel_ids(0),))
    vector, ties = call.channel_ids_along(0, axis)
    slices = tuple(Slice(slot, (vector,)) for slot in (1, 2) if call.has_input(slot))
    return Effect(
        (compact_ids(call.channel_ids(0)),), tuple(ties), slices=slices if len(set(vector.tolist())) > 1 else ()
    )


def dynamic_quantize_linear(call: Call) -> Effect:
    """Quantise with a scale from the range of the whole tensor.

    Flow: a single channel passes through.
    Ties: none.
    Pins: several channels, all of which contribute to the scale.
    Limits: none.
    Specification: ONNX DynamicQuantizeLinear-11.
    """
    channel_ids = call.channel_ids(0)
    if varied_axes(channel_ids):
        raise Unsupported("its scale is taken over all channels", advice.COMPRESS_FLOAT)
    one = uniform_ids(int(channel_ids.flat[0]), 0)
    return Effect((channel_ids, one, one))


QUANTIZATION_RULES = {
    ("", "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): quantize_linear,
    ("", "DynamicQuantizeLinear"): dynamic_quantize_linear,
}
