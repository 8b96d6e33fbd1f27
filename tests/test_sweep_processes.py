"""The processes of ``leanonnx sweep``: as a user runs it, with a process that dies, and interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest

from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.sweep import worker as making
from leanonnx.commands.sweep.journal import JOURNAL, Journal, claim_folder
from leanonnx.commands.sweep.rows import OutcomeRow
from leanonnx.commands.sweep.worker import Task
from leanonnx.runtime import sessions
from leanonnx.system import processes
from tests.helpers import CNN, build, called, cli, kernels, saved, tree, without_progress
from tests.sweeps import PATIENCE, QUICK, children, fake_make, lasting, points, run, started, wait_for


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "net.onnx")


def test_sweep_as_a_user_runs_it(model: Path) -> None:
    """The points are what ``compress`` writes; table, CSV and JSON agree, and nothing else is left."""
    folder = model.parent / "net-sweep"
    done = cli("sweep", model, "--keep", "0.25,0.75,0.5,0.75", "--save-models", *QUICK, cwd=model.parent)
    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    row = json.loads((folder / "sweep.json").read_text())
    assert row["schema"] == 1
    assert [point["asked"] for point in points(row)] == [0.75, 0.5, 0.25]
    for point in points(row):
        file, alone = folder / point["file"], model.parent / "alone.onnx"
        assert called("compress", model, alone, "--keep", point["asked"], "--align", 1).returncode == 0
        assert file.read_bytes() == alone.read_bytes()
        assert point["kernels"]["after"] == kernels(file) <= point["asked"] * point["kernels"]["before"]
        assert point["bytes"]["after"] == file.stat().st_size
        assert point["proof"]["status"] == "passed"
        assert point["latency"] is None
        assert point["deviation"]["on"] == "random inputs"
        assert 0 < point["deviation"]["relative_l2"] < 10
    with (folder / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["asked"]) for line in lines] == [0.75, 0.5, 0.25]
    assert [int(line["kernels"]) for line in lines] == [point["kernels"]["after"] for point in points(row)]
    shown = [line.split() for line in done.stdout.splitlines()]
    assert [cells[0] for cells in shown if len(cells) > 5 and cells[0][:2] == "0."] == ["0.75", "0.5", "0.25"]
    names = {path.name for path in folder.iterdir()} - {"sweep.png", "sweep.svg"}
    assert names == {"models", "journal.jsonl", ".sweep.lock", "sweep.csv", "sweep.json"}


def test_two_sweeps_of_one_folder(model: Path) -> None:
    folder = model.parent / "net-sweep"
    with claim_folder(folder):
        Journal(folder).path.touch()
        done = cli("sweep", model, "--keep", "0.5", *QUICK, cwd=model.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert "another sweep is using this folder" in done.stderr
    assert called("sweep", model, "--keep", "0.5", *QUICK, cwd=model.parent).returncode == 0


def test_a_process_that_dies_stops_no_other(model: Path) -> None:
    """As if out of memory: reported as a bug, not recorded as finished."""
    deadly = model.parent / "deadly.py"
    deadly.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    row = run(model.parent, model, "--keep", "0.75,0.5", *QUICK, "--rules", deadly, code=3)
    assert [point["code"] for point in points(row)] == [3, 3]
    assert "was killed by SIGKILL" in points(row)[0]["message"]
    deadly.write_text("RULES = {}\n")
    row = run(model.parent, model, "--keep", "0.75,0.5", *QUICK, "--rules", deadly)
    assert [point["code"] for point in points(row)] == [0, 0]


STUCK = """
import os, time
if os.path.exists({slow!r}) and os.path.exists({journal!r}) and len(open({journal!r}).readlines()) == 3:
    time.sleep({limit})
