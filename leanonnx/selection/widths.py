"""Widths that the hardware runs at full speed: how many channels of each layer to keep so that none costs for nothing.

Kernels of convolutions work on blocks of channels; a started block costs as much as a full one, and widths that are
no multiple of a few channels leave the fast kernels altogether.  So the number of channels kept in a layer is rounded
to whole blocks, up where the budget allows it, else down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.ranking.criteria import Ranking
from leanonnx.ranking.groups import layers_of

NEAREST = 0.5
PARTS = 16
"""A layer is divided into so many steps at least, where accuracy can be had back."""
ROUNDED = names_with(Trait.BLOCK_WIDTHS)
"""Operators whose widths are rounded to whole blocks; matrix products run any width equally well."""


@dataclass(frozen=True)
class Alignment:
    """``block``: channels of a full step; ``multiple``: channels of a smaller one, for budgets that need it finer.

    ``parts``: steps that a layer has at least, down to the smaller one (0: whole blocks however few they are).
    """

    block: int = 1
    multiple: int = 1
    parts: int = 0

    def step(self, channels: int) -> int:
        """Channels of a full step in a layer of so many."""
        found = self.block
        while found > self.multiple and found * self.parts > channels:
            found //= 2
        return found


NATURAL = Alignment()
"""Any width."""


@dataclass(frozen=True)
class Grid:
    """The widths that each layer may have, in classes of channels.

    ``layers`` [classes] is the layer of each class, ``order`` [classes] the classes layer by layer, the most worth
    keeping first, ``starts`` and ``sizes`` [layers] where each layer lies in it, ``steps`` [layers] its step.
    """

    layers: Ints
    order: Ints
    starts: Ints
    sizes: Ints
    steps: Ints
    alignment: Alignment

    def kept(self, keep: Mask) -> Ints:
        """How many classes of each layer are kept [layers]."""
        return np.bincount(self.layers[keep], minlength=self.sizes.size)

    def rounded(self, keep: Mask, floor: int, threshold: float) -> Mask:
        """Round the number of kept classes of each layer to its grid, up from a ``threshold`` between two widths.

        Below one full step the grid goes on in steps of ``floor``.
        """
        low, high, share = self.neighbours(self.kept(keep), floor)
        return self.first(np.where(share >= threshold, high, low))

    def first(self, widths: Ints) -> Mask:
        """Keep the first so many classes of each layer [layers]; gives a mask of classes."""
        found = np.zeros(self.order.size, bool)
        place = np.arange(self.order.size) - np.repeat(self.starts, self.sizes)
        found[self.order] = place < np.repeat(widths, self.sizes)
        return found

    def worth(self, losses: Floats) -> Callable[[Ints], Floats]:
        """What the classes kept in each layer are worth together [layers], by the widths of the layers [layers]."""
        summed = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(losses), losses, 0)[self.order])])

        def of(widths: Ints) -> Floats:
            found: Floats = summed[self.starts + widths] - summed[self.starts]
            return found

        return of

    def wider(self, widths: Ints, floor: int) -> Ints:
        """Each width one step further; below one full step, or where ``floor`` is finer, by ``floor``."""
        finer = (widths < self.steps) | (floor < self.alignment.block)
        step = np.where(finer, np.minimum(self.steps, floor), self.steps)
        return np.where(widths > 0, np.minimum((widths // step + 1) * step, self._limits(widths)), 0)

    def narrower(self, widths: Ints, floor: int, least: Ints) -> Ints:
        """Each width one step back, in steps of ``floor`` where that is finer; not below ``least``."""
        step = np.minimum(self.steps, floor)
        return np.minimum(widths, np.maximum((widths - 1) // step * step, least))

    def neighbours(self, counts: Ints, floor: int) -> tuple[Ints, Ints, Floats]:
        """The widths of the grid below and above each count, and where between them it lies (0 to 1)."""
        step = np.where(counts >= self.steps, self.steps, np.minimum(self.steps, floor))
        low = np.minimum(np.maximum(counts // step, 1) * step, self.sizes)
        high = np.minimum(-(-counts // step) * step, self._limits(counts))
        low, high = np.where(counts == self.sizes, counts, low), np.maximum(low, high)
        low, high = np.where(counts == 0, 0, low), np.where(counts == 0, 0, high)
        return low, high, (counts - low) / np.maximum(high - low, 1)

    def _limits(self, counts: Ints) -> Ints:
        """What a finer step must not pass: the first full step, or all of the layer."""
        return np.where(counts < self.steps, self.steps, self.sizes)


def replaced(widths: Ints, others: Ints, layers: list[int]) -> Ints:
    """The widths, those of some layers replaced by others."""
    found = widths.copy()
    found[layers] = others[layers]
    return found


def grid(dag: ChannelDag, ranking: Ranking, protected: Mask, alignment: Alignment) -> Grid:
    """The grid of widths for a ranking; ``protected`` classes come first in their layers."""
    layers = layers_of(dag, ranking.groups)
    rank = np.full(ranking.scores.size, ranking.scores.size)
    rank[ranking.order] = np.arange(ranking.order.size)
    order = np.lexsort((rank, ~protected, layers))
    sizes = np.bincount(layers)
    starts = np.cumsum(sizes) - sizes
    return Grid(layers, order, starts, sizes, _steps(dag, ranking.groups, layers, sizes, alignment), alignment)


def _steps(dag: ChannelDag, groups: Ints, layers: Ints, sizes: Ints, alignment: Alignment) -> Ints:
    """The step of each layer in classes: as many as fill a block of every convolution that reads or makes them."""
    steps = np.ones(sizes.size, np.int64)
    for node, mix in dag.kernel_blocks:
        if dag.model.proto.graph.node[node].op_type in ROUNDED:
            for side in (mix.sources, mix.destinations):
                _widen(steps, side, groups, layers, sizes, alignment)
    return steps


def _widen(steps: Ints, side: ChannelIds, groups: Ints, layers: Ints, sizes: Ints, alignment: Alignment) -> None:
    """Raise the steps of the layers on one side of a convolution."""
    found, channels = np.unique(groups[side], return_counts=True)
    found, channels = found[found != groups[0]], channels[found != groups[0]]
    for layer in np.unique(layers[found]):
        each = int(channels[layers[found] == layer].max())
        block = alignment.step(each * int(sizes[layer]))
        step = block // math.gcd(block, each)
        steps[layer] = max(steps[layer], min(step, sizes[layer]))
