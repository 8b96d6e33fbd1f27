"""Validation of a rule's effect: the contract between rules and analysis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from leanonnx.numeric.channel_ids import Shape
from leanonnx.rules.call import Call, Effect, FixedEdges, KernelBlock, Pin, Reduction, Slice


def find_fault(call: Call, effect: Any, channel_count: int) -> str:
    """Describe the first violation of the contract; "" if the effect is valid.

    1. It is an ``Effect`` with channel ids for each output, of the output's rank, each axis 1 or the output's size.
    2. Channel ids are integers from 0 to ``channel_count`` - 1.
    3. Ties, concat slots and fixed edges pair arrays of one shape; fixed edges lead from smaller to larger ids.
    4. Slices and kernel blocks name slots that hold constants, reductions name slots that hold data.
    5. All other fields have their declared types.
    """
    if not isinstance(effect, Effect):
        return f"{type(effect).__name__} is not an Effect"
    if not isinstance(effect.outputs, tuple) or len(effect.outputs) < len(call.outputs):
        return f"outputs must be a tuple of {len(call.outputs)} arrays of channel ids"
    for channel_ids, shape in zip(effect.outputs, call.output_shapes, strict=False):
        if fault := _channel_ids_fault(channel_ids, channel_count) or _shape_fault(channel_ids.shape, shape):
            return f"outputs: {fault}"
    kinds = {
        "kernel_blocks": KernelBlock,
        "fixed_edges": FixedEdges,
        "slices": Slice,
        "pins": Pin,
        "reductions": Reduction,
        "ties": tuple,
        "concat_slots": tuple,
    }
    kinds["starts"] = np.ndarray
    for name, kind in kinds.items():
        if not _all_are(getattr(effect, name), kind):
            return f"{name} must be a tuple of {kind.__name__}"
    moves = effect.moves if isinstance(effect.moves, tuple) else (None,)
    if not (effect.rewrite is None or callable(effect.rewrite)) or not all(callable(move) for move in moves):
        return "rewrite and moves must be functions"
    return (
        _pairs_fault([*effect.ties, *effect.concat_slots], channel_count)
        or _fixed_edges_fault(effect, channel_count)
        or _pins_fault(effect, channel_count)
        or _kernel_blocks_fault(call, effect, channel_count)
        or _slices_fault(call, effect, channel_count)
        or _reductions_fault(call, effect, channel_count)
    )


def _all_are(items: Any, kind: type) -> bool:
    return isinstance(items, tuple) and all(isinstance(item, kind) for item in items)


def _channel_ids_fault(channel_ids: Any, minted: int) -> str:
    if not isinstance(channel_ids, np.ndarray) or channel_ids.dtype.kind != "i":
        return "channel ids must be arrays of integers"
    if channel_ids.size and not 0 <= int(channel_ids.min()) <= int(channel_ids.max()) < minted:
        return f"channel ids must lie between 0 and {minted - 1} (take new ones from call.mint)"
    return ""


def _shape_fault(channel_ids: Shape, shape: Shape | None) -> str:
    if shape is None or (
        len(channel_ids) == len(shape) and all(n in (1, m) for n, m in zip(channel_ids, shape, strict=True))
    ):
        return ""
    return f"channel ids of shape {channel_ids} do not fit a tensor of shape {shape}"


def _pairs_fault(pairs: Iterable[Any], minted: int) -> str:
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            return "ties must be pairs of channel id arrays"
        if fault := _channel_ids_fault(pair[0], minted) or _channel_ids_fault(pair[1], minted):
            return f"ties and fixed_edges: {fault}"
        if pair[0].shape != pair[1].shape:
            return f"ties and fixed_edges pair arrays of one shape, not {pair[0].shape} and {pair[1].shape}"
    return ""


def _fixed_edges_fault(effect: Effect, minted: int) -> str:
    for edges in effect.fixed_edges:
        if fault := _pairs_fault([(edges.sources, edges.destinations)], minted):
            return fault
        if not (edges.sources < edges.destinations).all():
            return "fixed_edges lead from existing channel ids to new ones (call.mint), never back"
        if edges.gains is not None and np.shape(edges.gains) != edges.sources.shape:
            return "fixed_edges have one gain for each pair of channel ids"
    return ""


def _pins_fault(effect: Effect, minted: int) -> str:
    for pin in effect.pins:
        if fault := _channel_ids_fault(pin.channel_ids, minted):
            return f"pins: {fault}"
        if not all(isinstance(text, str) for text in (pin.tensor, pin.reason, pin.advice)):
            return "pins need a tensor, a reason and an advice, all strings"
    return next(
        (f"starts: {fault}" for channel_ids in effect.starts if (fault := _channel_ids_fault(channel_ids, minted))), ""
    )


def _kernel_blocks_fault(call: Call, effect: Effect, minted: int) -> str:
    for block in effect.kernel_blocks:
        if fault := _channel_ids_fault(block.sources, minted) or _channel_ids_fault(block.destinations, minted):
            return f"kernel_blocks: {fault}"
        if block.sources.ndim != 2 or block.destinations.ndim != 2 or len(block.sources) != len(block.destinations):
            return "kernel_blocks have sources [groups, inputs] and destinations [groups, outputs]"
        if not call.is_constant(block.slot) or not callable(block.kernels):
            return "kernel_blocks name the slot of a constant weight and a function that reads it"
    return ""


def _slices_fault(call: Call, effect: Effect, minted: int) -> str:
    for cut in effect.slices:
        if not isinstance(cut.slot, int) or not cut.factors:
            return "slices name a slot and at least one factor"
        if not call.is_constant(cut.slot):
            return f"input {cut.slot} is sliced but is not constant"
        shape = call.shape(cut.slot)
        for factor in cut.factors:
            fault = _channel_ids_fault(factor, minted)
            padded = (1,) * (len(shape) - factor.ndim) + factor.shape if not fault else ()
            if fault := fault or _shape_fault(padded, shape):
                return f"slices: {fault}"
    return ""


def _reductions_fault(call: Call, effect: Effect, minted: int) -> str:
    for reduction in effect.reductions:
        slot, channel_ids, destination = reduction.slot, reduction.channel_ids, reduction.destination
        if not isinstance(slot, int) or not call.has_input(slot) or call.is_constant(slot):
            return f"input {slot} is reduced but holds no data"
        fault = _channel_ids_fault(channel_ids, minted) or _shape_fault(channel_ids.shape, call.shape(slot))
        if fault := fault or ("" if destination is None else _channel_ids_fault(destination, minted)):
            return f"reductions: {fault}"
    return ""
