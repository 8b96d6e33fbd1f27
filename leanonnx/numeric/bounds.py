"""Confidence bounds and intervals of shares and ratios over independent samples.  Pure numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import scipy

from leanonnx.numeric.arrays import Floats

SKEWNESS_ALLOWANCE = 1.5
"""Factor for the skewness of samples, which understate that of a heavy tail: with it, bounds of log-normal means hold
as often as they say from 40 samples on."""


def share_lower_bound(shares: Floats, weights: Floats, doubt: float) -> float:
    """Lower bound of the weighted mean of shares [samples], with an error probability of ``doubt``.

    Where each sample is one decision or all of its decisions fall together, that of Clopper and Pearson (1934);
    otherwise ``ratio_upper_bounds`` of the other decisions.
    """
    count = shares.size
    if not count:
        return 0.0
    if np.isin(shares, (0.0, 1.0)).all() and (weights == weights[0]).all():
        return _success_lower_bound(int(shares.sum()), count, doubt)
    missed = ((1 - shares) * weights)[:, None]
    return max(0.0, 1 - float(ratio_upper_bounds(missed, weights[:, None], doubt)[0]))


def share_interval(shares: Floats, weights: Floats, doubt: float) -> tuple[float, float]:
    """Interval of the weighted mean of shares [samples], with an error probability of ``doubt`` / 2 on either side.

    Samples that all agree, or none of which does, count as one decision each.
    """
    if (shares == shares[0]).all() and shares[0] in (0.0, 1.0):
        weights = np.ones(shares.size)
    low, missed = (share_lower_bound(each, weights, doubt / 2) for each in (shares, 1 - shares))
    return low, 1 - missed


def _success_lower_bound(successes: int, count: int, doubt: float) -> float:
    return float(scipy.special.betaincinv(successes, count - successes + 1, doubt)) if successes else 0.0


def least_samples(share: float, doubt: float) -> int:
    """Number of samples from which a share below 1 can be shown at all: if every one of them agrees."""
    return math.ceil(math.log(doubt) / math.log(share))


def ratio_upper_bounds(parts: Floats, wholes: Floats, doubt: float) -> Floats:
    """Upper bounds of Σ parts / Σ wholes over samples, both [samples, columns], each with an error of ``doubt``.

    That of Student's t on the linearised ratio, corrected for skewness to the right by the transformation of Hall
    (1992).  Infinite for a single sample, and where a part is.
    """
    (bounds,) = _ratio_bounds(parts, wholes, (doubt,))
    return np.where(np.isfinite(bounds), bounds, np.inf)


def ratio_interval(parts: Floats, wholes: Floats, doubt: float) -> tuple[Floats, Floats]:
    """Intervals of such ratios, with an error of ``doubt`` / 2 on either side; parts and wholes are not negative."""
    low, high = _ratio_bounds(parts, wholes, (1 - doubt / 2, doubt / 2))
    return np.where(np.isfinite(low), np.maximum(low, 0.0), 0.0), np.where(np.isfinite(high), high, np.inf)


def _ratio_bounds(parts: Floats, wholes: Floats, levels: tuple[float, ...]) -> list[Floats]:
    """Bounds that lie below the ratio with these probabilities; infinite where they are not known."""
    count, total = len(parts), wholes.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(parts.any(0), parts.sum(0) / total, 0.0)
        if count < 2:
            return [np.full(ratio.shape, np.inf) for _ in levels]
        residual = (parts - ratio * wholes) * count / np.where(total > 0, total, 1.0)
        square = np.mean(residual**2, 0)
        skewness = np.where(square > 0, np.mean(residual**3, 0) / np.where(square > 0, square, 1.0) ** 1.5, 0.0)
        error = np.sqrt(square / (count - 1))
        allowance = SKEWNESS_ALLOWANCE * np.maximum(skewness, 0.0) / math.sqrt(count)
        quantiles = [_corrected_quantile(float(scipy.special.stdtrit(count - 1, level)), allowance) for level in levels]
        bounds = [np.where(error > 0, ratio - error * quantile, ratio) for quantile in quantiles]
    return [np.where(np.isfinite(parts).all(0), bound, np.inf) for bound in bounds]


def _corrected_quantile(quantile: float, skewness: Floats) -> Floats:
    """Quantile of the t statistic of a mean, whose own skewness is given (Hall's g⁻¹)."""
    small = skewness < 1e-9
    divisor = np.where(small, 1.0, skewness)
    curved = 3 * (np.cbrt(1 + divisor * (quantile - divisor / 6)) - 1) / divisor
    return np.where(small, quantile, curved)
