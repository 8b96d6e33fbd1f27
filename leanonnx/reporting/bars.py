"""A bar for the progress of stages, on a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, RenderableColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from leanonnx.formatting import short_name
from leanonnx.system.clock import Progress, TimeLeft, clock_text, left_text, stage_text


@dataclass(frozen=True)
class _RunTime:
    """The time since a start, as on a clock; it goes on while a stage reports nothing."""

    now: Callable[[], float]
    start: float

    def __rich__(self) -> Text:
        return Text(clock_text(self.now() - self.start), style="progress.elapsed")


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """Yield a listener that shows the running stage: a bar that fills, or that pulses while its length is not known."""
    text, note = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
    clock = RenderableColumn(_RunTime(console.get_time, console.get_time()))
    with Bars(SpinnerColumn(), text, BarColumn(), clock, note, console=console, transient=True) as bars:
        task, left = bars.add_task("starting", total=None, note=""), TimeLeft()

        def show(stage: str, done: float | None = None, item: str = "") -> None:
            nonlocal task
            seconds = left.update(stage, done)
            notes = [short_name(item), "" if seconds is None else left_text(seconds)]
            note, name = ", ".join(filter(None, notes)), stage_text(stage)
            (shown,) = bars.tasks
            if shown.finished or (shown.total is not None and done is None):  # rich takes a total of None for no change
                bars.remove_task(task)
                task = bars.add_task(name, total=None, note=note)
            bars.update(task, description=name, total=None if done is None else 1.0, completed=done or 0.0, note=note)

        yield show
