"""Backward elimination of channels that the others can replace, as in the optimal brain surgeon.

For each consumer (an operator that reads the channels), with covariance Σ of its channels, P = (Σ + λ diag Σ)⁻¹ and
weights M (the effect of errors on channels c and c' on the output), removing channel c costs M_cc / P_cc: 1 / P_cc is
the variance of c that the other channels cannot predict.  After each removal M and P are updated, so that the remaining
channels take over what they can (Hassibi & Stork, NeurIPS 1992; docs/selection.md).

A consumer of C channels takes O(C³) steps for P, and O(C³) for all removals together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri, spotrf, spotri

from leanonnx.numeric.arrays import Array, Floats, Ints

PRECISION_RIDGE = 1e-5
"""λ, as a share of the variance of each channel, where no rows are held out to choose it by."""
PRECISION_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges λ that are tried, the weakest first."""
FIRST_RIDGE = 3
"""Index of the ridge that is tried first."""
REMOVALS_DIVISOR = 24
"""In each step, 1 / ``REMOVALS_DIVISOR`` of the remaining channels is removed (at least one)."""
SINGLE_PRECISION_WIDTH = 256
"""Number of channels from which inverses are computed in single precision, if the ridge is strong enough for it."""
SINGLE_PRECISION_RIDGE = 1e-3
COMPACTION_SHARE = 0.8
"""Share of the channels of a matrix that are left when those removed are taken out of it."""
MIN_VARIANCE_SHARE = 1e-12
"""Share of the mean variance up to which a channel counts as constant."""
MIN_DIVISOR = 1e-300
"""Lower bound of divisors."""


@dataclass(frozen=True)
class Consumer:
    """Operator that reads C channels.

    ``units`` [C]: index of the unit that is removed with each channel (-1: never removed); ``weight`` M [C, C];
    ``precision`` P [C, C].
    """

    units: Ints
    weight: Floats
    precision: Floats

    def __post_init__(self) -> None:
        if not self.weight.shape == self.precision.shape == (self.units.size,) * 2:
            shapes = [array.shape for array in (self.units, self.weight, self.precision)]
            raise ValueError(f"units, weight and precision {shapes}, expected [C], [C, C], [C, C]")


def precision_matrix(covariance: Floats, parts: tuple[Floats, Floats] | None = None) -> Floats:
    """Regularised inverse P = (Σ + λ diag Σ)⁻¹ [C, C] of a covariance Σ [C, C].

    With the covariances of two ``parts`` of the rows, λ is chosen so that P of the first predicts each channel of the
    second best from the others; without them it is ``PRECISION_RIDGE``.
    """
    scale = _deviations(covariance)
    ridge = PRECISION_RIDGE if parts is None else best_ridge(*parts)
    return np.asarray(_inverse(covariance / scale / scale[:, None], ridge), np.float64) / scale / scale[:, None]


def _deviations(covariance: Floats) -> Floats:
    """Standard deviation of each channel [C], with a lower bound for constant ones."""
    variance = np.diag(covariance)
    floor = max(MIN_VARIANCE_SHARE * float(variance.mean()), MIN_DIVISOR)
    return np.asarray(np.sqrt(np.maximum(variance, floor)))


def _inverse(correlation: Array, ridge: float) -> Array:
    """(R + λI)⁻¹ of a correlation matrix; of a wide one, with a strong ridge, in single precision."""
    size = len(correlation)
    single = size >= SINGLE_PRECISION_WIDTH and ridge >= SINGLE_PRECISION_RIDGE
    matrix: Any = np.array(correlation, np.float32 if single else np.float64, order="F")
    matrix[np.diag_indices(size)] += ridge
    factor, solve = (spotrf, spotri) if single else (dpotrf, dpotri)
    lower, failed = factor(matrix, lower=1)
    inverse, singular = solve(lower, lower=1, overwrite_c=1) if not failed else (lower, failed)
    if failed or singular:
        return np.asarray(np.linalg.pinv(matrix, hermitian=True))
    below = np.tril(inverse, -1)
    below += below.T
    below[np.diag_indices(size)] = np.diag(inverse)
    return np.asarray(below)


