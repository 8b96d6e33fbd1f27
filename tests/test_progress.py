"""Progress of stages: the time that is left, lines off a terminal, and what callbacks are told."""

from __future__ import annotations

import io
from typing import Any

import pytest

from leanonnx.cli import terminal
from leanonnx.formatting import duration_text
from leanonnx.system import clock
from leanonnx.system.clock import Clock, ProgressLines, TimeLeft, progress_text, with_item
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


def test_lines_come_now_and_then() -> None:
    now, lines = FakeTime(), list[str]()
    report = ProgressLines(lines.append, 10, now)
    report("load")
    now.seconds += 9
    report("observe")
    report("recover", 0.0)
    assert lines == []
    now.seconds += 1
    report("recover", 0.04, "layer conv_1")
    assert lines == ["recover 4% (layer conv_1), about 24 s left"]
    for k in range(9):
        now.seconds += 1
        report("recover", 0.04 + 0.04 * k, f"layer conv_{k}")
    assert len(lines) == 1
    now.seconds += 1
    report("recover", 0.44, "layer conv_12")
    assert lines[1:] == ["recover 44% (layer conv_12), about 14 s left"]
    now.seconds += 100
    report("prove")
    assert lines[2:] == ["prove"]


def test_a_line_says_what_is_known() -> None:
    assert progress_text("recover", 0.4, "layer conv_12", 35) == "recover 40% (layer conv_12), about 35 s left"
    assert progress_text("make", 0.5, "3 of 6", None) == "make 50% (3 of 6)"
    assert progress_text("observe", None, "", None) == "observe"
    assert progress_text("recover", 1.2, "a\nb", None) == "recover 100% (a\\nb)"


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
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with terminal.progress() as listener:
        listener("recover", 0.5, "layer b")
    assert errors.getvalue() == "recover 50% (layer b)\n"


def test_a_closed_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    errors.close()
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with terminal.progress() as listener:
        monkeypatch.setattr("sys.stderr", errors)
        listener("recover")


def test_the_bar_of_a_terminal_names_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    errors.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal.progress() as listener:
        listener("recover", 0.5, "layer [b]")
    assert "recover" in errors.getvalue() and "layer [b]" in errors.getvalue()
