"""Search for the smallest fraction at which a loss is still within its tolerance, with few looks.

The loss, as the share of the tolerance that it uses up, is taken to grow as a power of the part that is removed: its
logarithm is a line in that of 1 − fraction.  Each look moves the line or closes the bracket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_FRACTION = 0.5
AIMED_SPENDING = 0.9
"""Share of the tolerance that a look aims at, as a margin for the error of the prediction."""
LOSS_POWER = 1.5
"""Power of the removed part that the loss is first taken to grow with."""
POWER_RANGE = (0.5, 6.0)
MIN_SPENT, MAX_SPENT = 1e-3, 1e3
"""Range that shares of the tolerance are brought to."""
MIN_STEP_SHARE = 0.15
"""Share of the bracket that is left on either side of a look."""
BRACKET_WIDTH = 0.02
"""Width of the bracket of fractions at which the search ends."""
MIN_GAIN = 0.01
"""Predicted fall of the fraction below which the search ends too."""


@dataclass(frozen=True)
class Descent:
    """A bracket of fractions, and the looks that made it: pairs (fraction, share of the tolerance that is used up).

    ``lowest``: the smallest fraction that can be reached; ``highest``: the largest that is allowed.
    """

    lowest: float
    highest: float = 1.0
    looks: tuple[tuple[float, float], ...] = ()

    def with_look(self, fraction: float, spent: float) -> Descent:
        """The search after one more look."""
        return Descent(self.lowest, self.highest, (*self.looks, (fraction, spent)))

    @property
    def smallest_hit(self) -> tuple[float, float] | None:
        """The smallest fraction that was within the tolerance, with what it used up; None if none was."""
        return min((look for look in self.looks if look[1] <= 1), default=None)

    @property
    def largest_miss(self) -> tuple[float, float] | None:
        """The largest smaller fraction that was not; None if there is none."""
        below = self.smallest_hit[0] if self.smallest_hit else math.inf
        return max((look for look in self.looks if look[1] > 1 and look[0] < below), default=None)

    @property
    def bracket(self) -> tuple[float, float]:
        """The fractions between which the answer lies."""
        return self.largest_miss[0] if self.largest_miss else self.lowest, self.smallest_hit[
            0
        ] if self.smallest_hit else self.highest

    @property
    def ending(self) -> str:
        """The reason why there is nothing more to look at; empty if there is."""
        low, high = self.bracket
        if not self.looks:
            return ""
        if high - low <= BRACKET_WIDTH:
            return "the smallest fraction is known" if self.smallest_hit else "there is nothing milder to try"
        if self.smallest_hit and high - self._crossing(1.0) <= MIN_GAIN:
            return "another try would remove hardly more"
        return ""

    def next(self) -> float | None:
        """The fraction to look at; None if there is an ``ending``."""
        low, high = self.bracket
        if not self.looks:
            return min(max(FIRST_FRACTION, low), max(low, high))
        if self.ending:
            return None
        aim = max(AIMED_SPENDING, math.sqrt(max(self.smallest_hit[1], 0.0))) if self.smallest_hit else AIMED_SPENDING
        margin = MIN_STEP_SHARE * (high - low)
        return min(max(self._crossing(aim), low + margin), high - margin)

    def _crossing(self, spent: float) -> float:
        """The fraction at which the line through the nearest looks reaches a share of the tolerance."""
        ends = [_logarithms(look) for look in (self.smallest_hit, self.largest_miss) if look]
        if len(ends) < 2:
            ends = sorted((_logarithms(look) for look in self.looks), key=lambda end: abs(end[1]))[:2]
        power = LOSS_POWER
        if len(ends) == 2 and ends[0][0] != ends[1][0]:
            power = (ends[1][1] - ends[0][1]) / (ends[1][0] - ends[0][0])
        power = min(max(power, POWER_RANGE[0]), POWER_RANGE[1])
        removed, reached = min(ends, key=lambda end: abs(end[1]))
        return 1 - math.exp(min(removed + (math.log(spent) - reached) / power, 0.0))


def _logarithms(look: tuple[float, float]) -> tuple[float, float]:
    """Logarithms of the removed part and of the share of the tolerance."""
    fraction, spent = look
    return math.log(max(1 - fraction, 1e-6)), math.log(min(max(spent, MIN_SPENT), MAX_SPENT))
