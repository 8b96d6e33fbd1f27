"""Path mass: how much of what reaches the outputs passes through each channel, with the activations of real inputs.

1. The energy share of a kernel is e(o, c) = ‖w_oc‖² σ_c² / E_o with E_o = Σ_c ‖w_oc‖² σ_c².
2. The path mass of a channel is the sum over all chains from it to an output of the products of these shares, computed
   in one sweep backwards: R(c) = Σ_o e(o, c) R(o); operands of an addition share by their variances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.rules.call import FixedEdges, Reduction
from leanonnx.statistics.moments import ADDING, Statistics, by_label, channel_axis, summed_axis


@dataclass(frozen=True)
class Read:
    """One group of kernels: ``labels`` [C] read, ``targets`` [O], ``kernels`` [O, C, taps], covariance [C, C]."""

    node: int
    channel_ids: Ints
    targets: Ints
    kernels: Floats
    covariance: Floats

    @property
    def energies(self) -> Floats:
        """Energy that each channel contributes to each output [O, C]."""
        found: Floats = np.square(self.kernels).sum(2) * np.diag(self.covariance)
        return found


def reads(dag: ChannelDag, statistics: Statistics) -> list[Read]:
    """All groups of kernels that read channels which may go."""
    found = []
    for node, mix in dag.kernel_blocks:
        if mix.inward is not None:
            place = channel_axis(dag, node, mix)
            moments = statistics.read.get(place) if place else None
            kernels = np.asarray(mix.kernels(), np.float64)
            for group, (sources, targets) in enumerate(zip(mix.sources, mix.destinations, strict=True)):
                channel_ids = np.unique(sources)
                covariance = np.eye(channel_ids.size)
                if moments is not None:
                    where = np.searchsorted(moments.channel_ids, channel_ids)
                    covariance = moments.covariance[np.ix_(where, where)]
                found.append(Read(node, channel_ids, targets, _taps(kernels[group], sources), covariance))
    return found + [_summed(dag, statistics, *one) for one in dag.sums]


def _summed(dag: ChannelDag, statistics: Statistics, node: int, reduction: Reduction, link: FixedEdges) -> Read:
    """Channels that are added up in one, as kernels of one number."""
    moments = statistics.read.get(summed_axis(dag, node, reduction))
    covariance = np.eye(link.sources.size) if moments is None else moments.covariance
    gains = np.ones(link.sources.size) if link.gains is None else link.gains.astype(np.float64)
    return Read(node, link.sources, link.destinations[:1], gains[None, :, None], covariance)


def _taps(kernels: Floats, sources: Ints) -> Floats:
    """Kernels [O, I, *k] as [O, C, taps]; their norms where channels do not all stand on equally many places."""
    found = by_label(kernels, sources)
    if found is not None:
        return found
    _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
    squares = np.square(kernels.reshape(*kernels.shape[:2], -1)).sum(2)[:, np.argsort(inverse, kind="stable")]
    norms: Floats = np.sqrt(np.add.reduceat(squares, np.cumsum(counts) - counts, axis=1))
    return norms[:, :, None]


def masses(dag: ChannelDag, statistics: Statistics, blocks: list[Read]) -> Floats:
    """Path mass of every channel [labels]; the outputs together have 1."""
    mass = np.zeros(dag.count)
    outputs = [dag.channel_ids[v.name] for v in dag.model.proto.graph.output if v.name in dag.channel_ids]
    for channel_ids in outputs:
        np.add.at(mass, channel_ids.reshape(-1), 1 / len(outputs) / channel_ids.size)
    steps: list[tuple[int, Read | FixedEdges]] = [(block.node, block) for block in blocks]
    sums = {node for node, _, _ in dag.sums}
    steps += [(node, link) for node, link in dag.fixed_edges if link.sources.size and node not in sums]
    shares = _shares(dag, statistics)
    for node, step in sorted(steps, key=lambda item: -item[0]):
        if isinstance(step, Read):
            energies = step.energies
            totals = energies.sum(1)
            weights = np.where(totals > 0, mass[step.targets] / np.where(totals > 0, totals, 1), 0)
            np.add.at(mass, step.channel_ids, weights @ energies)
        else:
            np.add.at(mass, step.sources, mass[step.destinations] * shares(node, step))
    return mass


def _shares(dag: ChannelDag, statistics: Statistics) -> Callable[[int, FixedEdges], Floats]:
    """Which share of a target's mass each source of a link gets [n]."""
    nodes = dag.model.proto.graph.node
    totals: dict[int, Floats] = {}
    for node, link in dag.fixed_edges:
        if nodes[node].op_type in ADDING:
            total = totals.setdefault(node, np.zeros(dag.count))
            np.add.at(total, link.destinations, np.nan_to_num(statistics.variance[link.sources], nan=1.0))

    def share(node: int, link: FixedEdges) -> Floats:
        fan = np.bincount(link.destinations, minlength=dag.count)[link.destinations]
        if node not in totals:
            return 1.0 / fan
        total = totals[node][link.destinations]
        own = np.nan_to_num(statistics.variance[link.sources], nan=1.0)
        return np.where(total > 0, own / np.where(total > 0, total, 1), 1.0 / fan)

    return share
