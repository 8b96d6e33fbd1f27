"""Path mass: how much of what reaches the outputs passes through each channel, with the activations of real inputs.

1. The energy share of a kernel is e(o, c) = ‖w_oc‖² σ_c² / E_o with E_o = Σ_c ‖w_oc‖² σ_c².
2. The path mass of a channel is the sum over all chains from it to an output of the products of these shares, computed
   in one sweep backwards: R(c) = Σ_o e(o, c) R(o); operands of an addition share by their variances.
3. Within a layer the channels are eliminated one by one, each time the one whose loss, weighted by path mass, the
   others make up for best (``obs``).
4. Across layers the next channel is the one with the least cost / (cost saved)^γ, γ about 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.cost import Rate
from leanonnx.analysis.dag import ChannelDag, pinned
from leanonnx.numeric.obs import Reader, eliminated, precision
from leanonnx.ranking.moments import ADDING, Statistics, by_label, channel_axis
from leanonnx.rules.call import Link

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Terms:
    """How much of the cost saved counts, and of the path mass: the powers that they are raised to."""

    saved: float = 1.0
    mass: float = 1.0


PLAIN = Terms()
TERMS = (PLAIN, Terms(saved=0.75), Terms(saved=1.25), Terms(mass=0.5))
"""What may be tried; the first where nothing is."""


@dataclass(frozen=True)
class _Read:
    """One group of kernels: ``labels`` [C] read, ``targets`` [O], ``kernels`` [O, C, taps], covariance [C, C]."""

    node: int
    labels: Ints
    targets: Ints
    kernels: Floats
    covariance: Floats

    @property
    def energies(self) -> Floats:
        """Energy that each channel contributes to each output [O, C]."""
        found: Floats = np.square(self.kernels).sum(2) * np.diag(self.covariance)
        return found


def reads(dag: ChannelDag, statistics: Statistics) -> list[_Read]:
    """All groups of kernels that read channels which may go."""
    found = []
    for node, mix in dag.mixes:
        if mix.inward is not None:
            place = channel_axis(dag, node, mix)
            moments = statistics.read.get(place) if place else None
            kernels = np.asarray(mix.kernels(), np.float64)
            for group, (sources, targets) in enumerate(zip(mix.sources, mix.targets, strict=True)):
                labels = np.unique(sources)
                covariance = np.eye(labels.size)
                if moments is not None:
                    where = np.searchsorted(moments.labels, labels)
                    covariance = moments.covariance[np.ix_(where, where)]
                found.append(_Read(node, labels, targets, _taps(kernels[group], sources), covariance))
    return found


def _taps(kernels: Floats, sources: Ints) -> Floats:
    """Kernels [O, I, *k] as [O, C, taps]; their norms where channels do not all stand on equally many places."""
    found = by_label(kernels, sources)
    if found is not None:
        return found
    _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
    squares = np.square(kernels.reshape(*kernels.shape[:2], -1)).sum(2)[:, np.argsort(inverse, kind="stable")]
    norms: Floats = np.sqrt(np.add.reduceat(squares, np.cumsum(counts) - counts, axis=1))
    return norms[:, :, None]


def masses(dag: ChannelDag, statistics: Statistics, blocks: list[_Read]) -> Floats:
    """Path mass of every channel [labels]; the outputs together have 1."""
    mass = np.zeros(dag.count)
    outputs = [dag.labels[v.name] for v in dag.model.proto.graph.output if v.name in dag.labels]
    for labels in outputs:
        np.add.at(mass, labels.reshape(-1), 1 / len(outputs) / labels.size)
    steps: list[tuple[int, _Read | Link]] = [(block.node, block) for block in blocks]
    steps += [(node, link) for node, link in dag.links if link.sources.size]
    shares = _shares(dag, statistics)
    for node, step in sorted(steps, key=lambda item: -item[0]):
        if isinstance(step, _Read):
            energies = step.energies
            totals = energies.sum(1)
            weights = np.where(totals > 0, mass[step.targets] / np.where(totals > 0, totals, 1), 0)
            np.add.at(mass, step.labels, weights @ energies)
        else:
            np.add.at(mass, step.sources, mass[step.targets] * shares(node, step))
    return mass


def _shares(dag: ChannelDag, statistics: Statistics) -> Callable[[int, Link], Floats]:
    """Which share of a target's mass each source of a link gets [n]."""
    nodes = dag.model.proto.graph.node
    totals: dict[int, Floats] = {}
    for node, link in dag.links:
        if nodes[node].op_type in ADDING:
            total = totals.setdefault(node, np.zeros(dag.count))
            np.add.at(total, link.targets, np.nan_to_num(statistics.variance[link.sources], nan=1.0))

    def share(node: int, link: Link) -> Floats:
        fan = np.bincount(link.targets, minlength=dag.count)[link.targets]
        if node not in totals:
            return 1.0 / fan
        total = totals[node][link.targets]
        own = np.nan_to_num(statistics.variance[link.sources], nan=1.0)
        return np.where(total > 0, own / np.where(total > 0, total, 1), 1.0 / fan)

    return share


