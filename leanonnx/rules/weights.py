"""What rules of channel-mixing operators ask of their weights."""

from __future__ import annotations

import math

from leanonnx.labels import Labels
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Slice, Unsupported


def require_held(call: Call, weight: int) -> None:
    """The weight must be a constant that the file holds.

    Raises:
        Unsupported: it is computed, from other constants or from a graph input.
    """
    if not call.is_constant(weight):
        raise Unsupported("its weight is computed from a graph input")
    if not call.value(weight).held:
        name = call.value(weight).name
        raise Unsupported(f"it computes its weight '{name}' from constants", advice.FOLD)


def vectors(call: Call, slots: tuple[int, ...], targets: Labels) -> tuple[Slice, ...]:
    """Slices of the slots that hold one value per output channel (scalars stay)."""
    found = []
    for slot in slots:
        if slot < 0 or not call.has(slot):
            continue
        if not call.is_constant(slot):
            raise Unsupported(f"input {slot} is computed from a graph input", advice.CONSTANT)
        if math.prod(call.shape(slot)) == targets.size and targets.size > 1:
            found.append(Slice(slot, (targets.reshape(call.shape(slot)),)))
    return tuple(found)
