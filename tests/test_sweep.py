"""``leanonnx sweep``: what it writes and refuses, how it goes on, and that no two measurements ever run at once."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout

from leanonnx.compressing.options import Options
from leanonnx.runtime import fresh, sessions
from leanonnx.runtime.timing import Comparison, Timing
from leanonnx.selection.selector import Budget
from leanonnx.sweeping import driver, making
from leanonnx.sweeping.journal import JOURNAL, Journal, claimed
from leanonnx.sweeping.making import MADE, Task
from leanonnx.sweeping.request import Request
from leanonnx.system import processes
from tests.helpers import CNN, COMMAND, build, called, cli, outputs, refused, saved, saved_external, tree
from tests.test_cli import kernels
from tests.test_timing import NO_GPU

Row = dict[str, Any]
QUICK = ("--no-measure", "--align", 1)
"""The networks of these tests are too small to gain speed."""
PATIENCE = 60
SIZES = ("kernels", "macs", "params", "bytes", "proof", "deviation")
"""What of a point does not depend on when it was made."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "net.onnx")


def run(folder: Path, *args: object, code: int = 0) -> Row:
    """``leanonnx sweep`` in a folder; its JSON."""
    done = called("sweep", *args, "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    row: Row = json.loads(done.stdout)
    return row


def points(row: Row, model: int = 0) -> list[Row]:
    found: list[Row] = row["models"][model]["points"]
    return found


def lasting(row: Row) -> list[list[Row]]:
    """What of a sweep is the same each time."""
    return [
        [{key: point[key] for key in ("asked", "code", "message", "file", *SIZES)} for point in each["points"]]
        for each in row["models"]
    ]


# What is written


def test_sweep_as_a_user_runs_it(model: Path) -> None:
    """The points are what ``compress`` writes; table, CSV and JSON agree, and nothing else is left."""
    folder = model.parent / "net-sweep"
    done = cli("sweep", model, "--keep", "0.25,0.75,0.5,0.75", "--save-models", *QUICK, cwd=model.parent)
    assert (done.returncode, done.stderr) == (0, "")
    row = json.loads((folder / "sweep.json").read_text())
    assert row["schema"] == 1
    assert [point["asked"] for point in points(row)] == [0.75, 0.5, 0.25]
    for point in points(row):
        file, alone = folder / point["file"], model.parent / "alone.onnx"
        assert cli("compress", model, alone, "--keep", point["asked"], "--align", 1).returncode == 0
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


def test_json_is_what_is_written(model: Path) -> None:
    row = run(model.parent, model, "--macs", "0.5", *QUICK, "--out", "here")
    assert row == json.loads((model.parent / "here" / "sweep.json").read_text())
    assert (row["unit"], row["measured"], row["about"]["budget"]) == ("macs", False, "macs")
    assert points(row)[0]["file"] is None
    assert not (model.parent / "here" / "models").exists()


def test_several_models_of_which_one_fails(model: Path) -> None:
    """Files of the same name get names of their own; one that is no model stops no other."""
    (model.parent / "more").mkdir()
    other = saved_external(build(CNN, seed=1), model.parent / "more" / "net.onnx")
    done = called("sweep", model, "none.onnx", other, "--keep", "0.5", *QUICK, "--save-models", cwd=model.parent)
    assert done.returncode == 2
    assert "none.onnx: no such file" in done.stdout
    folder = model.parent / "net-and-2-more-sweep"
    row = json.loads((folder / "sweep.json").read_text())
    assert [each["name"] for each in row["models"]] == ["net", "none", "net-2"]
    assert [point["code"] for each in row["models"] for point in each["points"]] == [0, 2, 0]
    first, second = (folder / points(row, which)[0]["file"] for which in (0, 2))
    assert second.with_name(f"{second.name}.data").is_file()
    assert [value.shape for value in outputs(second)] == [(1, 5)]
    assert first.read_bytes() != second.read_bytes()


def test_what_cannot_be_reached_is_told(model: Path) -> None:
    row = run(model.parent, model, "--keep", "0.5,0.001", *QUICK, code=1)
    good, bad = points(row)
    assert (good["code"], bad["code"], bad["kernels"]) == (0, 1, None)
    assert "0.001 of the kernels was asked for" in bad["message"]
    best = run(model.parent, model, "--keep", "0.5,0.001", *QUICK, "--best-effort", "--out", "best")
    assert "over budget" in points(best)[1]["warnings"][0]


def test_inputs_tell_the_deviation(model: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(model.parent / "x.npz", x=rng.standard_normal((40, 3, 8, 8)).astype(np.float32), labels=np.arange(40) % 5)
    row = run(model.parent, model, "--keep", "1,0.5", *QUICK, "--calib", "x.npz")
    whole, half = (point["deviation"] for point in points(row))
    assert (half["on"], half["samples"], half["metric"]["name"]) == ("held-out samples", 8, "top-1 accuracy")
    assert half["relative_l2"] > 0
    assert (whole["on"], whole["relative_l2"]) == ("nothing: it is the original", 0)
    assert "not accuracy" not in " ".join(row["warnings"])


def test_measured_one_after_the_other_and_after_all_is_made(model: Path) -> None:
    row = run(model.parent, model, "--keep", "0.75,0.5", "--align", 1, "--threads", 1)
    for point in points(row):
        low, high = point["latency"]["interval"]
        assert low <= point["latency"]["speedup"] <= high
        assert point["latency"]["before_ms"] > 0
    made, found = ([point[step] for point in points(row)] for step in ("made", "measured"))
    assert max(end for _, end in made) <= min(begin for begin, _ in found)
    assert not overlapping(found)


def test_without_matplotlib(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanonnx.cli.sweep.find_spec", lambda name: None)
    row = run(model.parent, model, "--keep", "0.5", *QUICK)
    assert "pip install 'leanonnx[sweep]'" in row["warnings"][-1]
    assert row["files"].keys() == {"csv", "json"}
    done = called(
        "sweep", model, "--keep", "0.5", *QUICK, "--dask", "tcp://127.0.0.1:1", "--out", "d", cwd=model.parent
    )
    assert (done.returncode, "pip install 'leanonnx[dask]'" in done.stderr) == (2, True)


# What is refused


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "exactly one of --keep, --macs, --params or --latency"),
        (("--keep", "0.5", "--macs", "0.5"), "exactly one of --keep"),
        (("--keep", "0.5,,0.1"), "--keep 0.5,,0.1: expected fractions"),
        (("--keep", "0.5,2"), "--keep 2: expected a fraction above 0 and at most 1"),
        (("--macs", "half"), "--macs half"),
        (("--latency", "0.5", "--no-measure"), "leave out --no-measure"),
        (("--latency", "0.5", "--jobs", "2"), "leave out --dask and --jobs"),
        (("--latency", "0.5", "--dask", "tcp://127.0.0.1:1"), "leave out --dask and --jobs"),
        (("--keep", "0.5", "--dask", "tcp://127.0.0.1:1", "--jobs", "2"), "leave out --jobs"),
        (("--keep", "0.5", "--pin", "ghost"), "--pin ghost"),
        (("--keep", "0.5", "--shape", "y=1,3,8,8"), "--shape y"),
        (("--keep", "0.5", "--target", "toaster"), "--target toaster"),
        (("--keep", "0.5", "--calib", "none.npz"), "none.npz"),
        (("--keep", "0.5", "--library", "none.so"), "--library none.so"),
        (("--keep", "0.5", "--out", "no/such"), "the folder 'no' does not exist"),
        (("--keep", "0.5", "--out", "."), "holds other files and no sweep"),
        (("--keep", "0.5", "--out", "net.onnx"), "net.onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_requests(model: Path, args: tuple[str, ...], says: str) -> None:
    refused(model.parent, "sweep", model, *args, says=(says,))


@pytest.mark.skipif(not NO_GPU, reason="this machine has an NVIDIA driver")
def test_a_provider_that_is_not_there(model: Path) -> None:
    """Known before anything is compressed."""
    refused(model.parent, "sweep", model, "--keep", "0.5", "--provider", "cuda", says=("--provider cuda",))


def test_no_model_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "sweep", "none.onnx", "--keep", "0.5", says=("none.onnx: no such file",))


# Going on


def test_finished_points_are_taken_over(model: Path) -> None:
    """Also those of another list of fractions."""
    first = run(model.parent, model, "--keep", "0.75,0.5", *QUICK)
    again = run(model.parent, model, "--keep", "0.5,0.001,0.25", *QUICK, code=1)
    assert points(again)[0] == points(first)[1]
    assert points(again)[1]["made"][0] > points(first)[0]["made"][1]
    assert run(model.parent, model, "--keep", "0.5,0.001,0.25", *QUICK, code=1) == again


@pytest.mark.parametrize("change", [("--method", "norm"), ("--seed", 1), ("--pin", "c1"), ("--save-models",)])
def test_other_options_are_refused(model: Path, change: tuple[object, ...]) -> None:
    run(model.parent, model, "--keep", "0.5", *QUICK)
    says = (str(change[0]).removeprefix("--").partition("-")[0], "--restart")
    refused(model.parent, "sweep", model, "--keep", "0.5", *QUICK, *change, says=says)


def test_other_content_is_refused_or_begun_anew(model: Path) -> None:
    np.savez(model.parent / "x.npz", x=np.ones((5, 3, 8, 8), np.float32))
    args = ("--keep", "0.5", *QUICK, "--calib", "x.npz", "--recover", "none", "--save-models")
    run(model.parent, model, *args)
    raw = model.read_bytes()
    saved(build(CNN, seed=1), model)
    refused(model.parent, "sweep", model, *args, says=("sha256 of the model 'net' was", "--restart"))
    model.write_bytes(raw)
    np.savez(model.parent / "x.npz", x=np.zeros((5, 3, 8, 8), np.float32))
    refused(model.parent, "sweep", model, *args, says=("calib_sha256 was", "--restart"))
    row = run(model.parent, model, "--keep", "0.75", *QUICK, "--save-models", "--restart")
    assert [path.name for path in (model.parent / "net-sweep" / "models").iterdir()] == ["net-keep-0.75.onnx"]
    assert [point["asked"] for point in points(row)] == [0.75]


def test_saved_models_that_are_gone_are_made_again(model: Path) -> None:
    first = run(model.parent, model, "--keep", "0.5,0.25", *QUICK, "--save-models")
    files = [model.parent / "net-sweep" / point["file"] for point in points(first)]
    raw = files[0].read_bytes()
    files[0].unlink()
    again = run(model.parent, model, "--keep", "0.5,0.25", *QUICK, "--save-models")
    assert files[0].read_bytes() == raw
    assert lasting(again) == lasting(first)
    assert points(again)[1] == points(first)[1]


def test_a_line_that_was_cut_short_is_passed_over(model: Path) -> None:
    first = run(model.parent, model, "--keep", "0.75,0.5", *QUICK)
    journal = model.parent / "net-sweep" / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-5])
    again = run(model.parent, model, "--keep", "0.75,0.5", *QUICK)
    assert lasting(again) == lasting(first)
    assert len(journal.read_bytes().splitlines()) == len(whole.splitlines())
    journal.write_bytes(whole.replace(b'"asked"', b'"baked"', 1))
    refused(model.parent, "sweep", model, "--keep", "0.75,0.5", *QUICK, says=("line 2 is damaged", "--restart"))


