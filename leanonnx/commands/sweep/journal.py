"""The folder of a sweep, locked for one process at a time, and its journal of completed points.

The journal has one JSON object per line.  Lines with a ``header`` contain the request; the last of them counts.  All
others are points; later ones replace earlier ones.  Each line is written by one call and forced to disk; an incomplete
last line is ignored.
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
from leanonnx.spelling import option
from leanonnx.system.outputs import is_write_error

LOCK, JOURNAL = ".sweep.lock", "journal.jsonl"
HEADER, MODELS = "header", "models"
"""Keys of the journal."""


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; it is created if missing, and removed again if nothing is written to it.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
        OutputError: another sweep uses the folder, it contains other files, or it cannot be written to.
    """
    try:
        folder.mkdir(exist_ok=True)
        own = not any(folder.iterdir()) or any((folder / name).exists() for name in (LOCK, JOURNAL))
    except FileNotFoundError as error:
        raise OutputError(f"{folder}: the folder '{folder.parent}' does not exist; make it first") from error
    except OSError as error:
        raise _write_error(folder, error) from error
    if not own:
        raise OutputError(f"{folder}: holds other files and no sweep; give another folder with {option('out')}")
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                _remove_unused(folder)
    except Timeout as error:
        raise OutputError(
            f"{folder}: another sweep is using this folder; wait for its end, or give another folder with "
            f"{option('out')}"
        ) from error
    except OSError as error:
        if not is_write_error(error, folder):
            raise
        raise _write_error(folder, error) from error


def _write_error(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder}: cannot be written: {error.strerror or error}; give another folder with {option('out')}"
    )


def _remove_unused(folder: Path) -> None:
    """Remove a folder that nothing was written to, if the system allows removing the lock file."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


class Journal:
    """Journal of a sweep: ``points`` as last recorded."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.header: Json = {}
        self.points: dict[PointKey, JournalRow] = {}
        self.header_written = False
        text = self.path.read_bytes() if self.path.exists() else b""
        whole, end, self.incomplete_line = text.rpartition(b"\n")
        self.length = len(whole) + len(end)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise OutputError(
                    f"{self.path}: line {number} is damaged; start anew with {option('restart', True)}"
                ) from error

    def _take(self, line: Json) -> None:
        header = line.get(HEADER) if isinstance(line, dict) else None
        if header is None:
            row = from_json(JournalRow, line)
            if (row.outcome.code == 0) != (row.outcome.candidate is not None):
                raise ValueError("a result without its candidate")
            self.points[row.key] = row
        else:
            models = header.get(MODELS, {}) if isinstance(header, dict) else None
            if not isinstance(models, dict) or not all(isinstance(model, dict) for model in models.values()):
                raise ValueError("the header is damaged")
            self.header = header

    def begin(self, header: HeaderRow) -> None:
        """Begin or continue a sweep; the request may add models.

        Raises:
            OptionError: the folder holds another request, or a model has changed.
        """
        old, new = dict(self.header), to_json(header)
        old_models, new_models = old.pop(MODELS, {}), new.pop(MODELS)
        for key in sorted(old.keys() | new.keys() if old else ()):
            if old.get(key) != new.get(key):
                raise self._mismatch(f"{key} was {old.get(key)}, and is {new.get(key)}")
        models = {**old_models, **new_models}
        for name, known in old_models.items():
            for key, value in known.items():
                if models[name].get(key) != value:
                    raise self._mismatch(f"{key} of the model '{name}' was {value}, and is {models[name].get(key)}")
        self.header_written = self.header == {**new, MODELS: models}
        self.header = {**new, MODELS: models}
        if self.incomplete_line:
            os.truncate(self.path, self.length)

    def _mismatch(self, difference: str) -> OptionError:
        return OptionError(
            f"{self.path.parent}: holds a sweep that was made otherwise: {difference}; "
            f"give what was given then, another folder with {option('out')}, or {option('restart', True)} to start anew"
        )

    def note(self, row: JournalRow) -> None:
        """Record a point."""
        if not self.header_written:
            self._write({HEADER: self.header})
            self.header_written = True
        self._write(to_json(row))
        self.points[row.key] = row

    def _write(self, row: Json) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
