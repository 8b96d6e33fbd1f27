"""What paired timings say: ratios, and how sure one can be of them.  Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Milliseconds of one run, by round and by model; one array for each lot of sessions."""
Interval = tuple[float, float]
DRAWS = 2000
LEVEL = 0.95


def median_interval(lots: Sequence[NDArray[Any]], seed: int = 0, draws: int = DRAWS) -> Interval:
    """Confidence interval (``LEVEL``) of the median of all values by the percentile bootstrap (Efron 1979).

    Values of one lot hang together, so lots are drawn first and values within them second (Davison and Hinkley 1997,
    §3.8). The same values and seed give the same interval; one value alone says nothing of its spread, so that its
    interval is (0, ∞).
    """
    if sum(len(lot) for lot in lots) < 2:
        return 0.0, float("inf")
    rng = np.random.default_rng(seed)
    medians = np.empty(draws)
    for draw in range(draws):
        chosen = [lots[which] for which in rng.integers(0, len(lots), len(lots))]
        medians[draw] = np.median(np.concatenate([lot[rng.integers(0, len(lot), len(lot))] for lot in chosen]))
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ratios(lots: Sequence[Times]) -> list[NDArray[np.float64]]:
    """First model's time / second model's, by lot and round."""
    return [times[:, 0] / times[:, 1] for times in lots]


def noise(lots: Sequence[Times], seed: int = 0) -> float:
    """Noise floor: how far from 1 the same interval reaches for a model against itself in neighbouring rounds."""
    even = [times[: len(times) // 2 * 2] for times in lots]
    low, high = median_interval([(times[::2] / times[1::2]).ravel() for times in even if len(times)], seed)
    return max(1 - low, high - 1)


def take_turns(blocks: Sequence[Callable[[], float]], enough: Callable[[Times], bool]) -> Times:
    """Time the blocks in turns until it is enough; the order is reversed from round to round (A B, B A, A B …).

    A drift of the machine then favours no model. Shapes: (rounds, blocks).
    """
    rounds: list[list[float]] = []
    while not rounds or not enough(np.array(rounds)):
        order = list(range(len(blocks)))[:: -1 if len(rounds) % 2 else 1]
        found = {which: blocks[which]() for which in order}
        rounds.append([found[which] for which in range(len(blocks))])
    return np.array(rounds)
