"""Ridge regression for several conv groups at once; its strength is chosen on held-out rows.

With features p [K] and targets t [O], weights W [O, K] and bias b minimise E‖t − W p − b‖² + λ‖W − W₀‖²: what the rows
do not determine stays at the prior W₀ (W₀ = 0 in Hoerl & Kennard 1970).  λ = β · mean variance of the features.

1. ``Sums``: from second moments, K (K + O) steps for each row.  One eigendecomposition, K³, serves all β; with more
   than ``LARGE`` features a system of equations is solved for each β, K³ / 3.
2. ``Rows``: from n < K rows in the dual form (Saunders, Gammerman & Vovk 1998), n² K steps and n³ / 3 for each β.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from leanonnx.numeric.arrays import Array, Floats

BETAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Strengths β that are tried."""
FEW_BETAS = (1e-3, 1e-2, 1e-1, 1.0)
"""Strengths β that are tried with more than ``LARGE`` features."""
LARGE_WIDTH = 700
"""Number of features above which fewer strengths are tried and products are summed in single precision."""
BUFFERED_NUMBERS = 1 << 22
"""Numbers that are buffered before their products are summed."""
MIN_REGRESSION_SCALE = 1e-300
"""Lower bound of the mean variance of the features."""


@dataclass(frozen=True)
class Fit:
    """Weights [G, O, K] and bias [G, O], with the mean squared error on held-out rows."""

    weights: Floats
    bias: Floats
    error: float


