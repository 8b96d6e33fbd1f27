"""What follows from a keep set: readers of dead channels die, and so does what nothing feeds or needs any more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import SHAPE_OPS
from leanonnx.numeric.labels import Mask

Ints = NDArray[np.int64]
PLAIN = {"Conv", "Concat", "Pad", "Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Identity"}
"""Operators around which a tensor may vanish as a whole."""


def closed(dag: ChannelDag, classes: Ints, keep: Mask) -> Mask:
    """Labels that live [labels] when these classes are kept [classes] and all consequences are drawn.

    Readers that the classes join to their channels go by themselves in the end, where nothing reads them.
    """
    steps = _steps(dag)
    alive = _closed(dag, steps, classes, keep)
    if not dag.implied or np.array_equal(classes, dag.classes):
        return alive
    own = np.zeros(int(dag.classes.max()) + 1, bool)
    own[dag.classes[alive]] = True
    return _closed(dag, steps, dag.classes, own)


def _closed(dag: ChannelDag, steps: list[tuple[Ints, Ints]], classes: Ints, keep: Mask) -> Mask:
    readers = [pair for _, pair in dag.implied if not np.array_equal(classes[pair[0]], classes[pair[1]])]
    fed = spare_rows(dag)
    keep = keep.copy()
    while True:
        before = keep.copy()
        for channels, reading in readers:
            keep[classes[reading[~keep[classes[channels]]]]] = False
        for sources, targets in fed:
            if not keep[classes[sources]].any():
                keep[classes[targets]] = False
        if np.array_equal(keep, before):
            useful = _useful(dag, steps, classes, keep[classes])
            if not (keep & ~useful).any():
                return keep[classes]
            keep &= useful


def spare(dag: ChannelDag) -> Mask:
    """Labels [labels] that may go to the last: operands with one channel, which a Concat drops, and their readers.

    What kernels read without a Concat between stays, and so does what any operator sees that is not ``PLAIN``.
    """
    readers, channels, direct = (np.zeros(dag.count, bool) for _ in range(3))
    for _, (one, minted) in dag.implied:
        if one.size == 1:
            channels[one] = readers[minted] = True
    for _, mix in dag.mixes:
        direct[mix.sources] = True
    found = readers | (channels & ~direct)
    for node in dag.model.proto.graph.node:
        if node.op_type not in PLAIN:
            for name in (*node.input, *node.output):
                if name in dag.labels:
                    found[dag.labels[name]] = False
    return found


def spare_rows(dag: ChannelDag) -> list[tuple[Ints, Ints]]:
    """Kernels that read nothing but such channels: their sources [i] and targets [o]."""
    may_go = spare(dag)
    rows = [pair for _, mix in dag.mixes for pair in zip(mix.sources, mix.targets, strict=True)]
    return [(sources, targets) for sources, targets in rows if may_go[sources].all()]


def _steps(dag: ChannelDag) -> list[tuple[Ints, Ints]]:
    """All edges (sources [n, i], targets [n, o]), those of later nodes first."""
    edges: list[tuple[int, Ints, Ints]] = [(node, mix.sources, mix.targets) for node, mix in dag.mixes]
    edges += [(node, link.sources[:, None], link.targets[:, None]) for node, link in dag.links]
    return [(sources, targets) for _, sources, targets in sorted(edges, key=lambda edge: -edge[0])]


def _useful(dag: ChannelDag, steps: list[tuple[Ints, Ints]], classes: Ints, alive: Mask) -> Mask:
    """Classes from which a living path leads to a pinned label, or whose tensor's shape is asked for.

    What is tied to a useful label is useful too, and so is what leads there.
    """
    useful = np.zeros(dag.count, bool)
    useful[0] = True
    for pin in dag.pins:
        useful[pin.labels] = True
    for node in dag.model.proto.graph.node:
        if node.op_type in SHAPE_OPS and node.input[0] in dag.labels:
            useful[dag.labels[node.input[0]]] = True
    found = np.zeros(int(classes.max()) + 1, bool)
    while True:
        for sources, targets in steps:
            wanted = (alive[targets] & useful[targets]).any(1)
            useful[sources[wanted].reshape(-1)] = True
        found[classes[useful]] = True
        if np.array_equal(found[classes], useful):
            return found
        useful = found[classes]
