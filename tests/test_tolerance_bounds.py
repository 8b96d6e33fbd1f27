"""Bounds of shares and ratios, and the search for the smallest fraction within a tolerance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import bdtr

from leanonnx.evaluation.tolerances import Look, ToleranceReading
from leanonnx.evaluation.user_scores import fall_bound
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.bounds import least_samples, ratio_upper_bounds, share_lower_bound
from leanonnx.selection.descent import BRACKET_WIDTH, Descent

DOUBT = 0.05
DRAWS = 2000
SLACK = 0.02
"""Error of a simulated coverage."""


@pytest.mark.parametrize("count", [8, 33, 500])
@pytest.mark.parametrize("doubt", [0.05, 0.005])
def test_the_bound_of_decisions_is_exact(count: int, doubt: float) -> None:
    """At the bound, so many equal decisions or more have just the error probability."""
    for same in {1, count // 2, count - 1, count}:
        shares = np.arange(count) < same
        bound = share_lower_bound(shares.astype(np.float64), np.ones(count), doubt)
        assert 1 - bdtr(same - 1, count, bound) == pytest.approx(doubt, rel=1e-6)
        assert bound < same / count
    assert share_lower_bound(np.zeros(count), np.ones(count), doubt) == 0


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("doubt", [0.05, 0.05 / 6])
def test_fewer_samples_cannot_show_a_share(share: float, doubt: float) -> None:
    least = least_samples(share, doubt)
    for count, shown in ((least, True), (least - 1, False)):
        assert (share_lower_bound(np.ones(count), np.ones(count), doubt) >= share) == shown


def test_pixels_of_one_image_are_one_sample() -> None:
    """More pixels in each image make the bound no tighter."""
    rng = np.random.default_rng(0)
    shares = rng.beta(20, 1, 40)
    bounds = [share_lower_bound(shares, np.full(40, pixels), DOUBT) for pixels in (10.0, 10000.0)]
    assert bounds[0] == pytest.approx(bounds[1])
    assert bounds[0] < shares.mean()


SPREADS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, count: rng.normal(10, 1, count),
    "exponential": lambda rng, count: rng.exponential(1, count),
    "log-normal": lambda rng, count: rng.lognormal(0, 1, count),
    "rare": lambda rng, count: (rng.random(count) < 0.1).astype(np.float64),
}
MEANS = {"normal": 10.0, "exponential": 1.0, "log-normal": np.exp(0.5), "rare": 0.1}


@pytest.mark.parametrize("count", [40, 200])
@pytest.mark.parametrize("name", SPREADS)
def test_bounds_of_means_hold_as_often_as_they_say(name: str, count: int) -> None:
    rng = np.random.default_rng(1)
    draws = np.array([SPREADS[name](rng, count) for _ in range(DRAWS)]).T
    bounds = ratio_upper_bounds(draws, np.ones_like(draws), DOUBT)
    assert np.mean(bounds < MEANS[name]) <= DOUBT + SLACK


def test_bounds_of_ratios_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    powers = rng.lognormal(0, 0.5, (100, DRAWS))
    errors = powers * rng.exponential(0.01, (100, DRAWS))
    assert np.mean(ratio_upper_bounds(errors, powers, DOUBT) < 0.01) <= DOUBT + SLACK


def test_bounds_of_ratios_that_are_degenerate() -> None:
    ones = np.ones((5, 1))
    assert ratio_upper_bounds(np.zeros((5, 1)), ones, DOUBT) == [0.0]
    assert ratio_upper_bounds(np.zeros((5, 1)), 0 * ones, DOUBT) == [0.0]
    assert ratio_upper_bounds(ones, 0 * ones, DOUBT) == [np.inf]
    assert ratio_upper_bounds(np.full((5, 1), np.inf), ones, DOUBT) == [np.inf]
    assert ratio_upper_bounds(ones[:1], ones[:1], DOUBT) == [np.inf]
    assert ratio_upper_bounds(0.5 * ones, ones, DOUBT) == [0.5]


def test_more_looks_and_fewer_samples_widen_the_bounds() -> None:
    rng = np.random.default_rng(3)
    values = rng.exponential(1, (100, 1))
    whole, ones = ratio_upper_bounds(values, np.ones((100, 1)), DOUBT), np.ones((100, 1))
    assert ratio_upper_bounds(values, ones, DOUBT / 6**0.5) > whole
    half = np.repeat(values[:50], 1, 1)
    double = np.concatenate([half, half])
    assert ratio_upper_bounds(half, ones[:50], DOUBT) > ratio_upper_bounds(double, ones, DOUBT)


def test_a_score_that_does_not_fall_may_yet_fall_on_rare_samples() -> None:
    before = np.arange(50) % 2.0
    assert fall_bound(before, before, DOUBT) == pytest.approx(1 - DOUBT ** (1 / 50))
    after = before.copy()
    after[1] = 0
    assert fall_bound(before, after, DOUBT) > fall_bound(before, before, DOUBT)
    assert fall_bound(before, before + 0.1, DOUBT) < fall_bound(before, before, DOUBT)


@pytest.mark.parametrize(
    ("reading", "spent"),
    [
        (ToleranceReading("min_agreement", 0.99, 0.98, 0.96), 0.5),
        (ToleranceReading("min_agreement", 0.99, 0.92, 0.96), 2.0),
        (ToleranceReading("max_deviation", 0.01, 0.015, 0.02), 0.75),
        (ToleranceReading("min_psnr", 45.0, 46.0, 40.0), 10**-0.3),
        (ToleranceReading("max_drop", 0.0, 0.03, 0.01), 3.0),
        (ToleranceReading("max_drop", -0.05, -0.01, 0.01), -1.0),
        (ToleranceReading("min_agreement", np.nan, np.nan, 0.9), np.inf),
        (ToleranceReading("max_deviation", np.inf, np.inf, 0.9), np.inf),
        (ToleranceReading("min_psnr", np.inf, np.inf, 40.0), 0.0),
    ],
)
def test_the_share_of_a_tolerance_that_is_used_up(reading: ToleranceReading, spent: float) -> None:
    assert reading.spent == pytest.approx(spent, abs=1e-9)
    assert reading.met == (spent <= 1)


def test_a_look_meets_all_tolerances_or_none() -> None:
    good, bad = ToleranceReading("min_agreement", 1, 0.95, 0.9), ToleranceReading("max_deviation", 1, 0.3, 0.2)
    assert Look(fraction=0.5, macs=0.5, readings=(good,), seconds=1).met
    look = Look(fraction=0.5, macs=0.5, readings=(good, bad), seconds=1)
    assert (look.met, look.spent) == (False, pytest.approx(1.5))


# The search


def searched(curve: Callable[[float], float], looks: int = 6, lowest: float = 0.02, highest: float = 1.0) -> Descent:
    descent = Descent(lowest, highest)
    while len(descent.looks) < looks:
        fraction = descent.next()
        if fraction is None:
            break
        assert descent.looks == () or descent.bracket[0] < fraction < descent.bracket[1]
        descent = descent.with_look(fraction, curve(fraction))
    return descent


@pytest.mark.parametrize("power", [0.7, 1, 2, 4])
@pytest.mark.parametrize("factor", [1.2, 2, 5, 10])
def test_few_looks_find_the_smallest_fraction(power: float, factor: float) -> None:
    truth = 1 - factor ** (-1 / power)
    descent = searched(lambda fraction: factor * (1 - fraction) ** power)
    assert descent.smallest_hit is not None
    assert truth <= descent.smallest_hit[0] <= truth + 2 * BRACKET_WIDTH
    assert len(descent.looks) <= 6


@pytest.mark.parametrize("seed", range(20))
def test_no_curve_makes_it_return_a_fraction_that_missed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heights = np.sort(rng.lognormal(0, 1, 50))[::-1] * rng.lognormal(0, 0.3 * (seed % 2), 50)
    descent = searched(lambda fraction: float(heights[min(int(50 * fraction), 49)]), looks=10)
    met = [look for look in descent.looks if look[1] <= 1]
    assert descent.smallest_hit == (min(met) if met else None)
    low, high = descent.bracket
    assert low <= high


def test_a_search_that_ends_says_why() -> None:
    assert Descent(0.02).ending == ""
    assert searched(lambda _: 5.0, looks=20).ending == "there is nothing milder to try"
    assert Descent(0.02, 1.0, ((0.6, 2.0), (0.61, 0.5))).ending == "the smallest fraction is known"
    assert Descent(0.02, 1.0, ((0.6, 2.0), (0.65, 0.99))).ending == "another try would remove hardly more"