class MomentSums:
    """First and second moments of features [n, G, K] and targets [n, G, O], about given origins."""

    def __init__(self, features_at: Floats, targets_at: Floats) -> None:
        self.features_at, self.targets_at = features_at, targets_at
        groups, width = features_at.shape
        out = targets_at.shape[1]
        self.rows = 0
        self.p, self.t = np.zeros((groups, width)), np.zeros((groups, out))
        self.pp, self.pt = np.zeros((groups, width, width)), np.zeros((groups, width, out))
        self.tt = 0.0
        self.buffer: list[tuple[Array, Array]] = []
        self.buffered_numbers = 0

    def add(self, features: Array, targets: Array) -> None:
        """Add rows [n, G, K] and [n, G, O]."""
        self.rows += len(features)
        self.buffer.append((features, targets))
        self.buffered_numbers += features.size + targets.size
        if self.buffered_numbers > BUFFERED_NUMBERS:
            self.flush()

    def flush(self) -> None:
        """Add the buffered rows to the sums."""
        if not self.buffer:
            return
        kind = np.float64 if self.p.shape[1] < LARGE_WIDTH else np.float32
        p = np.concatenate([pair[0] for pair in self.buffer]).astype(np.float64) - self.features_at
        t = np.concatenate([pair[1] for pair in self.buffer]).astype(np.float64) - self.targets_at
        self.buffer, self.buffered_numbers = [], 0
        self.p += p.sum(0)
        self.t += t.sum(0)
        self.tt += float(np.square(t).sum())
        p, t = p.astype(kind), t.astype(kind)
        left = p.transpose(1, 2, 0)
        self.pp += left @ p.transpose(1, 0, 2)
        self.pt += left @ t.transpose(1, 0, 2)

    def error(self, weights: Floats, bias: Floats) -> float:
        """Mean over the rows of ‖t − W p − b‖² for weights [G, O, K] and bias [G, O]."""
        self.flush()
        shift = bias + np.einsum("gok,gk->go", weights, self.features_at) - self.targets_at
        total = self.tt - 2 * np.einsum("gok,gko->", weights, self.pt)
        total += np.einsum("gok,gok->", weights @ self.pp, weights)
        total += -2 * (shift * (self.t - np.einsum("gok,gk->go", weights, self.p))).sum()
        total += self.rows * np.square(shift).sum()
        return float(total / max(self.rows, 1))

    def merge(self, other: MomentSums) -> None:
        """Add the rows of other sums about the same origins."""
        self.flush()
        other.flush()
        self.rows += other.rows
        self.tt += other.tt
        self.p += other.p
        self.t += other.t
        self.pp += other.pp
        self.pt += other.pt

    def solve(self, prior: Floats, bias: Floats | None, betas: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
        """Weights [G, O, K] and bias [G, O] for each strength; a given ``bias`` is not changed.

        ``prior`` is [G, O, K]; strengths without a finite solution are skipped.
        """
        self.flush()
        count = max(self.rows, 1)
        p, t = self.p / count, self.t / count
        if bias is None:
            pp = self.pp / count - p[:, :, None] * p[:, None, :]
            pt = self.pt / count - p[:, :, None] * t[:, None, :]
        else:
            offset = self.targets_at - bias
            pp = self.pp / count + _outer(p, self.features_at) + _outer(self.features_at, p + self.features_at)
            pt = self.pt / count + _outer(p, offset) + _outer(self.features_at, t + offset)
        scale = max(float(np.einsum("gkk->", pp)) / pp.shape[0] / pp.shape[1], MIN_REGRESSION_SCALE)
        for weights in _ridges(pp, pt, prior, scale, betas):
            free = t + self.targets_at - np.einsum("gok,gk->go", weights, p + self.features_at)
            yield weights, free if bias is None else bias


def _outer(left: Floats, right: Floats) -> Floats:
    return left[:, :, None] * right[:, None, :]


def _ridges(pp: Floats, pt: Floats, prior: Floats, scale: float, betas: Sequence[float]) -> Iterator[Floats]:
    """(PP + λI)⁻¹ (PT + λ W₀ᵀ), transposed, for each λ = β · scale; solutions that are not finite are skipped."""
    start = prior.swapaxes(1, 2)
    large = pp.shape[1] > LARGE_WIDTH
    try:
        values, vectors = (None, None) if large else np.linalg.eigh(pp)
        for beta in betas:
            strength = beta * scale
            if values is None or vectors is None:
                solution = np.linalg.solve(pp + strength * np.eye(pp.shape[1]), pt + strength * start)
            else:
                turned = vectors.swapaxes(1, 2) @ (pt + strength * start)
                solution = vectors @ (turned / (np.maximum(values, 0) + strength)[:, :, None])
            if np.isfinite(solution).all():
                yield np.ascontiguousarray(solution.swapaxes(1, 2))
    except np.linalg.LinAlgError:
        return


class SampleRows:
    """Rows for a regression in dual form, for one group with more features than rows."""

    def __init__(self, features_at: Floats, targets_at: Floats) -> None:
        self.parts: list[tuple[Array, Array]] = []

    def add(self, features: Array, targets: Array) -> None:
        """Add rows [n, 1, K] and [n, 1, O]."""
        self.parts.append((features[:, 0], targets[:, 0]))

    def concatenate(self) -> tuple[Array, Array]:
        """Concatenate all features [n, K] and targets [n, O]."""
        p, t = (np.concatenate([part[k] for part in self.parts]) for k in (0, 1))
        self.parts = [(p, t)]
        return p, t

    def error(self, weights: Floats, bias: Floats) -> float:
        """Mean over the rows of ‖t − W p − b‖² for weights [1, O, K] and bias [1, O]."""
        p, t = self.concatenate()
        return float(np.square(t - p @ weights[0].T - bias[0]).sum() / max(len(p), 1))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(len(part[0]) for part in self.parts)

    def merge(self, other: SampleRows) -> None:
        """Add the rows of another object."""
        self.parts = self.parts + other.parts

    def solve(self, prior: Floats, bias: Floats | None, betas: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
        """Weights [1, O, K] and bias [1, O] for each strength, in dual form: one equation per row."""
        p, t = (side.astype(np.float64) for side in self.concatenate())
        p_mean = p.mean(0) if bias is None else np.zeros(p.shape[1])
        p_centred = p - p_mean
        rest = t - p_centred @ prior[0].T
        t_mean = rest.mean(0) if bias is None else bias[0]
        gram = p_centred @ p_centred.T
        scale = max(float(np.trace(gram)) / p.shape[1], MIN_REGRESSION_SCALE)
        for beta in betas:
            alpha = np.linalg.solve(gram + beta * scale * np.eye(len(gram)), rest - t_mean)
            weights = prior + (p_centred.T @ alpha).T[None]
            if np.isfinite(weights).all():
                free = t.mean(0) - weights[0] @ p_mean
                yield weights, free[None] if bias is None else bias


RegressionData = TypeVar("RegressionData", MomentSums, SampleRows)


def best_fit(
    plain: RegressionData, mirrored: RegressionData, held_out: RegressionData, starts: Sequence[Fit], free_bias: bool
) -> Fit:
    """Fit with the least error on held-out rows: one of the starts, or a regression towards the best of them.

    The first start is the network as it is: it is returned unless another fit is better.  The regression is tried on
    the plain rows, and on plain and mirrored rows.
    """
    best = min(starts, key=lambda start: start.error)
    prior, fixed = best.weights, None if free_bias else starts[0].bias
    betas = FEW_BETAS if prior.shape[2] > LARGE_WIDTH else BETAS
    best = _try_strengths(plain, held_out, prior, fixed, best, betas)
    if mirrored.rows:
        plain.merge(mirrored)
        best = _try_strengths(plain, held_out, prior, fixed, best, betas)
    return best


def _try_strengths(
    train: MomentSums | SampleRows,
    held_out: MomentSums | SampleRows,
    prior: Floats,
    fixed: Floats | None,
    best: Fit,
    betas: Sequence[float],
) -> Fit:
    """Best of ``best`` and the regressions of all strengths, by their error on held-out rows."""
    for weights, bias in train.solve(prior, fixed, betas):
        error = held_out.error(weights, bias)
        if error < best.error:
            best = Fit(weights, bias, error)
    return best
