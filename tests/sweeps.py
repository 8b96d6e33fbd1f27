"""Sweeps for tests: run in a folder, watched from outside, or with candidates that are not made at all."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from leanonnx.commands.sweep import worker as making
from leanonnx.commands.sweep.rows import CandidateRow, OutcomeRow
from leanonnx.commands.sweep.worker import MADE, Task
from leanonnx.reporting.costs import CostChange, CostChanges
from leanonnx.reporting.rows import ProofRow
from tests.helpers import COMMAND, called
from tests.schemas import follow_schema

Row = dict[str, Any]
QUICK = ("--no-measure", "--align", 1)
"""The networks of these tests are too small to gain speed."""
PATIENCE = 60
SIZES = ("kernels", "macs", "params", "bytes", "proof", "deviation")
"""Fields of a point that do not depend on when it was computed."""


def run(folder: Path, *args: object, code: int = 0) -> Row:
    """``leanonnx sweep`` in a folder; its JSON."""
    done = called("sweep", *args, "--json", cwd=folder)
    assert done.returncode == code
    row: Row = follow_schema("sweep", done.stdout)
    return row


def points(row: Row, model: int = 0) -> list[Row]:
    found: list[Row] = row["models"][model]["points"]
    return found


def lasting(row: Row) -> list[list[Row]]:
    """The reproducible part of a sweep's result."""
    return [
        [{key: point[key] for key in ("asked", "code", "message", "file", *SIZES)} for point in each["points"]]
        for each in row["models"]
    ]


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


def started(folder: Path, model: Path, *args: object, command: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
    """``leanonnx sweep`` in a process of its own."""
    words = [*command, "sweep", str(model), *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


def overlapping(intervals: list[list[float]]) -> bool:
    return any(a[0] < b[1] and b[0] < a[1] for a, b in combinations(intervals, 2))


def made_within(tasks: Sequence[Task], work: Path, jobs: int = 1, threads: int = 0) -> making.Answers:
    """``make_locally`` in this process: far quicker, for tests that processes do not concern."""
    for index, task in enumerate(tasks):
        folder = work / str(index) / MADE
        folder.mkdir(parents=True)
        yield index, making.make_candidate(task, folder)


def fake_make(tasks: list[Task], work: Path) -> making.Answers:
    """Candidates that are copies of their models."""
    for index, task in enumerate(tasks):
        made = work / str(index) / MADE
        made.mkdir(parents=True)
        (made / task.name).write_bytes(task.source.read_bytes())
        costs, proof = (
            CostChanges(*[CostChange(10, 5, 0.5)] * 4),
            ProofRow(status="passed", max_relative_error=0.0, bound=1e-4, inputs=3, sizes=1, outputs={}),
        )
        candidate = CandidateRow(
            headline=None,
            costs=costs,
            proof=proof,
            latency=None,
            warnings=(),
            hints=(),
            deviation=None,
            judgement=None,
            tolerance=None,
        )
        yield index, OutcomeRow(0, "", candidate, seconds=0.0, made=(time.time(), time.time()))
