"""Ties beside those of operators: of shared constants, and of tensors with channels on several axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.constants import ConstantUse
from leanonnx.analysis.runs import OperatorRun
from leanonnx.analysis.trace import Trace
from leanonnx.numeric.channel_ids import ChannelIds, compact_ids, uniform_ids, varied_axes
from leanonnx.rules.call import Move, TiePairs


def shared_ties(uses: list[ConstantUse]) -> list[TiePairs]:
    """Ties between all uses of a weight that several channel-mixing operators share.

    The same holds for any constant that several consumers read through one DequantizeLinear.
    """
    first: dict[str, ConstantUse] = {}
    there: dict[tuple[int, int], ConstantUse] = {}
    ties: list[TiePairs] = []
    for use in uses:
        same = there.setdefault((use.node, use.slot), use)
        ties += _same_slices(same, use) if same is not use else []
        if use.input_channel_ids is None:
            continue
        known = first.setdefault(use.constant, use)
        if [f.shape for f in known.factors] != [f.shape for f in use.factors]:
            ties += _same_slices(known, use)
        elif known is not use:
            ties += list(zip(known.factors, use.factors, strict=True))
    return ties


def _same_slices(one: ConstantUse, other: ConstantUse) -> list[TiePairs]:
    """Ties under which two uses slice a constant in the same way; an axis that only one slices is kept whole."""
    rank = max(factor.ndim for factor in (*one.factors, *other.factors))
    mine, theirs = ([f.reshape((1,) * (rank - f.ndim) + f.shape) for f in use.factors] for use in (one, other))
    always = uniform_ids(0, rank)
    ties = [(factor, always) for factor in (*mine, *theirs) if not varied_axes(factor)]
    for axis in range(rank):
        first, second = ([f for f in factors if axis in varied_axes(f)] for factors in (mine, theirs))
        ties += [_spread_pair(f, second[0] if second else always) for f in first]
        ties += [_spread_pair(f, first[0] if first else always) for f in second]
    return ties


def _spread_pair(one: ChannelIds, other: ChannelIds) -> TiePairs:
    shape = np.broadcast_shapes(one.shape, other.shape)
    return np.broadcast_to(one, shape), np.broadcast_to(other, shape)


def layout_ties(
    trace: Trace, moves: dict[str, tuple[str, Move]], groups: NDArray[np.int64], run_of: Callable[[str], OperatorRun]
) -> list[TiePairs]:
    """Ties by which the kept positions of a tensor with channels on several axes are a product of index sets.

    They are not needed if other ties imply this, nor inside a run of movements that one Gather can replace.
    """
    spread = {
        name: compact_ids(groups[channel_ids])
        for name, channel_ids in trace.channel_ids.items()
        if len(varied_axes(channel_ids)) > 1
    }
    several = {name for name, channel_ids in spread.items() if len(varied_axes(channel_ids)) > 1}
    tied: set[str] = set()
    for index in trace.effects:
        node = trace.model.proto.graph.node[index]
        outputs = [name for name in node.output if name in trace.channel_ids]
        if not outputs or not all(name in moves for name in outputs):
            tied |= several & {*node.input, *outputs}
    for name in list(tied):
        while name in moves:
            name = moves[name][0]
            tied |= several & {name}
    for name in moves:
        if name not in several and moves[name][0] in several:
            run = run_of(name)
            tied |= set() if run.indices is not None else several & set(run.intermediate)
    return [
        pair for name in sorted(tied) for pair in _tie_slices(trace.channel_ids[name], varied_axes(spread[name])[0])
    ]


def _tie_slices(channel_ids: ChannelIds, axis: int) -> list[TiePairs]:
    """Ties of all channels that share an index of an axis."""
    rows = np.moveaxis(channel_ids, axis, 0).reshape(channel_ids.shape[axis], -1)
    return [(np.broadcast_to(rows[:, :1], rows[:, 1:].shape), rows[:, 1:])]
