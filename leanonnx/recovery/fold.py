"""Channel regression: predict all input channels of a layer from the kept ones, folded into its weights.

1. A = S + (Cov(x, x̂) − S Cov(x̂)) (Cov(x̂) + λI)⁻¹ with selection matrix S maps the C' kept channels to all C
   channels: a ridge regression towards the identity on the kept channels (see ``regression``).
2. The weights W of the original become W A at the same kernel positions, and the bias compensates the remaining
   mean.

The cost is C'² per row and C'³ once.  He, Zhang & Sun (ICCV 2017, arXiv 1707.06168) also compensate removed channels
by least squares, but on the output of each layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.regression import MomentSums
from leanonnx.recovery.rows import LayerSite
from leanonnx.statistics.moments import channel_rows, kernels_by_channel

MIN_FOLD_ROWS = 20_000
"""Positions used by the regression; at least ``PER_CHANNEL`` per channel."""
ROWS_PER_CHANNEL = 16
FOLD_RIDGE = 1e-3
"""λ as a share of the mean variance."""


def fold_channels(site: LayerSite, seed: int) -> tuple[Floats, Floats] | None:
    """Weights [1, O, I · taps] and bias [1, O] of a layer with one conv group; None if it cannot be folded."""
    sources = site.layer.block.sources
    bias = site.original_bias()
    if len(sources) > 1 or bias is None:
        return None
    channels = sources.reshape(-1)
    kept = np.asarray(site.alive[channels])
    solution = _regression(site, channels, kept, seed)
    if solution is None:
        return None
    mixing, shift = solution
    kernels = site.kernels[0][site.kept_outputs]
    by_channel = kernels_by_channel(kernels, channels)
    if by_channel is None:
        return None
    index = np.unique(channels, return_inverse=True)[1]
    index_left = np.unique(channels[kept], return_inverse=True)[1]
    offset = bias[site.kept_outputs] + np.einsum("oit,i->o", kernels, shift[index])
    mixed = np.tensordot(by_channel, mixing, (1, 0)).transpose(0, 2, 1)
    weights = np.empty((len(kernels), int(kept.sum()), kernels.shape[2]))
    weights[:, np.argsort(index_left, kind="stable")] = mixed.reshape(len(kernels), -1, kernels.shape[2])
    return weights.reshape(1, len(kernels), -1), offset[None]


def _regression(site: LayerSite, channels: Ints, kept: NDArray[np.bool_], seed: int) -> tuple[Floats, Floats] | None:
    """A [C, C'] and the remaining mean [C]; None without usable rows."""
    axis = site.layer.block.input_axis
    runs = site.pair.runs
    each = max(1, -(-max(MIN_FOLD_ROWS, ROWS_PER_CHANNEL * int(kept.sum())) // len(runs)))
    sums: MomentSums | None = None
    for run in runs:
        if run.held_out:
            continue
        x: Any = channel_rows(site.pair.original.value(site.x, run.index), axis, channels)
        x_hat: Any = channel_rows(site.pair.compressed.value(site.x_hat, run.index), axis, channels[kept])
        if len(x) != len(x_hat):
            return None
        rng = np.random.default_rng((seed, site.layer.after, run.index))
        some = np.sort(rng.choice(len(x), min(len(x), each), replace=False))
        x, x_hat = x[some], x_hat[some]
        if sums is None:
            sums = MomentSums(x_hat.mean(0, dtype=np.float64)[None], x.mean(0, dtype=np.float64)[None])
        sums.add(x_hat[:, None], x[:, None])
    if sums is None:
        return None
    channel_ids, left = np.unique(channels), np.unique(channels[kept])
    selection = (channel_ids[:, None] == left[None]).astype(np.float64)[None]
    solution = next(iter(sums.solve(selection, None, (FOLD_RIDGE,))), None)
    return None if solution is None else (solution[0][0], solution[1][0])
