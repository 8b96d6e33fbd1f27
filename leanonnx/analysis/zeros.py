"""Propagation of zeros: True for tensors in which a channel is zero if its layer outputs zeros.

An operator that combines channels can lose only those: a channel that is shifted on the way (for example by a mean)
would not be zero there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from leanonnx.graph.nodes import attribute, standard_name
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import ChannelIds, varied_axes
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.rules.call import Effect

ZERO_PRESERVING = names_with(Trait.KEEPS_ZERO)
"""Operators that output zeros for a channel of zeros; a constant that they add per channel is removed with it."""
ADDITIVE_OPERATORS = names_with(Trait.JOINS_ZEROS)
FOLLOWING = names_with(Trait.ZERO_WITH_FIRST)
OPERAND_COUNT = 2


def preserves_zeros(
    node: onnx.NodeProto,
    effect: Effect,
    channel_ids: Mapping[str, ChannelIds],
    known: Mapping[str, bool],
    fixed: Callable[[str], Array | None],
) -> bool:
    """Return True if a node outputs zeros for channels whose layers output zeros.

    Args:
        node: the node.
        effect: the effect of its rule.
        channel_ids: channel ids of the tensors that it reads.
        known: results of this function for these tensors.
        fixed: returns the value of a constant.
    """
    op = standard_name(node)
    free = [name for name in node.input if name in channel_ids]
    if any(block.input_channel_ids is not None for block in effect.kernel_blocks):
        return bool(op)
    if op in ZERO_PRESERVING:
        return all(known.get(name, True) for name in free)
    if op == "Pad":
        return all(known.get(name, True) for name in free) and _fills_zeros(node, fixed)
    if op == "Clip":
        return all(known.get(name, True) for name in free) and _spans_zero(node, fixed)
    if op in ADDITIVE_OPERATORS:
        return all(
            _operand_is_zero(slot, name, effect, channel_ids, known, fixed)
            for slot, name in enumerate(node.input)
            if name
        )
    if op == "Mul":
        return any(varied_axes(channel_ids[name]) and known.get(name, True) for name in free)
    if op in FOLLOWING:
        return _follows_first(node, op, channel_ids, known, fixed)
    return False


def _operand_is_zero(
    slot: int,
    name: str,
    effect: Effect,
    channel_ids: Mapping[str, ChannelIds],
    known: Mapping[str, bool],
    fixed: Callable[[str], Array | None],
) -> bool:
    """Return True if an operand of a sum is zero for a removed channel."""
    if name in channel_ids:
        return bool(varied_axes(channel_ids[name])) and known.get(name, True)
    value = fixed(name)
    return any(cut.slot == slot for cut in effect.slices) or (value is not None and not np.any(value))


def _follows_first(
    node: onnx.NodeProto,
    op: str,
    channel_ids: Mapping[str, ChannelIds],
    known: Mapping[str, bool],
    fixed: Callable[[str], Array | None],
) -> bool:
    """Return True if a quotient or a power is zero when its first operand is."""
    first, second = node.input[:OPERAND_COUNT]
    if first not in channel_ids or not varied_axes(channel_ids[first]) or not known.get(first, True):
        return False
    if op == "Div":
        return second not in channel_ids or not varied_axes(channel_ids[second])
    power = fixed(second)
    return power is not None and bool((np.asarray(power) > 0).all())


def _fills_zeros(node: onnx.NodeProto, fixed: Callable[[str], Array | None]) -> bool:
    if attribute(node, "mode", "constant") != "constant":
        return True
    if len(node.input) <= OPERAND_COUNT or not node.input[OPERAND_COUNT]:
        return not attribute(node, "value", 0.0)
    value = fixed(node.input[OPERAND_COUNT])
    return value is not None and not np.any(value)


def _spans_zero(node: onnx.NodeProto, fixed: Callable[[str], Array | None]) -> bool:
    """Return True if zero lies within the bounds of a Clip."""
    low, high = attribute(node, "min", -1.0), attribute(node, "max", 1.0)
    for slot, name in enumerate(node.input[1:]):
        value = fixed(name) if name else None
        if name and value is None:
            return False
        if value is not None:
            low, high = (float(np.max(value)), high) if not slot else (low, float(np.min(value)))
    return bool(low <= 0 <= high)
