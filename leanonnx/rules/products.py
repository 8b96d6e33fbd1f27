"""Products of two computed tensors, as in attention.

Flow: where one operand has no channels (attention weights) and the other none on the contracted axis (values), each
channel of the other is a combination of itself at other positions, and passes through.
Ties: the channels at the same place of all stacked matrices (heads), since a stack has one width.
Pins: both operands of any other product; contracted channels (queries and keys) of both would have to go at once.
"""

from __future__ import annotations

import numpy as np

from leanonnx.labels import compact, on_axis, varied
from leanonnx.rules.call import Call, Effect, Link, pin_all

OUTER = ((1, -1), (0, -2))
"""(operand, its axis that the product keeps)."""


def matmul(call: Call) -> Effect:
    """MatMul-13 of two computed tensors."""
    ranks = [len(call.shape(slot)) for slot in (0, 1)]
    for slot, kept in OUTER:
        labels, others = call.labels(slot), call.labels(1 - slot)
        contracted = -3 - kept
        if min(ranks) > 1 and varied(labels) and not varied(others) and labels.shape[contracted] == 1:
            return _through(call, slot, kept)
    return pin_all(call, f"{call.title} multiplies two computed tensors")


def _through(call: Call, slot: int, kept: int) -> Effect:
    vector, ties = call.slices(slot, kept % len(call.shape(slot)))
    unique, inverse = np.unique(vector, return_inverse=True)
    minted = call.mint(unique.size)
    weights = np.broadcast_to(call.labels(1 - slot).reshape(-1)[:1], unique.shape)
    rank = len(call.output_shape())
    output = compact(on_axis(minted[inverse], kept % rank, rank))
    return Effect((output,), (*ties, (unique, minted)), links=(Link(unique, minted), Link(weights, minted)))
