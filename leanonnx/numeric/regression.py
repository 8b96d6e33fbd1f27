"""Ridge regression for several conv groups at once; its strength is chosen on held-out rows.

With features p [K] and targets t [O], weights W [O, K] and bias b minimise E‖t − W p − b‖² + λ‖W − W₀‖²: what the rows
do not determine stays at the prior W₀ (W₀ = 0 in Hoerl & Kennard 1970).  λ = β · mean variance of the features of the
conv group, so that each group is fitted at its own scale, and each takes the strength that serves it best.

1. ``MomentSums``: from second moments, K (K / 2 + O) steps for each row.  Up to ``NARROW_WIDTH`` features, or with
   several groups, one eigendecomposition serves all β; beyond that a Cholesky factorisation for each, K³ / 6.
2. ``SampleRows``: from n < K rows in the dual form (Saunders, Gammerman & Vovk 1998), n² K / 2 steps and n³ / 6 for
   each β.

Rows are the last axis: a convolution reads its input in that order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.products import matrix_product

BETAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Strengths β that are tried, in this order, until the error has risen ``MAX_RISES`` times in a row."""
FEW_BETAS = (1e-3, 1e-2, 1e-1, 1.0)
"""Strengths β that are tried with more than ``LARGE_WIDTH`` features."""
MAX_RISES = 2
NARROW_WIDTH = 96
"""Number of features up to which an eigendecomposition is faster than a factorisation for each strength."""
SINGLE_WIDTH = 96
"""Number of features from which products are summed in single precision, about the mean of the first rows."""
LARGE_WIDTH = 700
"""Number of features above which fewer strengths are tried."""
BUFFERED_NUMBERS = 1 << 18
"""Numbers that are buffered before their products are summed; at least half as many as there are products."""
MIN_PART_ROWS = 256
"""Least number of rows of a regression in row space that are kept in one array, except for the last."""
STRETCH_ROWS = 256
"""Rows of a matrix that are computed at once."""
MIN_REGRESSION_SCALE = 1e-300
"""Lower bound of the mean variance of the features."""
EQUAL_ERRORS = 1e-3
"""Relative difference up to which two errors count as equal: the stronger ridge is taken."""
MIN_GROUP_SHARE = 1e-6
"""Lower bound of the mean variance of the features of a group, as a share of the mean over all groups."""
MIN_SQUARE_SHARE = 1e-9
"""Lower bound of that variance as a share of the mean square: rounding errors of constant features are no signal."""


@dataclass(frozen=True)
class Fit:
    """Weights [G, O, K] and bias [G, O], with the mean squared error of each group on held-out rows [G]."""

    weights: Floats
    bias: Floats
    errors: Floats

    @property
    def error(self) -> float:
        """Mean squared error, summed over the groups."""
        return float(self.errors.sum())

    def where(self, chosen: NDArray[np.bool_], other: Fit) -> Fit:
        """Take some groups [G] from another fit; itself if none."""
        if not chosen.any():
            return self
        return Fit(
            np.where(chosen[:, None, None], other.weights, self.weights),
            np.where(chosen[:, None], other.bias, self.bias),
            np.where(chosen, other.errors, self.errors),
        )


