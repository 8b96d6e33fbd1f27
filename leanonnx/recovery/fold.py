"""Channel regression: predict all input channels of a layer from the kept ones, folded into its weights.

1. A = S + (Cov(x, x̂) − S Cov(x̂)) (Cov(x̂) + λI)⁻¹ with selection matrix S maps the C' kept channels to all C
   channels: a ridge regression towards the identity on the kept channels (see ``regression``).
2. The weights W of the original become W A at the same kernel positions, and the bias compensates the remaining
   mean.

With one tap and no repeated channel, W A is what least squares of the layer gives anyway; otherwise it has fewer
unknowns, so that it helps where rows are short.

The cost is C'² per row and C'³ once.  He, Zhang & Sun (ICCV 2017, arXiv 1707.06168) also compensate removed channels
by least squares, but on the output of each layer.
"""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.regression import MomentSums
from leanonnx.recovery.pair import PairedRun
from leanonnx.recovery.rows import LayerSite
from leanonnx.statistics.moments import joined_repeats, kernels_by_channel

MIN_FOLD_ROWS = 4_000
"""Positions used by the regression; at least ``FOLD_ROWS_PER_CHANNEL`` per channel."""
FOLD_ROWS_PER_CHANNEL = 16
ENOUGH_ROWS_PER_FEATURE = 8
"""Rows for each feature from which on least squares of the layer need no channel regression."""
FOLD_RIDGE = 1e-3
"""λ as a share of the mean variance."""


def fold_positions(site: LayerSite, samples: int, positions: int, runs: int) -> int:
    """Positions of each run for the channel regression of a layer; 0 if it would not help.

    Args:
        site: the layer.
        samples: number of samples to fit to.
        positions: output positions of one sample.
        runs: number of runs to fit to.
    """
    channels = site.layer.block.sources
    kept = np.asarray(site.alive[channels.reshape(-1)])
    distinct = np.unique(channels.reshape(-1)[kept]).size
    rows = min(site.rows, samples * positions)
    if len(channels) > 1 or not site.layer.can_change_bias or site.width == distinct or not distinct:
        return 0
    if rows >= ENOUGH_ROWS_PER_FEATURE * site.width:
        return 0
    return -(-max(MIN_FOLD_ROWS, FOLD_ROWS_PER_CHANNEL * distinct) // max(runs, 1))


class ChannelRegression:
    """Sums of the channel regression of a layer with one conv group, on inputs that are not held out."""

    def __init__(self, site: LayerSite) -> None:
        self.site = site
        self.channels = site.layer.block.sources.reshape(-1)
        self.kept = np.asarray(site.alive[self.channels])
        self.sums: MomentSums | None = None

    def add(self, rows: Array, x_hat: Array, run: PairedRun) -> None:
        """Add the rows of a run of the original, and those of the compressed network at the same positions."""
        there = self.site.input_rows(x_hat, run)
        if len(rows) != len(there):
            return
        wanted, read = joined_repeats(rows, self.channels), joined_repeats(there, self.channels[self.kept])
        if len(wanted) != len(read):
            return
        if self.sums is None:
            self.sums = MomentSums(read.mean(0, dtype=np.float64)[None], wanted.mean(0, dtype=np.float64)[None])
        self.sums.add(read.T[None], wanted.T[None])

    def fold(self) -> tuple[Floats, Floats] | None:
        """Weights [1, O, I · taps] and bias [1, O] of the layer; None if it cannot be folded."""
        site, channels, kept = self.site, self.channels, self.kept
        bias = site.original_bias
        if self.sums is None or bias is None:
            return None
        ids, index = np.unique(channels, return_inverse=True)
        left, index_left = np.unique(channels[kept], return_inverse=True)
        selection = (ids[:, None] == left[None]).astype(np.float64)[None]
        solution = next(iter(self.sums.solve(selection, None, (FOLD_RIDGE,))), None)
        kernels = site.kernels[0][site.kept_outputs]
        by_channel = kernels_by_channel(kernels, channels)
        if solution is None or by_channel is None:
            return None
        mixing, shift = solution[0][0], solution[1][0]
        offset = bias[site.kept_outputs] + np.einsum("oit,i->o", kernels, shift[index])
        mixed = np.tensordot(by_channel, mixing, (1, 0)).transpose(0, 2, 1)
        weights = np.empty((len(kernels), int(kept.sum()), kernels.shape[2]))
        weights[:, np.argsort(index_left, kind="stable")] = mixed.reshape(len(kernels), -1, kernels.shape[2])
        return weights.reshape(1, len(kernels), -1), offset[None]
