"""What paired timings say: ratios, and how sure one can be of them.  Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Milliseconds of one run, by round and by model."""
Interval = tuple[float, float]
DRAWS = 2000
LEVEL = 0.95
CHUNK = 1 << 22
"""Numbers that are resampled at a time."""


def median_interval(values: NDArray[Any], seed: int = 0, level: float = LEVEL, draws: int = DRAWS) -> Interval:
    """Confidence interval of the median of ``values`` by the percentile bootstrap (Efron 1979).

    The same values and seed give the same interval; one value alone says nothing of its spread, so that its interval
    is (0, ∞).
    """
    if values.size < 2:
        return 0.0, float("inf")
    rng = np.random.default_rng(seed)
    rows = max(CHUNK // values.size, 1)
    parts = [min(rows, draws - start) for start in range(0, draws, rows)]
    medians = [np.median(values[rng.integers(0, values.size, (part, values.size))], axis=1) for part in parts]
    low, high = np.quantile(np.concatenate(medians), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def noise(times: Times, seed: int = 0) -> float:
    """Noise floor: how far from 1 the same interval reaches for a model against itself in neighbouring rounds."""
    even = times[: len(times) // 2 * 2]
    low, high = median_interval((even[::2] / even[1::2]).ravel(), seed)
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
