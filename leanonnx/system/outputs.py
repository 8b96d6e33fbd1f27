"""Output files: checked before any work, and renamed into place once they are complete."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from leanonnx.errors import OptionError, OutputError

StrPath = str | os.PathLike[str]
"""A path as accepted by public functions."""
MAX_NAME_BYTES = 240
"""Longest file name that leaves room for the suffix of a data file, in bytes."""
OLD = "old-"
"""Start of the name of a file that is set aside."""
DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a full disk or quota, which only writing can raise."""
REMOVAL_TRIES = 2
"""Times that a temporary folder is removed: an error in between leaves nothing behind."""
WRITE_ERRORS = DISK_FULL_ERRORS | {errno.EROFS, errno.EIO}
"""Errors of writing to an open file; they name no path."""


def check_writable(source: Path | None, path: Path | None) -> None:
    """Raise an error if ``path`` cannot be written or would overwrite the input; None is accepted for both."""
    if path is None:
        return
    if source is not None and os.path.realpath(path) == os.path.realpath(source):
        raise OptionError(f"{path}: the output is the input file; give another output path")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path}: is no regular file; give the path of the file to write")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path}: the folder '{path.parent}' does not exist; make it first")
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise OutputError(f"{path.name[:40]}…: the file name is too long; give a shorter one")


def check_no_overwrites(files: Sequence[Path], output: Path, *beside: Path, given: Iterable[Path] = ()) -> None:
    """Raise an error if outputs would overwrite each other or a file that is read.

    Args:
        files: the input model and its external data.
        output: the model to write.
        beside: further files to write.
        given: further files that are read.
    """
    outputs = [output, *([data_file(output)] if len(files) > 1 else []), *beside]
    resolved = [os.path.realpath(path) for path in outputs]
    taken = {os.path.realpath(path): path for path in (*files, *given)}
    for path, real in zip(outputs, resolved, strict=True):
        if real in taken or any(os.path.exists(path) and taken[t].samefile(path) for t in taken):
            raise OptionError(f"{path}: writing it would overwrite the input or data that are read; give another path")
    for path, real in zip(outputs, resolved, strict=True):
        if resolved.count(real) > 1:
            raise OptionError(f"{path}: two files would be written there; give each a path of its own")


def data_file(model: Path) -> Path:
    """Return the path of the external data of a written model."""
    return model.with_name(f"{model.name}.data")


@contextmanager
def temporary_folder_beside(output: Path) -> Iterator[Path]:
    """Make a temporary folder on the file system of an output, and remove it afterwards.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full; errors of files elsewhere pass unchanged.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".leanonnx-", dir=output.parent))
    except OSError as error:
        raise OutputError(f"{output.parent}: cannot be written to: {error.strerror}; choose another folder") from error
    try:
        yield folder
    except OSError as error:
        if not is_write_error(error, folder, output, data_file(output)):
            raise
        raise OutputError(
            f"{output}: cannot be written: {error.strerror or error}; "
            + ("free some space" if error.errno in DISK_FULL_ERRORS else "give another path")
        ) from error
    finally:
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder as far as the system allows, more than once where single removals fail."""
    for _ in range(REMOVAL_TRIES):
        shutil.rmtree(folder, ignore_errors=True)


def is_write_error(error: OSError, *paths: Path) -> bool:
    """Return True if an error means that the disk is full, or that these paths or files within them cannot be written.

    Return False for errors of reading files elsewhere.
    """
    files = [Path(os.path.abspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str)]
    if error.errno in DISK_FULL_ERRORS or not files:
        return error.errno in WRITE_ERRORS
    return any(file.is_relative_to(os.path.abspath(path)) for file in files for path in paths)


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield the path of a draft; once it is written, rename it into place.

    Raises:
        OutputError: it cannot be written.
    """
    with temporary_folder_beside(path) as folder:
        yield folder / path.name
        _replace_all([(folder / path.name, path)])


def write_file(path: Path, content: bytes) -> None:
    """Write a small file atomically.

    Raises:
        OutputError: it cannot be written.
    """
    with draft_of(path) as draft:
        draft.write_bytes(content)


def written_size(draft: Path) -> int:
    """Return the bytes of a draft including its external data."""
    return sum(file.stat().st_size for file in (draft, data_file(draft)) if file.exists())


def publish(draft: Path, output: Path, others: Mapping[Path, bytes] | None = None) -> None:
    """Rename finished files into place, the model last; after an error, what was there is put back.

    A process that is killed meanwhile leaves no model rather than one beside files that are not its own.

    Args:
        draft: the model as written, with its external data, if any, beside it.
        output: the final path of the model.
        others: contents of further files (such as its plan) by their paths.
    """
    staged = [(data_file(draft), data_file(output))] if data_file(draft).exists() else []
    with ExitStack() as stack:
        for path, content in (others or {}).items():
            folder = stack.enter_context(temporary_folder_beside(path))
            (folder / path.name).write_bytes(content)
            staged.append((folder / path.name, path))
        _replace_all([*staged, (draft, output)])


def _replace_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Put files in place of others in one step, or several: all of them, or none.

    Args:
        moves: each file, and where it goes; the last one says that all are there.
    """
    for file, _ in moves:
        _store(file)
    aside: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        for file, path in reversed(moves) if len(moves) > 1 else ():
            if os.path.lexists(path):
                old = file.with_name(f"{OLD}{file.name}")
                path.replace(old)
                aside.append((old, path))
        for file, path in moves:
            file.replace(path)
            placed.append(path)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        for old, path in reversed(aside):
            old.replace(path)
        raise
    for folder in {path.parent for _, path in moves}:
        with suppress(OSError):  # not every file system knows it
            _store(folder)


def _store(path: Path) -> None:
    """Wait until a file or a folder is on the disk, as a loss of power would find it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
