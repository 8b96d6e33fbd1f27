"""Which kernels of each layer are left: a grid of input channels × output channels, coarser for large layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.channel_ids import Mask
from leanonnx.reporting.report import Row
from leanonnx.rules.call import KernelBlock

Grid = NDArray[np.float64]
MOST, FIRST = 120, 42
"""Layers that are drawn, and that are seen at once."""
CELLS = 40_000
"""Cells of all layers together, about."""
COARSEST, FINEST = 8, 32
"""Cells along a side."""
LEVELS = 4
"""Shades of what is left: some, half, most, all; what is gone has none."""


@dataclass(frozen=True)
class Heat:
    """One layer: cells along both axes, the path of each shade (0: gone), and its row of the JSON object."""

    number: int
    columns: int
    rows: int
    paths: tuple[str, ...]
    row: Row

    @property
    def share(self) -> float:
        """What is left of its kernels."""
        before, after = self.row["kernels"]
        return float(after / before) if before else 1.0


@dataclass(frozen=True)
class Heats:
    """The largest layers, others that are drawn, how many are not; ``coarse``: some cell stands for several kernels.

    ``gaps``: some cells hold no kernel, since they lie between groups.
    """

    layers: tuple[Heat, ...]
    smaller: tuple[Heat, ...]
    missing: int
    coarse: bool
    gaps: bool


def heats(dag: ChannelDag, alive: Mask, rows: list[Row]) -> Heats:
    """The kernels of all layers that have any that count, the largest ones where these are too many."""
    counted = sorted((k for k, row in enumerate(rows) if row["kernels"][0]), key=lambda k: -rows[k]["kernels"][0])
    drawn = counted[:MOST]
    side = int(np.clip((CELLS / max(len(drawn), 1)) ** 0.5, COARSEST, FINEST))
    layers, smaller = (
        tuple(_heat(k, dag.kernel_blocks[k][1], alive, side, rows[k]) for k in sorted(part))
        for part in (drawn[:FIRST], drawn[FIRST:])
    )
    mixes = [dag.kernel_blocks[k][1] for k in drawn]
    coarse = any(max(mix.sources.size, mix.destinations.size) > side for mix in mixes)
    gaps = any(mix.sources.shape[0] > 1 for mix in mixes)
    return Heats(layers, smaller, len(counted) - len(drawn), coarse, gaps)


def _heat(index: int, mix: KernelBlock, alive: Mask, side: int, row: Row) -> Heat:
    grid = shares(mix, alive, side)
    shades = np.where(np.isnan(grid), -1, np.ceil(LEVELS * grid))
    paths = tuple(_path(shades == level) for level in range(LEVELS + 1))
    return Heat(index + 1, grid.shape[1], grid.shape[0], paths, row)


def shares(mix: KernelBlock, alive: Mask, side: int) -> Grid:
    """Share of the kernels left in each cell [output bins, input bins]; NaN where there are none (between groups)."""
    rows, columns = _binned(alive[mix.destinations], side), _binned(alive[mix.sources], side)
    every, other = (_binned(np.ones(channel_ids.shape, bool), side) for channel_ids in (mix.destinations, mix.sources))
    total = every @ other.T
    found: Grid = np.divide(rows @ columns.T, total, out=np.full(total.shape, np.nan), where=total > 0)
    return found


def _binned(living: Mask, side: int) -> Grid:
    """Living channels of each bin and group [bins, groups], from those of each group [groups, channels]."""
    groups, width = living.shape
    bins = min(side, living.size)
    place = np.arange(living.size) * bins // living.size
    found = np.zeros((bins, groups))
    np.add.at(found, (place, np.repeat(np.arange(groups), width)), living.reshape(-1))
    return found


def _path(mask: Mask) -> str:
    """An SVG path of rectangles that cover the cells of a mask, equal rows that follow each other in one."""
    parts, top = [], 0
    for runs, same in groupby(tuple(_runs(line)) for line in mask):
        height = len(list(same))
        parts += [f"M{start} {top}h{stop - start}v{height}H{start}z" for start, stop in runs]
        top += height
    return "".join(parts)


def _runs(line: Mask) -> Iterator[tuple[int, int]]:
    """Where the true stretches of a line start and stop."""
    edges = np.flatnonzero(np.diff(np.r_[False, line, False])).tolist()
    yield from zip(edges[::2], edges[1::2], strict=True)
