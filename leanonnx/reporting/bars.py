"""A bar for the progress of stages, on a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from leanonnx.formatting import short_name
from leanonnx.system.clock import Progress, TimeLeft, clock_text, left_text, stage_text


class RunTimeColumn(ProgressColumn):
    """The time since the first stage began, which goes on while a stage reports nothing.

    Attributes:
        start: time of the console's clock at which the first stage began; None before.
    """

    max_refresh = None

    def __init__(self) -> None:
        super().__init__()
        self.start: float | None = None

    def render(self, task: Task) -> Text:
        """The time as on a clock."""
        now = task.get_time()
        self.start = now if self.start is None else self.start
        return Text(clock_text(now - self.start), style="progress.elapsed")


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """Yield a listener that shows the running stage: a bar that fills, or that pulses while its length is not known."""
    text, note = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
    with Bars(SpinnerColumn(), text, BarColumn(), RunTimeColumn(), note, console=console, transient=True) as bars:
        task, left = bars.add_task("starting", total=None, note=""), TimeLeft()

        def show(stage: str, done: float | None = None, item: str = "") -> None:
            nonlocal task
            seconds = left.update(stage, done)
            notes = [short_name(item), "" if seconds is None else left_text(seconds)]
            note, name = ", ".join(filter(None, notes)), stage_text(stage)
            known = bars.tasks[0].total is not None
            if known and done is None:  # rich takes a total of None for no change
                bars.remove_task(task)
                task = bars.add_task(name, total=None, note=note)
                return
            bars.update(task, description=name, total=None if done is None else 1.0, completed=done or 0.0, note=note)

        yield show
