"""Which channels the others make up for: backward elimination in the manner of the optimal brain surgeon.

A reader is an operator's view of the channels it reads.  With covariance Σ of its channels, P = (Σ + λI)⁻¹ and weights
M (what an error on channels c, c' together does to the output), removing channel c costs M_cc / P_cc: 1 / P_cc is the
variance of c that the other channels cannot predict.  After a removal, what the others have taken over is in M and P
(Hassibi & Stork, NeurIPS 1992; docs/selection.md).

A reader of C channels takes C³ steps for P and as many, but for a factor, for all removals together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leanonnx.numeric.arrays import Floats, Ints

RIDGE = 1e-5
"""λ as a share of the mean variance."""
SHARE = 64
"""One part in so many of the channels left is removed at a time."""
TINY = 1e-300


@dataclass(frozen=True)
class Consumer:
    """``units`` [C]: what is removed with each channel, counted within the layer (-1: stays); M and P are [C, C]."""

    units: Ints
    weight: Floats
    precision: Floats

    def __post_init__(self) -> None:
        if not self.weight.shape == self.precision.shape == (self.units.size,) * 2:
            shapes = [array.shape for array in (self.units, self.weight, self.precision)]
            raise ValueError(f"units, weight and precision {shapes}, expected [C], [C, C], [C, C]")


def precision(covariance: Floats) -> Floats:
    """P = (Σ + λI)⁻¹ [C, C] of a covariance Σ [C, C]."""
    size = len(covariance)
    ridge = RIDGE * max(float(np.trace(covariance)) / size, TINY)
    return np.asarray(np.linalg.inv(covariance + ridge * np.eye(size)), np.float64)


def eliminated(readers: Sequence[Consumer], count: int) -> tuple[Ints, Floats]:
    """The order in which units are removed, the cheapest first [count], and the cost of each [count] (never falling).

    Units that no reader knows cost nothing.  Where there are many, the cheapest few go together.
    """
    work = [_Work(reader) for reader in readers]
    left = np.ones(count, bool)
    order: list[int] = []
    costs: list[float] = []
    while left.any():
        each = np.zeros(count)
        for one in work:
            each += one.costs(count)
        alive = np.flatnonzero(left)
        chosen = alive[np.argsort(each[alive], kind="stable")[: max(1, alive.size // SHARE)]]
        order += chosen.tolist()
        costs += each[chosen].tolist()
        left[chosen] = False
        for one in work:
            one.remove(chosen)
    return np.array(order, np.int64), np.maximum.accumulate(np.array(costs)) if costs else np.zeros(0)


class _Work:
    """The channels of a reader that are left."""

    def __init__(self, reader: Consumer) -> None:
        self.units, self.weight, self.precision = reader.units, reader.weight, reader.precision

    def costs(self, count: int) -> Floats:
        """What removing each unit costs here [units]."""
        known = self.units >= 0
        own = np.diag(self.weight) / np.maximum(np.diag(self.precision), TINY)
        return np.bincount(self.units[known], np.maximum(own[known], 0), count).astype(np.float64)

    def remove(self, chosen: Ints) -> None:
        """Remove channels; the others take over what they can predict of them."""
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
