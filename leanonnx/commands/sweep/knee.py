"""The knee of a trade-off curve: where less of a model begins to cost more than it brings.

Kneedle (Satopää, Albrecht, Irwin and Raghavan 2011, "Finding a 'Kneedle' in a Haystack"): both axes are brought to
[0, 1], and the knee is where the curve is highest above the diagonal, provided that it then falls by more than the mean
distance of neighbouring points (their threshold for a sensitivity of 1).  Of several such points the highest is taken:
the curve has few points, measured with noise, whose small ups and downs mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST = 3
"""Points besides the original from which on a knee is looked for."""
SENSITIVITY = 1.0


def knee(left: Sequence[float], deviation: Sequence[float]) -> int | None:
    """Index of the knee among points; None where there are too few, or no knee.

    Args:
        left: what is left of the original, 1 being all of it: of its measured time, say.
        deviation: how far each point is from the original, which itself is at (1, 0) and begins the curve.
    """
    if len(left) < FEWEST:
        return None
    gain, cost = _unit([0.0, *(1 - share for share in left)]), _unit([0.0, *deviation])
    order = np.argsort(gain, kind="stable")
    height = (gain - cost)[order]
    top = int(np.argmax(height))
    falls = height[top] - height[top:].min() > SENSITIVITY / len(left)
    return int(order[top]) - 1 if height[top] > 0 and order[top] > 0 and falls else None


def _unit(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The values brought to [0, 1]; zeros where they are all the same."""
    array = np.asarray(values, np.float64)
    spread = float(np.ptp(array))
    return (array - array.min()) / spread if spread else np.zeros(len(values))
