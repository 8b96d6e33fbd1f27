"""Runs of movement operators that one Gather can replace (channel shuffles)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.channel_ids import ChannelIds, Shape, compact_ids, on_axis, varied_axes
from leanonnx.rules.call import Move


@dataclass(frozen=True, kw_only=True)
class OperatorRun:
    """Movements from tensor ``source`` to a tensor with its channels on one axis.

    ``indices`` [channels of the result]: index of each channel in the source, along ``axis``; None if the movements do
    more than permute channels.  ``intermediate``: names of the intermediate tensors.
    """

    source: str
    intermediate: tuple[str, ...]
    axis: int
    indices: NDArray[np.int64] | None = field(compare=False)


def common_run(runs: Sequence[OperatorRun]) -> OperatorRun:
    """Run of several sizes; without indices if these differ."""
    first, *others = runs
    same = all(
        run == first
        and run.indices is not None
        and first.indices is not None
        and np.array_equal(run.indices, first.indices)
        for run in others
    )
    return first if same else replace(first, indices=None)


def trace_run(
    name: str, moves: Mapping[str, tuple[str, Move]], channel_ids: Mapping[str, ChannelIds], shapes: Mapping[str, Shape]
) -> OperatorRun:
    """Trace the movements behind a tensor back to the nearest tensor whose channels lie on a single axis."""
    steps, inside, source = [], [], name
    while source in moves:
        source, move = moves[source]
        steps.append(move)
        if len(varied_axes(channel_ids[source])) <= 1:
            break
        inside.append(source)
    axes = varied_axes(channel_ids[source])
    if len(axes) != 1 or len(shapes[source]) != len(shapes[name]):
        return OperatorRun(source=source, intermediate=tuple(inside), axis=0, indices=None)
    return OperatorRun(
        source=source,
        intermediate=tuple(inside),
        axis=axes[0],
        indices=_indices(steps[::-1], shapes[source], shapes[name], axes[0]),
    )


def _indices(steps: list[Move], before: Shape, after: Shape, axis: int) -> NDArray[np.int64] | None:
    """Indices along the channel axis after the movements; None if these change any other axis."""
    result: NDArray[np.int64] | None = None
    for k, size in enumerate(before):
        probe = on_axis(np.arange(size), k, len(before))
        for step in steps:
            probe = compact_ids(step(probe))
        if k == axis:
            if set(varied_axes(probe)) - {axis}:
                return None
            result = np.broadcast_to(probe.reshape(-1), (after[axis],)).copy()
        elif after[k] != size or not np.array_equal(probe, compact_ids(on_axis(np.arange(size), k, len(before)))):
            return None
    return result
