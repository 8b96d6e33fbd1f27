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
import scipy

from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.regression import EQUAL_ERRORS

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
JUDGED_CHANNELS = 128
"""Number of channels, evenly spread, whose predictions judge a ridge."""
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
    weight: Array
    precision: Array

    def __post_init__(self) -> None:
        if not self.weight.shape == self.precision.shape == (self.units.size,) * 2:
            shapes = [array.shape for array in (self.units, self.weight, self.precision)]
            raise ValueError(f"units, weight and precision {shapes}, expected [C], [C, C], [C, C]")


def precision_matrix(covariance: Array, parts: tuple[Array, Array] | None = None) -> Array:
    """Regularised inverse P = (Σ + λ diag Σ)⁻¹ [C, C] of a covariance Σ [C, C], in the precision that λ asks for.

    With the covariances of two ``parts`` of the rows, λ is chosen so that P of the first predicts each channel of the
    second best from the others; without them it is ``PRECISION_RIDGE``.
    """
    scale = _deviations(covariance)
    ridge = PRECISION_RIDGE if parts is None else best_ridge(*parts)
    inverse = _inverse(_rescaled(covariance, 1 / scale), ridge)
    return _rescaled(inverse, (1 / scale).astype(inverse.dtype))


def _rescaled(square: Array, factors: Floats) -> Array:
    """Multiply rows and columns of a matrix by factors [C]."""
    product = square * factors
    product *= factors[:, None]
    return np.asarray(product)


def _deviations(covariance: Array) -> Floats:
    """Standard deviation of each channel [C], with a lower bound for constant ones."""
    variance = np.diag(covariance).astype(np.float64)
    floor = max(MIN_VARIANCE_SHARE * float(variance.mean()), MIN_DIVISOR)
    return np.asarray(np.sqrt(np.maximum(variance, floor)))


def _inverse(correlation: Array, ridge: float) -> Array:
    """(R + λI)⁻¹ of a correlation matrix; of a wide one, with a strong ridge, in single precision."""
    lower, failed = _factor(correlation, ridge)
    invert = scipy.linalg.get_lapack_funcs("potri", (lower,))
    inverse, singular = invert(lower, lower=1, overwrite_c=1) if not failed else (lower, failed)
    if failed or singular:
        return _pseudo_inverse(correlation, ridge)
    whole = inverse + inverse.T
    whole[np.diag_indices(len(whole))] /= 2
    return np.asarray(whole)


def _factor(correlation: Array, ridge: float) -> tuple[Any, int]:
    """Cholesky factor of R + λI, zero above its diagonal, and 0 if there is one."""
    size = len(correlation)
    single = size >= SINGLE_PRECISION_WIDTH and ridge >= SINGLE_PRECISION_RIDGE
    matrix: Any = np.array(correlation, np.float32 if single else np.float64, order="F")
    matrix[np.diag_indices(size)] += ridge
    factorise = scipy.linalg.get_lapack_funcs("potrf", (matrix,))
    lower, failed = factorise(matrix, lower=1, overwrite_a=1)
    return lower, int(failed)


def _pseudo_inverse(correlation: Array, ridge: float) -> Array:
    return np.asarray(np.linalg.pinv(correlation + ridge * np.eye(len(correlation)), hermitian=True))


def _inverse_columns(correlation: Array, ridge: float, chosen: Ints) -> Array:
    """Some columns of (R + λI)⁻¹ [C, chosen]."""
    lower, failed = _factor(correlation, ridge)
    if not failed:
        unit = np.zeros((len(correlation), chosen.size), lower.dtype, order="F")
        unit[chosen, np.arange(chosen.size)] = 1
        solve = scipy.linalg.get_lapack_funcs("potrs", (lower,))
        columns, failed = solve(lower, unit, lower=1, overwrite_b=1)
    return _pseudo_inverse(correlation, ridge)[:, chosen] if failed else np.asarray(columns)


