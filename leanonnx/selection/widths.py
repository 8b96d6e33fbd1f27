"""Widths that the hardware runs at full speed.

Convolution kernels work on blocks of channels: a partial block costs as much as a full one, and widths that are no
multiple of a few channels do not use the fast kernels at all.  The number of channels kept in a layer is therefore
rounded to whole blocks, up if the budget allows it, else down.
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
"""Threshold that rounds to the nearest width."""
MIN_PARTS = 16
"""Smallest number of steps of a layer if the loss of accuracy is to be recovered."""
ROUNDED = names_with(Trait.BLOCK_WIDTHS)
"""Operators whose widths are rounded to whole blocks; matrix products run any width equally well."""


@dataclass(frozen=True)
class Alignment:
    """``block``: channels of a full step; ``multiple``: channels of the finest step, for budgets that need it.

    ``parts``: smallest number of steps of a layer, by halving the step down to ``multiple`` (0: always whole blocks).
    """

    block: int = 1
    multiple: int = 1
    parts: int = 0

    def step(self, channels: int) -> int:
        """Channels of a full step in a layer of ``channels`` channels."""
        step = self.block
        while step > self.multiple and step * self.parts > channels:
            step //= 2
        return step


ANY_WIDTH = Alignment()
"""Any width."""


@dataclass(frozen=True)
class WidthGrid:
    """The widths that each layer may have, in groups of channels.

    ``layers`` [groups] is the layer of each group, ``order`` [groups] the groups layer by layer, best first,
    ``starts`` and ``sizes`` [layers] the range of each layer in it, ``steps`` [layers] its step.
    """

    layers: Ints
    order: Ints
    starts: Ints
    sizes: Ints
    steps: Ints
    alignment: Alignment

    def kept_counts(self, keep: Mask) -> Ints:
        """Number of kept groups of each layer [layers]."""
        return np.bincount(self.layers[keep], minlength=self.sizes.size)

    def round_widths(self, keep: Mask, floor: int, threshold: float) -> Mask:
        """Round the number of kept groups of each layer to its grid, up from a ``threshold`` between two widths.

        Below one full step the grid continues in steps of ``floor``.
        """
        low, high, share = self.neighbours(self.kept_counts(keep), floor)
        return self.keep_first(np.where(share >= threshold, high, low))

    def keep_first(self, widths: Ints) -> Mask:
        """Keep mask [groups] of the first ``widths`` [layers] groups of each layer."""
        keep = np.zeros(self.order.size, bool)
        place = np.arange(self.order.size) - np.repeat(self.starts, self.sizes)
        keep[self.order] = place < np.repeat(widths, self.sizes)
        return keep

    def worth(self, losses: Floats) -> Callable[[Ints], Floats]:
        """Return a function from widths [layers] to the total worth of the groups kept in each layer [layers]."""
        summed = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(losses), losses, 0)[self.order])])

        def of(widths: Ints) -> Floats:
            totals: Floats = summed[self.starts + widths] - summed[self.starts]
            return totals

        return of

    def widen(self, widths: Ints, floor: int) -> Ints:
        """Widen each width by one step; below one full step, or if ``floor`` is finer, by ``floor``."""
        finer = (widths < self.steps) | (floor < self.alignment.block)
        step = np.where(finer, np.minimum(self.steps, floor), self.steps)
        return np.where(widths > 0, np.minimum((widths // step + 1) * step, self._limits(widths)), 0)

    def narrow(self, widths: Ints, floor: int, least: Ints) -> Ints:
        """Narrow each width by one step, by ``floor`` if that is finer; not below ``least``."""
        step = np.minimum(self.steps, floor)
        return np.minimum(widths, np.maximum((widths - 1) // step * step, least))

    def neighbours(self, counts: Ints, floor: int) -> tuple[Ints, Ints, Floats]:
        """Grid widths below and above each count, and the position of the count between them (0 to 1)."""
        step = np.where(counts >= self.steps, self.steps, np.minimum(self.steps, floor))
        low = np.minimum(np.maximum(counts // step, 1) * step, self.sizes)
        high = np.minimum(-(-counts // step) * step, self._limits(counts))
        low, high = np.where(counts == self.sizes, counts, low), np.maximum(low, high)
        low, high = np.where(counts == 0, 0, low), np.where(counts == 0, 0, high)
        return low, high, (counts - low) / np.maximum(high - low, 1)

    def _limits(self, counts: Ints) -> Ints:
        """Upper limits of a finer step: the first full step, or the whole layer."""
        return np.where(counts < self.steps, self.steps, self.sizes)


def replace_widths(widths: Ints, others: Ints, layers: list[int]) -> Ints:
    """Return a copy of the widths, those of ``layers`` replaced by ``others``."""
    result = widths.copy()
    result[layers] = others[layers]
    return result


def width_grid(dag: ChannelDag, ranking: Ranking, protected: Mask, alignment: Alignment) -> WidthGrid:
    """Return the grid of widths for a ranking; ``protected`` groups come first in their layers."""
    layers = layers_of(dag, ranking.groups)
    rank = np.full(ranking.scores.size, ranking.scores.size)
    rank[ranking.order] = np.arange(ranking.order.size)
    order = np.lexsort((rank, ~protected, layers))
    sizes = np.bincount(layers)
    starts = np.cumsum(sizes) - sizes
    return WidthGrid(layers, order, starts, sizes, _steps(dag, ranking.groups, layers, sizes, alignment), alignment)


def _steps(dag: ChannelDag, groups: Ints, layers: Ints, sizes: Ints, alignment: Alignment) -> Ints:
    """Step of each layer in groups: enough to fill a block of every convolution that reads or outputs them."""
    steps = np.ones(sizes.size, np.int64)
    for node, block in dag.kernel_blocks:
        if dag.model.proto.graph.node[node].op_type in ROUNDED:
            for side in (block.sources, block.destinations):
                _raise_steps(steps, side, groups, layers, sizes, alignment)
    return steps


def _raise_steps(steps: Ints, side: ChannelIds, groups: Ints, layers: Ints, sizes: Ints, alignment: Alignment) -> None:
    """Increase the steps of the layers on one side of a convolution."""
    present, channels = np.unique(groups[side], return_counts=True)
    present, channels = present[present != groups[0]], channels[present != groups[0]]
    for layer in np.unique(layers[present]):
        each = int(channels[layers[present] == layer].max())
        block = alignment.step(each * int(sizes[layer]))
        step = block // math.gcd(block, each)
        steps[layer] = max(steps[layer], min(step, sizes[layer]))
