"""The folder of a sweep: for one process at a time, with a journal of what is done.

The journal has one JSON object on each line.  Lines that hold a ``header`` say what was asked for, the last of them
counts; each other one is a point, later ones in place of earlier ones.  A line is written by one call and forced to
disk; one that was cut short all the same ends the file and is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from leanonnx.commands.sweep.rows import HeaderRow, JournalRow, PointKey
from leanonnx.errors import OptionError, OutputError
from leanonnx.reporting.encoding import Json, from_json, to_json
from leanonnx.system.outputs import unwritten

LOCK, JOURNAL = ".sweep.lock", "journal.jsonl"
HEADER, MODELS = "header", "models"
"""Keys of the journal."""


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
        raise OutputError(f"{folder}: holds other files and no sweep; give another folder with --out")
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                _leave_unused(folder)
    except Timeout as error:
        raise OutputError(
            f"{folder}: another sweep is using this folder; wait for its end, or give another folder with --out"
        ) from error
    except OSError as error:
        if not unwritten(error, folder):
            raise
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder}: cannot be written: {error.strerror or error}; give another folder with --out")


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
        self.header: Json = {}
        self.points: dict[PointKey, JournalRow] = {}
        self.noted = False
        text = self.path.read_bytes() if self.path.exists() else b""
        whole, end, self.torn = text.rpartition(b"\n")
        self.length = len(whole) + len(end)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError) as error:
                raise OutputError(f"{self.path}: line {number} is damaged; start anew with --restart") from error

    def _take(self, line: Json) -> None:
        header = line.get(HEADER) if isinstance(line, dict) else None
        if header is None:
            row = from_json(JournalRow, line)
            self.points[row.key] = row
        else:
            self.header = header

    def begin(self, header: HeaderRow) -> None:
        """Go on with what was asked for before, or begin; models that were not swept before may be among it.

        Raises:
            OptionError: it was another request, or a model has changed since.
        """
        old, new = dict(self.header), to_json(header)
        old_models, new_models = old.pop(MODELS, {}), new.pop(MODELS)
        for key in sorted(old.keys() | new.keys() if old else ()):
            if old.get(key) != new.get(key):
                raise self._other(f"{key} was {old.get(key)}, and is {new.get(key)}")
        models = {**old_models, **new_models}
        for name, known in old_models.items():
            for key, value in known.items():
                if models[name][key] != value:
                    raise self._other(f"{key} of the model '{name}' was {value}, and is {models[name][key]}")
        self.noted = self.header == {**new, MODELS: models}
        self.header = {**new, MODELS: models}
        if self.torn:
            os.truncate(self.path, self.length)

    def _other(self, difference: str) -> OptionError:
        return OptionError(
            f"{self.path.parent}: holds a sweep that was made otherwise: {difference}; "
            "give what was given then, another folder with --out, or --restart to start anew"
        )

    def note(self, row: JournalRow) -> None:
        """Write down a point."""
        if not self.noted:
            self._write({HEADER: self.header})
            self.noted = True
        self._write(to_json(row))
        self.points[row.key] = row

    def _write(self, row: Json) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
