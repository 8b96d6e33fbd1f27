"""Effort of calibration: bounds of samples, rows and trials, and a limit on the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

EffortName = Literal["quick", "normal", "thorough"]
DEFAULT_EFFORT: EffortName = "normal"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Bounds on the work of calibration: the selection by data and the recovery from them.

    Attributes:
        name: its name.
        max_samples: largest number of samples used.
        rows_per_feature: rows of a regression for each of its features.
        trials: largest number of candidates that are judged from end to end.
        trial_work: work that one of these may take, as a multiple of that with normal effort.
        passes: largest number of passes of the recovery where layers share weights.
        branch_trials: largest number of trials of a network without some branches.
        branch_work: work that one of these may take, as a multiple of ``trial_work`` with normal effort.
        looks: largest number of candidates that are recovered to meet a tolerance.
    """

    name: EffortName
    max_samples: int
    rows_per_feature: int
    trials: int
    trial_work: float
    passes: int
    branch_trials: int
    branch_work: float
    looks: int


_ALL = (
    Effort(
        name="quick",
        max_samples=128,
        rows_per_feature=4,
        trials=1,
        trial_work=0,
        passes=1,
        branch_trials=0,
        branch_work=0,
        looks=4,
    ),
    Effort(
        name="normal",
        max_samples=1024,
        rows_per_feature=8,
        trials=6,
        trial_work=1,
        passes=2,
        branch_trials=5,
        branch_work=4,
        looks=6,
    ),
    Effort(
        name="thorough",
        max_samples=4096,
        rows_per_feature=16,
        trials=8,
        trial_work=20,
        passes=4,
        branch_trials=12,
        branch_work=40,
        looks=10,
    ),
)
EFFORTS: Mapping[EffortName, Effort] = {each.name: each for each in _ALL}
"""All efforts by name, from the least to the most."""


@dataclass(frozen=True)
class Deadline:
    """The end of the time that calibration may take; ``end`` is a time of ``now``, infinite for no limit."""

    end: float = math.inf
    now: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, minutes: float | None, now: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline so many minutes from now; without a limit for None."""
        return cls(math.inf if minutes is None else now() + 60.0 * minutes, now)

    def left(self) -> float:
        """Seconds that are left, 0 when the time is up; infinite without a limit."""
        return max(0.0, self.end - self.now())

    @property
    def has_passed(self) -> bool:
        """True if no time is left."""
        return self.left() <= 0


NO_DEADLINE = Deadline()
"""Any time may be taken."""
