"""Whether a rule's answer makes sense: the contract between rules and analysis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from leanonnx.numeric.channel_ids import Shape
from leanonnx.rules.call import Call, Effect, FixedEdges, KernelBlock, Pin, Reduction, Slice


def faults(call: Call, effect: Any, minted: int) -> str:
    """What is wrong with an answer, in words; empty if nothing is.

    1. It is an ``Effect`` with one label array per output, of the output's rank, each axis 1 or the output's size.
    2. Labels are integers from 0 to ``minted`` - 1: the channels known so far.
    3. Ties, implied pairs and links join arrays of one shape; links lead from smaller to larger labels.
    4. Slices and mixes name slots that hold constants, reductions those that hold data.
    5. Everything else is of its kind.
    """
    if not isinstance(effect, Effect):
        return f"{type(effect).__name__} is no Effect"
    if not isinstance(effect.outputs, tuple) or len(effect.outputs) < len(call.outputs):
        return f"outputs must be a tuple of {len(call.outputs)} label arrays"
    for channel_ids, shape in zip(effect.outputs, call.output_shapes, strict=False):
        if fault := _labels_fault(channel_ids, minted) or _shape_fault(channel_ids.shape, shape):
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
        _pairs_fault([*effect.ties, *effect.concat_slots], minted)
        or _links_fault(effect, minted)
        or _pins_fault(effect, minted)
        or _mixes_fault(call, effect, minted)
        or _slices_fault(call, effect, minted)
        or _reductions_fault(call, effect, minted)
    )


def _all_are(found: Any, kind: type) -> bool:
    return isinstance(found, tuple) and all(isinstance(item, kind) for item in found)


def _labels_fault(channel_ids: Any, minted: int) -> str:
    if not isinstance(channel_ids, np.ndarray) or channel_ids.dtype.kind != "i":
        return "labels must be arrays of integers"
    if channel_ids.size and not 0 <= int(channel_ids.min()) <= int(channel_ids.max()) < minted:
        return f"labels must lie between 0 and {minted - 1} (take new ones from call.mint)"
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
            return "ties must be pairs of label arrays"
        if fault := _labels_fault(pair[0], minted) or _labels_fault(pair[1], minted):
            return f"ties and links: {fault}"
        if pair[0].shape != pair[1].shape:
            return f"ties and links join arrays of one shape, not {pair[0].shape} and {pair[1].shape}"
    return ""


def _links_fault(effect: Effect, minted: int) -> str:
    for link in effect.fixed_edges:
        if fault := _pairs_fault([(link.sources, link.destinations)], minted):
            return fault
        if not (link.sources < link.destinations).all():
            return "links lead from known labels to fresh ones (call.mint), never back"
        if link.gains is not None and np.shape(link.gains) != link.sources.shape:
            return "links have one gain for each pair of labels"
    return ""


def _pins_fault(effect: Effect, minted: int) -> str:
    for pin in effect.pins:
        if fault := _labels_fault(pin.channel_ids, minted):
            return f"pins: {fault}"
        if not all(isinstance(text, str) for text in (pin.tensor, pin.reason, pin.advice)):
            return "pins name a tensor, a reason and an advice"
    return next(
        (f"starts: {fault}" for channel_ids in effect.starts if (fault := _labels_fault(channel_ids, minted))), ""
    )


def _mixes_fault(call: Call, effect: Effect, minted: int) -> str:
    for mix in effect.kernel_blocks:
        if fault := _labels_fault(mix.sources, minted) or _labels_fault(mix.destinations, minted):
            return f"mixes: {fault}"
        if mix.sources.ndim != 2 or mix.destinations.ndim != 2 or len(mix.sources) != len(mix.destinations):
            return "mixes have sources [groups, inputs] and targets [groups, outputs]"
        if not call.is_constant(mix.slot) or not callable(mix.kernels):
            return "mixes name the slot of a constant weight, and a function that reads it"
    return ""


def _slices_fault(call: Call, effect: Effect, minted: int) -> str:
    for cut in effect.slices:
        if not isinstance(cut.slot, int) or not cut.factors:
            return "slices name a slot and at least one label array"
        if not call.is_constant(cut.slot):
            return f"input {cut.slot} is sliced, but is no constant"
        shape = call.shape(cut.slot)
        for factor in cut.factors:
            fault = _labels_fault(factor, minted)
            padded = (1,) * (len(shape) - factor.ndim) + factor.shape if not fault else ()
            if fault := fault or _shape_fault(padded, shape):
                return f"slices: {fault}"
    return ""


def _reductions_fault(call: Call, effect: Effect, minted: int) -> str:
    for found in effect.reductions:
        if not isinstance(found.slot, int) or not call.has(found.slot) or call.is_constant(found.slot):
            return f"input {found.slot} is reduced, but holds no data"
        fault = _labels_fault(found.channel_ids, minted) or _shape_fault(
            found.channel_ids.shape, call.shape(found.slot)
        )
        if fault := fault or ("" if found.destination is None else _labels_fault(found.destination, minted)):
            return f"reductions: {fault}"
    return ""
