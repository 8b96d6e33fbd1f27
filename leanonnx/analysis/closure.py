"""What follows from a keep set: readers of dead channels die, and so does what nothing feeds or needs any more."""

from __future__ import annotations

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import SHAPE_OPS
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.rules.call import TiePairs

PLAIN = names_with(Trait.CAN_EMPTY)
"""Operators around which a tensor may vanish as a whole."""


class Closure:
    """Draws the consequences of keep sets of a network; what is the same for all of them is found once.

    ``classes`` [labels] are those that keep sets are given in; ``may_go`` [labels] what may go to the last, ``rows``
    the kernels that read nothing but such channels, as sources [i] and targets [o]; ``readers`` pairs of channels and
    those that read them and are chosen one by one.
    """

    def __init__(self, dag: ChannelDag, groups: Ints) -> None:
        self.dag, self.classes = dag, groups
        self.may_go = _spare(dag)
        rows = [pair for _, mix in dag.kernel_blocks for pair in zip(mix.sources, mix.destinations, strict=True)]
        self.rows = [(sources, targets) for sources, targets in rows if self.may_go[sources].all()]
        self.readers = _apart(dag, groups)
        self._own_readers = _apart(dag, dag.groups)
        self._steps, self._roots = _steps(dag), _roots(dag)

    def alive(self, keep: Mask) -> Mask:
        """Labels that live [labels] when these classes are kept [classes] and all consequences are drawn.

        Readers that the classes join to their channels go by themselves in the end, where nothing reads them.
        """
        alive = self._drawn(self.classes, self.readers, keep)
        if not self.dag.concat_slots or np.array_equal(self.classes, self.dag.groups):
            return alive
        own = np.zeros(int(self.dag.groups.max()) + 1, bool)
        own[self.dag.groups[alive]] = True
        return self._drawn(self.dag.groups, self._own_readers, own)

    def _drawn(self, groups: Ints, readers: list[TiePairs], keep: Mask) -> Mask:
        keep = keep.copy()
        while True:
            before = keep.copy()
            for channels, reading in readers:
                keep[groups[reading[~keep[groups[channels]]]]] = False
            for sources, targets in self.rows:
                if not keep[groups[sources]].any():
                    keep[groups[targets]] = False
            if np.array_equal(keep, before):
                useful = self._useful(groups, keep[groups])
                if not (keep & ~useful).any():
                    return keep[groups]
                keep &= useful

    def _useful(self, groups: Ints, alive: Mask) -> Mask:
        """Classes from which a living path leads to a root; what is tied to a useful label is useful too."""
        useful = self._roots.copy()
        found = np.zeros(int(groups.max()) + 1, bool)
        while True:
            for sources, targets in self._steps:
                wanted = (alive[targets] & useful[targets]).any(1)
                useful[sources[wanted].reshape(-1)] = True
            found[groups[useful]] = True
            if np.array_equal(found[groups], useful):
                return found
            useful = found[groups]


def _apart(dag: ChannelDag, groups: Ints) -> list[TiePairs]:
    """Channels and their readers, where these are of other classes."""
    return [pair for _, pair in dag.concat_slots if not np.array_equal(groups[pair[0]], groups[pair[1]])]


def _spare(dag: ChannelDag) -> Mask:
    """Labels [labels] that may go to the last: operands with one channel, which a Concat drops, and their readers.

    What kernels read without a Concat between stays, and so does what any operator sees that is not ``PLAIN``.
    """
    readers, channels, direct = (np.zeros(dag.count, bool) for _ in range(3))
    for _, (one, minted) in dag.concat_slots:
        if one.size == 1:
            channels[one] = readers[minted] = True
    for _, mix in dag.kernel_blocks:
        direct[mix.sources] = True
    found = readers | (channels & ~direct)
    for node in dag.model.proto.graph.node:
        if node.op_type not in PLAIN:
            for name in (*node.input, *node.output):
                if name in dag.channel_ids:
                    found[dag.channel_ids[name]] = False
    return found


def _steps(dag: ChannelDag) -> list[tuple[Ints, Ints]]:
    """All edges (sources [n, i], targets [n, o]), those of later nodes first."""
    edges: list[tuple[int, Ints, Ints]] = [(node, mix.sources, mix.destinations) for node, mix in dag.kernel_blocks]
    edges += [(node, link.sources[:, None], link.destinations[:, None]) for node, link in dag.fixed_edges]
    return [(sources, targets) for _, sources, targets in sorted(edges, key=lambda edge: -edge[0])]


def _roots(dag: ChannelDag) -> Mask:
    """Labels [labels] that are of use whatever reads them: pinned ones, and tensors whose shape is asked for."""
    found = np.zeros(dag.count, bool)
    found[0] = True
    for pin in dag.pins:
        found[pin.channel_ids] = True
    for node in dag.model.proto.graph.node:
        if node.op_type in SHAPE_OPS and node.input[0] in dag.channel_ids:
            found[dag.channel_ids[node.input[0]]] = True
    return found
