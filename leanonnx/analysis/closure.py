"""Closure of a keep set: remove slots of removed channels, then everything that is no longer fed or used."""

from __future__ import annotations

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import SHAPE_OPS
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.rules.call import TiePairs

ERASABLE_OPERATORS = names_with(Trait.CAN_EMPTY)
"""Operators around which a tensor may vanish as a whole."""


class Closure:
    """Closes keep sets of one network; precomputes what does not depend on the keep set.

    ``groups`` [channels]: the groups in which keep sets are given.
    ``removable`` [channels]: True for channels of tensors that may lose all channels.
    ``rows``: kernels that read only such channels, as sources [i] and destinations [o].
    ``concat_slots``: pairs of channels and their concat slots that are in other groups.
    """

    def __init__(self, dag: ChannelDag, groups: Ints) -> None:
        self.dag, self.groups = dag, groups
        self.removable = _removable(dag)
        rows = [pair for _, block in dag.kernel_blocks for pair in zip(block.sources, block.destinations, strict=True)]
        self.rows = [(sources, destinations) for sources, destinations in rows if self.removable[sources].all()]
        self.concat_slots = _separate_slots(dag, groups)
        self._own_slots = _separate_slots(dag, dag.groups)
        self._steps, self._roots = _steps(dag), _roots(dag)

    def alive_channels(self, keep: Mask) -> Mask:
        """Kept channels [channels] after closing the keep set ``keep`` [groups].

        Concat slots in the group of their channel are removed separately at the end if nothing reads them.
        """
        alive = self._close(self.groups, self.concat_slots, keep)
        if not self.dag.concat_slots or np.array_equal(self.groups, self.dag.groups):
            return alive
        own = np.zeros(int(self.dag.groups.max()) + 1, bool)
        own[self.dag.groups[alive]] = True
        return self._close(self.dag.groups, self._own_slots, own)

    def _close(self, groups: Ints, concat_slots: list[TiePairs], keep: Mask) -> Mask:
        keep = keep.copy()
        while True:
            before = keep.copy()
            for channels, slots in concat_slots:
                keep[groups[slots[~keep[groups[channels]]]]] = False
            for sources, destinations in self.rows:
                if not keep[groups[sources]].any():
                    keep[groups[destinations]] = False
            if np.array_equal(keep, before):
                useful = self._useful(groups, keep[groups])
                if not (keep & ~useful).any():
                    return keep[groups]
                keep &= useful

    def _useful(self, groups: Ints, alive: Mask) -> Mask:
        """Groups [groups] with a path of kept channels to a root; channels tied to a useful one are useful too."""
        useful = self._roots.copy()
        useful_groups = np.zeros(int(groups.max()) + 1, bool)
        while True:
            for sources, destinations in self._steps:
                wanted = (alive[destinations] & useful[destinations]).any(1)
                useful[sources[wanted].reshape(-1)] = True
            useful_groups[groups[useful]] = True
            if np.array_equal(useful_groups[groups], useful):
                return useful_groups
            useful = useful_groups[groups]


def _separate_slots(dag: ChannelDag, groups: Ints) -> list[TiePairs]:
    """Pairs of channels and concat slots that are in different groups."""
    return [pair for _, pair in dag.concat_slots if not np.array_equal(groups[pair[0]], groups[pair[1]])]


def _removable(dag: ChannelDag) -> Mask:
    """Mask [channels] of tensors that may lose all channels: one-channel operands of a Concat, and their slots.

    Channels that kernels read directly, and those of any operator that is not in ``PLAIN``, are not among them.
    """
    slots, channels, direct = (np.zeros(dag.count, bool) for _ in range(3))
    for _, (one, minted) in dag.concat_slots:
        if one.size == 1:
            channels[one] = slots[minted] = True
    for _, block in dag.kernel_blocks:
        direct[block.sources] = True
    removable = slots | (channels & ~direct)
    for node in dag.model.proto.graph.node:
        if node.op_type not in ERASABLE_OPERATORS:
            for name in (*node.input, *node.output):
                if name in dag.channel_ids:
                    removable[dag.channel_ids[name]] = False
    return removable


def _steps(dag: ChannelDag) -> list[tuple[Ints, Ints]]:
    """All edges (sources [n, i], destinations [n, o]), in reverse order of nodes."""
    edges: list[tuple[int, Ints, Ints]] = [
        (node, block.sources, block.destinations) for node, block in dag.kernel_blocks
    ]
    edges += [(node, fixed.sources[:, None], fixed.destinations[:, None]) for node, fixed in dag.fixed_edges]
    return [(sources, destinations) for _, sources, destinations in sorted(edges, key=lambda edge: -edge[0])]


def _roots(dag: ChannelDag) -> Mask:
    """Mask [channels] of channels that are always useful: pinned ones, and those of tensors whose shape is read."""
    roots = np.zeros(dag.count, bool)
    roots[0] = True
    for pin in dag.pins:
        roots[pin.channel_ids] = True
    for node in dag.model.proto.graph.node:
        if node.op_type in SHAPE_OPS and node.input[0] in dag.channel_ids:
            roots[dag.channel_ids[node.input[0]]] = True
    return roots