def test_two_sweeps_of_one_folder(model: Path) -> None:
    folder = model.parent / "net-sweep"
    with claimed(folder):
        Journal(folder).path.touch()
        done = cli("sweep", model, "--keep", "0.5", *QUICK, cwd=model.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert "another sweep is using this folder" in done.stderr
    assert cli("sweep", model, "--keep", "0.5", *QUICK, cwd=model.parent).returncode == 0


def test_a_process_that_dies_stops_no_other(model: Path) -> None:
    """As for want of memory: told as a bug, not kept as finished."""
    deadly = model.parent / "deadly.py"
    deadly.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    row = run(model.parent, model, "--keep", "0.75,0.5", *QUICK, "--rules", deadly, code=3)
    assert [point["code"] for point in points(row)] == [3, 3]
    assert "was killed by SIGKILL" in points(row)[0]["message"]
    deadly.write_text("RULES = {}\n")
    row = run(model.parent, model, "--keep", "0.75,0.5", *QUICK, "--rules", deadly)
    assert [point["code"] for point in points(row)] == [0, 0]


# Stopped in the middle


def children(text: str) -> dict[int, int]:
    """Processes whose command line contains a text, with their parents."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if text in (path / "cmdline").read_text().replace("\0", " "):
                found[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    return found


def started(folder: Path, model: Path, *args: object) -> subprocess.Popen[str]:
    command = [*COMMAND, "sweep", str(model), *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_stopped_while_making(model: Path, how: str) -> None:
    """No process stays behind, and the next run gives the table of one that was never stopped."""
    slow = model.parent / "slow"
    rules = model.parent / "rules.py"
    rules.write_text(f"import os, time\ntime.sleep(2 * os.path.exists({str(slow)!r}))\nRULES = {{}}\n")
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
    assert 2 <= len(done) < 4
    again = run(model.parent, model, *args, code=1)
    assert lasting(again) == lasting(whole)
    taken = {point["asked"]: point["made"] for point in points(again)}
    assert all(taken[asked] == row["made"] for (_, asked), row in done.items())
    assert tree(folder / "models") == tree(model.parent / "whole" / "models")


def test_stopped_while_measuring(model: Path) -> None:
    """What was measured stays, what was made is not made again."""
    args = ("--keep", "0.75,0.5", "--align", 1, "--threads", 1)
    folder = model.parent / "net-sweep"
    process = started(model.parent, model, *args)
    wait_for(
        lambda: (folder / JOURNAL).exists() and any(row["done"] for row in Journal(folder).points.values()), process
    )
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_for(lambda: not [pid for pid, parent in children(fresh.ENTRY).items() if parent == process.pid])
    before = Journal(folder).points
    assert sorted(row["done"] for row in before.values()) == [False, True]
    again = {point["asked"]: point for point in points(run(model.parent, model, *args))}
    for (_, asked), row in before.items():
        assert again[asked]["made"] == row["made"]
        assert not row["done"] or again[asked]["latency"] == row["latency"]
    assert all(point["latency"] for point in again.values())
    assert not (folder / "models").exists()


# One measurement at a time


def overlapping(intervals: list[list[float]]) -> bool:
    return any(a[0] < b[1] and b[0] < a[1] for a, b in combinations(intervals, 2))


def fake_make(tasks: list[Task], work: Path) -> making.Answers:
    """Candidates that are copies of their models."""
    for index, task in enumerate(tasks):
        made = work / str(index) / MADE
        made.mkdir(parents=True)
        (made / task.name).write_bytes(task.source.read_bytes())
        change = {"before": 10, "after": 5, "fraction": 0.5}
        yield (
            index,
            {
                "code": 0,
                "message": "",
                "seconds": 0.0,
                "made": [time.time()] * 2,
                "warnings": [],
                "hints": [],
                **dict.fromkeys(("kernels", "macs", "params", "bytes"), change),
                "proof": {"status": "passed", "max_relative_error": 0.0},
                "latency": None,
                "deviation": None,
            },
        )


def measured_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """When the candidates of three sweeps that run at the same time are measured, as their measurements tell."""
    seen: list[list[float]] = []
    timing = Timing(1.0, 1.0, 1.0, 1.0, 1.0, 10, 0, None)

    def slowly(*_: object) -> Comparison:
        began = time.monotonic()
        time.sleep(0.1)
        seen.append([began, time.monotonic()])
        return Comparison(timing, timing, 1.0, (1.0, 1.0), 0.0, 10, 1)

    def one(folder: Path) -> None:
        options = Options(Budget("kernels", 1.0), measure=True)
        driver.sweep(Request((model,), (0.75, 0.5, 0.25), options, folder), fake_make)

    monkeypatch.setattr(driver, "measured", slowly)
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
    """What the test above sees is the lock's doing."""
    monkeypatch.setattr(driver, "machine_alone", nullcontext)
    assert overlapping(measured_at_once(model, monkeypatch))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_one_measuring_process_at_a_time(model: Path) -> None:
    """Two sweeps as users run them, watched from outside."""
    args = ("--keep", "0.75,0.5", "--align", 1, "--threads", 1, "--json")
    running = [started(model.parent, model, *args, "--out", f"s{k}") for k in range(2)]
    parents, seen, most = {process.pid for process in running}, set[int](), 0
    while any(process.poll() is None for process in running):
        now = {pid for pid, parent in children(fresh.ENTRY).items() if parent in parents}
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

    request = Request((model,), (0.75, 0.5), Options(Budget("latency", 1.0)), tmp_path / "s")
    row = driver.sweep(request, watched)
    assert seen == [[(Budget("latency", asked), True)] for asked in (0.75, 0.5)]
    assert all(point["measured"] == point["made"] for point in points(row))


# Processes


PROBE = """
import json, os, time
def ask(folder):
    names = [name for name in os.environ if name.endswith("_THREADS")]
    (folder / "found.json").write_text(json.dumps({name: os.environ[name] for name in names}))
def while_others(folder):
    began = time.time()
    time.sleep(0.3)
    (folder / "answer.json").write_text(json.dumps([began, time.time()]))
def wait_but_for_the_first(folder):
    time.sleep(600 * int(folder.name))
    (folder / "answer.json").write_text("[]")
"""


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sweep_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "sweep_probe"


def test_linear_algebra_is_bounded(probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    for threads, wanted in ((3, "3"), (0, "7")):
        assert processes.run(f"{probe}:ask", tmp_path, threads=threads).startswith("ended with exit code 0")
        assert json.loads((tmp_path / "found.json").read_text())["OPENBLAS_NUM_THREADS"] == wanted


def test_sessions_are_bounded() -> None:
    assert sessions.options().intra_op_num_threads == 0
    with sessions.limited(3):
        assert (sessions.options().intra_op_num_threads, sessions.options(2).intra_op_num_threads) == (3, 2)
    assert sessions.options().intra_op_num_threads == 0


def test_jobs_share_the_cores(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores: four processes of one thread, or as many threads each as there are cores for."""
    seen: list[tuple[int, int]] = []

    def watched(tasks: list[Task], work: Path, jobs: int, threads: int) -> making.Answers:
        seen.append((jobs, threads))
        yield from fake_make(tasks, work)

    monkeypatch.setattr("leanonnx.cli.sweep.available_cores", lambda: 4)
    monkeypatch.setattr("leanonnx.cli.sweep.made_here", watched)
    for number, jobs in enumerate(((), ("--jobs", 1), ("--jobs", 3), ("--jobs", 9))):
        run(model.parent, model, "--keep", "0.9,0.8,0.7,0.6,0.5", *QUICK, *jobs, "--out", f"s{number}")
    run(model.parent, model, "--keep", "0.9,0.8", *QUICK, "--out", "few")
    assert seen == [(4, 1), (1, 4), (3, 1), (9, 1), (2, 2)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_processes_than_jobs(
    probe: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(making, "ENTRY", f"{probe}:while_others")
    found = dict(making.made_here([Task(model, "x.onnx", Options())] * 4, tmp_path / "work", jobs=jobs))
    assert found.keys() == {0, 1, 2, 3}
    begun = [sum(a[0] <= b[0] < a[1] for a in found.values()) for b in found.values()]
    assert max(begun) <= jobs


def test_what_is_running_ends_with_its_caller(
    probe: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is not waited for leaves no process."""
    monkeypatch.setattr(making, "ENTRY", f"{probe}:wait_but_for_the_first")
    answers = making.made_here([Task(model, "x.onnx", Options())] * 3, tmp_path / "work", jobs=3)
    assert next(answers) == (0, [])
    if Path("/proc").is_dir():
        assert children(f"{probe}:wait")
    answers.close()
    assert not children(f"{probe}:wait")
