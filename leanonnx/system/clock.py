"""Time the stages of a command, report their progress and estimate the time that they have left."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from leanonnx.formatting import duration_text, printable_name

MIN_ESTIMATE_SECONDS = 1.0
"""Time that a stage must have run before the time left is estimated."""


class Progress(Protocol):
    """A callback for progress."""

    def __call__(self, stage: str, done: float | None = None, item: str = "") -> None:
        """Report that a stage has begun, how much of it is done (0 to 1) if known, and what it is working on."""


class StageProgress(Protocol):
    """A callback for the progress of one stage."""

    def __call__(self, done: float, item: str = "") -> None:
        """Report how much of the stage is done (0 to 1), and what it is working on."""


def ignore_progress(stage: str, done: float | None = None, item: str = "") -> None:
    """Ignore progress."""


def with_item(progress: Callable[..., None]) -> Progress:
    """The callback itself, or, if it takes a stage and its progress only, one that leaves out the item."""
    try:
        inspect.signature(progress).bind("stage", None, "item")
    except TypeError:
        return lambda stage, done=None, item="": progress(stage, done)
    except ValueError:  # a callable of C has no signature
        pass
    return progress


class Clock:
    """Seconds by stage; the time of a stage within another one counts for the inner one only.

    Attributes:
        progress: called whenever a stage begins.
        seconds: seconds by stage so far.
        open_stages: stages that have begun and not ended, the innermost last.
        counted_until: time up to which seconds are counted.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = with_item(progress)
        self.seconds: dict[str, float] = {}
        self.open_stages: list[str] = []
        self.counted_until = time.perf_counter()

    @contextmanager
    def stage(self, name: str, done: float | None = None) -> Iterator[StageProgress]:
        """Time one stage, of which ``done`` (0 to 1) is complete; yields a function that reports further progress."""
        self._count_time()
        self.open_stages.append(name)
        self.progress(name, done)

        def report(done: float, item: str = "") -> None:
            self.progress(name, done, item)

        try:
            yield report
        finally:
            self._count_time()
            self.open_stages.pop()

    def _count_time(self) -> None:
        now = time.perf_counter()
        if self.open_stages:
            name = self.open_stages[-1]
            self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.counted_until, 3)
        self.counted_until = now


class TimeLeft:
    """The time that the running stage has left, from the fraction done and the time that it has taken.

    Attributes:
        now: returns the time in seconds.
        stage: the stage that is running.
        start: time and fraction done when it was first reported.
        done: fraction done when it was last reported.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.stage: str | None = None
        self.start = (0.0, 0.0)
        self.done = 0.0

    def update(self, stage: str, done: float | None) -> float | None:
        """Return the seconds that a stage has left; None if that cannot be told yet."""
        time_now, fraction = self.now(), done or 0.0
        if stage != self.stage or fraction < self.done:
            self.stage, self.start = stage, (time_now, fraction)
        self.done = fraction
        elapsed, progressed = time_now - self.start[0], fraction - self.start[1]
        if done is None or progressed <= 0 or elapsed < MIN_ESTIMATE_SECONDS:
            return None
        return elapsed * max(0.0, 1 - fraction) / progressed


class ProgressLines:
    """Progress as lines of text, now and then.

    Attributes:
        write: takes a line.
        interval: least number of seconds between two lines, and before the first.
        left: estimates the time left.
        due: time from which the next line may be written.
    """

    def __init__(
        self, write: Callable[[str], None], interval: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.write, self.interval = write, interval
        self.left = TimeLeft(now)
        self.due = now() + interval

    def __call__(self, stage: str, done: float | None = None, item: str = "") -> None:
        """Report a stage; see ``Progress``."""
        seconds = self.left.update(stage, done)
        time_now = self.left.now()
        if time_now >= self.due:
            self.due = time_now + self.interval
            self.write(progress_text(stage, done, item, seconds))


def progress_text(stage: str, done: float | None, item: str, left: float | None) -> str:
    """A line on a stage: "recover 40% (layer conv_12), about 35 s left"."""
    text = stage if done is None else f"{stage} {min(max(done, 0.0), 1.0):.0%}"
    if item:
        text += f" ({printable_name(item)})"
    return text if left is None else f"{text}, {left_text(left)}"


def left_text(seconds: float) -> str:
    """The time that is left, in words: "about 35 s left"."""
    return f"about {duration_text(seconds)} left"
