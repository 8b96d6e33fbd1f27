"""Where results are written: refused before any work if that would do harm, renamed into place when proven."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from leanonnx.errors import OptionError, OutputError

StrPath = str | os.PathLike[str]
"""A path as callers give it."""
LONGEST_NAME = 240
"""Bytes of a file name that leave room for the suffix of a data file."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk or a quota that is full, which nothing but writing brings about."""
UNWRITTEN = FULL | {errno.EROFS, errno.EIO}
"""Errors that writing to an open file brings about; they name no path."""


def check_writable(source: Path | None, path: Path | None) -> None:
    """Refuse a path that cannot be written or would harm the input, where there is one."""
    if path is None:
        return
    if source is not None and os.path.realpath(path) == os.path.realpath(source):
        raise OptionError(f"{path}: the output is the input file; give another output path")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path}: is no regular file; give the path of the file to write")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path}: the folder '{path.parent}' does not exist; make it first")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(f"{path.name[:40]}…: the file name is too long; give a shorter one")


def check_apart(files: Sequence[Path], target: Path, *beside: Path, given: Iterable[Path] = ()) -> None:
    """Refuse outputs that would overwrite each other or what is read.

    Args:
        files: the input, and the data beside it.
        target: the model to be written.
        beside: what is written beside it.
        given: what else is read.
    """
    outputs = [target, *([data_file(target)] if len(files) > 1 else []), *beside]
    places = [os.path.realpath(path) for path in outputs]
    taken = {os.path.realpath(path): path for path in (*files, *given)}
    for path, place in zip(outputs, places, strict=True):
        if place in taken or any(os.path.exists(path) and taken[t].samefile(path) for t in taken):
            raise OptionError(f"{path}: writing it would overwrite the input or data that are read; give another path")
    for path, place in zip(outputs, places, strict=True):
        if places.count(place) > 1:
            raise OptionError(f"{path}: two files would be written there; give each a path of its own")


def data_file(target: Path) -> Path:
    """Where external data of a written model go."""
    return target.with_name(f"{target.name}.data")


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's file system, always removed.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full; errors of files elsewhere stay what they are.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".leanonnx-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent}: cannot be written to: {error.strerror}; choose another folder") from error
    try:
        yield folder
    except OSError as error:
        if not unwritten(error, folder, target, data_file(target)):
            raise
        raise OutputError(
            f"{target}: cannot be written: {error.strerror or error}; "
            + ("free some space" if error.errno in FULL else "give another path")
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unwritten(error: OSError, *places: Path) -> bool:
    """Whether an error says that something cannot be written at these places or within them, or that the disk is full.

    What cannot be read elsewhere is another matter.
    """
    named = [Path(os.path.abspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str)]
    if error.errno in FULL or not named:
        return error.errno in UNWRITTEN
    return any(path.is_relative_to(os.path.abspath(place)) for path in named for place in places)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file, which appears when it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    with temporary_beside(path) as folder:
        (folder / path.name).write_bytes(content)
        (folder / path.name).replace(path)


def written_size(draft: Path) -> int:
    """Bytes of a draft with its external data."""
    return sum(file.stat().st_size for file in (draft, data_file(draft)) if file.exists())


def publish(draft: Path, target: Path, others: Mapping[Path, bytes] | None = None) -> None:
    """Rename the proven files into place, the model last.

    Args:
        draft: the model as written, with its external data beside it where it has any.
        target: its place.
        others: what goes with it (its plan, say), by place.
    """
    staged = [(data_file(draft), data_file(target))] if data_file(draft).exists() else []
    with ExitStack() as stack:
        for path, content in (others or {}).items():
            folder = stack.enter_context(temporary_beside(path))
            (folder / path.name).write_bytes(content)
            staged.append((folder / path.name, path))
        if staged:
            target.unlink(missing_ok=True)
        for file, place in [*staged, (draft, target)]:
            file.replace(place)
