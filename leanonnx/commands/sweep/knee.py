"""Find the knee of a trade-off curve, where a smaller model begins to cost more than it gains.

Kneedle (Satopää, Albrecht, Irwin and Raghavan 2011, "Finding a 'Kneedle' in a Haystack"): both axes are brought to
[0, 1], and the knee is where the curve is highest above the diagonal, provided that it then falls by more than the mean
distance of neighbouring points (their threshold for a sensitivity of 1).  Of several such points, the highest is taken,
since small variations of the few, noisily measured points are not significant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIN_KNEE_POINTS = 3
"""Least number of points besides the original for a knee."""
SENSITIVITY = 1.0
"""Kneedle's sensitivity: larger values need a larger fall after the knee."""


def knee(left: Sequence[float], deviation: Sequence[float]) -> int | None:
    """Index of the knee among points; None if there are too few points or no knee.

    Args:
        left: remaining share of the original at each point, for example of its time; 1 is the original.
        deviation: deviation of each point from the original, which starts the curve at (1, 0).
    """
    if len(left) < MIN_KNEE_POINTS:
        return None
    gain, cost = _scale_to_unit([0.0, *(1 - share for share in left)]), _scale_to_unit([0.0, *deviation])
    order = np.argsort(gain, kind="stable")
    height = (gain - cost)[order]
    top = int(np.argmax(height))
    falls = height[top] - height[top:].min() > SENSITIVITY / len(left)
    return int(order[top]) - 1 if height[top] > 0 and order[top] > 0 and falls else None


def _scale_to_unit(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Scale values to [0, 1]; zeros if they are all equal."""
    array = np.asarray(values, np.float64)
    spread = float(np.ptp(array))
    return (array - array.min()) / spread if spread else np.zeros(len(values))