def best_ridge(fitted: Array, held_out: Array) -> float:
    """Ridge, as a share of the variance of each channel, whose predictions deviate least on held-out rows.

    x_c is predicted by −Σ_k P_ck x_k / P_cc, k ≠ c.  Its mean squared error (P Σ' P)_cc / P_cc², with the covariance
    Σ' of the held-out rows, counts as a share of the variance of c; ``JUDGED_CHANNELS`` of the channels are judged.
    Stronger ridges are tried as long as the errors do not rise by more than ``EQUAL_ERRORS``, else weaker ones.
    """
    scale = _deviations(fitted)
    kind = np.float32 if len(scale) >= SINGLE_PRECISION_WIDTH else np.float64
    inside, outside = (_rescaled(part, 1 / scale).astype(kind) for part in (fitted, held_out))
    variance, power = np.diag(outside), np.diag(fitted)
    varies = np.flatnonzero((variance > MIN_VARIANCE_SHARE) & (power > MIN_VARIANCE_SHARE * power.mean()))
    judged = varies[:: max(1, varies.size // JUDGED_CHANNELS)]
    errors: dict[int, float] = {}

    def error(index: int) -> float:
        if index not in errors:
            columns = _inverse_columns(inside, PRECISION_RIDGES[index], judged)
            squares = np.einsum("ij,ij->j", outside.astype(columns.dtype, copy=False) @ columns, columns)
            shares = squares / np.square(columns[judged, np.arange(judged.size)]) / variance[judged]
            errors[index] = float(shares.mean())
        return errors[index]

    if not judged.size:
        return PRECISION_RIDGES[FIRST_RIDGE]
    error(FIRST_RIDGE)
    strongest, weakest = FIRST_RIDGE, FIRST_RIDGE
    while strongest + 1 < len(PRECISION_RIDGES) and error(strongest + 1) < error(strongest) * (1 + EQUAL_ERRORS):
        strongest += 1
    while min(errors, key=error) == weakest > 0 and error(weakest - 1) < error(weakest):
        weakest -= 1
    return PRECISION_RIDGES[min(errors, key=error)]


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
    """Remaining channels of a consumer; rows of removed ones stay in the matrices until ``COMPACTION_SHARE``.

    ``half`` H is one half of the weight, M = H + Hᵀ: only rows and the diagonal of M are read.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.units = consumer.units.copy()
        kind = consumer.precision.dtype
        self.half: Any = np.array(consumer.weight, kind, order="F")
        self.half /= 2
        self.precision: Any = np.array(consumer.precision, kind, order="F")
        self.left = np.ones(self.units.size, bool)

    def costs(self, count: int) -> Floats:
        """Cost of removing each unit [units] for this consumer."""
        known = (self.units >= 0) & self.left
        weight, precision = (np.diag(one).astype(np.float64) for one in (self.half, self.precision))
        own = 2 * weight / np.maximum(precision, MIN_DIVISOR)
        return np.bincount(self.units[known], np.maximum(own[known], 0), count).astype(np.float64)

    def remove(self, chosen: Ints) -> None:
        """Remove units; the other channels take over what they can predict of them.

        T = −P_gg⁻¹ P_g,: predicts the removed channels g from the others: P + P_:,g T, M + TᵀZ + ZᵀT with
        Z = M_g,: + M_gg T / 2.
        """
        gone = np.flatnonzero(np.isin(self.units, chosen) & self.left)
        if not gone.size:
            return
        half, p = self.half, self.precision
        columns = p[:, gone]
        taken = -np.linalg.solve(columns[gone], columns.T)
        taken[:, gone] = 0
        m = half[gone] + half[:, gone].T
        cross = m + m[:, gone] @ taken / 2
        add_product = scipy.linalg.get_blas_funcs("gemm", (p,))
        self.half = half = add_product(1.0, taken, cross, 1.0, half, trans_a=1, overwrite_c=1)
        self.precision = p = add_product(1.0, columns, taken, 1.0, p, overwrite_c=1)
        self.left[gone] = False
        if self.left.sum() < COMPACTION_SHARE * self.left.size:
            rest = np.flatnonzero(self.left)
            square = np.ix_(rest, rest)
            self.half, self.precision = (np.asfortranarray(one[square]) for one in (half, p))
            self.units, self.left = self.units[rest], np.ones(rest.size, bool)
