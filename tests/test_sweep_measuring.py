"""Measurements of ``leanonnx sweep``: no two ever run at once, and what was measured stays."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.sweep import driver
from leanonnx.commands.sweep import worker as making
from leanonnx.commands.sweep.journal import JOURNAL, Journal
from leanonnx.commands.sweep.request import SweepRequest
from leanonnx.commands.sweep.worker import Task
from leanonnx.reporting.encoding import to_json
from leanonnx.runtime import subprocess_timing as fresh
from leanonnx.runtime.timing import Timing, TimingComparison
from leanonnx.selection.metrics import Budget
from tests.helpers import CNN, SHORT, build, saved
from tests.sweeps import PATIENCE, children, fake_make, overlapping, points, run, started, wait_for

BRIEF = (
    *(sys.executable, "-c"),
    f"from leanonnx.commands.sweep import driver; driver.SECONDS = {SHORT}; from leanonnx.cli.main import main; main()",
)
"""The command line, measuring no longer than it must."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "net.onnx")


@pytest.mark.usefixtures("briefly")
def test_measured_one_after_the_other_and_after_all_is_made(model: Path) -> None:
    row = run(model.parent, model, "--keep", "0.75,0.5", "--align", 1, "--threads", 1)
    for point in points(row):
        low, high = point["latency"]["interval"]
        assert low <= point["latency"]["speedup"] <= high
        assert point["latency"]["before_ms"] > 0
    made, found = ([point[step] for point in points(row)] for step in ("made", "measured"))
    assert max(end for _, end in made) <= min(begin for begin, _ in found)
    assert not overlapping(found)


@pytest.mark.usefixtures("points_made_within", "briefly")
def test_stopped_while_measuring(model: Path) -> None:
    """Measurements are kept, and candidates are not computed again."""
    args = ("--keep", "0.75,0.5", "--align", 1, "--threads", 1)
    folder = model.parent / "net-sweep"
    process = started(model.parent, model, *args, command=BRIEF)
    wait_for(lambda: (folder / JOURNAL).exists() and any(row.done for row in Journal(folder).points.values()), process)
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_for(lambda: not [pid for pid, parent in children(fresh.TIMING_ENTRY).items() if parent == process.pid])
    before = Journal(folder).points
    assert sorted(row.done for row in before.values()) == [False, True]
    again = {point["asked"]: point for point in points(run(model.parent, model, *args))}
    for (_, asked), row in before.items():
        assert again[asked]["made"] == list(row.outcome.made or ())
        latency = row.outcome.candidate and row.outcome.candidate.latency
        assert not row.done or again[asked]["latency"] == to_json(latency)
    assert all(point["latency"] for point in again.values())
    assert not (folder / "models").exists()


def measured_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The times at which three concurrent sweeps measure their candidates, by their own records."""
    seen: list[list[float]] = []
    timing = Timing(p10=1.0, median=1.0, p90=1.0, session=1.0, first=1.0, runs=10, memory=0, layouts=None)

    def slowly(*_: object) -> TimingComparison:
        began = time.monotonic()
        time.sleep(0.1)
        seen.append([began, time.monotonic()])
        return TimingComparison(
            before=timing, after=timing, speedup=1.0, interval=(1.0, 1.0), noise=0.0, rounds=10, lots=1
        )

    def one(folder: Path) -> None:
        options = CompressOptions(budget=Budget("kernels", 1.0), measure=True)
        driver.run_sweep(
            SweepRequest(models=(model,), fractions=(0.75, 0.5, 0.25), options=options, folder=folder), fake_make
        )

    monkeypatch.setattr(driver, "compare_in_subprocess", slowly)
    threads = [threading.Thread(target=one, args=(model.parent / f"s{k}",)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 9
    return seen


def test_measurements_of_several_sweeps_never_overlap(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not overlapping(measured_at_once(model, monkeypatch))


def test_they_would_overlap_without_the_lock(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lock the test above fails."""
    monkeypatch.setattr(driver, "machine_alone", nullcontext)
    assert overlapping(measured_at_once(model, monkeypatch))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_one_measuring_process_at_a_time(model: Path) -> None:
    """Two sweeps as users run them, watched from outside."""
    args = ("--keep", "0.75,0.5", "--align", 1, "--threads", 1, "--json")
    running = [started(model.parent, model, *args, "--out", f"s{k}", command=BRIEF) for k in range(2)]
    parents, seen, most = {process.pid for process in running}, set[int](), 0
    while any(process.poll() is None for process in running):
        now = {pid for pid, parent in children(fresh.TIMING_ENTRY).items() if parent in parents}
        seen |= now
        most = max(most, len(now))
        time.sleep(0.01)
    rows = [json.loads(process.communicate(timeout=PATIENCE)[0]) for process in running]
    assert (len(seen), most) == (4, 1)
    assert not overlapping([point["measured"] for row in rows for point in points(row)])


def test_points_of_a_latency_budget_are_made_alone(model: Path, tmp_path: Path) -> None:
    """Their search measures: each has the machine's lock, and is the only task."""
    seen = []

    def watched(tasks: list[Task], work: Path) -> making.Answers:
        lock = FileLock(Path(driver.tempfile.gettempdir()) / driver.MACHINE_LOCK, timeout=0)
        with pytest.raises(Timeout):
            lock.acquire()
        seen.append([(task.options.budget, task.options.measure) for task in tasks])
        yield from fake_make(tasks, work)

    request = SweepRequest(
        models=(model,),
        fractions=(0.75, 0.5),
        options=CompressOptions(budget=Budget("latency", 1.0)),
        folder=tmp_path / "s",
    )
    report = driver.run_sweep(request, watched)
    assert seen == [[(Budget("latency", asked), True)] for asked in (0.75, 0.5)]
    assert [point.code for point in report.points] == [0, 0]
    assert all(point.measured == point.made is not None for point in report.points)
