"""Ranking → keep set: the longest prefix of a ranking that fits a budget, at widths that run fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from leanonnx.analysis.closure import Closure
from leanonnx.analysis.dag import pinned
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.criteria import Ranking
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.rules.call import Pin
from leanonnx.selection.exchange import exchanged
from leanonnx.selection.widths import NEAREST, Alignment, grid, replaced

SLACK = 0.8
"""Share of the budget; if whole steps spend less, layers are widened by less than a step too."""
FULL = 0.98
"""The same where layers are divided finely, for accuracy's sake."""
ROUNDS = 8
"""How many layers that cannot be widened are passed over."""


class WidthAllocator:
    """Turns a ranking and a budget into a keep set that surgery can carry out.

    ``pins`` live whatever the ranking says.
    """

    def __init__(self, weights: WeightedDag, ranking: Ranking, pins: Iterable[Pin], alignment: Alignment) -> None:
        self.weights, self.dag, self.ranking = weights, weights.dag, ranking
        self.classes = ranking.groups
        self.closure = Closure(self.dag, self.classes)
        self.protected = self._protected((*self.dag.pins, *pins))
        self.grid = grid(self.dag, ranking, self.protected, alignment)

    def prefix(self, count: int) -> Mask:
        """Labels that live when the first ``count`` classes of the ranking are kept."""
        return self.closure.alive(self._first(count))

    def aligned(self, count: int, floor: int, threshold: float = NEAREST) -> Mask:
        """The same with the width of each layer rounded to what the hardware runs well (see ``Grid.rounded``)."""
        return self.closure.alive(self.grid.rounded(self._first(count), floor, threshold))

    def _first(self, count: int) -> Mask:
        keep = self.protected.copy()
        keep[self.ranking.order[:count]] = True
        return keep

    def largest(self, spent: Callable[[Mask], float]) -> Mask:
        """The largest keep set that spends at most all of the budget (1).

        Of the grids of widths on which there is one, the coarsest; without a grid if there is none.
        """

        def fits(alive: Mask) -> bool:
            return spent(alive) <= 1

        floor = self.grid.alignment.block
        while floor > 1 and not fits(self.aligned(0, floor)):
            floor //= 2
        if floor == 1:
            count = _last(len(self.ranking.order), lambda count: fits(self.prefix(count)))
            if not self.grid.alignment.parts:
                return self.prefix(count)
            return self._alive(self._filled(self.grid.kept(self._first(count)), count, floor, spent))
        count = _last(len(self.ranking.order), lambda count: fits(self.aligned(count, floor)))
        shares = self.grid.neighbours(self.grid.kept(self._first(count)), floor)[2]
        levels = np.unique(np.append(shares[(shares > 0) & (shares < NEAREST)], NEAREST))[::-1]
        level = levels[_last(len(levels) - 1, lambda k: fits(self.aligned(count, floor, float(levels[k]))))]
        widths = self.grid.kept(self.grid.rounded(self._first(count), floor, float(level)))
        return self._alive(self._filled(widths, count, floor, spent))

    def _filled(self, widths: Ints, count: int, floor: int, spent: Callable[[Mask], float]) -> Ints:
        """Widen layers by a step, those with the best dropped channel first, as long as that fits; then exchange."""
        turn = list(dict.fromkeys(self.grid.layers[self.ranking.order[count:]].tolist()))
        finest, enough = self.grid.alignment.multiple, FULL if self.grid.alignment.parts else SLACK
        for step in (floor, finest):
            if step < floor and spent(self._alive(widths)) >= enough:
                break
            widths = self._widened(widths, turn, step, spent)
        while self.grid.alignment.parts and spent(self._alive(widths)) < enough:
            before = widths
            widths = self._widened(widths, turn, finest, spent)
            if np.array_equal(widths, before):
                break
        if self.grid.alignment.parts and self.ranking.losses is not None and spent(self._alive(widths)) < enough:
            least = self.grid.kept(self.grid.rounded(self.protected, finest, NEAREST))
            worth = self.grid.worth(self.ranking.losses)
            widths = exchanged(self.grid, widths, least, finest, worth, lambda found: spent(self._alive(found)))
        return widths

    def _widened(self, widths: Ints, turn: list[int], step: int, spent: Callable[[Mask], float]) -> Ints:
        """Each layer a step wider, in turn, as long as that fits; some that do not are passed over."""
        wider = self.grid.wider(widths, step)
        layers = [layer for layer in turn if wider[layer] > widths[layer]]
        for _ in range(ROUNDS):
            taken = _last(len(layers), partial(self._fits, spent, widths, wider, layers))
            widths = replaced(widths, wider, layers[:taken])
            layers = layers[taken + 1 :]
            if not layers:
                break
        return widths

    def _fits(self, spent: Callable[[Mask], float], widths: Ints, wider: Ints, layers: list[int], count: int) -> bool:
        return spent(self._alive(replaced(widths, wider, layers[:count]))) <= 1

    def _alive(self, widths: Ints) -> Mask:
        return self.closure.alive(self.grid.first(widths))

    def _protected(self, pins: Iterable[Pin]) -> Mask:
        """Classes that live in any case: pins, one class for every tensor, one chain for every output and input."""
        keep = pinned(self.classes, pins)
        if self.closure.readers:
            for chain in self.weights.connections:
                keep[self.classes[list(chain)]] = True
        keep = self._with_sources(keep)
        for members in self._tensor_classes():
            if not keep[members].any():
                keep[members[np.argmax(self.ranking.scores[members])]] = True
                keep = self._with_sources(keep)
        return keep

    def _tensor_classes(self) -> list[Ints]:
        """The classes of each tensor, small tensors first; not of those that may go as a whole."""
        may_go = self.closure.may_go
        tensors = [channel_ids for channel_ids in self.dag.channel_ids.values() if not may_go[channel_ids].all()]
        found = {np.unique(self.classes[channel_ids]).tobytes() for channel_ids in tensors}
        return sorted((np.frombuffer(raw, np.int64) for raw in found), key=lambda m: (m.size, m.tolist()))

    def _with_sources(self, keep: Mask) -> Mask:
        """A reader cannot outlive its channel: protect the channels of protected readers, and what is tied to them.

        What may read nothing at all reads its best.
        """
        while True:
            before = keep.copy()
            for sources, targets in self.closure.rows:
                read = self.classes[sources]
                if keep[self.classes[targets]].any() and not keep[read].any():
                    keep[read[np.argmax(self.ranking.scores[read])]] = True
            for channels, readers in reversed(self.closure.readers):
                keep[self.classes[channels[keep[self.classes[readers]]]]] = True
            if np.array_equal(before, keep):
                return keep


def _last(highest: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to ``highest`` for which something holds that stops holding somewhere; at least 0."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
