"""The process that forks: runs a command once for each operation that is to fail, and prints how each run ended."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

SECONDS = 120
"""Longest time of a run."""
ENDS = {
    "page.html": b"</html>",
    "junit.xml": b"</testsuites>",
    "journal.jsonl": b"}",
    "sweep.json": b"}",
    "sweep.svg": b"</svg>",
    "sweep.png": b"\xaeB`\x82",
    "sweep.csv": b"",
}
"""How files that hold times end, by name."""


def warm_up() -> None:
    """Import all that a run would."""
    import rich.console  # noqa: F401
    import scipy.optimize
    import scipy.sparse
    import scipy.special  # noqa: F401

    import leanonnx.cli.main
    import leanonnx.commands.calibrate.calibrate
    import leanonnx.page.page  # noqa: F401
    from leanonnx.cli.group import Commands

    dict(Commands())


def folder_hashes(folder: Path) -> dict[str, str | None]:
    """Hash of every file below a folder, None for folders, by relative path.

    Files that hold times differ from run to run: of these it is told whether they are whole.
    """
    return {
        path.relative_to(folder).as_posix(): _identity(path) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _identity(path: Path) -> str:
    content = path.read_bytes()
    if path.name in ENDS:
        return "whole" if content.rstrip().endswith(ENDS[path.name]) else "cut short"
    return sha256(content).hexdigest()


def command_line() -> None:
    """The entry point."""
    from leanonnx.cli.main import main

    main()


def run_once(library: Any, job: dict[str, Any], number: int, place: Path) -> list[Any]:
    """One run, in which an operation fails; after one that did not succeed, another without a fault if asked for."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(job["pristine"], place)
    code, message = forked(library, job, number, place)
    fired, operation, left = library.fault_fired(), library.fault_what().decode(), folder_hashes(place)
    again = None
    if job["again"] and code:
        again, _ = forked(library, job, 0, place)
        left = folder_hashes(place)
    return [number, fired, operation, code, message[-2000:], left, again]


def forked(library: Any, job: dict[str, Any], number: int, place: Path) -> tuple[int, str]:
    """Exit code and stderr of a run in a process of its own, whose n-th operation fails; none does for 0."""
    stderr = place.parent / "stderr.txt"
    child = os.fork()
    if not child:
        code = 3
        try:
            os.chdir(place)
            with stderr.open("wb") as text:
                os.dup2(text.fileno(), 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            signal.alarm(SECONDS)
            sys.argv = ["leanonnx", *job["command"]]
            if number:
                kinds, error, mode, large = job["fault"]
                library.fault_arm(kinds, number, error, mode, large)
            command_line()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:  # as an interpreter shows it
            library.fault_disarm()
            traceback.print_exc()
            code = 1
        finally:
            library.fault_disarm()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, stderr.read_text(encoding="utf-8", errors="replace")


def main() -> None:
    """Run all, until one run has no fault."""
    job = json.loads(sys.argv[2])
    library = ctypes.CDLL(sys.argv[1])
    library.fault_what.restype = ctypes.c_char_p
    library.fault_fired.restype = ctypes.c_long
    library.fault_arm.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_size_t]
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        place = Path(folder).resolve() / "work"
        assert library.fault_setup(os.fsencode(place)) == 0
        warm_up()
        for number in count(job["first"], job["step"]):
            row = run_once(library, job, number, place)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            if not row[1]:
                return


if __name__ == "__main__":
    main()
