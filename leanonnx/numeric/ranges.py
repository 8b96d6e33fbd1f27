"""Ranges of activations from a histogram that is filled in one pass, and the integers that represent them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.rounding import LARGEST_INTEGERS, SMALLEST_SCALE

RangeMethod = Literal["minmax", "percentile", "mse"]
Range = tuple[float, float]

BINS = 1 << 14
"""Number of bins, half of them for each sign."""
RANGE_PERCENTILE = 0.9999
"""Share of all numbers that lie below the upper end of a range by percentiles, and above the lower one."""
END_SHARES = tuple(2 ** (-step / 8) for step in range(65))
"""Ends of a range that are tried for the least squared error, as shares of the extreme number."""
FINER_STEPS = 8
"""Number of ends that are tried between neighbouring ones, on either side of the best."""
END_ROUNDS = 2
"""Number of times that each end is searched with the other as it is."""


@dataclass(frozen=True)
class IntegerGrid:
    """The integers that represent a tensor; a symmetric grid has the zero point 0.

    Of 8 bits or 7: fewer bits keep sums of products within 16 bits.
    """

    signed: bool
    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in LARGEST_INTEGERS or (self.symmetric and not self.signed):
            raise ValueError(f"{self}: expected 8 or 7 bits, and signed integers if symmetric")

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        if self.symmetric:
            return -LARGEST_INTEGERS[self.bits]
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest integer."""
        return LARGEST_INTEGERS[self.bits] if self.symmetric else self.lowest + (1 << self.bits) - 1

    def parameters(self, low: float, high: float) -> tuple[float, int]:
        """Scale, in single precision, and zero point for numbers from ``low`` to ``high``; zero is always represented.

        A range of zeros alone has scale 1.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            return 1.0, min(max(0, self.lowest), self.highest)
        if self.symmetric:
            return _single(max(-low, high) / self.highest), 0
        scale = _single((high - low) / (self.highest - self.lowest))
        return scale, min(max(round(self.lowest - low / scale), self.lowest), self.highest)

    def round_trip(self, values: Array, low: float, high: float) -> Floats:
        """Return numbers as the integers of a range represent them."""
        scale, zero_point = self.parameters(low, high)
        integers = np.rint(np.asarray(values, np.float64) / scale)
        return np.asarray(scale * np.clip(integers, self.lowest - zero_point, self.highest - zero_point))


def _single(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE)))


class Histogram:
    """Histogram of all finite numbers added; the result does not depend on their order or division into batches.

    Bins are as wide as a power of two and have an edge at 0; when a larger number comes, neighbours are joined.  Zeros
    are counted apart, because each grid represents them.
    """

    def __init__(self) -> None:
        self.counts: Ints = np.zeros(BINS, np.int64)
        self.zeros = 0
        self.low = self.high = 0.0
        self._exponent: int | None = None

    def add(self, values: Array) -> None:
        """Count numbers of any shape."""
        flat = np.asarray(values).reshape(-1).astype(np.float64)
        flat = flat[np.isfinite(flat)]
        rest = flat[flat != 0]
        self.zeros += flat.size - rest.size
        if not rest.size:
            return
        self.low, self.high = min(self.low, float(rest.min())), max(self.high, float(rest.max()))
        self._widen(math.frexp(max(-self.low, self.high))[1])
        places = np.floor(rest / self.width).astype(np.int64) + BINS // 2
        self.counts += np.bincount(places, minlength=BINS)

    def _widen(self, exponent: int) -> None:
        """Let the bins reach from -2**exponent to 2**exponent, if they do not yet."""
        if self._exponent is None:
            self._exponent = exponent
        doublings = exponent - self._exponent
        if doublings > 0:
            places = (np.arange(BINS) - BINS // 2 >> min(doublings, BINS.bit_length())) + BINS // 2
            self.counts = np.bincount(places, self.counts, minlength=BINS).astype(np.int64)
            self._exponent = exponent

    @property
    def width(self) -> float:
        """Width of a bin; 0 as long as there are only zeros."""
        return 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent) / (BINS // 2)

    @property
    def total(self) -> int:
        """Number of finite numbers."""
        return self.zeros + int(self.counts.sum())

    @property
    def points(self) -> tuple[Floats, Ints]:
        """Middles of the bins that are not empty, and how many numbers other than zero lie in each."""
        (places,) = np.nonzero(self.counts)
        return np.asarray((places - BINS // 2 + 0.5) * self.width, np.float64), np.asarray(self.counts[places])

    def percentiles(self, share: float) -> Range:
        """Lower and upper end, at a bin's edge, outside of each of which at most 1 - ``share`` of the numbers lie."""
        middles, counts = self.points
        allowed = (1 - share) * self.total
        above = _last_kept(middles[middles > 0], counts[middles > 0], allowed)
        below = _last_kept(-middles[middles < 0][::-1], counts[middles < 0][::-1], allowed)
        return max(-below - self.width / 2, self.low), min(above + self.width / 2, self.high)


