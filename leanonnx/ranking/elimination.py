"""Which channels go first, by their path masses and by what the others can make up for.

1. Within a layer the channels are eliminated one by one, each time the one whose loss, weighted by path mass, the
   others make up for best (``obs``).
2. Across layers the next channel is the one with the least cost / (cost saved)^γ, γ about 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from leanonnx.analysis.cost import Rate
from leanonnx.analysis.dag import ChannelDag, pinned
from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.obs import Consumer, eliminated, precision
from leanonnx.ranking.pathmass import Read, masses, reads
from leanonnx.statistics.moments import Statistics

Sequence = tuple[Ints, Floats]
"""The classes of a layer in the order of their removal, and the cost of each."""


@dataclass(frozen=True)
class Exponents:
    """How much of the cost saved counts, and of the path mass: the powers that they are raised to."""

    saved: float = 1.0
    mass: float = 1.0


DEFAULT_EXPONENTS = Exponents()
EXPONENT_CANDIDATES = (DEFAULT_EXPONENTS, Exponents(saved=0.75), Exponents(saved=1.25), Exponents(mass=0.5))
"""What may be tried; the first where nothing is."""


@dataclass(frozen=True)
class Elimination:
    """The elimination of channels; what all ways to weigh costs have in common is worked out once.

    Attributes:
        dag: the network.
        statistics: its activations on real inputs, or what is believed of them.
        classes: class of each label [labels].
        layers: layer of each class [classes].
    """

    dag: ChannelDag
    statistics: Statistics
    groups: Ints
    layers: Ints
    _known: dict[float, dict[int, Sequence]] = field(default_factory=dict, repr=False)
    _precisions: dict[bytes, Floats] = field(default_factory=dict, repr=False)

    def order(self, rate: Rate, terms: Exponents) -> tuple[Ints, Floats]:
        """The classes in the order in which they are removed, pinned ones last, and what losing each costs [classes].

        Args:
            rate: what a kernel costs.
            terms: how much of the cost saved and of the path mass counts.
        """
        sequences = self._sequences(terms.mass)
        losses = np.full(self.layers.size, np.inf)
        for removed, costs in sequences.values():
            losses[removed] = costs
        savings = _Savings(self.dag, self.groups, rate)
        order = _merged(sequences, savings, _waiting(self.dag, self.groups, sequences), terms.saved)
        rest = np.setdiff1d(np.arange(self.layers.size), order)
        return np.concatenate([order, rest]), losses

    def _sequences(self, power: float) -> dict[int, Sequence]:
        """The order of removal within each layer, by path masses to a power."""
        if power not in self._known:
            gathered = self._joined(self._masses**power)
            free = ~pinned(self.groups, self.dag.pins)
            members = {int(layer): np.flatnonzero((self.layers == layer) & free) for layer in np.unique(self.layers)}
            self._known[power] = {k: _sequence(one, gathered, self.groups) for k, one in members.items() if one.size}
        return self._known[power]

    @cached_property
    def _reads(self) -> list[Read]:
        return reads(self.dag, self.statistics)

    @cached_property
    def _masses(self) -> Floats:
        return masses(self.dag, self.statistics, self._reads)

    def _joined(self, mass: Floats) -> list[tuple[Ints, Floats, Floats]]:
        """Readers of the same channels as one: their labels, M and P.

        A group whose channels all live and die together with what it puts out reads nothing that could go alone.
        """
        found: dict[bytes, tuple[Ints, Floats, Floats]] = {}
        for block in self._reads:
            if np.unique(self.groups[np.concatenate([block.channel_ids, block.targets])]).size == 1:
                continue
            totals = block.energies.sum(1)
            scale = np.sqrt(np.where(totals > 0, mass[block.targets] / np.where(totals > 0, totals, 1), 0))
            scaled = (block.kernels * scale[:, None, None]).transpose(0, 2, 1).reshape(-1, block.channel_ids.size)
            weight = scaled.T @ scaled
            key = block.channel_ids.tobytes()
            if key not in self._precisions:
                self._precisions[key] = precision(block.covariance)
            known = found.get(key)
            found[key] = block.channel_ids, weight if known is None else weight + known[1], self._precisions[key]
        return list(found.values())


def _sequence(members: Ints, gathered: list[tuple[Ints, Floats, Floats]], groups: Ints) -> tuple[Ints, Floats]:
    """The classes of one layer in the order of their removal, with the cost of each."""
    place = np.full(int(groups.max()) + 1, -1)
    place[members] = np.arange(members.size)
    readers = []
    for channel_ids, weight, inverse in gathered:
        units = place[groups[channel_ids]]
        if (units >= 0).any():
            readers.append(Consumer(units, weight, inverse))
    order, costs = eliminated(readers, members.size)
    return members[order], costs


class _Savings:
    """What removing a class saves, while others go."""

    def __init__(self, dag: ChannelDag, groups: Ints, rate: Rate) -> None:
        self.rates: list[float] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.touched: dict[int, list[tuple[int, int, int]]] = {}
        for node, mix in dag.kernel_blocks:
            if mix.inward is None:
                continue
            price = rate(node, mix)
            for sources, targets in zip(mix.sources, mix.destinations, strict=True):
                self._enter(groups[sources], groups[targets], price)

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


def _waiting(dag: ChannelDag, groups: Ints, sequences: Mapping[int, tuple[Ints, Floats]]) -> dict[int, list[int]]:
    """Which classes each class waits for: the readers of its channels that are chosen one by one."""
    removed = np.zeros(int(groups.max()) + 1, bool)
    for order, _ in sequences.values():
        removed[order] = True
    found: dict[int, set[int]] = {}
    for _, (channels, readers) in dag.concat_slots:
        for one, reader in zip(groups[channels].tolist(), groups[readers].tolist(), strict=True):
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