class MomentSums:
    """First and second moments of features [G, K, n] and targets [G, O, n], about given origins [G, K] and [G, O]."""

    def __init__(self, features_at: Floats, targets_at: Floats) -> None:
        self.features_at, self.targets_at = features_at, targets_at
        groups, width = features_at.shape
        out = targets_at.shape[1]
        self.rows = 0.0
        self.p, self.t = np.zeros((groups, width)), np.zeros((groups, out))
        self.kind: type[np.floating[Any]] = np.float64 if width < SINGLE_WIDTH else np.float32
        self.pp: Any = np.zeros((groups, width, width), self.kind)
        self.pt = np.zeros((groups, width, out))
        self.tt = np.zeros(groups)
        self.buffer: list[tuple[Array, Array]] = []
        self.buffered_numbers = 0

    def add(self, features: Array, targets: Array) -> None:
        """Add rows [G, K, n] and [G, O, n]."""
        if not features.shape[2]:
            return
        self.rows += features.shape[2]
        self.buffer.append((features, targets))
        self.buffered_numbers += features.size + targets.size
        if self.buffered_numbers > max(BUFFERED_NUMBERS, self.pp.size // 2):
            self.flush()

    def flush(self) -> None:
        """Add the buffered rows to the sums."""
        if not self.buffer:
            return
        p: Any = np.concatenate([pair[0] for pair in self.buffer], axis=2, dtype=self.kind)
        t: Any = np.concatenate([pair[1] for pair in self.buffer], axis=2, dtype=self.kind)
        self.buffer, self.buffered_numbers = [], 0
        p -= self.features_at[:, :, None].astype(self.kind)
        t -= self.targets_at[:, :, None].astype(self.kind)
        self.p += p.sum(2, dtype=np.float64)
        self.t += t.sum(2, dtype=np.float64)
        self.tt += np.einsum("gon,gon->g", t, t)
        self.pp += matrix_product(p, p.swapaxes(1, 2))
        self.pt += matrix_product(p, t.swapaxes(1, 2))

    def errors(self, weights: Floats, bias: Floats) -> Floats:
        """Mean over the rows of ‖t − W p − b‖² in each group [G], for weights [G, O, K] and bias [G, O]."""
        self.flush()
        shift = bias + _times(weights, self.features_at) - self.targets_at
        total = self.tt - 2 * np.einsum("gok,gko->g", weights, self.pt)
        for part in _stretches(weights.shape[2]):
            total += np.einsum("gok,gok->g", weights @ self.pp[:, :, part], weights[:, :, part])
        total += -2 * (shift * (self.t - _times(weights, self.p))).sum(1)
        total += self.rows * np.square(shift).sum(1)
        return np.asarray(np.maximum(total, 0) / max(self.rows, 1))

    def feature_moments(self) -> tuple[Floats, Floats]:
        """Mean [G, K] and covariance [G, K, K] of the features."""
        self.flush()
        count = max(self.rows, 1)
        mean = self.p / count
        return self.features_at + mean, np.divide(self.pp, count, dtype=np.float64) - _outer(mean, mean)

    def merge(self, other: MomentSums) -> None:
        """Add the rows of other sums about the same origins, whose products are empty afterwards."""
        self.flush()
        other.flush()
        self.rows += other.rows
        self.tt += other.tt
        self.p += other.p
        self.t += other.t
        self.pp += other.pp
        self.pt += other.pt
        other.pp = other.pp[:, :0]

    def to_arrays(self) -> list[Array]:
        """The sums as arrays, for ``add_arrays`` of another object about the same origins."""
        self.flush()
        return [np.array(self.rows), self.p, self.t, self.pp, self.pt, self.tt]

    def add_arrays(self, arrays: Sequence[Array], weight: float = 1.0) -> None:
        """Add the sums of another object about the same origins, whose rows count ``weight`` times."""
        other = MomentSums(self.features_at, self.targets_at)
        rows, *sums = (weight * array for array in arrays)
        other.rows, (other.p, other.t, other.pp, other.pt, other.tt) = float(rows), sums
        self.merge(other)

    def solve(self, prior: Floats, bias: Floats | None, betas: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
        """Weights [G, O, K] and bias [G, O] for each strength; a given ``bias`` is not changed.

        ``prior`` is [G, O, K]; strengths without a finite solution are skipped.
        """
        self.flush()
        count = max(self.rows, 1)
        p, t = self.p / count, self.t / count
        pp, pt = np.divide(self.pp, count, dtype=np.float64), self.pt / count
        at = -p if bias is None else self.features_at
        if bias is None:
            pt -= _outer(p, t)
        else:
            offset = self.targets_at - bias
            pt += _outer(p, offset) + _outer(at, t + offset)
        for part in _stretches(pp.shape[1]):
            pp[:, part] += _outer(p[:, part], at) + _outer(at[:, part], p + at)
        each = np.einsum("gkk->g", pp) / pp.shape[1]
        squares = each + np.square(p + self.features_at).mean(1)
        lowest = max(MIN_GROUP_SHARE * float(each.mean()), MIN_REGRESSION_SCALE)
        scale = np.maximum(each, np.maximum(MIN_SQUARE_SHARE * squares, lowest))
        for weights in _ridges(pp, pt, prior, scale, betas):
            free = t + self.targets_at - _times(weights, p + self.features_at)
            yield weights, free if bias is None else bias


def _outer(left: Floats, right: Floats) -> Floats:
    return left[:, :, None] * right[:, None, :]


def _times(weights: Floats, vectors: Floats) -> Floats:
    """Products of matrices [G, O, K] and vectors [G, K]."""
    return np.asarray((weights @ vectors[:, :, None])[:, :, 0])


def _ridges(pp: Floats, pt: Floats, prior: Floats, scale: Floats, betas: Sequence[float]) -> Iterator[Floats]:
    """(PP + λI)⁻¹ (PT + λ W₀ᵀ), transposed, for each λ = β · scale [G]; solutions that are not finite are skipped."""
    start = prior.swapaxes(1, 2)
    narrow = len(pp) > 1 or pp.shape[1] <= NARROW_WIDTH
    wide = _PositiveSystem(pp[0].T)
    try:
        values, vectors = np.linalg.eigh(pp) if narrow else (None, None)
        for beta in betas:
            strength = beta * scale[:, None, None]
            right = pt + strength * start
            if values is None or vectors is None:
                solution = wide.solve(float(strength[0, 0, 0]), right[0])[None]
            else:
                turned = vectors.swapaxes(1, 2) @ right
                solution = vectors @ (turned / (np.maximum(values, 0)[:, :, None] + strength))
            if np.isfinite(solution).all():
                yield np.ascontiguousarray(solution.swapaxes(1, 2))
    except np.linalg.LinAlgError:
        return


def _stretches(size: int) -> Iterator[slice]:
    """Stretches of an axis that are computed at once, so that intermediate results are no larger than these."""
    return (slice(start, start + STRETCH_ROWS) for start in range(0, size, STRETCH_ROWS))


class _PositiveSystem:
    """Solves (M + λI) X = Y for several λ in the memory of M alone, which is overwritten.

    M is in Fortran order.  Its part above the diagonal stays as it is, the part below holds a factor.
    """

    def __init__(self, matrix: Floats) -> None:
        self.matrix, self.diagonal = matrix, np.diag(matrix).copy()

    def solve(self, ridge: float, right: Floats) -> Floats:
        """Solution for one λ; NaN where rounding has made M + λI indefinite."""
        for part in _stretches(len(self.matrix)):
            rows = self.matrix[part]
            rows[:, : part.start] = self.matrix[: part.start, part].T
            block = np.triu(rows[:, part], 1)
            rows[:, part] = block + block.T
        self.matrix[np.diag_indices(len(self.matrix))] = self.diagonal + ridge
        factor, failed = scipy.linalg.lapack.dpotrf(self.matrix, lower=1, clean=0, overwrite_a=1)
        if failed:
            return np.full(right.shape, np.nan)
        return np.asarray(scipy.linalg.lapack.dpotrs(factor, right, lower=1)[0])


class SampleRows:
    """Rows for a regression in dual form, for one group with more features than rows, about given origins.

    They are kept in parts of about ``BUFFERED_NUMBERS``: no array of all rows is made.
    """

    def __init__(self, features_at: Floats, targets_at: Floats) -> None:
        self.features_at, self.targets_at = features_at, targets_at
        self.origin: Array = features_at[0].astype(np.float32)
        self.parts: list[tuple[Array, Array]] = []
        self.buffer: list[tuple[Array, Array]] = []

    def add(self, features: Array, targets: Array) -> None:
        """Add rows [1, K, n] and [1, O, n]."""
        self.buffer.append((features[0] - self.origin[:, None], targets[0]))
        rows = sum(pair[1].shape[1] for pair in self.buffer)
        if rows >= MIN_PART_ROWS and rows * len(self.origin) >= BUFFERED_NUMBERS:
            self.flush()

    def flush(self) -> None:
        """Join the buffered rows to one part."""
        if self.buffer:
            p, t = (np.concatenate([pair[k] for pair in self.buffer], axis=1) for k in (0, 1))
            self.buffer = []
            self.parts.append((p, t))

    def errors(self, weights: Floats, bias: Floats) -> Floats:
        """Mean over the rows of ‖t − W p − b‖² [1], for weights [1, O, K] and bias [1, O]."""
        self.flush()
        single = weights[0].astype(np.float32)
        shift = (bias[0] + weights[0] @ self.origin)[:, None]
        total = sum(float(np.square(t - single @ p - shift).sum()) for p, t in self.parts)
        return np.array([total / max(self.rows, 1)])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(part[1].shape[1] for part in self.parts + self.buffer)

    def merge(self, other: SampleRows) -> None:
        """Take the rows of another object about the same origins, which has none afterwards."""
        self.buffer, other.buffer = self.buffer + other.buffer, []
        self.parts, other.parts = self.parts + other.parts, []

    def to_arrays(self) -> list[Array]:
        """The rows as arrays, for ``add_arrays`` of another object; none without rows."""
        self.flush()
        return [np.concatenate([part[k] for part in self.parts], axis=1) for k in (0, 1)] if self.parts else []

    def add_arrays(self, arrays: Sequence[Array], weight: float = 1.0) -> None:
        """Add rows about the same origins; with a ``weight`` below 1, that share of them, evenly spaced."""
        if arrays:
            count = arrays[0].shape[1]
            taken = math.ceil(weight * count)
            chosen = np.arange(taken) * count // max(taken, 1)
            self.parts.append((arrays[0][:, chosen], arrays[1][:, chosen]))

    def solve(self, prior: Floats, bias: Floats | None, betas: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
        """Weights [1, O, K] and bias [1, O] for each strength, in dual form: one equation per row."""
        self.flush()
        t = np.concatenate([part[1] for part in self.parts], axis=1)
        at = -self.origin.astype(np.float64)
        if bias is None:
            at = np.add.reduce([p.sum(1, dtype=np.float64) for p, _ in self.parts]) / self.rows
        single = prior[0].astype(np.float32)
        rest = t - np.concatenate([single @ p for p, _ in self.parts], axis=1) + (prior[0] @ at)[:, None]
        rest -= (rest.mean(1) if bias is None else bias[0])[:, None]
        gram = self._products(at)
        squares = self.rows * float(np.square(at + self.origin).mean())
        scale = max(float(np.trace(gram)) / len(at), MIN_SQUARE_SHARE * squares, MIN_REGRESSION_SCALE)
        system = _PositiveSystem(gram)
        for beta in betas:
            alpha = system.solve(beta * scale, rest.T)
            weights = prior + self._combine(alpha, at)[None]
            if np.isfinite(weights).all():
                free = t.mean(1, dtype=np.float64) - weights[0] @ (at + self.origin)
                yield weights, free[None] if bias is None else bias

    def _products(self, at: Floats) -> Floats:
        """Products of the rows about ``at`` [n, n], on and above the diagonal."""
        gram = np.empty((self.rows, self.rows), order="F")
        ends = np.cumsum([0, *(p.shape[1] for p, _ in self.parts)])
        single = at.astype(np.float32)
        along = np.concatenate([single @ p for p, _ in self.parts]).astype(np.float64) - at @ at / 2
        for k, (left, _) in enumerate(self.parts):
            for j, (right, _) in enumerate(self.parts[k:], k):
                block = gram[ends[k] : ends[k + 1], ends[j] : ends[j + 1]]
                block[:] = matrix_product(left.T, right)
                block -= along[ends[k] : ends[k + 1], None] + along[ends[j] : ends[j + 1]]
        return gram

    def _combine(self, alpha: Floats, at: Floats) -> Floats:
        """Sum of the rows about ``at``, times ``alpha`` [n, O], transposed [O, K]."""
        total, start = -np.outer(alpha.sum(0), at), 0
        for p, _ in self.parts:
            total += alpha[start : start + p.shape[1]].astype(p.dtype).T @ p.T
            start += p.shape[1]
        return total


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
    """Best of ``best`` and the regressions of all strengths, group by group, by their errors on held-out rows."""
    last, rises = np.inf, 0
    at_most = least = best.errors
    for weights, bias in train.solve(prior, fixed, betas):
        rival = Fit(weights, bias, held_out.errors(weights, bias))
        better = (rival.errors <= least * (1 + EQUAL_ERRORS)) & (rival.errors < at_most)
        best = best.where(better, rival)
        least = np.minimum(least, rival.errors)
        rises = rises + 1 if rival.error > last else 0
        if rises == MAX_RISES:
            break
        last = rival.error
    return best
