"""QuantizeLinear and DequantizeLinear on activations: channels pass through, scales per channel are sliced.

On constants (quantised weights) these operators are followed by ``analysis.constants``.
"""

from __future__ import annotations

import math

from leanonnx.labels import compact
from leanonnx.rules.call import Call, Effect, Slice, Unsupported


def linear(call: Call) -> Effect:
    """QuantizeLinear-21 and DequantizeLinear-21 with constant scale and zero point."""
    if any(call.has(slot) and not call.is_constant(slot) for slot in (1, 2)):
        raise Unsupported("its scale is computed at run time")
    if call.attribute("block_size", 0):
        raise Unsupported("it is quantised in blocks")
    if math.prod(call.shape(1)) == 1:
        return Effect((call.labels(0),))
    axis = int(call.attribute("axis", 1)) % len(call.shape(0))
    vector, ties = call.slices(0, axis)
    slices = tuple(Slice(slot, (vector,)) for slot in (1, 2) if call.has(slot))
    return Effect((compact(call.labels(0)),), tuple(ties), slices=slices if len(set(vector.tolist())) > 1 else ())