def _last_kept(distances: Floats, counts: Ints, allowed: float) -> float:
    """The largest kept one of ascending distances from zero, if ``allowed`` numbers may lie beyond; 0 without one."""
    further = np.cumsum(counts[::-1])[::-1]
    kept = distances[further > allowed]
    return float(kept[-1]) if kept.size else 0.0


def range_by(method: RangeMethod, histogram: Histogram, grid: IntegerGrid, share: float = RANGE_PERCENTILE) -> Range:
    """Lower and upper end of the numbers that a grid represents; what lies outside is clipped.

    The range holds zero; of a symmetric grid, both ends are equally far from it.

    Args:
        method: "minmax": all numbers; "percentile": all but a share of 1 - ``share`` beyond each end; "mse": the range
            with the least squared error of the bins' middles, among those tried.
        histogram: the numbers.
        grid: the integers.
        share: see ``method``.

    Raises:
        ValueError: an unknown method.
    """
    extremes = histogram.low, histogram.high
    if method == "minmax":
        ends = extremes
    elif method == "percentile":
        ends = histogram.percentiles(share)
    elif method == "mse":
        ends = _least_squares(histogram, grid)
    else:
        raise ValueError(f"method {method!r}, expected 'minmax', 'percentile' or 'mse'")
    far = max(-ends[0], ends[1])
    return (-far, far) if grid.symmetric else ends


def squared_error(histogram: Histogram, grid: IntegerGrid, ends: Range) -> float:
    """Mean squared error of a range, with each number in the middle of its bin."""
    middles, counts = histogram.points
    return _squares(middles, counts, grid, *ends) / max(histogram.total, 1)


def _squares(middles: Floats, counts: Ints, grid: IntegerGrid, low: float, high: float) -> float:
    error = middles - grid.round_trip(middles, low, high)
    return float(np.square(error) @ counts)


def _least_squares(histogram: Histogram, grid: IntegerGrid) -> Range:
    middles, counts = histogram.points
    low, high = histogram.low, histogram.high
    if grid.symmetric:
        far = max(-low, high)
        far = _best_end(far, far, lambda end: _squares(middles, counts, grid, -end, end))
        return -far, far
    for _ in range(END_ROUNDS if histogram.low < 0 < histogram.high else 1):
        high = _best_end(histogram.high, high, partial(_squares, middles, counts, grid, low))
        low = _best_end(histogram.low, low, partial(_squares, middles, counts, grid, high=high))
    return low, high


def _best_end(extreme: float, present: float, error: Callable[[float], float]) -> float:
    """The end with the least error among shares of the extreme number; the present one unless another is better."""
    if extreme == 0:
        return 0.0
    tried = [extreme * share for share in END_SHARES]
    errors = [error(end) for end in tried]
    best = int(np.argmin(errors))
    around = tried[max(best - 1, 0) : best + 2]
    finer = [a + (b - a) * k / FINER_STEPS for a, b in pairwise(around) for k in range(1, FINER_STEPS)]
    ends, costs = [present, *tried, *finer], [error(present), *errors, *map(error, finer)]
    return ends[int(np.argmin(costs))]
