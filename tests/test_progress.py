"""Progress of stages: the time that is left, lines off a terminal, and what callbacks are told."""

from __future__ import annotations

import io
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import leanonnx
from leanonnx.api.progress import listening
from leanonnx.cli import terminal
from leanonnx.formatting import duration_text
from leanonnx.reporting.bars import progress_bar
from leanonnx.system import clock
from leanonnx.system.clock import Clock, ProgressLines, TimeLeft, progress_text, stage_text, ticking, with_item
from tests.helpers import CNN, build, saved
from tests.test_effort import FakeTime


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (35.4, "35 s"),
        (59.6, "1 min"),
        (90, "2 min"),
        (12 * 60, "12 min"),
        (59.6 * 60, "1 h 0 min"),
        (4800, "1 h 20 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_time_left_follows_from_the_time_taken() -> None:
    now = FakeTime()
    left = TimeLeft(now)
    assert left.update("recover", 0.0) is None
    now.seconds += 20
    assert left.update("recover", 0.25) == pytest.approx(60)
    now.seconds += 20
    assert left.update("recover", 0.5) == pytest.approx(40)
    assert left.update("recover", 1.0) == 0


def test_time_left_counts_from_the_first_report() -> None:
    now = FakeTime()
    left = TimeLeft(now)
    left.update("train", 0.5)  # a training that goes on where it was
    now.seconds += 10
    assert left.update("train", 0.6) == pytest.approx(40)


def test_time_left_starts_anew_with_each_stage_and_each_pass() -> None:
    now = FakeTime()
    left = TimeLeft(now)
    left.update("look", 0.0)
    now.seconds += 50
    assert left.update("recover", 0.5) is None
    now.seconds += 10
    assert left.update("recover", 0.75) == pytest.approx(10)
    assert left.update("recover", 0.0) is None
    now.seconds += 10
    assert left.update("recover", 0.1) == pytest.approx(90)


def test_time_left_is_not_known_without_a_fraction_or_at_once() -> None:
    now = FakeTime()
    left = TimeLeft(now)
    assert left.update("prove", None) is None
    now.seconds += 100
    assert left.update("prove", None) is None
    left.update("try", 0.0)
    now.seconds += 0.5
    assert left.update("try", 0.9) is None


def test_each_stage_has_a_line_after_a_while_and_one_now_and_then() -> None:
    now, lines = FakeTime(), list[str]()
    report = ProgressLines(lines.append, 10, 30, now)
    report("load")
    now.seconds += 9
    report("observe")
    report("recover", 0.0)
    assert lines == []
    now.seconds += 1
    report("recover", 0.04, "layer 1 of 25, conv_1")
    assert lines == ["[0:00:10] refitting weights 4% (layer 1 of 25, conv_1), about 24 s left"]
    for k in range(29):
        now.seconds += 1
        report("recover", 0.04 + 0.01 * k, f"layer {k}")
    assert len(lines) == 1
    now.seconds += 1
    report("recover", 0.44, "layer 11 of 25, conv_11")
    assert lines[1:] == ["[0:00:40] refitting weights 44% (layer 11 of 25, conv_11), about 39 s left"]
    now.seconds += 1
    report("prove")
    report("recover", 0.5)
    report("prove")
    assert lines[2:] == ["[0:00:41] proving the removal"]


def test_a_stage_that_reports_nothing_has_lines_too() -> None:
    now, lines = FakeTime(), list[str]()
    report = ProgressLines(lines.append, 10, 30, now)
    now.seconds += 60
    report.tick()
    assert lines == []
    report("observe")
    assert lines == ["[0:01:00] running the model once"]
    now.seconds += 29
    report.tick()
    assert len(lines) == 1
    now.seconds += 1
    report.tick()
    assert lines[1:] == ["[0:01:30] running the model once"]


def test_ticks_come_from_another_thread_until_the_end() -> None:
    ticks, enough = list[int](), threading.Event()

    def tick() -> None:
        ticks.append(threading.get_ident())
        enough.set()

    with ticking(tick, 0.001):
        assert enough.wait(60)
    assert threading.get_ident() not in ticks
    assert not any(thread.name == "leanonnx progress" for thread in threading.enumerate())


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.9, "0:00:59"), (3909, "1:05:09")])
def test_the_clock(seconds: float, text: str) -> None:
    assert clock.clock_text(seconds) == text


def test_each_stage_says_what_happens() -> None:
    """Whatever name a stage has in reports, people read a text."""
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(leanonnx.__file__).parent.rglob("*.py"))
    stages = set(re.findall(r"\.stage\(\s*\"([^\"]+)\"", sources)) | set(
        re.findall(r"progress\(\"([a-z ]+)\"", sources)
    )
    assert len(stages) > 15
    assert stages <= set(clock.STAGE_TEXTS)
    assert stage_text("look") == "measuring activations"
    assert stage_text("step 1/3, train") == "step 1/3, training"
    assert stage_text("measure, batch 8, 2 threads") == "measuring time or accuracy, batch 8, 2 threads"
    assert stage_text("something new") == "something new"


