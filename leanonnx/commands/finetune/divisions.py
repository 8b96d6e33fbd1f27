"""Random divisions of measured locations: one part for the network, the other for the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.numeric.arrays import Array

ALWAYS = 0.95
"""A location measured in at least this share of the samples counts as always measured."""
FEW = 0.05
"""If the other locations are a smaller share of what is measured than this, all samples count as measured alike."""
STRONG = 16.0
"""A location whose mean energy is this many times the mean over all cannot be guessed from the others."""
LARGEST_WEIGHT = 20.0
"""Largest weight in a sample that measures a location, as a multiple of the weight of one that is always measured."""
QUIETEST_SHARE = 0.1
"""This quantile of the mean energies of the locations is taken for the noise of a measured number."""
MIN_QUIET_SAMPLES = 4
"""Smallest number of samples for which the mean energy of a location counts."""
MAX_POWER, BISECTIONS = 1000.0, 60
"""Bounds of the search for the power of the frequencies."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of locations in the loss: those where all of the error counts, and those where noise is allowed for."""

    whole: Tensor
    noisy: Tensor


@dataclass(frozen=True, kw_only=True)
class Division:
    """Probability that each measured location is hidden, and its weights in the loss if it is hidden, and if not.

    They are arrays of the shape of one run's mask, or single numbers.  ``always``: weights of locations that are never
    hidden; ``scale``: mean square of what is measured, with these weights; ``noise``: mean square of the noise of a
    measured number; ``measured``: numbers that some sample measures, 0 if unknown.
    """

    share: Tensor
    hidden: Tensor
    given: Tensor
    always: Tensor
    scale: float
    noise: float = 0.0
    measured: int = 0

    def draw(self, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, LossWeights]:
        """Divide masks [batch, ...] into what the network gets, and weights of the locations in the loss."""
        drawn = torch.from_numpy(rng.random(tuple(mask.shape), np.float32)).to(mask.device)
        share, of_hidden, of_given, always = (
            one.to(mask.device) for one in (self.share, self.hidden, self.given, self.always)
        )
        hide = drawn < share
        kept, hidden = mask * ~hide, mask * hide
        return kept, LossWeights(whole=hidden * of_hidden + kept * always, noisy=kept * of_given)

    def loss(self, errors: Tensor, weights: LossWeights) -> Tensor:
        """Mean of squared errors, relative to the measurement; where given, what exceeds the noise."""
        whole, noisy = (one.to(errors.dtype).expand(errors.shape) for one in (weights.whole, weights.noisy))
        excess = ((errors * noisy).sum() - self.noise * noisy.sum()).clamp_min(0)
        return ((errors * whole).sum() + excess) / (self.scale * (whole.sum() + noisy.sum()).clamp_min(1))


def plan_division(samples: Iterable[tuple[Array, Array]], share: float) -> Division:
    """Choose the locations to hide from masks and measurements of all samples.

    The loss estimates the error of the whole measurement without ever seeing one:

    1. Locations that are always measured are always given, since the network will never have to guess them; the loss
       holds them too, so that they stay.  Of the others, ``share`` is hidden: rare ones more often, so that the rest
       looks like a measurement of fewer locations.  One that is measured in the share p of the samples counts 1 - p
       where it is hidden, as often as it will have to be guessed, and p where it is given.  There the network could
       copy the noise; so only the part of their mean error that exceeds the noise counts (the discrepancy principle).
    2. If all samples are measured at the same locations, a share of these is hidden, except the strongest, which could
       not be guessed (in a spectrum, the lowest frequencies).
    3. If the masks differ in shape, a share of all locations is hidden.
    """
    sums = _sums(samples)
    if isinstance(sums, float):
        none = torch.tensor(0.0)
        return Division(share=torch.tensor(share), hidden=torch.tensor(1.0), given=none, always=none, scale=sums)
    count, total, energy, values = sums
    often, mean = np.maximum(total, 1) / count, energy / np.maximum(total, 1)
    others = (total > 0) & (often < ALWAYS)
    if total[others].sum() >= FEW * total.sum():
        always = often >= ALWAYS
        kept = np.where(always, 1, often ** _power(often[others], share))
        of_hidden = np.minimum((1 - often) / often, LARGEST_WEIGHT) / np.where(always, 1, 1 - kept)
        of_given = np.where(always, 0.0, 1 / np.maximum(kept, 1 / LARGEST_WEIGHT))
    else:
        always = mean > STRONG * mean[total > 0].mean()
        kept = np.where(always, 1, 1 - share)
        of_hidden, of_given = np.full(often.shape, 1 / share), np.zeros(often.shape)
    of_hidden = np.where(always, 0.0, of_hidden)
    expected = (1 - kept) * of_hidden + kept * of_given + always
    scale = float((energy * expected).sum() / max((total * expected).sum(), 1e-30)) or 1.0
    often_enough = mean[total >= min(MIN_QUIET_SAMPLES, total.max())]
    tensors = [torch.from_numpy(value.astype(np.float32)) for value in (1 - kept, of_hidden, of_given, always)]
    return Division(
        share=tensors[0],
        hidden=tensors[1],
        given=tensors[2],
        always=tensors[3],
        scale=scale,
        noise=float(np.quantile(often_enough, QUIETEST_SHARE)),
        measured=values * int(np.count_nonzero(total)),
    )


def _power(often: Array, share: float) -> float:
    """The power a for which this share of the locations is hidden if each is kept with the probability p to the a."""
    low, high = 0.0, MAX_POWER
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        hidden = (often * (1 - often**middle)).sum() / often.sum()
        low, high = (middle, high) if hidden < share else (low, middle)
    return high


def _sums(samples: Iterable[tuple[Array, Array]]) -> tuple[int, Array, Array, int] | float:
    """The number of samples, sums of masks and squares, and the numbers measured at each location.

    The mean square alone if the masks differ in shape.
    """
    count, total, energy, alike, values = 0, np.zeros(()), np.zeros(()), True, 1
    places, squares = 0.0, 0.0
    for mask, measured in samples:
        axes = tuple(k for k, size in enumerate(mask.shape) if size != measured.shape[k])
        square = mask * np.square(measured, dtype=np.float64).mean(axis=axes, keepdims=True)
        values = measured.size // mask.size
        places, squares = places + float(mask.sum()), squares + float(square.sum())
        alike = alike and total.shape in ((), mask.shape)
        if alike:
            count, total, energy = count + 1, total + mask, energy + square
    return (count, total, energy, values) if alike else (squares / max(places, 1.0) or 1.0)
