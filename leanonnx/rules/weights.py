"""What rules of channel-mixing operators ask of their weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from leanonnx.numeric.labels import Labels, Shape, uniform
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Mix, Slice, Unsupported


def require_held(call: Call, weight: int) -> None:
    """The weight must be a constant that the file holds.

    Raises:
        Unsupported: it is computed, from other constants or from a graph input.
    """
    if not call.is_constant(weight):
        raise Unsupported("its weight is computed from a graph input")
    if not call.value(weight).held:
        if call.value(weight).blocked:
            raise Unsupported("its weight is quantised in blocks", advice.FLOAT)
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


def with_whole_weight(call: Call, effect: Effect, slot: int) -> Effect:
    """Add the cost of a weight that no channel removal can shrink."""
    shape = call.shape(slot)
    rows, columns, *kernel = shape if "Conv" in call.op else shape[-2:]
    out = max(math.prod(call.output_shapes[0] or ()), 1)
    mix = fixed(slot, (rows, columns), taps=math.prod(kernel), positions=max(out // _outputs(call, shape), 1))
    return replace(effect, mixes=(*effect.mixes, mix))


def fixed(slot: int, size: tuple[int, int], taps: int = 1, positions: int = 1, counted: bool = True) -> Mix:
    """The cost of kernels ``[rows, columns]`` that all live always (label 0)."""
    always = uniform(0, 2)
    sources, targets = np.broadcast_to(always, (1, size[1])), np.broadcast_to(always, (1, size[0]))
    nothing = np.zeros((1, 1, 1), np.float32)
    return Mix(sources, targets, slot, lambda: nothing, taps=taps, positions=positions, counted=counted)


def _outputs(call: Call, shape: Shape) -> int:
    """Output channels of a weight."""
    if "Conv" not in call.op:
        return shape[-2] if call.attribute("transB", 0) else shape[-1]
    return shape[1] * int(call.attribute("group", 1)) if call.op == "ConvTranspose" else shape[0]
