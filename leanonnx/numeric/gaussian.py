"""Moments of channels as functions of correlated Gaussian variables, one variable for each channel.

Each channel is tabulated as a function of a standard normal variable z, so that a pointwise operator can be applied
exactly.  Moments follow from the table, covariances of two channels with functions f, g of variables with correlation ρ
from their Hermite coefficients f_n = E[f(z) He_n(z)]: Cov(f, g) = Σ_{n ≥ 1} f_n g_n ρⁿ / n! (Mehler 1866).

The cost is ``ORDERS`` · C² steps for C channels; if some channels are copies of each other, also C² steps for each
point of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.channel_ids import Mask

POINTS: Floats = np.linspace(-5.0, 5.0, 101)
"""Values of z at which a channel is tabulated [P]."""
_DENSITY = np.exp(-np.square(POINTS) / 2)
POINT_WEIGHTS: Floats = _DENSITY / _DENSITY.sum()
"""Probability of each point [P]."""
HERMITE_ORDERS = 6
"""Number of Hermite coefficients of a channel."""
HERMITE: Floats = np.stack(
    [np.polynomial.hermite_e.hermeval(POINTS, [0] * n + [1]) for n in range(1, HERMITE_ORDERS + 1)]
)
"""Hermite polynomials He_1, He_2, … at all points [ORDERS, P]."""
ROWS_AT_ONCE = 256
"""Rows of a covariance that are computed at once: intermediate results are no larger than these."""
SAME_CORRELATION = 1 - 1e-9
"""Correlation above which two variables count as the same."""
COPY_TOLERANCE = 1e-6
"""Deviation, in standard deviations, up to which a channel is a scaled and shifted copy of another."""
MIN_VARIANCE = 1e-30
"""Variance up to which a channel counts as constant."""


@dataclass(frozen=True, kw_only=True)
class ChannelMoments:
    """Moments of the channels ``channel_ids`` [C] of a tensor (sorted, without duplicates).

    ``values`` [P, C]: each channel as a function of its variable.
    ``correlation`` [C, C]: correlation of the variables; two moments with the same array share their variables.
    ``is_known``: True if the moments follow from statistics stored in the network, not from assumed inputs.
    """

    channel_ids: Ints
    values: Floats
    correlation: Floats
    is_known: bool

    @property
    def mean(self) -> Floats:
        """Mean of each channel [C]."""
        return POINT_WEIGHTS @ self.values

    @property
    def variance(self) -> Floats:
        """Variance of each channel [C]."""
        variance: Floats = POINT_WEIGHTS @ np.square(self.values - self.mean)
        return variance

    def covariance(self) -> Floats:
        """Covariance of the channels [C, C]."""
        weighted = POINT_WEIGHTS[:, None] * self.values
        parts = [polynomial @ weighted for polynomial in HERMITE]
        covariance = np.zeros_like(self.correlation)
        for start in range(0, len(covariance), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            power = np.ones_like(self.correlation[rows])
            for order, part in enumerate(parts, 1):
                power *= self.correlation[rows]
                covariance[rows] += np.outer(part[rows], part) * (power / math.factorial(order))
        same = self._same_variables()
        if same.sum() > len(same):
            centred = self.values - self.mean
            turned = np.where(self.correlation > 0, weighted.T @ centred, weighted.T @ centred[::-1])
            covariance = np.where(same, turned, covariance)
        np.fill_diagonal(covariance, self.variance)
        return covariance

    def _same_variables(self) -> Mask:
        """Mask of the pairs of channels whose variables are the same, apart from their sign [C, C]."""
        same: Mask = self.correlation > SAME_CORRELATION
        same |= self.correlation < -SAME_CORRELATION
        return same

    def _copies(self, variance: Floats) -> tuple[Ints, Floats, Floats]:
        """For each channel the first one of which it is a scaled and shifted copy (or itself), its scale and shift."""
        each = np.arange(self.channel_ids.size)
        first = self._same_variables().argmax(1)
        other = np.where(self.correlation[each, first] > 0, self.values[:, first], self.values[::-1, first])
        sign = np.sign(POINT_WEIGHTS @ ((self.values - self.mean) * other))
        scale = sign * np.sqrt(variance / np.maximum(variance[first], MIN_VARIANCE))
        shift = self.mean - scale * self.mean[first]
        apart = np.abs(self.values - (scale * other + shift)).max(0)
        plain = (first == each) | (apart > COPY_TOLERANCE * np.sqrt(variance)) | (variance[first] <= MIN_VARIANCE)
        return np.where(plain, each, first), np.where(plain, 1.0, scale), np.where(plain, 0.0, shift)

    def indices_of(self, channel_ids: Ints) -> Ints:
        """Indices of channel ids of any shape in ``channel_ids`` [the same shape]; all of them must be there."""
        return np.searchsorted(self.channel_ids, channel_ids)

    def rescale(self, mean: Floats, variance: Floats, is_known: bool) -> ChannelMoments:
        """Rescale the channels to other means and variances [C]; a channel without variance does not change.

        Of channels that are scaled and shifted copies of each other, the moments of the first determine all.
        """
        now = self.variance
        first, scale, shift = self._copies(now)
        mean, variance = scale * mean[first] + shift, np.square(scale) * variance[first]
        factor = np.sqrt(np.where(now > MIN_VARIANCE, variance / np.maximum(now, MIN_VARIANCE), 0))
        values = np.where(now > MIN_VARIANCE, (self.values - self.mean) * factor + mean, self.values)
        return ChannelMoments(
            channel_ids=self.channel_ids, values=values, correlation=self.correlation, is_known=is_known
        )


def gaussian_channels(channel_ids: Ints, mean: Floats, covariance: Floats, is_known: bool) -> ChannelMoments:
    """Gaussian channels ``channel_ids`` [C], in any order, with mean [C] and covariance [C, C] (overwritten)."""
    order = np.argsort(channel_ids, kind="stable")
    if (np.diff(order) != 1).any():
        covariance = covariance[np.ix_(order, order)]
    spread = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)
    covariance *= scale[:, None]
    covariance *= scale
    correlation = np.clip(covariance, -1, 1, out=covariance)
    np.fill_diagonal(correlation, 1)
    return ChannelMoments(
        channel_ids=channel_ids[order],
        values=mean[order] + POINTS[:, None] * spread,
        correlation=correlation,
        is_known=is_known,
    )


def unknown_channels(channel_ids: Ints) -> ChannelMoments:
    """Channels ``channel_ids`` [C] without information: independent and standard normal."""
    return gaussian_channels(channel_ids, np.zeros(channel_ids.size), np.eye(channel_ids.size), is_known=False)


def select_channels(moments: ChannelMoments, places: Ints, channel_ids: Ints) -> ChannelMoments:
    """Select the channels at the indices ``places`` [C], under new ids ``channel_ids`` [C]; the variables stay."""
    order = np.argsort(channel_ids, kind="stable")
    places = places[order]
    if np.array_equal(places, np.arange(moments.channel_ids.size)):
        return ChannelMoments(
            channel_ids=channel_ids[order],
            values=moments.values,
            correlation=moments.correlation,
            is_known=moments.is_known,
        )
    return ChannelMoments(
        channel_ids=channel_ids[order],
        values=moments.values[:, places],
        correlation=moments.correlation[np.ix_(places, places)],
        is_known=moments.is_known,
    )


def combine_independent(parts: list[ChannelMoments]) -> ChannelMoments:
    """Combine channels of several tensors as independent ones; of a repeated channel the first entry counts."""
    channel_ids = np.concatenate([one.channel_ids for one in parts])
    unique, first = np.unique(channel_ids, return_index=True)
    correlation = np.zeros((channel_ids.size, channel_ids.size))
    start = 0
    for one in parts:
        end = start + one.channel_ids.size
        correlation[start:end, start:end] = one.correlation
        start = end
    values = np.concatenate([one.values for one in parts], axis=1)
    known = all(one.is_known for one in parts)
    return ChannelMoments(
        channel_ids=unique, values=values[:, first], correlation=correlation[np.ix_(first, first)], is_known=known
    )
