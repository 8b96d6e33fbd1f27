"""Classes of channels that are chosen as one, and the layers that they belong to."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.channel_ids import Mask, components


def layers_of(dag: ChannelDag, groups: Ints) -> Ints:
    """Layer of each class: classes whose channels the same mixing operators put out, joined over ties."""
    count = int(groups.max()) + 1
    mixing = np.zeros(len(dag.model.proto.graph.node) + 1, bool)
    mixing[[node for node, _ in dag.kernel_blocks]] = True
    channel_ids = np.flatnonzero(mixing[dag.producer])
    owner = np.full(count, -1, np.int64)
    first = np.unique(groups, return_index=True)[1]
    owner[:] = dag.producer[first] + count + 1
    owner[groups[channel_ids[::-1]]] = dag.producer[channel_ids[::-1]] + count + 1
    size = count + len(mixing) + 1
    found = components(size, [(groups[channel_ids], dag.producer[channel_ids] + count + 1), (np.arange(count), owner)])
    return np.unique(found[:count], return_inverse=True)[1].astype(np.int64)


def channel_groups(dag: ChannelDag, separate_readers: bool, ignored: Collection[int] = ()) -> Ints:
    """Class of each label [labels] for the purpose of selection.

    A Concat's reader goes with its channel, unless readers are chosen one by one (``separate_readers``) or the
    operand has one channel only: then a consumer drops it at no cost. What only ``ignored`` nodes read costs nothing
    to keep, so it goes with its channel in any case.
    """
    pairs = [(np.arange(dag.count), _first_of_class(dag.groups))]
    free = _read_by(dag, ignored, inside=True) & ~_read_by(dag, ignored, inside=False)
    for _, (channels, readers) in dag.concat_slots:
        if (channels.size > 1 and not separate_readers) or free[readers].all():
            pairs.append((channels, readers))
    return components(dag.count, pairs)


def _read_by(dag: ChannelDag, nodes: Collection[int], inside: bool) -> Mask:
    """Labels [labels] that the kernels of these nodes read, or those of all others."""
    found = np.zeros(dag.count, bool)
    for node, mix in dag.kernel_blocks:
        if (node in nodes) == inside:
            found[mix.sources] = True
    return found


def _first_of_class(groups: Ints) -> Ints:
    first: Ints = np.unique(groups, return_index=True)[1][groups]
    return first
