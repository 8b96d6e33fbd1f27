"""Allocate widths: the longest prefix of a ranking that fits a budget, at widths that the hardware runs fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from leanonnx.analysis.closure import Closure
from leanonnx.analysis.dag import groups_with_pins
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.criteria import Ranking
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.rules.call import Pin
from leanonnx.selection.exchange import exchange_widths
from leanonnx.selection.widths import NEAREST, Alignment, replace_widths, width_grid

COARSE_SPENDING = 0.8
"""Share of the budget; if whole steps spend less, layers are widened in fractions of a step too."""
FINE_SPENDING = 0.98
"""The same share if layers are divided finely for accuracy."""
MAX_SKIPPED_LAYERS = 8
"""Number of layers that do not fit the budget and are skipped."""


class WidthAllocator:
    """Turns a ranking and a budget into a keep set that surgery can carry out.

    ``pins`` are kept regardless of the ranking.
    """

    def __init__(self, weights: WeightedDag, ranking: Ranking, pins: Iterable[Pin], alignment: Alignment) -> None:
        self.weighted, self.dag, self.ranking = weights, weights.dag, ranking
        self.groups = ranking.groups
        self.closure = Closure(self.dag, self.groups)
        self.protected = self._protected_groups((*self.dag.pins, *pins))
        self.grid = width_grid(self.dag, ranking, self.protected, alignment)

    def keep_prefix(self, count: int) -> Mask:
        """Keep mask [channels] for the first ``count`` groups of the ranking."""
        return self.closure.alive_channels(self._first(count))

    def keep_aligned_prefix(self, count: int, floor: int, threshold: float = NEAREST) -> Mask:
        """The same with the width of each layer rounded to one that the hardware runs fast (see ``Grid.rounded``)."""
        return self.closure.alive_channels(self.grid.round_widths(self._first(count), floor, threshold))

    def _first(self, count: int) -> Mask:
        keep = self.protected.copy()
        keep[self.ranking.order[:count]] = True
        return keep

    def keep_largest(self, spent: Callable[[Mask], float]) -> Mask:
        """Return the largest keep set that spends at most the whole budget (1).

        Uses the coarsest grid of widths on which one exists; no grid if there is none.
        """

        def fits(alive: Mask) -> bool:
            return spent(alive) <= 1

        floor = self.grid.alignment.block
        while floor > 1 and not fits(self.keep_aligned_prefix(0, floor)):
            floor //= 2
        if floor == 1:
            count = _last_true(len(self.ranking.order), lambda count: fits(self.keep_prefix(count)))
            if not self.grid.alignment.parts:
                return self.keep_prefix(count)
            return self._alive(self._fill_budget(self.grid.kept_counts(self._first(count)), count, floor, spent))
        count = _last_true(len(self.ranking.order), lambda count: fits(self.keep_aligned_prefix(count, floor)))
        shares = self.grid.neighbours(self.grid.kept_counts(self._first(count)), floor)[2]
        levels = np.unique(np.append(shares[(shares > 0) & (shares < NEAREST)], NEAREST))[::-1]
        level = levels[
            _last_true(len(levels) - 1, lambda k: fits(self.keep_aligned_prefix(count, floor, float(levels[k]))))
        ]
        widths = self.grid.kept_counts(self.grid.round_widths(self._first(count), floor, float(level)))
        return self._alive(self._fill_budget(widths, count, floor, spent))

    def _fill_budget(self, widths: Ints, count: int, floor: int, spent: Callable[[Mask], float]) -> Ints:
        """Widen layers by a step while they fit, those with the best removed channel first; then exchange widths."""
        turn = list(dict.fromkeys(self.grid.layers[self.ranking.order[count:]].tolist()))
        finest, enough = self.grid.alignment.multiple, FINE_SPENDING if self.grid.alignment.parts else COARSE_SPENDING
        for step in (floor, finest):
            if step < floor and spent(self._alive(widths)) >= enough:
                break
            widths = self._widen_layers(widths, turn, step, spent)
        while self.grid.alignment.parts and spent(self._alive(widths)) < enough:
            before = widths
            widths = self._widen_layers(widths, turn, finest, spent)
            if np.array_equal(widths, before):
                break
        if self.grid.alignment.parts and self.ranking.losses is not None and spent(self._alive(widths)) < enough:
            least = self.grid.kept_counts(self.grid.round_widths(self.protected, finest, NEAREST))
            worth = self.grid.worth(self.ranking.losses)
            widths = exchange_widths(
                self.grid, widths, least, finest, worth, lambda candidate: spent(self._alive(candidate))
            )
        return widths

    def _widen_layers(self, widths: Ints, turn: list[int], step: int, spent: Callable[[Mask], float]) -> Ints:
        """Widen each layer by a step, in turn, while it fits; up to ``ROUNDS`` layers that do not fit are skipped."""
        wider = self.grid.widen(widths, step)
        layers = [layer for layer in turn if wider[layer] > widths[layer]]
        for _ in range(MAX_SKIPPED_LAYERS):
            taken = _last_true(len(layers), partial(self._fits, spent, widths, wider, layers))
            widths = replace_widths(widths, wider, layers[:taken])
            layers = layers[taken + 1 :]
            if not layers:
                break
        return widths

    def _fits(self, spent: Callable[[Mask], float], widths: Ints, wider: Ints, layers: list[int], count: int) -> bool:
        return spent(self._alive(replace_widths(widths, wider, layers[:count]))) <= 1

    def _alive(self, widths: Ints) -> Mask:
        return self.closure.alive_channels(self.grid.keep_first(widths))

    def _protected_groups(self, pins: Iterable[Pin]) -> Mask:
        """Groups that are always kept: pins, one group of every tensor, one chain from every input to every output."""
        keep = groups_with_pins(self.groups, pins)
        if self.closure.concat_slots:
            for chain in self.weighted.connections:
                keep[self.groups[list(chain)]] = True
        keep = self._with_sources(keep)
        for members in self._tensor_groups():
            if not keep[members].any():
                keep[members[np.argmax(self.ranking.scores[members])]] = True
                keep = self._with_sources(keep)
        return keep

    def _tensor_groups(self) -> list[Ints]:
        """Groups of each tensor, small tensors first, without tensors that may be removed whole."""
        may_go = self.closure.removable
        tensors = [channel_ids for channel_ids in self.dag.channel_ids.values() if not may_go[channel_ids].all()]
        groups = {np.unique(self.groups[channel_ids]).tobytes() for channel_ids in tensors}
        return sorted((np.frombuffer(raw, np.int64) for raw in groups), key=lambda m: (m.size, m.tolist()))

    def _with_sources(self, keep: Mask) -> Mask:
        """Protect the channels of protected concat slots and whatever is tied to them: no slot outlives its channel.

        A kept output without a kept input protects its best input.
        """
        while True:
            before = keep.copy()
            for sources, targets in self.closure.rows:
                read = self.groups[sources]
                if keep[self.groups[targets]].any() and not keep[read].any():
                    keep[read[np.argmax(self.ranking.scores[read])]] = True
            for channels, readers in reversed(self.closure.concat_slots):
                keep[self.groups[channels[keep[self.groups[readers]]]]] = True
            if np.array_equal(before, keep):
                return keep


def _last_true(highest: int, holds: Callable[[int], bool]) -> int:
    """Largest number up to ``highest`` for which a monotonic condition holds; at least 0."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
