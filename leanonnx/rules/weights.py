"""What rules of channel-mixing operators ask of their weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, uniform
from leanonnx.operators.table import CONVOLUTIONS
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, KernelBlock, Slice, Unsupported


def require_held(call: Call, weight: int) -> None:
    """The weight must be a constant, or be computed from constants alone.

    Raises:
        Unsupported: it is computed from a graph input, from the size of one, or from noise.
    """
    if not call.is_constant(weight):
        raise Unsupported("its weight is computed from a graph input")
    if not call.value(weight).held:
        name = call.value(weight).name
        raise Unsupported(f"it computes its weight '{name}' from sizes at run time, or from noise", advice.CONSTANT)


def vectors(call: Call, slots: tuple[int, ...], targets: ChannelIds) -> tuple[Slice, ...]:
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
    """Add the kernels of a weight that no channel removal can shrink; its multiply-adds are counted with products."""
    shape = call.shape(slot)
    size = (shape[0], shape[1]) if call.op in CONVOLUTIONS else (math.prod(shape[:-1]), shape[-1])
    return replace(effect, kernel_blocks=(*effect.kernel_blocks, fixed(slot, size, taps=0)))


def fixed(slot: int, size: tuple[int, int], taps: int = 1, positions: int = 1, counted: bool = True) -> KernelBlock:
    """The cost of kernels ``[rows, columns]`` that all live always (label 0)."""
    always = uniform(0, 2)
    sources, targets = np.broadcast_to(always, (1, size[1])), np.broadcast_to(always, (1, size[0]))
    nothing = np.zeros((1, 1, 1), np.float32)
    return KernelBlock(sources, targets, slot, lambda: nothing, taps=taps, positions=positions, counted=counted)
