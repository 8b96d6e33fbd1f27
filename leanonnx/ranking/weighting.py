"""Kernel gains: the channel DAG as weighted blocks of edges, for chains and for channel ranking."""

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
    """The weighted channel DAG, computed on first use; kernels of ``ignored`` nodes are not counted.

    ``statistics``: statistics of its activations, None if unknown.
    """

    dag: ChannelDag
    ignored: frozenset[int] = frozenset()
    statistics: Statistics | None = None

    @cached_property
    def blocks(self) -> list[Block]:
        """Blocks of edges in topological order."""
        return weighted_blocks(self.dag, self.ignored)

    @cached_property
    def elimination(self) -> Elimination | None:
        """The elimination of channels; None without statistics."""
        if self.statistics is None:
            return None
        groups = channel_groups(self.dag, separate_slots=False, ignored=self.ignored)
        return Elimination(dag=self.dag, statistics=self.statistics, groups=groups, layers=layers_of(self.dag, groups))

    @cached_property
    def connections(self) -> list[tuple[int, ...]]:
        """The best chain from each graph input to each output that depends on it."""
        channel_ids = [self.dag.channel_ids.get(value.name) for value in self.dag.model.proto.graph.output]
        ends = [np.unique(ids) for ids in channel_ids if ids is not None]
        pairs = [(np.array([start]), end) for end in ends for start in self.dag.starts]
        chains = (best_chain(self.dag.count, self.blocks, *pair) for pair in pairs)
        return [chain for chain in chains if chain]


def weighted_blocks(dag: ChannelDag, ignored: Collection[int] = ()) -> list[Block]:
    """Blocks of edges in topological order; kernels of ``ignored`` nodes are passed through but not counted."""
    kernel_blocks = [
        (node, 0, _kernel_block(kernels, kernels.is_counted and node not in ignored))
        for node, kernels in dag.kernel_blocks
        if kernels.input_channel_ids is not None
    ]
    sums = {node for node, _, _ in dag.channel_sums}
    edge_blocks = [
        (node, 1, _sum_block(edges) if node in sums else _edge_block(edges))
        for node, edges in dag.fixed_edges
        if edges.sources.size
    ]
    return [block for _, _, block in sorted(kernel_blocks + edge_blocks, key=lambda item: item[:2])]


def check_finite(dag: ChannelDag) -> None:
    """Reject weights from which no chain can be computed.

    Raises:
        ModelError: a weight holds NaN or infinite values.
    """
    for node, block in dag.kernel_blocks:
        weights = block.kernels()
        if is_float(weights) and not np.isfinite(weights).all():
            proto = dag.model.proto.graph.node[node]
            raise ModelError(
                f"{dag.model.path}: the weight '{proto.input[block.slot]}' of {proto.op_type} '{proto.name}' holds NaN "
                "or infinite values; export the model again from a healthy checkpoint"
            )


def _kernel_block(kernels: KernelBlock, counted: bool) -> Block:
    weights = np.asarray(kernels.kernels(), np.float32)
    gains = kernel_norms(weights, strides=kernels.strides)
    sources, gains = _merge_repeats(kernels.sources, gains)
    return Block(sources=sources, destinations=kernels.destinations, gains=gains, is_counted=counted)


def _merge_repeats(
    sources: NDArray[np.int64], gains: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Merge the columns of a channel that a Flatten repeats over its pixels into their 2-norm.

    A graph input has one channel id for all its channels and keeps its parallel kernels.
    """
    if sources.shape[0] != 1:
        return sources, gains
    unique, inverse = np.unique(sources[0], return_inverse=True)
    if unique.size in (1, sources.size):
        return sources, gains
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(unique.size))
    norms = np.sqrt(np.add.reduceat(gains[0][:, order] ** 2, starts, axis=1))
    return unique[None], norms[None].astype(np.float32)


def _edge_block(edges: FixedEdges) -> Block:
    gains = np.ones(edges.sources.size, np.float32) if edges.gains is None else edges.gains
    return Block(
        sources=edges.sources[:, None],
        destinations=edges.destinations[:, None],
        gains=gains[:, None, None],
        is_counted=False,
    )


def _sum_block(edges: FixedEdges) -> Block:
    """A sum over channels as a block of fixed edges."""
    gains = np.ones(edges.sources.size, np.float32) if edges.gains is None else edges.gains
    return Block(
        sources=edges.sources[None],
        destinations=edges.destinations[None, :1],
        gains=gains[None, None],
        is_counted=False,
    )
