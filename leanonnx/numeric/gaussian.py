"""Channels as functions of Gaussian variables, one for each channel, which are correlated with each other.

What a pointwise operator does to such a channel is known exactly: its function is tabulated over a normal variable z.
Moments follow from the table, covariances of two channels with functions f, g of variables with correlation ρ from
their Hermite coefficients f_n = E[f(z) He_n(z)]: Cov(f, g) = Σ_{n ≥ 1} f_n g_n ρⁿ / n! (Mehler 1866).

For C channels that takes ``ORDERS`` · C² steps, and as many for each point of the table where some channels are copies
of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from leanonnx.numeric.arrays import Floats, Ints

POINTS: Floats = np.linspace(-5.0, 5.0, 101)
"""The values of z at which a channel is tabulated [P]."""
_DENSITY = np.exp(-np.square(POINTS) / 2)
SHARES: Floats = _DENSITY / _DENSITY.sum()
"""How probable each of them is [P]."""
ORDERS = 6
HERMITE: Floats = np.stack([np.polynomial.hermite_e.hermeval(POINTS, [0] * n + [1]) for n in range(1, ORDERS + 1)])
"""He_1, He_2, … at all points [ORDERS, P]."""
SAME = 1 - 1e-9
"""Correlation from which on two variables are the same one."""
NEAR = 1e-6
TINY = 1e-30


@dataclass(frozen=True)
class ChannelMoments:
    """What is known of the channels ``labels`` [C] of a tensor (sorted, each once).

    ``values`` [P, C]: each channel over its own variable; ``correlation`` [C, C]: of these variables (two beliefs that
    hold the same array are functions of the same variables); ``known``: the moments follow from statistics that the
    network holds, not from an assumption on its inputs.
    """

    channel_ids: Ints
    values: Floats
    correlation: Floats
    known: bool

    @property
    def mean(self) -> Floats:
        """Mean of each channel [C]."""
        return SHARES @ self.values

    @property
    def variance(self) -> Floats:
        """Variance of each channel [C]."""
        found: Floats = SHARES @ np.square(self.values - self.mean)
        return found

    def covariance(self) -> Floats:
        """Covariance of the channels [C, C]."""
        weighted = SHARES[:, None] * self.values
        found = np.zeros_like(self.correlation)
        power = np.ones_like(self.correlation)
        for order, polynomial in enumerate(HERMITE, 1):
            power = power * self.correlation
            part = polynomial @ weighted
            found += np.outer(part, part) * (power / math.factorial(order))
        same = np.abs(self.correlation) > SAME
        if same.sum() > len(same):
            centred = self.values - self.mean
            turned = np.where(self.correlation > 0, weighted.T @ centred, weighted.T @ centred[::-1])
            found = np.where(same, turned, found)
        np.fill_diagonal(found, self.variance)
        return found

    def _copies(self, variance: Floats) -> tuple[Ints, Floats, Floats]:
        """The first channel that each one (or itself) is a scale times, plus a shift, whatever that holds."""
        each = np.arange(self.channel_ids.size)
        first = (np.abs(self.correlation) > SAME).argmax(1)
        other = np.where(self.correlation[each, first] > 0, self.values[:, first], self.values[::-1, first])
        sign = np.sign(SHARES @ ((self.values - self.mean) * other))
        scale = sign * np.sqrt(variance / np.maximum(variance[first], TINY))
        shift = self.mean - scale * self.mean[first]
        apart = np.abs(self.values - (scale * other + shift)).max(0)
        plain = (first == each) | (apart > NEAR * np.sqrt(variance)) | (variance[first] <= TINY)
        return np.where(plain, each, first), np.where(plain, 1.0, scale), np.where(plain, 0.0, shift)

    def places(self, channel_ids: Ints) -> Ints:
        """Where labels, of any shape, stand in ``labels`` [the same shape]; all of them must."""
        return np.searchsorted(self.channel_ids, channel_ids)

    def rescaled(self, mean: Floats, variance: Floats, known: bool) -> ChannelMoments:
        """The same channels with other moments [C]; a channel without any variance keeps its number.

        Of channels that are copies of each other, scaled and shifted, the moments of the first are taken for all.
        """
        now = self.variance
        first, scale, shift = self._copies(now)
        mean, variance = scale * mean[first] + shift, np.square(scale) * variance[first]
        factor = np.sqrt(np.where(now > TINY, variance / np.maximum(now, TINY), 0))
        values = np.where(now > TINY, (self.values - self.mean) * factor + mean, self.values)
        return ChannelMoments(self.channel_ids, values, self.correlation, known)


def gaussian(channel_ids: Ints, mean: Floats, covariance: Floats, known: bool) -> ChannelMoments:
    """Channels ``labels`` [C] that are Gaussian themselves, in any order, with mean [C] and covariance [C, C]."""
    order = np.argsort(channel_ids, kind="stable")
    covariance = covariance[np.ix_(order, order)]
    spread = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)
    correlation = np.clip(covariance * scale[:, None] * scale, -1, 1)
    np.fill_diagonal(correlation, 1)
    return ChannelMoments(channel_ids[order], mean[order] + POINTS[:, None] * spread, correlation, known)


def unknown(channel_ids: Ints) -> ChannelMoments:
    """Channels ``labels`` [C] of which nothing is known: independent standard normal ones."""
    return gaussian(channel_ids, np.zeros(channel_ids.size), np.eye(channel_ids.size), known=False)


def chosen(belief: ChannelMoments, places: Ints, channel_ids: Ints) -> ChannelMoments:
    """Channels of a belief at ``places`` [C] under other ``labels`` [C], sorted; the variables stay the same ones."""
    order = np.argsort(channel_ids, kind="stable")
    places = places[order]
    if np.array_equal(places, np.arange(belief.channel_ids.size)):
        return ChannelMoments(channel_ids[order], belief.values, belief.correlation, belief.known)
    return ChannelMoments(
        channel_ids[order], belief.values[:, places], belief.correlation[np.ix_(places, places)], belief.known
    )


def together(beliefs: list[ChannelMoments]) -> ChannelMoments:
    """Channels of several tensors, those of different ones taken as independent; a label counts where it is first."""
    channel_ids = np.concatenate([one.channel_ids for one in beliefs])
    unique, first = np.unique(channel_ids, return_index=True)
    correlation = np.zeros((channel_ids.size, channel_ids.size))
    start = 0
    for one in beliefs:
        end = start + one.channel_ids.size
        correlation[start:end, start:end] = one.correlation
        start = end
    values = np.concatenate([one.values for one in beliefs], axis=1)
    known = all(one.known for one in beliefs)
    return ChannelMoments(unique, values[:, first], correlation[np.ix_(first, first)], known)
