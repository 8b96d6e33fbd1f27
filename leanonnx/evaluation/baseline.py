"""The deviation of answers that ignore the input: decisions by chance, and the mean output of the original."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array, Floats

MAX_DISTINCT_DECISIONS = 65536
"""Decisions of an output are not counted beyond that many different ones."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The deviation of an output that ignores the input.

    Attributes:
        samples: number of samples.
        decisions: number of distinct decisions of the original; None for an output without decisions.
        chance: share of decisions that agree by chance: the larger of 1 / ``decisions`` and the expected agreement of
            two that decide as often as both models do, but independently (Cohen 1960).
        mean_l2: relative error of the original's mean output; None if that is not known from the samples.
    """

    samples: int
    decisions: int | None = None
    chance: float | None = None
    mean_l2: float | None = None


@dataclass(frozen=True, kw_only=True)
class DecisionCounts:
    """Counts of each decision, by the original and by the candidate."""

    original: Mapping[Hashable, int]
    candidate: Mapping[Hashable, int]

    def plus(self, other: DecisionCounts) -> DecisionCounts | None:
        """Return the counts over the samples of both; None if there are too many different decisions."""
        original = Counter(self.original) + Counter(other.original)
        candidate = Counter(self.candidate) + Counter(other.candidate)
        if max(len(original), len(candidate)) > MAX_DISTINCT_DECISIONS:
            return None
        return DecisionCounts(original=original, candidate=candidate)

    @property
    def chance(self) -> float:
        """Share of decisions that agree by chance; see ``Baseline``."""
        total = sum(self.original.values()) * sum(self.candidate.values())
        pairs = sum(count * self.candidate.get(each, 0) for each, count in self.original.items())
        return max(1 / max(len(self.original), 1), pairs / max(total, 1))


NO_DECISIONS = DecisionCounts(original={}, candidate={})


def count_decisions(wanted: Array, computed: Array) -> DecisionCounts | None:
    """Counts of the decisions of both models in one run; None if there are too many different ones."""
    original, candidate = (_counts(each) for each in (wanted, computed))
    if max(len(original), len(candidate)) > MAX_DISTINCT_DECISIONS:
        return None
    return DecisionCounts(original=original, candidate=candidate)


def _counts(decisions: Array) -> dict[Hashable, int]:
    values, counts = np.unique(decisions, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class MeanSums:
    """Sum of an output over samples; ``total`` is None without samples, and if their shapes differ."""

    total: Floats | None = None
    samples: int = 0

    def plus(self, other: MeanSums) -> MeanSums:
        """Return the sums over the samples of both."""
        samples = self.samples + other.samples
        if not self.samples or not other.samples:
            return MeanSums(total=other.total if not self.samples else self.total, samples=samples)
        if self.total is None or other.total is None or self.total.shape != other.total.shape:
            return MeanSums(samples=samples)
        return MeanSums(total=self.total + other.total, samples=samples)

    def relative_error(self, power: float) -> float | None:
        """Relative error of the mean output as an answer to an input of its own; None if it cannot be told.

        ``power`` is the sum of squares over the samples. That around the mean of n samples is too small by 1 − 1/n.
        """
        if self.total is None or self.samples < 2 or not power:
            return None
        spread = max(power - float(np.sum(self.total**2)) / self.samples, 0.0) * self.samples / (self.samples - 1)
        return min(1.0, math.sqrt(spread / power))


NO_SUMS = MeanSums()


def sum_samples(value: Array, rows: int) -> MeanSums:
    """The sum of the output of one run with ``rows`` samples; elements that are not finite count as zero."""
    if value.dtype.kind not in "biu" and not is_float(value):
        return MeanSums(samples=rows)
    numbers = value.astype(np.float64)
    numbers[~np.isfinite(numbers)] = 0.0
    if value.ndim and value.shape[0] == rows:
        return MeanSums(total=numbers.sum(0), samples=rows)
    return MeanSums(total=numbers, samples=1)
