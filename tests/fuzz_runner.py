"""Run ``leanonnx compress`` on hostile files: a worker that runs case after case, and its supervisor.

The worker runs the command line in its own process, under a memory limit, and judges each run. The supervisor kills
a worker that hangs and replaces one that died; both count as faults of the case.
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

from tests.helpers import Done, called, tree, without_progress
from tests.seed_models import MODEL, Files

TIMEOUT_SECONDS = 150.0
"""Seconds after which a run counts as hanging."""
MAX_ADDRESS_SPACE = 6 << 30
"""Address space of a worker, in bytes."""
LIMIT_MEMORY = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({MAX_ADDRESS_SPACE}, {MAX_ADDRESS_SPACE}));"
"""Runs before onnxruntime is imported, which reads the limit on import."""
MAX_RESIDENT_BYTES = 4 << 30
"""Largest resident memory of a run, in bytes: onnxruntime gets half of the address space."""
OPTIONS = ("--keep", "0.5", "--best-effort", "--json")
EXIT_SUCCESS = 0
MAX_MESSAGE_LINES = 2
OUT_OF_MEMORY = ("Unable to allocate", "Failed to allocate", "bad_alloc", "MemoryError")
"""Messages of libraries that run out of memory; leanonnx must refuse before they appear."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one run: its exit code, its message and its faults."""

    code: int
    message: str
    faults: tuple[str, ...]


def lay_out(folder: Path, files: Files) -> Path:
    """Create the folder of a case: its files in ``in``, and empty folders for results and temporary files."""
    for name in ("in", "out", "tmp"):
        (folder / name).mkdir(parents=True)
    for name, content in files.items():
        (folder / "in" / name).write_bytes(content)
    return folder


def run_case(folder: Path, *options: str) -> Verdict:
    """Run the command in this process on a case in its folder, and judge the run."""
    before = tree(folder / "in")
    usual, tempfile.tempdir = tempfile.tempdir, str(folder / "tmp")
    try:
        done = called("compress", folder / "in" / MODEL, folder / "out" / "out.onnx", *(options or OPTIONS))
    finally:
        tempfile.tempdir = usual
    return judge(done, folder, before)


def judge(done: Done, folder: Path, before: dict[str, bytes | None]) -> Verdict:
    """Check a finished run against the promises of every run."""
    faults = [] if tree(folder / "in") == before else ["the input has changed"]
    faults += [f"left behind: {name}" for name in tree(folder / "tmp")]
    left = set(tree(folder / "out"))
    if done.returncode == EXIT_SUCCESS:
        faults += _faults_of_result(done, folder / "out" / "out.onnx", left)
    else:
        faults += [f"left behind: {name}" for name in left] + list(_faults_of_refusal(done))
    return Verdict(done.returncode, done.stderr.strip(), tuple(faults))


def _faults_of_refusal(done: Done) -> Iterator[str]:
    if done.returncode not in (1, 2):
        yield f"exit code {done.returncode}"
    if done.stdout:
        yield "a refusal that prints a result"
    message = without_progress(done.stderr)
    if not message.startswith("leanonnx: ") or len(message.strip().splitlines()) > MAX_MESSAGE_LINES:
        yield "no message of one or two lines"
    if any(text in done.stderr for text in OUT_OF_MEMORY):
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
    """Loop of the worker: read a folder and options per line, write one verdict per line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        folder, *options = json.loads(line)
        verdict = run_case(Path(folder), *options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if peak > most:
            verdict = replace(verdict, faults=(*verdict.faults, f"{peak >> 20} MB of memory"))
        answers.write(json.dumps(asdict(verdict)) + "\n")
        answers.flush()


class Supervisor:
    """Keeps one worker process running."""

    def __init__(self, timeout: float = TIMEOUT_SECONDS, peak: int = MAX_RESIDENT_BYTES) -> None:
        self.timeout, self.peak = timeout, peak
        self.worker: subprocess.Popen[bytes] | None = None

    def ask(self, folder: Path, *options: str) -> Verdict:
        """The verdict on a case in its folder; a worker that hangs or dies counts as a fault of the case."""
        worker = self.worker or self.start()
        assert worker.stdin is not None and worker.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(f"{json.dumps([str(folder), *options])}\n".encode())
            worker.stdin.flush()
        ready, _, _ = select.select([worker.stdout], [], [], self.timeout)
        line = worker.stdout.readline() if ready else b""
        if not line:
            return self._discard_worker(hanging=not ready)
        row = json.loads(line)
        verdict = Verdict(row["code"], row["message"], tuple(row["faults"]))
        if any("memory" in fault for fault in verdict.faults):
            self.stop()
        return verdict

    def start(self) -> subprocess.Popen[bytes]:
        """A new worker."""
        self.worker = subprocess.Popen(
            [sys.executable, "-c", f"{LIMIT_MEMORY}from tests.fuzz_runner import work; work({self.peak})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self.worker

    def _discard_worker(self, hanging: bool) -> Verdict:
        worker, self.worker = self.worker, None
        assert worker is not None
        if hanging:
            worker.kill()
        with contextlib.suppress(BrokenPipeError):
            worker.communicate()
        code = worker.returncode
        died = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return Verdict(code, "", (f"hangs for {self.timeout:g} s" if hanging else f"the process died: {died}",))

    def stop(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.communicate()
        self.worker = None


def judge_all(cases: Iterable[Files], timeout: float = TIMEOUT_SECONDS) -> Iterator[Verdict]:
    """The verdict on each case, one after the other in one worker."""
    with contextlib.closing(_CaseFolders()) as folders:
        supervisor = Supervisor(timeout)
        try:
            for files in cases:
                yield supervisor.ask(lay_out(folders.next(), files))
        finally:
            supervisor.stop()


class _CaseFolders:
    """A temporary folder that holds one case at a time."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.count = 0

    def next(self) -> Path:
        """An empty folder; the one before is removed."""
        shutil.rmtree(self.folder / str(self.count), ignore_errors=True)
        self.count += 1
        return self.folder / str(self.count)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
