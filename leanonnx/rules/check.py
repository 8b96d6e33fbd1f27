"""Whether a rule's answer makes sense: the contract between rules and analysis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from leanonnx.labels import Shape
from leanonnx.rules.call import Call, Effect, Link, Mix, Pin, Slice


def faults(call: Call, effect: Any, minted: int) -> str:
    """What is wrong with an answer, in words; empty if nothing is.

    1. It is an ``Effect`` with one label array per output, of the output's rank, each axis 1 or the output's size.
    2. Labels are integers from 0 to ``minted`` - 1: the channels known so far.
    3. Ties, implied pairs and links join arrays of one shape; slices name slots that hold constants.
    4. Everything else is of its kind.
    """
    if not isinstance(effect, Effect):
        return f"{type(effect).__name__} is no Effect"
    if not isinstance(effect.outputs, tuple) or len(effect.outputs) < len(call.outputs):
        return f"outputs must be a tuple of {len(call.outputs)} label arrays"
    for labels, shape in zip(effect.outputs, call.output_shapes, strict=False):
        if fault := _labels_fault(labels, minted) or _shape_fault(labels.shape, shape):
            return f"outputs: {fault}"
    kinds = {"mixes": Mix, "links": Link, "slices": Slice, "pins": Pin, "ties": tuple, "implied": tuple}
    for name, kind in kinds.items():
        if not _all_are(getattr(effect, name), kind):
            return f"{name} must be a tuple of {kind.__name__}"
    moves = effect.moves if isinstance(effect.moves, tuple) else (None,)
    if not (effect.rewrite is None or callable(effect.rewrite)) or not all(callable(move) for move in moves):
        return "rewrite and moves must be functions"
    pairs = [*effect.ties, *effect.implied, *((link.sources, link.targets) for link in effect.links)]
    return _pairs_fault(pairs, minted) or _slices_fault(call, effect, minted)


def _all_are(found: Any, kind: type) -> bool:
    return isinstance(found, tuple) and all(isinstance(item, kind) for item in found)


def _labels_fault(labels: Any, minted: int) -> str:
    if not isinstance(labels, np.ndarray) or labels.dtype.kind != "i":
        return "labels must be arrays of integers"
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < minted:
        return f"labels must lie between 0 and {minted - 1} (take new ones from call.mint)"
    return ""


def _shape_fault(labels: Shape, shape: Shape | None) -> str:
    if shape is None or (len(labels) == len(shape) and all(n in (1, m) for n, m in zip(labels, shape, strict=True))):
        return ""
    return f"labels of shape {labels} do not fit a tensor of shape {shape}"


def _pairs_fault(pairs: Iterable[Any], minted: int) -> str:
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            return "ties must be pairs of label arrays"
        if fault := _labels_fault(pair[0], minted) or _labels_fault(pair[1], minted):
            return f"ties and links: {fault}"
        if pair[0].shape != pair[1].shape:
            return f"ties and links join arrays of one shape, not {pair[0].shape} and {pair[1].shape}"
    return ""


def _slices_fault(call: Call, effect: Effect, minted: int) -> str:
    for cut in effect.slices:
        if not call.is_constant(cut.slot):
            return f"input {cut.slot} is sliced, but is no constant"
        shape = call.shape(cut.slot)
        for factor in cut.factors:
            fault = _labels_fault(factor, minted)
            padded = (1,) * (len(shape) - factor.ndim) + factor.shape if not fault else ()
            if fault := fault or _shape_fault(padded, shape):
                return f"slices: {fault}"
    return ""
