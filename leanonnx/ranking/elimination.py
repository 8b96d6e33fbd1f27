"""Removal order of channels, by their path masses and by how well the other channels can compensate for each.

1. Within a layer the channels are eliminated one by one: next is the channel whose removal costs least, weighted by
   path mass, after the others compensate for it (``obs``).
2. Across layers the next channel is the one with the least cost / (cost saved)^γ, γ about 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from leanonnx.analysis.cost import Rate
from leanonnx.analysis.dag import ChannelDag, groups_with_pins
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.obs import Consumer, eliminate, precision_matrix
from leanonnx.ranking.pathmass import KernelGroup, kernel_groups, path_masses
from leanonnx.statistics.moments import Statistics

RemovalOrder = tuple[Ints, Floats]
"""Groups of a layer in removal order, and the cost of each."""


@dataclass(frozen=True)
class Exponents:
    """Exponents of the cost saved and of the path mass in the ranking, and the contrast between layers.

    ``contrast`` is the weight of the differences between layers: with 1 widths follow from costs alone, with 0 each
    layer keeps the same share of its groups.
    """

    saved: float = 1.0
    mass: float = 1.0
    contrast: float = 1.0


CURVE_POINTS = 65
"""Points of the curve that all layers have in common."""
MIN_COST_SHARE = 1e-6
"""Lower bound of costs on that curve, as a share of the largest of their layer."""
DEFAULT_EXPONENTS = Exponents()
EXPONENT_CANDIDATES = (
    DEFAULT_EXPONENTS,
    Exponents(contrast=0.6),
    Exponents(saved=0.75),
    Exponents(mass=0.5),
    Exponents(saved=1.25),
    Exponents(contrast=0.0),
    Exponents(contrast=0.3),
    Exponents(saved=0.75, mass=0.5),
)
"""Exponents that a search may try; the first is the default."""


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """The elimination of channels; intermediate results that all cost rates share are computed once.

    Attributes:
        dag: the network.
        statistics: measured or propagated statistics of its activations.
        groups: group of each channel [channels].
        layers: layer of each group [groups].
    """

    dag: ChannelDag
    statistics: Statistics
    groups: Ints
    layers: Ints
    _by_power: dict[float, dict[int, RemovalOrder]] = field(default_factory=dict, repr=False)
    _precisions: dict[bytes, Array] = field(default_factory=dict, repr=False)

    def removal_order(self, rate: Rate, exponents: Exponents) -> tuple[Ints, Floats]:
        """Groups in removal order, pinned ones last, and the loss of removing each [groups].

        Args:
            rate: cost of a kernel.
            exponents: exponents of the cost saved and of the path mass.
        """
        sequences = self._sequences(exponents.mass)
        losses = np.full(self.layers.size, np.inf)
        for removed, costs in sequences.values():
            losses[removed] = costs
        savings = _Savings(self.dag, self.groups, rate)
        order = _merge_orders(sequences, savings, _waiting(self.dag, self.groups, sequences), exponents)
        rest = np.setdiff1d(np.arange(self.layers.size), order)
        return np.concatenate([order, rest]), losses

    def _sequences(self, power: float) -> dict[int, RemovalOrder]:
        """Removal order within each layer, for path masses raised to ``power``."""
        if power not in self._by_power:
            consumers = self._merge_consumers(self.masses**power)
            free = ~groups_with_pins(self.groups, self.dag.pins)
            members = {int(layer): np.flatnonzero((self.layers == layer) & free) for layer in np.unique(self.layers)}
            self._by_power[power] = {
                k: _sequence(one, consumers, self.groups) for k, one in members.items() if one.size
            }
        return self._by_power[power]

    @cached_property
    def _reads(self) -> list[KernelGroup]:
        return kernel_groups(self.dag, self.statistics)

    @cached_property
    def masses(self) -> Floats:
        """Path mass of each channel [channels]."""
        return path_masses(self.dag, self.statistics, self._reads)

    def _merge_consumers(self, mass: Floats) -> list[tuple[Ints, Array, Array]]:
        """Consumers of the same channels merged into one: channel ids, M and P.

        Kernels whose inputs and outputs form a single group are skipped: no input can be removed alone.
        """
        merged: dict[bytes, tuple[Ints, Array, Array]] = {}
        for block in self._reads:
            members = self.groups[np.concatenate([block.channel_ids, block.destinations])]
            if (members == members[0]).all():
                continue
            totals = block.energies.sum(1)
            scale = np.sqrt(np.where(totals > 0, mass[block.destinations] / np.where(totals > 0, totals, 1), 0))
            key = block.channel_ids.tobytes()
            if key not in self._precisions:
                self._precisions[key] = precision_matrix(block.covariance, block.parts)
            scaled = (block.kernels * scale[:, None, None]).astype(self._precisions[key].dtype)
            scaled = scaled.transpose(0, 2, 1).reshape(-1, block.channel_ids.size)
            weight = scaled.T @ scaled
            earlier = merged.get(key)
            merged[key] = block.channel_ids, weight if earlier is None else weight + earlier[1], self._precisions[key]
        return list(merged.values())


def _sequence(members: Ints, merged: list[tuple[Ints, Array, Array]], groups: Ints) -> tuple[Ints, Floats]:
    """Groups of one layer in removal order, with the cost of each."""
    place = np.full(int(groups.max()) + 1, -1)
    place[members] = np.arange(members.size)
    consumers = []
    for channel_ids, weight, inverse in merged:
        units = place[groups[channel_ids]]
        if (units >= 0).any():
            consumers.append(Consumer(units, weight, inverse))
    order, costs = eliminate(consumers, members.size)
    return members[order], costs


class _Savings:
    """Cost that removing a group saves, given the groups removed so far."""

    def __init__(self, dag: ChannelDag, groups: Ints, rate: Rate) -> None:
        self.rates: list[float] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.touched: dict[int, list[tuple[int, int, int]]] = {}
        for node, block in dag.kernel_blocks:
            if block.input_channel_ids is None:
                continue
            price = rate(node, block)
            for sources, targets in zip(block.sources, block.destinations, strict=True):
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

    def saving_of(self, one: int) -> float:
        """Cost that removing a group saves now."""
        total = 0.0
        for index, rows, columns in self.touched.get(one, ()):
            before = self.rows[index] * self.columns[index]
            after = (self.rows[index] - rows) * (self.columns[index] - columns)
            total += self.rates[index] * (before - after)
        return total

    def remove(self, one: int) -> None:
        """Remove a group."""
        for index, rows, columns in self.touched.get(one, ()):
            self.rows[index] -= rows
            self.columns[index] -= columns


def _waiting(dag: ChannelDag, groups: Ints, sequences: Mapping[int, tuple[Ints, Floats]]) -> dict[int, list[int]]:
    """Groups that must be removed before each group: the separately chosen concat slots of its channels."""
    removed = np.zeros(int(groups.max()) + 1, bool)
    for order, _ in sequences.values():
        removed[order] = True
    pending: dict[int, set[int]] = {}
    for _, (channels, slots) in dag.concat_slots:
        for one, slot in zip(groups[channels].tolist(), groups[slots].tolist(), strict=True):
            if one != slot and removed[slot]:
                pending.setdefault(one, set()).add(slot)
    return {one: sorted(waits) for one, waits in pending.items()}


def _merge_orders(
    sequences: Mapping[int, tuple[Ints, Floats]],
    savings: _Savings,
    waiting: Mapping[int, list[int]],
    exponents: Exponents,
) -> Ints:
    """Merge the orders of all layers: next is the group with the least cost / saved^γ, each layer in its own order.

    With a contrast κ below 1 that key is raised to κ, times the common curve of all layers raised to 1 − κ.
    A layer whose next group waits for its concat slots is skipped until the last of them is removed. Savings only
    fall, so a key that is still the least after recomputation is correct.
    """

    def key(layer: int) -> float:
        order, costs = sequences[layer]
        saving = savings.saving_of(int(order[position[layer]]))
        if saving <= 0:
            return np.inf
        own = float(costs[position[layer]] / saving**exponents.saved)
        return own if common is None else float(own**exponents.contrast * common[layer][position[layer]])

    def enter(layer: int) -> None:
        order, _ = sequences[layer]
        if position[layer] < order.size and not left.get(int(order[position[layer]])):
            heapq.heappush(heap, (key(layer), layer))

    common = _common_curve(sequences, savings, exponents) if exponents.contrast < 1 else None
    left = {one: len(waits) for one, waits in waiting.items()}
    awaited: dict[int, list[int]] = {}
    for one, waits in waiting.items():
        for slot in waits:
            awaited.setdefault(slot, []).append(one)
    home = {int(one): layer for layer, (order, _) in sequences.items() for one in order}
    position = dict.fromkeys(sequences, 0)
    heap: list[tuple[float, int]] = []
    for layer in sequences:
        enter(layer)
    merged: list[int] = []
    while heap:
        earlier, layer = heapq.heappop(heap)
        now = key(layer)
        if now > earlier and heap and now > heap[0][0]:
            heapq.heappush(heap, (now, layer))
            continue
        order, _ = sequences[layer]
        one = int(order[position[layer]])
        merged.append(one)
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
    return np.array(merged, np.int64)


def _common_curve(sequences: Mapping[int, RemovalOrder], savings: _Savings, exponents: Exponents) -> dict[int, Floats]:
    """Mean key of all layers at the share of a layer that each removal reaches, raised to 1 − κ, by layer.

    The mean is that of logarithms, weighted by the cost that each layer saves at first.
    """
    shares = np.linspace(0, 1, CURVE_POINTS)
    total, weight = np.zeros(CURVE_POINTS), 0.0
    for order, costs in sequences.values():
        saving = savings.saving_of(int(order[0]))
        if saving > 0 and costs[-1] > 0:
            keys = np.log(np.maximum(costs, MIN_COST_SHARE * costs[-1]) / saving**exponents.saved)
            total += saving * order.size * np.interp(shares, _reached(order.size), keys)
            weight += saving * order.size
    mean = total / weight if weight else total
    power = 1 - exponents.contrast
    return {
        layer: np.exp(power * np.interp(_reached(order.size), shares, mean)) for layer, (order, _) in sequences.items()
    }


def _reached(count: int) -> Floats:
    """Share of a layer of ``count`` groups that is removed after each removal [count]."""
    return np.arange(1, count + 1) / count
