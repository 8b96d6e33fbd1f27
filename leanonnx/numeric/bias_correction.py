"""Biases that restore the mean of each output channel, which rounding has shifted.

The mean part of a least-squares fit: with y the outputs of the original and ŷ those of the quantised network at the
same positions, both before the activation, b + mean(y) - mean(ŷ) minimises the squared distance over b.  Where ŷ is
measured on the quantised predecessor, its shift is corrected too; layers then have to be corrected in order.
"""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.arrays import Array, Floats


class ChannelMeans:
    """Mean of each channel of tensors that come one after the other, over all samples and positions."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: Floats = np.zeros(0)

    def add(self, values: Array, axis: int = 1) -> None:
        """Add a tensor with its channels along ``axis``.

        Raises:
            ValueError: another number of channels than before.
        """
        rows = np.moveaxis(np.asarray(values, np.float64), axis, -1)
        sums = rows.reshape(-1, rows.shape[-1]).sum(0)
        if self.rows and self._sums.shape != sums.shape:
            raise ValueError(f"{sums.size} channels, expected {self._sums.size} as before")
        self._sums = self._sums + sums if self.rows else sums
        self.rows += rows.size // rows.shape[-1]

    @property
    def means(self) -> Floats:
        """The mean of each channel [C]."""
        return self._sums / max(self.rows, 1)


def corrected_bias(bias: Array | None, wanted: Array, obtained: Array) -> Floats:
    """Bias [O] with which a layer has the mean outputs ``wanted`` [O] in place of ``obtained`` [O].

    ``bias`` [O] is the one with which the outputs were obtained; None without one.
    """
    old = np.zeros(np.shape(wanted)) if bias is None else np.asarray(bias, np.float64).reshape(np.shape(wanted))
    return np.asarray(old + (np.asarray(wanted, np.float64) - np.asarray(obtained, np.float64)))


def mean_change(change: Array, patch_means: Array) -> Floats:
    """Mean change of each output [G · O] when the kernels change by ``change`` [G, O, K].

    ``patch_means`` [G, K] is the mean of the input patches; what falls on padding counts as zero in it.
    """
    kernels, means = np.asarray(change, np.float64), np.asarray(patch_means, np.float64)
    return np.asarray(np.einsum("gok,gk->go", kernels, means).reshape(-1))


def mean_patches(channel_means: Array, groups: int, coverage: Array) -> Floats:
    """Mean input patch [G, C / G · taps] of channels with these means [C].

    ``coverage`` [taps] is the share of positions at which each tap reads the input, not the padding
    (``graph.positions.coverage``).  Exact where the mean is the same at all positions; otherwise the positions that a
    tap misses at the border count as the others.
    """
    means = np.asarray(channel_means, np.float64).reshape(groups, -1, 1)
    return np.asarray((means * np.asarray(coverage, np.float64)).reshape(groups, -1))
