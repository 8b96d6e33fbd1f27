"""Faults on purpose: a command is run again and again, and each time another of its file operations fails.

``faults.c`` is loaded before all other libraries and counts operations below a folder. A process imports everything
once; each run is a fork of it that starts from a fresh copy of a prepared folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
OPEN, READ, WRITE, SYNC, RENAME, UNLINK, MAKE, ALLOCATE = (1 << bit for bit in range(8))
"""Kinds of operations, as bits; the same in faults.c."""
FILES = OPEN | READ | WRITE | SYNC | RENAME | UNLINK | MAKE
CHANGES = WRITE | SYNC | RENAME
ONCE, LASTING, SHORT, KILL_BEFORE, KILL_AFTER = range(5)
"""How an operation fails; the same in faults.c."""
KILLED = -9
DRAFT = ".leanonnx-"
"""Start of the names of folders that a killed run may leave."""


class Fault(NamedTuple):
    """A way to fail.

    Attributes:
        kinds: operations that count, as bits.
        error: number of the error.
        mode: see ``ONCE`` and those after it.
        large: bytes from which an allocation counts.
    """

    kinds: int
    error: int = 0
    mode: int = ONCE
    large: int = 0


FAULTS = {
    "EIO": Fault(FILES, errno.EIO),
    "EACCES": Fault(OPEN | RENAME | UNLINK | MAKE, errno.EACCES),
    "disk full": Fault(OPEN | WRITE | SYNC | RENAME | MAKE, errno.ENOSPC),
    "disk full for good": Fault(WRITE, errno.ENOSPC, LASTING),
    "short write": Fault(WRITE, errno.ENOSPC, SHORT),
    "no memory": Fault(ALLOCATE, errno.ENOMEM, ONCE, 1 << 16),
    "killed before": Fault(CHANGES, 0, KILL_BEFORE),
    "killed after": Fault(CHANGES, 0, KILL_AFTER),
}


class Run(NamedTuple):
    """A run in which something failed.

    Attributes:
        number: of the operation that failed, from 1.
        fired: number of operations that failed; 0 in a run with fewer operations.
        operation: the first of them.
        code: exit code; negative for a signal.
        message: stderr.
        folder: files afterwards, by path.
        again: exit code of the same command without a fault afterwards; None if there was none.
    """

    number: int
    fired: int
    operation: str
    code: int
    message: str
    folder: dict[str, str | None]
    again: int | None = None


def build_library(target: Path) -> Path:
    """Compile faults.c."""
    assert COMPILER
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", "-o", target, HERE / "faults.c", "-ldl"], check=True)
    return target


def runs(
    library: Path,
    pristine: Path,
    command: Sequence[str],
    fault: Fault,
    first: int = 1,
    step: int = 1,
    again: bool = False,
) -> Iterator[Run]:
    """Run a command until it ends without a fault, the fault later each time.

    Args:
        library: faults.c, compiled.
        pristine: a folder that every run gets a copy of, and has as its working folder.
        command: arguments of ``leanonnx``.
        fault: the way to fail.
        first: operation that fails in the first run, from 1.
        step: by which the operation that fails moves on.
        again: run the command once more, without a fault, where it did not succeed.
    """
    job = {"pristine": str(pristine), "command": list(command), "fault": list(fault)}
    job |= {"first": first, "step": step, "again": again}
    words = [sys.executable, str(HERE / "runner.py"), str(library), json.dumps(job)]
    with subprocess.Popen(words, env=environment(library), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            yield Run(*json.loads(line))
    assert process.returncode == 0


def environment(library: Path) -> Mapping[str, str]:
    """The environment of the process that forks."""
    root = str(HERE.parent.parent)
    return os.environ | {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def faults_of(run: Run, old: Mapping[str, Any], new: Mapping[str, Any], inputs: Sequence[str]) -> list[str]:
    """Promises that a run broke; nothing if all is well.

    If the command was run again, that run must succeed, and leave all that a run without a fault leaves.

    Args:
        run: the run.
        old: files before, by path.
        new: files after a run without a fault.
        inputs: names of the files that are read.
    """
    wrong = [f"input {name} changed" for name in inputs if run.folder.get(name) != old[name]]
    left = {name: content for name, content in run.folder.items() if name not in inputs}
    before, after = ({n: c for n, c in files.items() if n not in inputs} for files in (old, new))
    is_killed = run.code == KILLED
    litter = sorted(name for name in left if name not in before and name not in after)
    if is_killed or run.operation in ("unlink", "rmdir"):
        litter = [name for name in litter if not _is_draft(name)]
    wrong += [f"left behind: {name}" for name in litter]
    left = {name: content for name, content in left.items() if not _is_draft(name)}
    if run.code == 0 and left != after:
        wrong.append("exit code 0, but not the whole result")
    if run.code not in (0, 1, 2) and not is_killed:
        wrong.append(f"exit code {run.code}")
    if run.code and not is_killed and not run.message.strip():
        wrong.append("no message")
    if "Traceback" in run.message:
        wrong.append("a traceback")
    differences = _differences(left, before, after)
    if run.again is not None:
        return wrong if run.again == 0 and left == after else [*wrong, f"run again: exit {run.again}, {differences}"]
    is_old_or_new = left in (before, after) or (is_killed and _is_between(left, before, after))
    return wrong if is_old_or_new or not run.code else [*wrong, f"neither the old files nor the new: {differences}"]


def _is_draft(name: str) -> bool:
    return any(part.startswith(DRAFT) for part in Path(name).parts)


def _is_between(left: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """True if every file is the old or the new one, and models are none that belong to other files."""
    models = [name for name in {*before, *after} if name.endswith(".onnx")]
    return all(content in (before.get(name), after.get(name)) for name, content in left.items()) and not any(
        name in left for name in models
    )


def _differences(left: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    texts = []
    for name in sorted({*left, *before, *after}):
        content = left.get(name, "none")
        kind = {before.get(name, "none"): "old", after.get(name, "none"): "new"}.get(content, "other")
        texts.append(f"{name} is {'missing' if content == 'none' else kind}")
    return ", ".join(texts)
