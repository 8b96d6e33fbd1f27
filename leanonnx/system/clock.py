"""Seconds by stage, and whom to tell of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol


class Progress(Protocol):
    """A listener that is told which stage has begun, and how much of it is done (0 to 1) where that is known."""

    def __call__(self, stage: str, done: float | None = None) -> None:
        """Take note of it."""


def quiet(stage: str, done: float | None = None) -> None:
    """A listener that ignores progress."""


class Clock:
    """Seconds by stage, those of a stage within another counted for the inner one; tells a listener what has begun."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.running: list[str] = []
        self.since = time.perf_counter()

    @contextmanager
    def stage(self, name: str, done: float | None = None) -> Iterator[Callable[[float], None]]:
        """Time one stage, of which so much is done (0 to 1); gives what is to be told how much has been done since."""
        self._charge()
        self.running.append(name)
        self.progress(name, done)
        try:
            yield partial(self.progress, name)
        finally:
            self._charge()
            self.running.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self.running:
            name = self.running[-1]
            self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.since, 3)
        self.since = now
