"""Backward elimination of channels that the others can replace, as in the optimal brain surgeon.

For each consumer (an operator that reads the channels), with covariance Σ of its channels, P = (Σ + λI)⁻¹ and weights
M (the effect of errors on channels c and c' on the output), removing channel c costs M_cc / P_cc: 1 / P_cc is the
variance of c that the other channels cannot predict.  After each removal M and P are updated, so that the remaining
channels take over what they can (Hassibi & Stork, NeurIPS 1992; docs/selection.md).

A consumer of C channels takes O(C³) steps for P, and O(C³) for all removals together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leanonnx.numeric.arrays import Floats, Ints

PRECISION_RIDGE = 1e-5
"""λ as a share of the mean variance."""
REMOVALS_DIVISOR = 64
"""In each step, 1 / ``SHARE`` of the remaining channels is removed (at least one)."""
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


def precision_matrix(covariance: Floats) -> Floats:
    """Regularised inverse P = (Σ + λI)⁻¹ [C, C] of a covariance Σ [C, C]."""
    size = len(covariance)
    ridge = PRECISION_RIDGE * max(float(np.trace(covariance)) / size, MIN_DIVISOR)
    return np.asarray(np.linalg.inv(covariance + ridge * np.eye(size)), np.float64)


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
    """Remaining channels of a consumer."""

    def __init__(self, consumer: Consumer) -> None:
        self.units, self.weight, self.precision = consumer.units, consumer.weight, consumer.precision

    def costs(self, count: int) -> Floats:
        """Cost of removing each unit [units] for this consumer."""
        known = self.units >= 0
        own = np.diag(self.weight) / np.maximum(np.diag(self.precision), MIN_DIVISOR)
        return np.bincount(self.units[known], np.maximum(own[known], 0), count).astype(np.float64)

    def remove(self, chosen: Ints) -> None:
        """Remove units; the other channels take over what they can predict of them."""
        gone = np.isin(self.units, chosen)
        if not gone.any():
            return
        rest = ~gone
        m, p = self.weight, self.precision
        taken = -np.linalg.solve(p[np.ix_(gone, gone)], p[np.ix_(gone, rest)])
        cross = taken.T @ m[np.ix_(gone, rest)]
        self.weight = m[np.ix_(rest, rest)] + cross + cross.T + taken.T @ m[np.ix_(gone, gone)] @ taken
        self.precision = p[np.ix_(rest, rest)] + p[np.ix_(rest, gone)] @ taken
        self.units = self.units[rest]
