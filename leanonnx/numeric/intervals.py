"""Ratios of paired timings and their confidence intervals.  Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RunTimes = NDArray[np.float64]
"""Milliseconds of a run [rounds, models]; one array for each batch of sessions."""
Interval = tuple[float, float]
BOOTSTRAP_DRAWS = 2000
"""Number of bootstrap resamples."""
CONFIDENCE_LEVEL = 0.95
"""Confidence level of intervals."""


def median_interval(lots: Sequence[NDArray[Any]], seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Interval:
    """Confidence interval (``LEVEL``) of the median of all values by the percentile bootstrap (Efron 1979).

    Values of one lot are correlated, so lots are resampled first, then values within them (Davison and Hinkley 1997,
    §3.8). The same values and seed give the same interval. A single value has no spread: its interval is (0, ∞).
    """
    if sum(len(lot) for lot in lots) < 2:
        return 0.0, float("inf")
    rng = np.random.default_rng(seed)
    medians = np.empty(draws)
    for draw in range(draws):
        chosen = [lots[which] for which in rng.integers(0, len(lots), len(lots))]
        medians[draw] = np.median(np.concatenate([lot[rng.integers(0, len(lot), len(lot))] for lot in chosen]))
    low, high = np.quantile(medians, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return float(low), float(high)


def time_ratios(lots: Sequence[RunTimes]) -> list[NDArray[np.float64]]:
    """Time of the first model over that of the second, by lot and round."""
    return [times[:, 0] / times[:, 1] for times in lots]


def noise_floor(lots: Sequence[RunTimes], seed: int = 0) -> float:
    """Noise floor: distance from 1 of the interval for a model against itself in adjacent rounds."""
    even = [times[: len(times) // 2 * 2] for times in lots]
    low, high = median_interval([(times[::2] / times[1::2]).ravel() for times in even if len(times)], seed)
    return max(1 - low, high - 1)


def time_in_turns(blocks: Sequence[Callable[[], float]], enough: Callable[[RunTimes], bool]) -> RunTimes:
    """Time the blocks in alternating order until ``enough`` returns True; returns milliseconds [rounds, blocks].

    The order is reversed in every other round (A B, B A, A B …), so that a drift of the machine favours no model.
    """
    rounds: list[list[float]] = []
    while not rounds or not enough(np.array(rounds)):
        order = list(range(len(blocks)))[:: -1 if len(rounds) % 2 else 1]
        times = {which: blocks[which]() for which in order}
        rounds.append([times[which] for which in range(len(blocks))])
    return np.array(rounds)
