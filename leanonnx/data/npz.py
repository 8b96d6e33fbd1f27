"""Arrays of .npz files, read row by row: what is stored is mapped, what is deflated is read in order.

The format is that of ``numpy.lib.format``: a zip archive of .npy members.  A file is never read as a whole.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from leanonnx.errors import DataError
from leanonnx.numeric.arrays import Array

Read = Callable[[int], Array]
"""A row of an array by its index [...], a copy of its own."""
LOCAL_HEADER = 30
"""Bytes of a member's local header in the archive, before its name and extra field."""
LENGTHS = 26
"""Where in that header the lengths of the name and of the extra field are."""
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Member:
    """An array [rows, ...] of numbers or text in an .npz file, whose ``header`` is so many bytes long.

    ``offset`` is where what follows the header starts in the file, None where it is deflated.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    header: int
    offset: int | None

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """A reader of rows; deflated ones are to be read in ascending order, which goes through them once.

        Raises:
            DataError: the file cannot be read, is damaged, or deflated with its axes reversed; the reader raises
                it too.
        """
        scattered = self.fortran and len(self.shape) > 1
        if self.offset is not None and scattered:
            with readable(self.path):
                mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
            yield lambda k: np.array(mapped[k], order="C")
            return
        if self.offset is not None:
            start = self.offset
            with readable(self.path):
                file = self.path.open("rb")
            with file:
                yield lambda k: self._row(file, start, k)
            return
        if scattered:
            raise DataError(
                f"{self.path}: array '{self.name}' is compressed with its axes reversed in memory, so that no sample "
                "lies in one piece; write numpy.ascontiguousarray of it"
            )
        with readable(self.path):
            archive = zipfile.ZipFile(self.path)
        with archive:
            with readable(self.path):
                stream = archive.open(f"{self.name}.npy")
            with stream:
                yield lambda k: self._row(stream, self.header, k)

    def _row(self, stream: IO[bytes], start: int, k: int) -> Array:
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        with readable(self.path):
            stream.seek(start + k * size)
            data = bytearray(stream.read(size))
            if len(data) != size:
                raise EOFError(f"array '{self.name}' is cut short")
        return np.frombuffer(data, self.dtype, math.prod(self.shape[1:])).reshape(self.shape[1:])


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say as a DataError what keeps an .npz file from being read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; check the path and permissions") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{path}: not a whole .npz file: {' '.join(str(error).split())[:200]}; write it again with numpy.savez"
        ) from error


def members(path: Path) -> dict[str, Member]:
    """All arrays of an .npz file by name; only their headers are read.

    Raises:
        DataError: no .npz file, or damaged.
    """
    with readable(path), zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {found.name: found for found in (_member(path, archive, info) for info in infos)}


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"array '{name}' has a header of version {version}, expected 1.0 or 2.0")
        shape, fortran, dtype = HEADERS[version](stream)
        header = stream.tell()
    size = dtype.itemsize * math.prod(shape)
    if not dtype.hasobject and info.file_size - header != size:
        raise ValueError(f"array '{name}' declares {size} bytes and holds {info.file_size - header}")
    stored = info.compress_type == zipfile.ZIP_STORED and size > 0
    offset = _start(path, info) + header if stored else None
    return Member(path, name, shape, dtype, fortran, header, offset)


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member that is stored starts in the file."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset + LENGTHS)
        lengths = stream.read(LOCAL_HEADER - LENGTHS)
    return info.header_offset + LOCAL_HEADER + sum(int.from_bytes(lengths[k : k + 2], "little") for k in (0, 2))