def elimination(
    dag: ChannelDag, statistics: Statistics, classes: Ints, layers: Ints, rate: Rate, terms: Terms
) -> tuple[Ints, Floats]:
    """The classes in the order in which they are removed, pinned ones last, and what losing each costs [classes].

    Args:
        dag: the network.
        statistics: its activations on real inputs.
        classes: class of each label [labels].
        layers: layer of each class [classes].
        rate: what a kernel costs.
        terms: how much of the cost saved and of the path mass counts.
    """
    blocks = reads(dag, statistics)
    mass = masses(dag, statistics, blocks) ** terms.mass
    fixed = pinned(classes, dag.pins)
    gathered = _joined(blocks, classes, mass)
    sequences = {}
    losses = np.full(layers.size, np.inf)
    for layer in np.unique(layers):
        members = np.flatnonzero((layers == layer) & ~fixed)
        if members.size:
            removed, costs = sequences[int(layer)] = _sequence(members, gathered, classes)
            losses[removed] = costs
    order = _merged(sequences, _Savings(dag, classes, rate), _waiting(dag, classes, sequences), terms.saved)
    rest = np.setdiff1d(np.arange(layers.size), order)
    return np.concatenate([order, rest]), losses


def _joined(blocks: list[_Read], classes: Ints, mass: Floats) -> list[tuple[Ints, Floats, Floats]]:
    """Readers of the same channels as one: their labels, M and P.

    A group whose channels all live and die together with what it puts out reads nothing that could go alone.
    """
    found: dict[bytes, tuple[Ints, Floats, Floats]] = {}
    for block in blocks:
        if np.unique(classes[np.concatenate([block.labels, block.targets])]).size == 1:
            continue
        totals = block.energies.sum(1)
        scale = np.sqrt(np.where(totals > 0, mass[block.targets] / np.where(totals > 0, totals, 1), 0))
        scaled = (block.kernels * scale[:, None, None]).transpose(0, 2, 1).reshape(-1, block.labels.size)
        weight = scaled.T @ scaled
        key = block.labels.tobytes()
        known = found.get(key)
        if known is None:
            found[key] = block.labels, weight, precision(block.covariance)
        else:
            found[key] = block.labels, weight + known[1], known[2]
    return list(found.values())


def _sequence(members: Ints, gathered: list[tuple[Ints, Floats, Floats]], classes: Ints) -> tuple[Ints, Floats]:
    """The classes of one layer in the order of their removal, with the cost of each."""
    place = np.full(int(classes.max()) + 1, -1)
    place[members] = np.arange(members.size)
    readers = []
    for labels, weight, inverse in gathered:
        units = place[classes[labels]]
        if (units >= 0).any():
            readers.append(Reader(units, weight, inverse))
    order, costs = eliminated(readers, members.size)
    return members[order], costs


