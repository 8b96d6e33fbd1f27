"""Kernels kept in each layer: a grid of input channels × output channels, coarser for large layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.channel_ids import Mask
from leanonnx.reporting.rows import LayerRow
from leanonnx.rules.call import KernelBlock

Shares = NDArray[np.float64]
"""Share of the kernels kept in each cell [rows, columns]."""
MAX_DRAWN_LAYERS, MAX_OPEN_LAYERS = 120, 42
"""Layers that are drawn at all, and without unfolding the rest."""
MAX_CELLS = 40_000
"""Cells of all layers together, about."""
COARSEST, FINEST = 8, 32
"""Cells along a side."""
LEVELS = 4
"""Shades of kept kernels: some, half, most, all."""


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One layer: cells along both axes, the path of each shade (0: all removed), and the layer's row."""

    number: int
    columns: int
    rows: int
    paths: tuple[str, ...]
    row: LayerRow

    @property
    def share(self) -> float:
        """Share of its kernels that are kept."""
        before, after = self.row.kernels
        return after / before if before else 1.0


@dataclass(frozen=True, kw_only=True)
class Heats:
    """The largest layers, ``smaller`` ones that are drawn too, and the number of those that are ``missing``.

    ``coarse``: some cell stands for several kernels; ``gaps``: some cells lie between convolution groups.
    """

    layers: tuple[Heat, ...]
    smaller: tuple[Heat, ...]
    missing: int
    coarse: bool
    gaps: bool


def heats(dag: ChannelDag, alive: Mask, rows: Sequence[LayerRow]) -> Heats:
    """The kernels of all layers that have any that count, of the largest ones where these are too many."""
    largest = sorted((k for k, row in enumerate(rows) if row.kernels.before), key=lambda k: -rows[k].kernels.before)
    drawn = largest[:MAX_DRAWN_LAYERS]
    side = int(np.clip((MAX_CELLS / max(len(drawn), 1)) ** 0.5, COARSEST, FINEST))
    layers, smaller = (
        tuple(_heat(k, dag.kernel_blocks[k][1], alive, side, rows[k]) for k in sorted(part))
        for part in (drawn[:MAX_OPEN_LAYERS], drawn[MAX_OPEN_LAYERS:])
    )
    blocks = [dag.kernel_blocks[k][1] for k in drawn]
    coarse = any(max(block.sources.size, block.destinations.size) > side for block in blocks)
    gaps = any(block.sources.shape[0] > 1 for block in blocks)
    return Heats(layers=layers, smaller=smaller, missing=len(largest) - len(drawn), coarse=coarse, gaps=gaps)


def _heat(index: int, block: KernelBlock, alive: Mask, side: int, row: LayerRow) -> Heat:
    grid = kept_shares(block, alive, side)
    shades = np.where(np.isnan(grid), -1, np.ceil(LEVELS * grid))
    paths = tuple(_path(shades == level) for level in range(LEVELS + 1))
    return Heat(number=index + 1, columns=grid.shape[1], rows=grid.shape[0], paths=paths, row=row)


def kept_shares(block: KernelBlock, alive: Mask, side: int) -> Shares:
    """Share of the kernels kept in each cell [output bins, input bins]; NaN where there are none (between groups)."""
    rows, columns = _channels_by_bin(alive[block.destinations], side), _channels_by_bin(alive[block.sources], side)
    ends = (block.destinations, block.sources)
    every, other = (_channels_by_bin(np.ones(channel_ids.shape, bool), side) for channel_ids in ends)
    total = every @ other.T
    shares: Shares = np.divide(rows @ columns.T, total, out=np.full(total.shape, np.nan), where=total > 0)
    return shares


def _channels_by_bin(kept: Mask, side: int) -> Shares:
    """Number of kept channels by bin and convolution group [bins, groups], from their mask [groups, channels]."""
    groups, width = kept.shape
    bins = min(side, kept.size)
    place = np.arange(kept.size) * bins // kept.size
    counts = np.zeros((bins, groups))
    np.add.at(counts, (place, np.repeat(np.arange(groups), width)), kept.reshape(-1))
    return counts


def _path(mask: Mask) -> str:
    """An SVG path of rectangles that cover the cells of a mask, equal rows that follow each other in one."""
    parts, top = [], 0
    for runs, same in groupby(tuple(_runs(line)) for line in mask):
        height = len(list(same))
        parts += [f"M{start} {top}h{stop - start}v{height}H{start}z" for start, stop in runs]
        top += height
    return "".join(parts)


def _runs(line: Mask) -> Iterator[tuple[int, int]]:
    """Start and stop of the true stretches of a line."""
    edges = np.flatnonzero(np.diff(np.r_[False, line, False])).tolist()
    yield from zip(edges[::2], edges[1::2], strict=True)