def best_ridge(fitted: Floats, held_out: Floats) -> float:
    """Ridge, as a share of the variance of each channel, whose predictions deviate least on held-out rows.

    x_c is predicted by −Σ_k P_ck x_k / P_cc, k ≠ c.  Its mean squared error (P Σ' P)_cc / P_cc², with the covariance
    Σ' of the held-out rows, counts as a share of the variance of c.
    """
    scale = _deviations(fitted)
    kind = np.float32 if len(scale) >= SINGLE_PRECISION_WIDTH else np.float64
    inside, outside = ((part / scale / scale[:, None]).astype(kind) for part in (fitted, held_out))
    variance = np.diag(outside)
    varies = (variance > MIN_VARIANCE_SHARE) & (np.diag(fitted) > MIN_VARIANCE_SHARE * np.diag(fitted).mean())
    errors: dict[int, float] = {}

    def error(index: int) -> float:
        if index not in errors:
            precision = _inverse(inside, PRECISION_RIDGES[index])
            squares = np.einsum("ij,ij->i", precision @ outside.astype(precision.dtype, copy=False), precision)
            shares = squares[varies] / np.square(np.diag(precision)[varies]) / variance[varies]
            errors[index] = float(shares.mean()) if varies.any() else 0.0
        return errors[index]

    best = FIRST_RIDGE
    step = 1 if best + 1 < len(PRECISION_RIDGES) and error(best + 1) < error(best) else -1
    while 0 <= best + step < len(PRECISION_RIDGES) and error(best + step) < error(best):
        best += step
    return PRECISION_RIDGES[best]


def eliminate(consumers: Sequence[Consumer], count: int) -> tuple[Ints, Floats]:
    """Order in which units are removed, the cheapest first [count], and their costs [count] (non-decreasing).

    A unit that no consumer reads costs nothing.  If there are many units, several of the cheapest are removed at once.
    """
    work = [_Elimination(consumer) for consumer in consumers]
    left = np.ones(count, bool)
    order: list[int] = []
    costs: list[float] = []
    while left.any():
        each = np.zeros(count)
        for one in work:
            each += one.costs(count)
        alive = np.flatnonzero(left)
        chosen = alive[np.argsort(each[alive], kind="stable")[: max(1, alive.size // REMOVALS_DIVISOR)]]
        order += chosen.tolist()
        costs += each[chosen].tolist()
        left[chosen] = False
        for one in work:
            one.remove(chosen)
    return np.array(order, np.int64), np.maximum.accumulate(np.array(costs)) if costs else np.zeros(0)


class _Elimination:
    """Remaining channels of a consumer; rows of removed ones stay in the matrices until ``COMPACTION_SHARE``."""

    def __init__(self, consumer: Consumer) -> None:
        self.units = consumer.units.copy()
        self.weight, self.precision = consumer.weight.copy(), consumer.precision.copy()
        self.left = np.ones(self.units.size, bool)

    def costs(self, count: int) -> Floats:
        """Cost of removing each unit [units] for this consumer."""
        known = (self.units >= 0) & self.left
        own = np.diag(self.weight) / np.maximum(np.diag(self.precision), MIN_DIVISOR)
        return np.bincount(self.units[known], np.maximum(own[known], 0), count).astype(np.float64)

    def remove(self, chosen: Ints) -> None:
        """Remove units; the other channels take over what they can predict of them.

        T = −P_gg⁻¹ P_g,: predicts the removed channels g from the others: P + P_:,g T, M + TᵀZ + ZᵀT with
        Z = M_g,: + M_gg T / 2.
        """
        gone = np.flatnonzero(np.isin(self.units, chosen) & self.left)
        if not gone.size:
            return
        m, p = self.weight, self.precision
        columns = p[:, gone]
        taken = -np.linalg.solve(columns[gone], columns.T)
        taken[:, gone] = 0
        cross = m[gone] + m[np.ix_(gone, gone)] @ taken / 2
        update = taken.T @ cross
        m += update
        m += update.T
        p += columns @ taken
        self.left[gone] = False
        if self.left.sum() < COMPACTION_SHARE * self.left.size:
            rest = np.flatnonzero(self.left)
            square = np.ix_(rest, rest)
            self.weight, self.precision, self.units = m[square], p[square], self.units[rest]
            self.left = np.ones(rest.size, bool)
