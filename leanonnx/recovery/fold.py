"""Channel regression: all channels of what a layer read, from those that are left, folded into its weights.

1. A = S + (Cov(x, x̂) − S Cov(x̂)) (Cov(x̂) + λI)⁻¹ with S the selection takes the C' channels that are left to all C
   channels: a ridge regression towards what they are (see ``regression``).
2. The weights W of the original become W A at the same kernel positions, and the bias takes up what A leaves of the
   mean.

That takes C'² steps for each row and C'³ once.  Removed channels are made up for by least squares in He, Zhang & Sun
(ICCV 2017, arXiv 1707.06168) too, there on what each layer puts out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.regression import Sums
from leanonnx.recovery.rows import Site
from leanonnx.statistics.moments import by_label, rows_of

ROWS = 20_000
"""Positions that the regression sees; ``PER_CHANNEL`` times its channels if that is more."""
PER_CHANNEL = 16
BETA = 1e-3
"""λ as a share of the mean variance."""


def folded(site: Site, seed: int) -> tuple[Floats, Floats] | None:
    """Weights [1, O, I · taps] and bias [1, O] of a layer of one group; None where it has several."""
    sources = site.layer.mix.sources
    bias = site.original_bias()
    if len(sources) > 1 or bias is None:
        return None
    channels = sources.reshape(-1)
    kept = np.asarray(site.alive[channels])
    found = _regression(site, channels, kept, seed)
    if found is None:
        return None
    mixing, shift = found
    kernels = site.kernels[0][site.kept]
    by_channel = by_label(kernels, channels)
    if by_channel is None:
        return None
    index = np.unique(channels, return_inverse=True)[1]
    index_left = np.unique(channels[kept], return_inverse=True)[1]
    offset = bias[site.kept] + np.einsum("oit,i->o", kernels, shift[index])
    mixed = np.tensordot(by_channel, mixing, (1, 0)).transpose(0, 2, 1)
    weights = np.empty((len(kernels), int(kept.sum()), kernels.shape[2]))
    weights[:, np.argsort(index_left, kind="stable")] = mixed.reshape(len(kernels), -1, kernels.shape[2])
    return weights.reshape(1, len(kernels), -1), offset[None]


def _regression(site: Site, channels: Ints, kept: NDArray[np.bool_], seed: int) -> tuple[Floats, Floats] | None:
    """A [C, C'] and what it leaves of the mean [C]."""
    axis = site.layer.mix.axis
    runs = site.pair.runs
    each = max(1, -(-max(ROWS, PER_CHANNEL * int(kept.sum())) // len(runs)))
    sums: Sums | None = None
    for run in runs:
        if run.held:
            continue
        x: Any = rows_of(site.pair.original.value(site.x, run.index), axis, channels)
        x_hat: Any = rows_of(site.pair.smaller.value(site.x_hat, run.index), axis, channels[kept])
        if len(x) != len(x_hat):
            return None
        rng = np.random.default_rng((seed, site.layer.after, run.index))
        some = np.sort(rng.choice(len(x), min(len(x), each), replace=False))
        x, x_hat = x[some], x_hat[some]
        if sums is None:
            sums = Sums(x_hat.mean(0, dtype=np.float64)[None], x.mean(0, dtype=np.float64)[None])
        sums.add(x_hat[:, None], x[:, None])
    if sums is None:
        return None
    channel_ids, left = np.unique(channels), np.unique(channels[kept])
    selection = (channel_ids[:, None] == left[None]).astype(np.float64)[None]
    found = next(iter(sums.solved(selection, None, (BETA,))), None)
    return None if found is None else (found[0][0], found[1][0])
