"""Helpers of rules for the weights of channel-mixing operators."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, uniform_ids
from leanonnx.operators.table import CONVOLUTIONS
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, KernelBlock, Slice, Unsupported


def require_static_weight(call: Call, weight: int) -> None:
    """Require that the weight is a constant, or computed from constants alone.

    Raises:
        Unsupported: it is computed from a graph input, from an input's size, or from random numbers.
    """
    if not call.is_constant(weight):
        raise Unsupported("its weight is computed from a graph input")
    if not call.value(weight).is_static:
        name = call.value(weight).name
        raise Unsupported(
            f"its weight '{name}' is computed from sizes at run time, or from random numbers", advice.MAKE_CONSTANT
        )


def per_channel_slices(call: Call, slots: tuple[int, ...], destinations: ChannelIds) -> tuple[Slice, ...]:
    """Slices of the constants that hold one value per output channel (scalars are not sliced)."""
    slices = []
    for slot in slots:
        if slot < 0 or not call.has_input(slot):
            continue
        if not call.is_constant(slot):
            raise Unsupported(f"input {slot} is computed from a graph input", advice.MAKE_CONSTANT)
        if math.prod(call.shape(slot)) == destinations.size and destinations.size > 1:
            slices.append(Slice(slot, (destinations.reshape(call.shape(slot)),)))
    return tuple(slices)


def add_unprunable_weight(call: Call, effect: Effect, slot: int) -> Effect:
    """Add the kernels of a weight that cannot be pruned to an effect.

    Its multiply-adds are counted with the products (``analysis.product_costs``), not here.
    """
    shape = call.shape(slot)
    size = (shape[0], shape[1]) if call.op in CONVOLUTIONS else (math.prod(shape[:-1]), shape[-1])
    return replace(effect, kernel_blocks=(*effect.kernel_blocks, unprunable_block(slot, size, taps=0)))


def unprunable_block(
    slot: int, size: tuple[int, int], taps: int = 1, positions: int = 1, counted: bool = True
) -> KernelBlock:
    """Block of kernels ``[rows, columns]`` that are always kept (channel id 0)."""
    always = uniform_ids(0, 2)
    sources, destinations = np.broadcast_to(always, (1, size[1])), np.broadcast_to(always, (1, size[0]))
    nothing = np.zeros((1, 1, 1), np.float32)
    return KernelBlock(
        sources=sources,
        destinations=destinations,
        slot=slot,
        kernels=lambda: nothing,
        taps=taps,
        positions=positions,
        is_counted=counted,
    )
