"""The time that a process waits for a processor: by a scheduler made up here, and by the clocks of the thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanonnx.system import waiting
from leanonnx.system.waiting import WaitingMeter


class Scheduler:
    """A clock, the processor time of a thread, and a folder of threads with the nanoseconds that each has waited."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.wall, self.used = folder, 100.0, 10.0
        monkeypatch.setattr(waiting, "THREADS", folder)
        monkeypatch.setattr(waiting.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(waiting.time, "thread_time", lambda: self.used)

    def delay(self, thread: str, seconds: float) -> None:
        place = self.folder / thread
        place.mkdir(exist_ok=True)
        (place / "schedstat").write_text(f"123456 {round(seconds * 1e9)} 7\n")

    def pass_time(self, wall: float, used: float) -> None:
        self.wall += wall
        self.used += used


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    return Scheduler(tmp_path, monkeypatch)


def test_the_thread_that_waited_most_counts(scheduler: Scheduler) -> None:
    scheduler.delay("1", 5.0)
    scheduler.delay("2", 1.0)
    meter = WaitingMeter.start()
    scheduler.pass_time(4.0, 4.0)
    scheduler.delay("1", 5.4)
    scheduler.delay("2", 2.0)
    scheduler.delay("3", 0.2)
    assert meter.share() == pytest.approx(0.25)


def test_a_thread_that_has_work_waits_when_it_does_not_compute(scheduler: Scheduler) -> None:
    """As where the scheduler does not tell: on other systems than Linux."""
    meter = WaitingMeter.start()
    scheduler.pass_time(4.0, 3.0)
    assert meter.share() == pytest.approx(0.25)
    assert meter.share(computes=False) == 0.0


def test_an_idle_machine_lets_nothing_wait(scheduler: Scheduler) -> None:
    scheduler.delay("1", 5.0)
    meter = WaitingMeter.start()
    scheduler.pass_time(4.0, 4.001)
    assert meter.share() == 0.0
    assert WaitingMeter.start().share() == 0.0


def test_the_clocks_of_this_process() -> None:
    meter = WaitingMeter.start()
    sum(range(10_000))
    assert 0.0 <= meter.share() <= 1.0
