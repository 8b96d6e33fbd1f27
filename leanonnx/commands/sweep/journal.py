"""The folder of a sweep: for one process at a time, with a journal of what is done.

The journal has one JSON object on each line.  Lines that hold a ``header`` say what was asked for, the last of them
counts; each other one is a point, later ones in place of earlier ones.  A line is written by one call and forced to
disk; one that was cut short all the same ends the file and is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from leanonnx.errors import OptionError, OutputError
from leanonnx.reporting.report import Row
from leanonnx.spelling import option
from leanonnx.system.outputs import unwritten

LOCK, JOURNAL = ".sweep.lock", "journal.jsonl"
Key = tuple[str, float]
"""Which point: the model's name in the sweep, the fraction asked for."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A folder of which this process has the use alone; made where there is none, and left only if used.

    The lock is the system's: it ends with the process, whatever ends that.

    Raises:
        OutputError: another sweep is using it, it holds other things, or it cannot be written to.
    """
    try:
        folder.mkdir(exist_ok=True)
        own = not any(folder.iterdir()) or any((folder / name).exists() for name in (LOCK, JOURNAL))
    except FileNotFoundError as error:
        raise OutputError(f"{folder}: the folder '{folder.parent}' does not exist; make it first") from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not own:
        raise OutputError(f"{folder}: holds other files and no sweep; give another folder with {option('out')}")
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                _leave_unused(folder)
    except Timeout as error:
        raise OutputError(
            f"{folder}: another sweep is using this folder; wait for its end, or give another folder with "
            f"{option('out')}"
        ) from error
    except OSError as error:
        if not unwritten(error, folder):
            raise
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder}: cannot be written: {error.strerror or error}; give another folder with {option('out')}"
    )


def _leave_unused(folder: Path) -> None:
    """Take a folder away again that nothing was written to, where the system lets go of the lock's file."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


class Journal:
    """What has been done so far: ``points`` as they were noted last."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.header: Row = {}
        self.points: dict[Key, Row] = {}
        self.noted = False
        text = self.path.read_bytes() if self.path.exists() else b""
        whole, end, self.torn = text.rpartition(b"\n")
        self.length = len(whole) + len(end)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path}: line {number} is damaged; start anew with {option('restart', True)}"
                ) from error

    def _take(self, row: Row) -> None:
        if "header" in row:
            self.header = row["header"]
        else:
            self.points[row["model"], row["asked"]] = row

    def begin(self, header: Mapping[str, Any]) -> None:
        """Go on with what was asked for before, or begin; models that were not swept before may be among it.

        Raises:
            OptionError: it was another request, or a model has changed since.
        """
        old, new = self.header, json.loads(json.dumps(header))
        for key in sorted(old.keys() | new.keys() if old else ()):
            if key != "models" and old.get(key) != new.get(key):
                raise self._other(f"{key} was {old.get(key)}, and is {new.get(key)}")
        models = {**old.get("models", {}), **new["models"]}
        for name, known in old.get("models", {}).items():
            for key, value in known.items():
                if models[name][key] != value:
                    raise self._other(f"{key} of the model '{name}' was {value}, and is {models[name][key]}")
        self.header = {**new, "models": models}
        self.noted = self.header == old
        if self.torn:
            os.truncate(self.path, self.length)

    def _other(self, difference: str) -> OptionError:
        return OptionError(
            f"{self.path.parent}: holds a sweep that was made otherwise: {difference}; "
            f"give what was given then, another folder with {option('out')}, or {option('restart', True)} to start anew"
        )

    def note(self, row: Row) -> None:
        """Write down a point."""
        if not self.noted:
            self._write({"header": self.header})
            self.noted = True
        self._write(row)
        self._take(row)

    def _write(self, row: Row) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