RULES = {{}}
"""
"""A rules file that waits once the journal has its header and two points."""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGTERM"])
@pytest.mark.usefixtures("interruptible", "points_made_within")
def test_stopped_while_making(model: Path, how: str) -> None:
    """No process is left, and the next run gives the table of an uninterrupted one.

    The third point waits for the interruption.
    """
    slow = model.parent / "slow"
    rules = model.parent / "rules.py"
    rules.write_text(STUCK.format(slow=str(slow), journal=str(model.parent / "net-sweep" / JOURNAL), limit=PATIENCE))
    args = ("--keep", "0.75,0.5,0.25,0.001", *QUICK, "--jobs", 1, "--save-models", "--rules", rules)
    whole = run(model.parent, model, *args, "--out", "whole", code=1)
    folder = model.parent / "net-sweep"
    slow.touch()
    process = started(model.parent, model, *args)
    wait_for(lambda: (folder / JOURNAL).exists() and len(Journal(folder).points) >= 2, process)
    if how == "SIGINT":  # Ctrl-C in a terminal stops all processes of a command
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, how))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}[how], err
    assert out == ""
    assert "Traceback" not in err
    assert ("run the same command again to go on" in err) == (how == "SIGINT")
    wait_for(lambda: not children(f"{folder.name}/.making"))
    slow.unlink()
    done = Journal(folder).points
    assert len(done) == 2
    again = run(model.parent, model, *args, code=1)
    assert lasting(again) == lasting(whole)
    taken = {point["asked"]: point["made"] for point in points(again)}
    assert all(tuple(taken[asked]) == row.outcome.made for (_, asked), row in done.items())
    assert tree(folder / "models") == tree(model.parent / "whole" / "models")


# Processes that make candidates


PROBE = """
import json, os, time
def ask(folder):
    names = [name for name in os.environ if name.endswith("_THREADS")]
    (folder / "found.json").write_text(json.dumps({name: os.environ[name] for name in names}))
def while_others(folder):
    began = time.time()
    time.sleep(0.3)
    (folder / "answer.json").write_text(json.dumps({"code": 0, "message": "", "made": [began, time.time()]}))
def wait_but_for_the_first(folder):
    time.sleep(600 * int(folder.name))
    (folder / "answer.json").write_text('{"code": 0, "message": ""}')
"""


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sweep_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "sweep_probe"


def test_linear_algebra_is_bounded(probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    for threads, wanted in ((3, "3"), (0, "7")):
        assert processes.run_process(f"{probe}:ask", tmp_path, threads=threads).startswith("ended with exit code 0")
        assert json.loads((tmp_path / "found.json").read_text())["OPENBLAS_NUM_THREADS"] == wanted


def test_sessions_are_bounded() -> None:
    usual = sessions.cpu_options(False, ()).intra_op_num_threads
    with sessions.thread_limit(3):
        assert sessions.cpu_options(False, ()).intra_op_num_threads == 3
    assert sessions.cpu_options(False, ()).intra_op_num_threads == usual


def test_jobs_share_the_cores(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores: four processes of one thread, or as many threads each as there are cores for."""
    seen: list[tuple[int, int]] = []

    def watched(tasks: list[Task], work: Path, jobs: int, threads: int) -> making.Answers:
        seen.append((jobs, threads))
        yield from fake_make(tasks, work)

    monkeypatch.setattr("leanonnx.commands.sweep.extras.available_cores", lambda: 4)
    monkeypatch.setattr("leanonnx.commands.sweep.extras.make_locally", watched)
    for number, jobs in enumerate(((), ("--jobs", 1), ("--jobs", 3), ("--jobs", 9))):
        run(model.parent, model, "--keep", "0.9,0.8,0.7,0.6,0.5", *QUICK, *jobs, "--out", f"s{number}")
    run(model.parent, model, "--keep", "0.9,0.8", *QUICK, "--out", "few")
    assert seen == [(4, 1), (1, 4), (3, 1), (9, 1), (2, 2)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_processes_than_jobs(
    probe: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(making, "WORKER_ENTRY", f"{probe}:while_others")
    found = dict(
        making.make_locally(
            [Task(source=model, name="x.onnx", options=CompressOptions())] * 4, tmp_path / "work", jobs=jobs
        )
    )
    assert found.keys() == {0, 1, 2, 3}
    spans = [outcome.made for outcome in found.values() if outcome.made]
    assert len(spans) == 4
    begun = [sum(a[0] <= b[0] < a[1] for a in spans) for b in spans]
    assert max(begun) <= jobs


def test_running_processes_end_with_their_caller(
    probe: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is not waited for leaves no process."""
    monkeypatch.setattr(making, "WORKER_ENTRY", f"{probe}:wait_but_for_the_first")
    answers = making.make_locally(
        [Task(source=model, name="x.onnx", options=CompressOptions())] * 3, tmp_path / "work", jobs=3
    )
    assert next(answers) == (0, OutcomeRow(0, ""))
    if Path("/proc").is_dir():
        assert children(f"{probe}:wait")
    answers.close()
    assert not children(f"{probe}:wait")