def test_a_line_says_what_is_known() -> None:
    assert progress_text("recover", 0.4, "conv_12", 35) == "refitting weights 40% (conv_12), about 35 s left"
    assert progress_text("make", 0.5, "3 of 6", None) == "compressing 50% (3 of 6)"
    assert progress_text("observe", None, "", None) == "running the model once"
    assert progress_text("recover", 1.2, "a\nb", None) == "refitting weights 100% (a\\nb)"


def test_a_stage_reports_what_it_works_on() -> None:
    reports: list[tuple[Any, ...]] = []
    timed = Clock(lambda *given: reports.append(given))
    with timed.stage("recover") as on_progress:
        on_progress(0.5)
        on_progress(0.75, "layer b")
    assert reports == [("recover", None), ("recover", 0.5, ""), ("recover", 0.75, "layer b")]


def test_callbacks_may_take_a_stage_and_its_progress_only() -> None:
    reports: list[tuple[str, float | None]] = []

    def report(stage: str, done: float | None = None) -> None:
        reports.append((stage, done))

    timed = Clock(report)  # type: ignore[arg-type]
    with timed.stage("recover") as on_progress:
        on_progress(0.75, "layer b")
    assert reports == [("recover", None), ("recover", 0.75)]
    assert with_item(clock.ignore_progress) is clock.ignore_progress


def test_lines_go_to_stderr_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr(terminal, "QUIET_SECONDS", 0.0)
    with terminal.progress() as listener:
        listener("recover", 0.5, "layer b")
    assert errors.getvalue() == "[0:00:00] refitting weights 50% (layer b)\n"
    with terminal.progress(quiet=True) as listener:
        listener("prove")
    assert "proving" not in errors.getvalue()


def test_a_closed_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    errors.close()
    monkeypatch.setattr(terminal, "QUIET_SECONDS", 0.0)
    with terminal.progress() as listener:
        monkeypatch.setattr("sys.stderr", errors)
        listener("recover")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    errors.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal.progress() as listener:
        listener("recover", 0.5, "layer [b]")
    assert "refitting weights" in errors.getvalue() and "layer [b]" in errors.getvalue()


class MadeUpTime:
    """A clock for rich."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def screen(now: MadeUpTime) -> Console:
    """A terminal without colours, whose time is made up."""
    return Console(file=io.StringIO(), force_terminal=True, width=120, get_time=now, color_system=None)


def drawn(console: Console) -> str:
    """All that was drawn last."""
    return console.file.getvalue().split("\r")[-1]  # type: ignore[attr-defined]


def bars(listener: Any) -> Any:
    """The bars that a listener draws on."""
    return next(cell.cell_contents for cell in listener.__closure__ if hasattr(cell.cell_contents, "refresh"))


def test_the_clock_of_the_bar_runs_whatever_a_stage_reports() -> None:
    now = MadeUpTime()
    console = screen(now)
    with progress_bar(console) as listener:
        bars(listener).refresh()
        reports: list[tuple[int, tuple[Any, ...]]] = [
            (5, ("recover", 1.0)),
            (60, ("recover", 1.0)),
            (3, ("observe",)),
            (2, ("recover", 0.1)),
        ]
        for seconds, report in reports:
            now.seconds += seconds
            listener(*report)
            bars(listener).refresh()
            assert clock.clock_text(now.seconds - 100) in drawn(console)
        now.seconds += 7
        bars(listener).refresh()
        assert "0:01:17" in drawn(console)


def test_a_stage_of_unknown_length_pulses() -> None:
    with progress_bar(screen(MadeUpTime())) as listener:
        for done in (1.0, None, 0.3, None):
            listener("stage", done)
            (task,) = bars(listener).tasks
            assert (task.total, task.completed) == ((None, 0) if done is None else (1.0, done))


def test_the_spinner_turns_again_after_a_stage_that_was_finished() -> None:
    with progress_bar(screen(MadeUpTime())) as listener:
        for done, is_finished in ((0.5, False), (1.0, True), (0.2, False), (1.0, True), (None, False)):
            listener("stage", done)
            (task,) = bars(listener).tasks
            assert task.finished == is_finished


# From Python


def test_without_a_listener_the_log_has_the_stages(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    source = saved(build(CNN), tmp_path / "m.onnx")
    with caplog.at_level(logging.INFO, "leanonnx"):
        leanonnx.compress(source, keep=0.5)
    texts = [record.getMessage() for record in caplog.records]
    assert all(record.name == "leanonnx" for record in caplog.records)
    assert any("choosing channels" in text for text in texts) and any("proving the removal" in text for text in texts)


def test_the_log_is_not_written_where_it_is_not_wanted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "leanonnx"), listening(None) as listener:
        assert listener is clock.ignore_progress
    with listening(clock.ignore_progress) as listener:
        assert listener is clock.ignore_progress


def test_a_notebook_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanonnx.api.progress._shows_bars", lambda: True)
    monkeypatch.setattr("leanonnx.api.progress.Console", lambda: screen(MadeUpTime()))
    with listening(None) as listener:
        listener("prove")
        assert bars(listener).tasks[0].description == "proving the removal"
