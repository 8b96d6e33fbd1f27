"""Match the channels of a network with those of its teacher: tensors by name, channels by the weights that make them.

The weights of a network that was cut from another are rows and columns of those of the other.  In topological order,
the inputs of each layer are known, and each of its outputs is the row of the teacher's weights that it is most alike.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import scipy

from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.teacher import RecoveryTeacher, producers_of_one_kind, unlike_tensors
from leanonnx.errors import ModelError
from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.channel_ids import ChannelIds, varied_axes
from leanonnx.recovery.layers import other_interface
from leanonnx.rules.call import KernelBlock
from leanonnx.spelling import option

MIN_ALIKENESS = 0.5
"""Mean cosine between matched rows of weights from which a layer counts as cut from the teacher's."""
UNMATCHED = -1
REMEDY = "give the network that it was cut from"


def find_teacher(dag: ChannelDag, teacher: ChannelDag) -> RecoveryTeacher:
    """The teacher of a network that was cut from it, by pruning or by leaving out blocks.

    Tensors match if they have the same name and come from the same operator.

    Raises:
        ModelError: both have other inputs or outputs, or no layer of the network has a counterpart.
    """
    own, other = dag.model, teacher.model
    for kind, mine, theirs in other_interface(own, other):
        raise ModelError(
            f"{option('teacher', other.path)}: has the {kind} {theirs}, but {own.path} has {mine}; {REMEDY}"
        )
    matches = _ChannelMatches(dag, teacher)
    names = [name for name in dag.channel_ids if producers_of_one_kind(own, other, name)]
    for name in names:
        matches.follow(name)
    positions = {name: matches.positions(name) for name in names}
    for value in own.proto.graph.output:
        if dag.shapes[value.name] != teacher.shapes[value.name]:
            raise ModelError(f"{option('teacher', other.path)}: output '{value.name}' has another shape; {REMEDY}")
    shared = {name for name, one in positions.items() if one is not None} | {value.name for value in own.inputs}
    layers = {own.proto.graph.node[node].output[0] for node, _ in dag.kernel_blocks}
    if not layers & shared:
        raise ModelError(
            f"{option('teacher', other.path)}: no layer of {own.path} has a counterpart there, a tensor of the same "
            f"name from the same operator; {REMEDY}, exported in the same way"
        )
    return RecoveryTeacher(
        model=other,
        shared=frozenset(shared),
        unlike=unlike_tensors(own, other),
        channels={name: one for name, one in positions.items() if one is not None and one[1].size},
    )


class _ChannelMatches:
    """The channel of the teacher for each channel of the network, as far as it is known."""

    def __init__(self, dag: ChannelDag, teacher: ChannelDag) -> None:
        self.dag, self.teacher = dag, teacher
        self.match: Ints = np.full(dag.count, UNMATCHED)
        self.match[0] = 0
        for value in dag.model.inputs:
            if value.name in dag.channel_ids and value.name in teacher.channel_ids:
                self._enter(dag.channel_ids[value.name], teacher.channel_ids[value.name])

    def follow(self, name: str) -> None:
        """Match the channels that the producer of a tensor makes."""
        dag, teacher = self.dag, self.teacher
        node, other = dag.model.producers[name], teacher.model.producers[name]
        blocks = [side.get(k, []) for side, k in ((dag.kernel_blocks_of, node), (teacher.kernel_blocks_of, other))]
        for block, wide in zip(*blocks, strict=False):
            self._match_block(block, wide)
        edges = [side.get(k, []) for side, k in ((dag.fixed_edges_of, node), (teacher.fixed_edges_of, other))]
        for few, many in zip(*edges, strict=False):
            self._match_edges(few.sources, few.destinations, many.sources, many.destinations)
        slots = [[pairs for k, pairs in side.concat_slots if k == at] for side, at in ((dag, node), (teacher, other))]
        for (channels, places), (wide_channels, wide_places) in zip(*slots, strict=False):
            self._match_edges(channels, places, wide_channels, wide_places)

    def positions(self, name: str) -> tuple[int, ChannelIds] | None:
        """Axis and positions in the teacher of the channels of a tensor; no positions if it has the same shape there.

        None if a channel has no match.
        """
        own, wide = self.dag.channel_ids[name], self.teacher.channel_ids.get(name)
        if self.dag.shapes.get(name) == self.teacher.shapes.get(name):
            return 0, np.zeros(0, np.int64)
        axes = varied_axes(own)
        if wide is None or len(axes) != 1 or varied_axes(wide) != axes:
            return None
        places = _places(self.match[own.reshape(-1)], wide.reshape(-1))
        return None if places is None else (axes[0] - own.ndim, places)

    def _match_block(self, block: KernelBlock, wide: KernelBlock) -> None:
        """Match the outputs of a layer, each with the most similar row of weights; as they are if there are as many."""
        if block.destinations.shape == wide.destinations.shape:
            self._enter(block.destinations, wide.destinations)
            return
        kernels, wide_kernels = (np.asarray(one.kernels(), np.float64) for one in (block, wide))
        group_of = {int(channel): group for group, row in enumerate(wide.sources) for channel in row}
        for group, (sources, targets) in enumerate(zip(block.sources, block.destinations, strict=True)):
            home = group_of.get(int(self.match[sources[0]]))
            columns = None if home is None else _places(self.match[sources], wide.sources[home])
            if home is None or columns is None or kernels.shape[3:] != wide_kernels.shape[3:]:
                continue
            rows = _similar_rows(kernels[group], wide_kernels[home][:, columns])
            if rows is not None:
                self.match[targets] = wide.destinations[home][rows]

    def _match_edges(self, sources: Ints, destinations: Ints, wide_sources: Ints, wide_destinations: Ints) -> None:
        """Match the ends of edges whose beginnings are matched."""
        ends: dict[int, list[int]] = {}
        for source, end in zip(wide_sources.reshape(-1).tolist(), wide_destinations.reshape(-1).tolist(), strict=True):
            ends.setdefault(source, []).append(end)
        for source, end in zip(
            self.match[sources.reshape(-1)].tolist(), destinations.reshape(-1).tolist(), strict=True
        ):
            reached = ends.get(int(source))
            if reached:
                self.match[end] = reached.pop(0) if len(reached) > 1 else reached[0]

    def _enter(self, own: ChannelIds, wide: ChannelIds) -> None:
        if own.shape == wide.shape:
            self.match[own.reshape(-1)] = wide.reshape(-1)


def _places(wanted: Ints, channels: Ints) -> ChannelIds | None:
    """Positions of channels among others, repeated ones in order; None if one is not there, or not often enough."""
    free: dict[int, list[int]] = {}
    for position, channel in enumerate(channels.tolist()):
        free.setdefault(channel, []).append(position)
    if any(count > len(free.get(channel, ())) for channel, count in Counter(wanted.tolist()).items()):
        return None
    return np.array([free[channel].pop(0) for channel in wanted.tolist()], np.int64)


def _similar_rows(own: Floats, wide: Floats) -> Ints | None:
    """Row of the teacher's kernels [O, I, *k] for each row of the network's; None if they are not alike."""
    cosines = _unit_rows(own) @ _unit_rows(wide).T
    if len(own) > len(wide):
        return None
    _, rows = scipy.optimize.linear_sum_assignment(-cosines)
    similar = cosines[np.arange(len(own)), rows].mean() >= MIN_ALIKENESS
    return np.asarray(rows, np.int64) if similar else None


def _unit_rows(kernels: Floats) -> Floats:
    flat = kernels.reshape(len(kernels), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0))
