"""Time the stages of a command, report their progress and estimate the time that they have left."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from leanonnx.formatting import duration_text, printable_name

MIN_ESTIMATE_SECONDS = 1.0
"""Time that a stage must have run before the time left is estimated."""
STAGE_TEXTS = {
    "analyse": "finding out which channels belong together",
    "blocks": "looking for branches that can be removed",
    "check": "comparing predicted with measured times",
    "compare": "comparing outputs with the original's",
    "data": "reading the samples",
    "judge": "judging the result on held-out samples",
    "load": "reading the model",
    "look": "measuring activations",
    "make": "compressing",
    "measure": "measuring time or accuracy",
    "observe": "running the model once",
    "operate": "cutting channels out of the graph",
    "prepare": "preparing the training",
    "prove": "proving the removal",
    "quantise": "putting the network into 8-bit integers",
    "recover": "refitting weights",
    "report": "drawing the page",
    "round trip": "comparing torch with onnxruntime",
    "select": "choosing channels",
    "train": "training",
    "try": "trying ways to rank channels",
    "write": "writing the model",
}
"""What happens in each stage, by the name that reports and callbacks have for it."""


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
    """Progress as lines of text: one when a stage begins for the first time, and one now and then while it works.

    Attributes:
        write: takes a line.
        patience: seconds before the first line; what takes less needs none.
        interval: seconds between two lines on the same stage.
        left: estimates the time left.
        start: time at which progress was first waited for.
        due: time from which the next line may be written.
        report: the last one, as stage, fraction done and item; None before any.
        known: stages that have had a line.
        lock: for use from several threads.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        patience: float,
        interval: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.write, self.patience, self.interval = write, patience, interval
        self.left = TimeLeft(now)
        self.start = now()
        self.due = self.start + patience
        self.report: tuple[str, float | None, str] | None = None
        self.known: set[str] = set()
        self.lock = threading.RLock()

    def __call__(self, stage: str, done: float | None = None, item: str = "") -> None:
        """Report a stage; see ``Progress``."""
        with self.lock:
            seconds = self.left.update(stage, done)
            self.report = stage, done, item
            is_new = stage not in self.known and self.left.now() >= self.start + self.patience
            self._write_if(is_new or self.left.now() >= self.due, seconds)

    def tick(self) -> None:
        """Write a line on a stage that has reported nothing for long."""
        with self.lock:
            self._write_if(self.report is not None and self.left.now() >= self.due, None)

    def _write_if(self, due: bool, seconds: float | None) -> None:
        if not due or self.report is None:
            return
        time_now, stage = self.left.now(), self.report[0]
        self.known.add(stage)
        self.due = time_now + self.interval
        self.write(f"[{clock_text(time_now - self.start)}] {progress_text(*self.report, seconds)}")


@contextmanager
def ticking(tick: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function from another thread every so many seconds."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            tick()

    thread = threading.Thread(target=run, name="leanonnx progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def clock_text(seconds: float) -> str:
    """A duration as on a clock: 1:05:09."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def stage_text(stage: str) -> str:
    """Description of a stage: "step 1/3, training"; the stage's own name where it has no text."""
    before, comma, last = stage.rpartition(", ")
    if last in STAGE_TEXTS:
        return f"{before}{comma}{STAGE_TEXTS[last]}"
    first, comma, rest = stage.partition(", ")
    return f"{STAGE_TEXTS.get(first, first)}{comma}{rest}"


def progress_text(stage: str, done: float | None, item: str, left: float | None) -> str:
    """A line on a stage: "refitting weights 40% (layer 4 of 10, conv_12), about 35 s left"."""
    name = stage_text(stage)
    text = name if done is None else f"{name} {min(max(done, 0.0), 1.0):.0%}"
    if item:
        text += f" ({printable_name(item)})"
    return text if left is None else f"{text}, {left_text(left)}"


def left_text(seconds: float) -> str:
    """The time that is left, in words: "about 35 s left"."""
    return f"about {duration_text(seconds)} left"
