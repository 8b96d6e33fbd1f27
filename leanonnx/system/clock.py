"""Time the stages of a command and report their progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol


class Progress(Protocol):
    """A callback for progress."""

    def __call__(self, stage: str, done: float | None = None) -> None:
        """Report that a stage has begun, and how much of it is done (0 to 1) if known."""


def ignore_progress(stage: str, done: float | None = None) -> None:
    """Ignore progress."""


class Clock:
    """Seconds by stage; the time of a stage within another one counts for the inner one only.

    Attributes:
        progress: called whenever a stage begins.
        seconds: seconds by stage so far.
        open_stages: stages that have begun and not ended, the innermost last.
        counted_until: time up to which seconds are counted.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.open_stages: list[str] = []
        self.counted_until = time.perf_counter()

    @contextmanager
    def stage(self, name: str, done: float | None = None) -> Iterator[Callable[[float], None]]:
        """Time one stage, of which ``done`` (0 to 1) is complete; yields a function that reports further progress."""
        self._count_time()
        self.open_stages.append(name)
        self.progress(name, done)
        try:
            yield partial(self.progress, name)
        finally:
            self._count_time()
            self.open_stages.pop()

    def _count_time(self) -> None:
        now = time.perf_counter()
        if self.open_stages:
            name = self.open_stages[-1]
            self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.counted_until, 3)
        self.counted_until = now
