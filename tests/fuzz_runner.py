"""``leanonnx compress`` on files that may do anything to it: a worker that runs case after case, and who watches it.

The worker runs the command line in its own process, under a limit on its memory, and judges each run. The watch ends
a worker that hangs, and starts another one where one died; both are faults of the case.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from tests.helpers import Done, called, tree
from tests.seed_models import MODEL, Files

PATIENCE = 150.0
"""Seconds after which a run is taken to hang."""
ADDRESS_SPACE = 6 << 30
"""Bytes of address space of a worker."""
LIMITED = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({ADDRESS_SPACE}, {ADDRESS_SPACE}));"
"""Before onnxruntime is imported, which is told then how much it may take."""
PEAK = 4 << 30
"""Bytes of resident memory that a run may come to: onnxruntime gets half of the address space."""
OPTIONS = ("--keep", "0.5", "--best-effort", "--json")
ARRIVED = 0
LINES = 2
ASKED_TOO_MUCH = ("Unable to allocate", "Failed to allocate", "bad_alloc", "MemoryError")
"""What libraries say when there is no memory: whoever reads this should not have asked for it."""


@dataclass(frozen=True)
class Verdict:
    """What came of one run: its exit code and message, and what was wrong with it."""

    code: int
    message: str
    faults: tuple[str, ...]


def laid(folder: Path, files: Files) -> Path:
    """Lay out a case: its files in ``in``, and empty folders for results and temporary files."""
    for name in ("in", "out", "tmp"):
        (folder / name).mkdir(parents=True)
    for name, content in files.items():
        (folder / "in" / name).write_bytes(content)
    return folder


def tried(folder: Path, *options: str) -> Verdict:
    """Run the command in this process on a case that has been laid out, and judge it."""
    before = tree(folder / "in")
    usual, tempfile.tempdir = tempfile.tempdir, str(folder / "tmp")
    try:
        done = called("compress", folder / "in" / MODEL, folder / "out" / "out.onnx", *(options or OPTIONS))
    finally:
        tempfile.tempdir = usual
    return judged(done, folder, before)


def judged(done: Done, folder: Path, before: dict[str, bytes | None]) -> Verdict:
    """Hold a finished run against what every run promises."""
    faults = [] if tree(folder / "in") == before else ["the input has changed"]
    faults += [f"left behind: {name}" for name in tree(folder / "tmp")]
    left = set(tree(folder / "out"))
    if done.returncode == ARRIVED:
        faults += _faults_of_result(done, folder / "out" / "out.onnx", left)
    else:
        faults += [f"left behind: {name}" for name in left] + list(_faults_of_refusal(done))
    return Verdict(done.returncode, done.stderr.strip(), tuple(faults))


def _faults_of_refusal(done: Done) -> Iterator[str]:
    if done.returncode not in (1, 2):
        yield f"exit code {done.returncode}"
    if done.stdout:
        yield "a refusal that prints a result"
    if not done.stderr.startswith("leanonnx: ") or len(done.stderr.strip().splitlines()) > LINES:
        yield "no message of one or two lines"
    if any(text in done.stderr for text in ASKED_TOO_MUCH):
        yield "asked for more memory than there is"


def _faults_of_result(done: Done, path: Path, left: set[str]) -> Iterator[str]:
    if path.name not in left or left - {path.name, f"{path.name}.data"}:
        yield f"wrong files: {sorted(left)}"
        return
    try:
        status = json.loads(done.stdout)["proof"]["status"]
    except (ValueError, KeyError) as error:
        yield f"no report: {error}"
        return
    if status != "passed":
        yield f"written although the proof {status}"
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        yield f"the checker refuses what was written: {error}"


def work(most: int) -> None:
    """The worker: a folder's path and options in, a verdict out, line by line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        folder, *options = json.loads(line)
        verdict = tried(Path(folder), *options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if peak > most:
            verdict = replace(verdict, faults=(*verdict.faults, f"{peak >> 20} MB of memory"))
        answers.write(json.dumps(asdict(verdict)) + "\n")
        answers.flush()


class Watch:
    """Keeps one worker at work."""

    def __init__(self, patience: float = PATIENCE, peak: int = PEAK) -> None:
        self.patience, self.peak = patience, peak
        self.worker: subprocess.Popen[bytes] | None = None

    def ask(self, folder: Path, *options: str) -> Verdict:
        """The verdict on a case that has been laid out; a worker that hangs or dies is the case's fault."""
        worker = self.worker or self.start()
        assert worker.stdin is not None and worker.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(f"{json.dumps([str(folder), *options])}\n".encode())
            worker.stdin.flush()
        ready, _, _ = select.select([worker.stdout], [], [], self.patience)
        line = worker.stdout.readline() if ready else b""
        if not line:
            return self._lost(hanging=not ready)
        row = json.loads(line)
        verdict = Verdict(row["code"], row["message"], tuple(row["faults"]))
        if any("memory" in fault for fault in verdict.faults):
            self.stop()
        return verdict

    def start(self) -> subprocess.Popen[bytes]:
        """A new worker."""
        self.worker = subprocess.Popen(
            [sys.executable, "-c", f"{LIMITED}from tests.fuzz_runner import work; work({self.peak})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self.worker

    def _lost(self, hanging: bool) -> Verdict:
        worker, self.worker = self.worker, None
        assert worker is not None
        if hanging:
            worker.kill()
        with contextlib.suppress(BrokenPipeError):
            worker.communicate()
        code = worker.returncode
        died = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return Verdict(code, "", (f"hangs for {self.patience:g} s" if hanging else f"the process died: {died}",))

    def stop(self) -> None:
        """Let the worker end."""
        if self.worker is not None:
            self.worker.communicate()
        self.worker = None


def judge_all(cases: Iterable[Files], patience: float = PATIENCE) -> Iterator[Verdict]:
    """The verdict on each case, one after the other in one worker."""
    with contextlib.closing(_Room()) as room:
        watch = Watch(patience)
        try:
            for files in cases:
                yield watch.ask(laid(room.next(), files))
        finally:
            watch.stop()


class _Room:
    """A temporary folder that holds one case at a time."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ordeal-"))
        self.count = 0

    def next(self) -> Path:
        """An empty folder; the one before is removed."""
        shutil.rmtree(self.folder / str(self.count), ignore_errors=True)
        self.count += 1
        return self.folder / str(self.count)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