class _Savings:
    """What removing a class saves, while others go."""

    def __init__(self, dag: ChannelDag, classes: Ints, rate: Rate) -> None:
        self.rates: list[float] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.touched: dict[int, list[tuple[int, int, int]]] = {}
        for node, mix in dag.mixes:
            if mix.inward is None:
                continue
            price = rate(node, mix)
            for sources, targets in zip(mix.sources, mix.targets, strict=True):
                self._enter(classes[sources], classes[targets], price)

    def _enter(self, sources: Ints, targets: Ints, price: float) -> None:
        index = len(self.rates)
        self.rates.append(price)
        self.rows.append(targets.size)
        self.columns.append(sources.size)
        counts: dict[int, list[int]] = {}
        for side, ids in enumerate((targets, sources)):
            for one, count in zip(*np.unique(ids, return_counts=True), strict=True):
                counts.setdefault(int(one), [0, 0])[side] = int(count)
        for one, (rows, columns) in counts.items():
            self.touched.setdefault(one, []).append((index, rows, columns))

    def saved(self, one: int) -> float:
        """What removing a class saves now."""
        total = 0.0
        for index, rows, columns in self.touched.get(one, ()):
            before = self.rows[index] * self.columns[index]
            after = (self.rows[index] - rows) * (self.columns[index] - columns)
            total += self.rates[index] * (before - after)
        return total

    def remove(self, one: int) -> None:
        """Take a class out."""
        for index, rows, columns in self.touched.get(one, ()):
            self.rows[index] -= rows
            self.columns[index] -= columns


def _waiting(dag: ChannelDag, classes: Ints, sequences: Mapping[int, tuple[Ints, Floats]]) -> dict[int, list[int]]:
    """Which classes each class waits for: the readers of its channels that are chosen one by one."""
    removed = np.zeros(int(classes.max()) + 1, bool)
    for order, _ in sequences.values():
        removed[order] = True
    found: dict[int, set[int]] = {}
    for _, (channels, readers) in dag.implied:
        for one, reader in zip(classes[channels].tolist(), classes[readers].tolist(), strict=True):
            if one != reader and removed[reader]:
                found.setdefault(one, set()).add(reader)
    return {one: sorted(waits) for one, waits in found.items()}


def _merged(
    sequences: Mapping[int, tuple[Ints, Floats]],
    savings: _Savings,
    waiting: Mapping[int, list[int]],
    exponent: float,
) -> Ints:
    """One order for all layers: next the class with the least cost / saved^γ, each layer in its own order.

    A layer whose next class waits for its readers is passed over until the last of them is gone. Savings only fall, so
    a key that is recomputed and still the least is right.
    """

    def key(layer: int) -> float:
        order, costs = sequences[layer]
        saved = savings.saved(int(order[position[layer]]))
        return float(costs[position[layer]]) / saved**exponent if saved > 0 else np.inf

    def enter(layer: int) -> None:
        order, _ = sequences[layer]
        if position[layer] < order.size and not left.get(int(order[position[layer]])):
            heapq.heappush(heap, (key(layer), layer))

    left = {one: len(waits) for one, waits in waiting.items()}
    awaited: dict[int, list[int]] = {}
    for one, waits in waiting.items():
        for reader in waits:
            awaited.setdefault(reader, []).append(one)
    home = {int(one): layer for layer, (order, _) in sequences.items() for one in order}
    position = dict.fromkeys(sequences, 0)
    heap: list[tuple[float, int]] = []
    for layer in sequences:
        enter(layer)
    found: list[int] = []
    while heap:
        known, layer = heapq.heappop(heap)
        now = key(layer)
        if now > known and heap and now > heap[0][0]:
            heapq.heappush(heap, (now, layer))
            continue
        order, _ = sequences[layer]
        one = int(order[position[layer]])
        found.append(one)
        savings.remove(one)
        position[layer] += 1
        enter(layer)
        for channel in awaited.get(one, ()):
            left[channel] -= 1
            other = home.get(channel)
            if not left[channel] and other is not None and other != layer:
                order, _ = sequences[other]
                if position[other] < order.size and int(order[position[other]]) == channel:
                    enter(other)
    return np.array(found, np.int64)
