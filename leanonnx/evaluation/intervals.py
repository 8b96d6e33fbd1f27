"""Confidence intervals of deviations and scores: what they would be on other samples of the same kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.bounds import ratio_interval, share_interval

INTERVAL_DOUBT = 0.05
"""Probability that an interval does not hold the number, both sides together."""
MIN_SPREAD_SAMPLES = 2
"""Samples from which their spread is known."""
IntervalEnds = tuple[float, float]


class SampleSums(NamedTuple):
    """Sums over one sample of one output; see ``Tally``."""

    error: float
    power: float
    elements: int
    choices: int
    same: int
    near: int


class SampleScores(NamedTuple):
    """Sums over one labelled sample: scores of both models, out of ``weight`` labels."""

    before: float
    after: float
    weight: int


@dataclass(frozen=True, kw_only=True)
class DeviationIntervals:
    """Intervals of the measures of a deviation; None where the measure does not apply or the samples do not tell."""

    relative_l2: IntervalEnds | None = None
    psnr: IntervalEnds | None = None
    top1: IntervalEnds | None = None
    top5: IntervalEnds | None = None


def deviation_intervals(samples: Sequence[SampleSums], peak: float, has_top5: bool) -> DeviationIntervals:
    """The intervals of an output's measures.

    Args:
        samples: its sums, sample by sample.
        peak: the range of the original's output, which PSNR refers to.
        has_top5: the five best classes were counted.
    """
    error, power, elements, choices, same, near = np.array(samples, np.float64).reshape(-1, len(SampleSums._fields)).T
    return DeviationIntervals(
        relative_l2=root_interval(error, power),
        psnr=_psnr_interval(error, elements, peak),
        top1=agreement_interval(same, choices),
        top5=agreement_interval(near, choices) if has_top5 else None,
    )


def agreement_interval(same: Floats, choices: Floats) -> IntervalEnds | None:
    """The interval of the share Σ same / Σ choices over samples; None without choices, or without any spread."""
    shares, weights = same[choices > 0] / choices[choices > 0], choices[choices > 0]
    is_known = shares.size and (np.isin(shares, (0.0, 1.0)).all() or np.ptp(shares) > 0)
    return share_interval(shares, weights, INTERVAL_DOUBT) if is_known else None


def mean_interval(sums: Floats, weights: Floats) -> IntervalEnds | None:
    """The interval of the mean Σ sums / Σ weights over samples; None if they are too few."""
    if len(sums) < MIN_SPREAD_SAMPLES or not weights.sum() > 0:
        return None
    low, high = ratio_interval(sums[:, None], weights[:, None], INTERVAL_DOUBT)
    return float(low[0]), float(high[0])


def root_interval(error: Floats, power: Floats) -> IntervalEnds | None:
    """The interval of the relative error √(Σ error / Σ power) over samples; None if they are too few."""
    interval = mean_interval(error, power)
    return None if interval is None else (math.sqrt(interval[0]), math.sqrt(interval[1]))


def _psnr_interval(error: Floats, elements: Floats, peak: float) -> IntervalEnds | None:
    """The interval of a PSNR in dB, the peak taken as known; None without any error."""
    interval = mean_interval(error, elements)
    if interval is None or not interval[1] or not 0 < peak < math.inf:
        return None
    smallest, largest = (_psnr(peak, square) for square in interval)
    return largest, smallest


def _psnr(peak: float, square: float) -> float:
    """The PSNR in dB of a mean squared error."""
    if not square:
        return math.inf
    return 10 * math.log10(peak**2 / square) if square < math.inf else -math.inf
