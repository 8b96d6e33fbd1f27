"""Groups of channels that are selected together, and the layers that they belong to."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.channel_ids import Mask, tied_groups


def layers_of(dag: ChannelDag, groups: Ints) -> Ints:
    """Layer of each group [groups]: groups produced by the same mixing operators, joined across ties."""
    count = int(groups.max()) + 1
    mixing = np.zeros(len(dag.model.proto.graph.node) + 1, bool)
    mixing[[node for node, _ in dag.kernel_blocks]] = True
    channel_ids = np.flatnonzero(mixing[dag.producer])
    owner = np.full(count, -1, np.int64)
    first = np.unique(groups, return_index=True)[1]
    owner[:] = dag.producer[first] + count + 1
    owner[groups[channel_ids[::-1]]] = dag.producer[channel_ids[::-1]] + count + 1
    size = count + len(mixing) + 1
    joined = tied_groups(
        size, [(groups[channel_ids], dag.producer[channel_ids] + count + 1), (np.arange(count), owner)]
    )
    return np.unique(joined[:count], return_inverse=True)[1].astype(np.int64)


def channel_groups(dag: ChannelDag, separate_slots: bool, ignored: Collection[int] = ()) -> Ints:
    """Selection group of each channel [channels].

    A concat slot is removed together with its channel, unless slots are chosen separately (``separate_slots``) or the
    operand has a single channel: then a consumer drops it at no cost. A slot that only ``ignored`` nodes read costs
    nothing to keep, so it always goes with its channel.
    """
    pairs = [(np.arange(dag.count), _first_of_group(dag.groups))]
    free = _channels_read(dag, ignored, inside=True) & ~_channels_read(dag, ignored, inside=False)
    for _, (channels, slots) in dag.concat_slots:
        if (channels.size > 1 and not separate_slots) or free[slots].all():
            pairs.append((channels, slots))
    return tied_groups(dag.count, pairs)


def _channels_read(dag: ChannelDag, nodes: Collection[int], inside: bool) -> Mask:
    """Mask [channels] of what the kernels of ``nodes`` read, or with ``inside`` False those of all other nodes."""
    mask = np.zeros(dag.count, bool)
    for node, block in dag.kernel_blocks:
        if (node in nodes) == inside:
            mask[block.sources] = True
    return mask


def _first_of_group(groups: Ints) -> Ints:
    first: Ints = np.unique(groups, return_index=True)[1][groups]
    return first
