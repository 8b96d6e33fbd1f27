"""Gains of all kernels: the channel DAG as weighted blocks of edges, for chains and for ranking channels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import ModelError
from leanonnx.graph.formats import is_float
from leanonnx.numeric.chains import Block, best_chain
from leanonnx.numeric.norms import kernel_norms
from leanonnx.ranking.elimination import Elimination
from leanonnx.ranking.groups import channel_groups, layers_of
from leanonnx.rules.call import FixedEdges, KernelBlock
from leanonnx.statistics.moments import Statistics


@dataclass(frozen=True)
class WeightedDag:
    """The weighted channel DAG, computed when first asked for; kernels of ``ignored`` nodes are not counted.

    ``statistics`` of its activations, where there are any.
    """

    dag: ChannelDag
    ignored: frozenset[int] = frozenset()
    statistics: Statistics | None = None

    @cached_property
    def blocks(self) -> list[Block]:
        """Blocks of edges in topological order."""
        return weighted(self.dag, self.ignored)

    @cached_property
    def elimination(self) -> Elimination | None:
        """The elimination of channels; None without statistics."""
        if self.statistics is None:
            return None
        groups = channel_groups(self.dag, separate_readers=False, ignored=self.ignored)
        return Elimination(self.dag, self.statistics, groups, layers_of(self.dag, groups))

    @cached_property
    def connections(self) -> list[tuple[int, ...]]:
        """The best chain from each graph input to each output that depends on it."""
        channel_ids = [self.dag.channel_ids.get(value.name) for value in self.dag.model.proto.graph.output]
        ends = [np.unique(found) for found in channel_ids if found is not None]
        pairs = [(np.array([start]), end) for end in ends for start in self.dag.starts]
        chains = (best_chain(self.dag.count, self.blocks, *pair) for pair in pairs)
        return [chain for chain in chains if chain]


def weighted(dag: ChannelDag, ignored: Collection[int] = ()) -> list[Block]:
    """Blocks of edges in topological order; kernels of ``ignored`` nodes are walked but not counted."""
    mixes = [
        (node, 0, _kernels(mix, mix.counted and node not in ignored))
        for node, mix in dag.kernel_blocks
        if mix.inward is not None
    ]
    sums = {node for node, _, _ in dag.sums}
    links = [
        (node, 1, _summed(link) if node in sums else _fixed(link))
        for node, link in dag.fixed_edges
        if link.sources.size
    ]
    return [block for _, _, block in sorted(mixes + links, key=lambda item: item[:2])]


def check_finite(dag: ChannelDag) -> None:
    """Refuse weights that no chain can be computed from.

    Raises:
        ModelError: a weight holds NaN or infinite values.
    """
    for node, mix in dag.kernel_blocks:
        weights = mix.kernels()
        if is_float(weights) and not np.isfinite(weights).all():
            proto = dag.model.proto.graph.node[node]
            raise ModelError(
                f"{dag.model.path}: the weight '{proto.input[mix.slot]}' of {proto.op_type} '{proto.name}' holds NaN "
                "or infinite values; export the model again from a healthy checkpoint"
            )


def _kernels(mix: KernelBlock, counted: bool) -> Block:
    weights = np.asarray(mix.kernels(), np.float32)
    gains = kernel_norms(weights, strides=mix.strides)
    sources, gains = _once_each(mix.sources, gains)
    return Block(sources, mix.destinations, gains, counted)


def _once_each(sources: NDArray[np.int64], gains: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Join the columns of a channel that a Flatten has repeated over its pixels: their 2-norm.

    A graph input is one label for all its channels and keeps its parallel kernels.
    """
    if sources.shape[0] != 1:
        return sources, gains
    unique, inverse = np.unique(sources[0], return_inverse=True)
    if unique.size in (1, sources.size):
        return sources, gains
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(unique.size))
    joined = np.sqrt(np.add.reduceat(gains[0][:, order] ** 2, starts, axis=1))
    return unique[None], joined[None].astype(np.float32)


def _fixed(link: FixedEdges) -> Block:
    gains = np.ones(link.sources.size, np.float32) if link.gains is None else link.gains
    return Block(link.sources[:, None], link.destinations[:, None], gains[:, None, None], counted=False)


def _summed(link: FixedEdges) -> Block:
    """Channels that are added up in one: a filter of fixed edges."""
    gains = np.ones(link.sources.size, np.float32) if link.gains is None else link.gains
    return Block(link.sources[None], link.destinations[None, :1], gains[None, None], counted=False)
