"""Path mass: the share of the output energy that passes through each channel, from activation statistics.

1. The energy share of a kernel is e(o, c) = ‖w_oc‖² σ_c² / E_o with E_o = Σ_c ‖w_oc‖² σ_c².
2. The path mass of a channel is the sum over all chains from it to an output of the products of these shares, computed
   in one sweep backwards: R(c) = Σ_o e(o, c) R(o); operands of an addition share by their variances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.rules.call import FixedEdges, Reduction
from leanonnx.statistics.moments import ADDITIONS, Moments, Statistics, channel_axis, kernels_by_channel, summed_axis


@dataclass(frozen=True, kw_only=True)
class KernelGroup:
    """One conv group: ``kernels`` [O, C, taps] from ``channel_ids`` [C] to ``destinations`` [O].

    ``covariance`` [C, C] is that of its inputs, ``parts`` are those of two parts of the rows, if they are known.
    """

    node: int
    channel_ids: Ints
    destinations: Ints
    kernels: Floats
    covariance: Array
    parts: tuple[Array, Array] | None = None

    @property
    def energies(self) -> Floats:
        """Energy that each channel contributes to each output [O, C]."""
        energies: Floats = np.square(self.kernels).sum(2) * np.maximum(np.diag(self.covariance), 0)
        return energies


def kernel_groups(dag: ChannelDag, statistics: Statistics) -> list[KernelGroup]:
    """All conv groups whose input channels may be removed."""
    groups = []
    for node, block in dag.kernel_blocks:
        if block.input_channel_ids is not None:
            place = channel_axis(dag, node, block)
            moments = statistics.moments.get(place) if place else None
            kernels = np.asarray(block.kernels(), np.float64)
            for group, (sources, targets) in enumerate(zip(block.sources, block.destinations, strict=True)):
                channel_ids = sources if sources.size == 1 else np.unique(sources)
                covariance: Array = np.eye(channel_ids.size)
                parts: tuple[Array, Array] | None = None
                if moments is not None:
                    covariance, parts = moments_of(moments, channel_ids)
                groups.append(
                    KernelGroup(
                        node=node,
                        channel_ids=channel_ids,
                        destinations=targets,
                        kernels=_kernel_taps(kernels[group], sources),
                        covariance=covariance,
                        parts=parts,
                    )
                )
    return groups + [_sum_group(dag, statistics, *one) for one in dag.channel_sums]


def moments_of(moments: Moments, channel_ids: Ints) -> tuple[Array, tuple[Array, Array] | None]:
    """Covariance of some of the channels, and those of two parts of the rows, if they are known."""
    if np.array_equal(moments.channel_ids, channel_ids):
        return moments.covariance, moments.parts
    where = np.searchsorted(moments.channel_ids, channel_ids)
    square = np.ix_(where, where)
    parts = moments.parts and (moments.parts[0][square], moments.parts[1][square])
    return moments.covariance[square], parts


def _sum_group(
    dag: ChannelDag, statistics: Statistics, node: int, reduction: Reduction, edges: FixedEdges
) -> KernelGroup:
    """A sum over channels as one conv group with scalar kernels."""
    moments = statistics.moments.get(summed_axis(dag, node, reduction))
    covariance = np.eye(edges.sources.size) if moments is None else moments.covariance
    gains = np.ones(edges.sources.size) if edges.gains is None else edges.gains.astype(np.float64)
    return KernelGroup(
        node=node,
        channel_ids=edges.sources,
        destinations=edges.destinations[:1],
        kernels=gains[None, :, None],
        covariance=covariance,
    )


def _kernel_taps(kernels: Floats, sources: Ints) -> Floats:
    """Kernels [O, I, *k] as [O, C, taps]; their norms if channels differ in their number of positions."""
    taps = kernels.reshape(len(kernels), 1, -1) if sources.size == 1 else kernels_by_channel(kernels, sources)
    if taps is not None:
        return taps
    _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
    squares = np.square(kernels.reshape(*kernels.shape[:2], -1)).sum(2)[:, np.argsort(inverse, kind="stable")]
    norms: Floats = np.sqrt(np.add.reduceat(squares, np.cumsum(counts) - counts, axis=1))
    return norms[:, :, None]


def path_masses(dag: ChannelDag, statistics: Statistics, blocks: list[KernelGroup]) -> Floats:
    """Path mass of every channel [channels]; the outputs sum to 1."""
    mass = np.zeros(dag.count)
    outputs = [dag.channel_ids[v.name] for v in dag.model.proto.graph.output if v.name in dag.channel_ids]
    for channel_ids in outputs:
        np.add.at(mass, channel_ids.reshape(-1), 1 / len(outputs) / channel_ids.size)
    steps: list[tuple[int, KernelGroup | FixedEdges]] = [(block.node, block) for block in blocks]
    sums = {node for node, _, _ in dag.channel_sums}
    steps += [(node, edges) for node, edges in dag.fixed_edges if edges.sources.size and node not in sums]
    shares = _shares(dag, statistics)
    for node, step in sorted(steps, key=lambda item: -item[0]):
        if isinstance(step, KernelGroup):
            energies = step.energies
            totals = energies.sum(1)
            weights = np.where(totals > 0, mass[step.destinations] / np.where(totals > 0, totals, 1), 0)
            np.add.at(mass, step.channel_ids, weights @ energies)
        else:
            np.add.at(mass, step.sources, mass[step.destinations] * shares(node, step))
    return mass


def _shares(dag: ChannelDag, statistics: Statistics) -> Callable[[int, FixedEdges], Floats]:
    """Return a function that gives the share of each destination's mass that its source gets, for fixed edges [n]."""
    nodes = dag.model.proto.graph.node
    totals: dict[int, Floats] = {}
    for node, edges in dag.fixed_edges:
        if nodes[node].op_type in ADDITIONS:
            total = totals.setdefault(node, np.zeros(dag.count))
            np.add.at(total, edges.destinations, np.nan_to_num(statistics.variance[edges.sources], nan=1.0))

    def share(node: int, edges: FixedEdges) -> Floats:
        fan = np.bincount(edges.destinations, minlength=dag.count)[edges.destinations]
        if node not in totals:
            return 1.0 / fan
        total = totals[node][edges.destinations]
        own = np.nan_to_num(statistics.variance[edges.sources], nan=1.0)
        return np.where(total > 0, own / np.where(total > 0, total, 1), 1.0 / fan)

    return share
