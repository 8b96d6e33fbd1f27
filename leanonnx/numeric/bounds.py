"""One-sided confidence bounds of shares and ratios over independent samples.  Pure numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaincinv, stdtrit

from leanonnx.numeric.arrays import Floats


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


def _success_lower_bound(successes: int, count: int, doubt: float) -> float:
    return float(betaincinv(successes, count - successes + 1, doubt)) if successes else 0.0


def least_samples(share: float, doubt: float) -> int:
    """Number of samples from which a share below 1 can be shown at all: if every one of them agrees."""
    return math.ceil(math.log(doubt) / math.log(share))


def ratio_upper_bounds(parts: Floats, wholes: Floats, doubt: float) -> Floats:
    """Upper bounds of Σ parts / Σ wholes over samples, both [samples, columns], each with an error of ``doubt``.

    That of Student's t on the linearised ratio, corrected for skewness to the right by the transformation of Hall
    (1992).  Infinite for a single sample, and where a part is.
    """
    count, total = len(parts), wholes.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(parts.any(0), parts.sum(0) / total, 0.0)
        if count < 2:
            return np.full(ratio.shape, np.inf)
        residual = (parts - ratio * wholes) * count / np.where(total > 0, total, 1.0)
        square = np.mean(residual**2, 0)
        skewness = np.where(square > 0, np.mean(residual**3, 0) / np.where(square > 0, square, 1.0) ** 1.5, 0.0)
        error = np.sqrt(square / (count - 1))
        low = _corrected_quantile(float(stdtrit(count - 1, doubt)), np.maximum(skewness, 0.0) / math.sqrt(count))
        bounds = np.where(error > 0, ratio - error * low, ratio)
    return np.where(np.isfinite(parts).all(0) & np.isfinite(bounds), bounds, np.inf)


def _corrected_quantile(quantile: float, skewness: Floats) -> Floats:
    """Quantile of the t statistic of a mean, whose own skewness is given (Hall's g⁻¹)."""
    small = skewness < 1e-9
    divisor = np.where(small, 1.0, skewness)
    curved = 3 * (np.cbrt(1 + divisor * (quantile - divisor / 6)) - 1) / divisor
    return np.where(small, quantile, curved)
