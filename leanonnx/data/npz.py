"""Arrays of .npz and .npy files, read row by row: stored ones by position, deflated ones in order.

The format is that of ``numpy.lib.format``: a zip archive of .npy members.  A file is never read as a whole.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from leanonnx.errors import DataError
from leanonnx.formatting import quoted_text
from leanonnx.numeric.arrays import Array

RowReader = Callable[[int], Array]
"""Function that returns a copy of a row [...] of an array by its index."""
LOCAL_HEADER_BYTES = 30
"""Bytes of a member's local header before its name and extra field."""
LENGTHS_OFFSET = 26
"""Offset in that header of the lengths of the name and of the extra field."""
NPY_NAME = "array"
"""Name of the array of an .npy file, which has none of its own."""
HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True)
class NpzArray:
    """An array [rows, ...] of numbers or text in an .npz file.

    ``header_bytes`` is the length of its header, ``offset`` the position of its data in the file (None if deflated).
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    header_bytes: int
    offset: int | None

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @contextmanager
    def open_reader(self) -> Iterator[RowReader]:
        """Open a reader of rows; deflated ones are read in one pass if the indices ascend.

        Raises:
            DataError: the file cannot be read, is damaged, or deflated in Fortran order; the reader also raises it.
        """
        scattered = self.is_fortran and len(self.shape) > 1
        if self.offset is not None and scattered:
            with raise_data_errors(self.path):
                mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
            yield lambda k: np.array(mapped[k], order="C")
            return
        if self.offset is not None:
            start = self.offset
            with raise_data_errors(self.path):
                file = self.path.open("rb")
            with file:
                yield lambda k: self._row(file, start, k)
            return
        if scattered:
            raise DataError(
                f"{self.path}: array '{self.name}' is compressed with its axes reversed in memory, so that no sample "
                "lies in one piece; write numpy.ascontiguousarray of it"
            )
        with raise_data_errors(self.path):
            archive = zipfile.ZipFile(self.path)
        with archive:
            with raise_data_errors(self.path):
                stream = archive.open(f"{self.name}.npy")
            with stream:
                yield lambda k: self._row(stream, self.header_bytes, k)

    def _row(self, stream: IO[bytes], start: int, k: int) -> Array:
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        with raise_data_errors(self.path):
            stream.seek(start + k * size)
            data = bytearray(stream.read(size))
            if len(data) != size:
                raise EOFError(f"array '{self.name}' is cut short")
        return np.frombuffer(data, self.dtype, math.prod(self.shape[1:])).reshape(self.shape[1:])


@contextmanager
def raise_data_errors(path: Path) -> Iterator[None]:
    """Raise the errors of reading an .npz file as DataErrors, but for a lack of memory."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # each method of packing has errors of its own, bzip2 an OSError without a number
        if isinstance(error, OSError) and error.errno is not None:
            text = error.strerror or str(error)
            raise DataError(f"{path}: cannot be read: {text}; check the path and permissions") from error
        text = quoted_text(str(error))
        raise DataError(f"{path}: not a whole .npz or .npy file: {text}; write it again with numpy.savez") from error


def npz_arrays(path: Path) -> dict[str, NpzArray]:
    """Return all arrays of an .npz file by name, or that of an .npy file; only their headers are read.

    Raises:
        DataError: neither such a file, or a damaged one.
    """
    with raise_data_errors(path), path.open("rb") as stream:
        if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            return {NPY_NAME: _lone_array(path, stream)}
    with raise_data_errors(path), zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {member.name: member for member in (_member(path, archive, info) for info in infos)}


def _lone_array(path: Path, stream: IO[bytes]) -> NpzArray:
    """The array of an .npy file."""
    stream.seek(0)
    shape, fortran, dtype = _header(stream, NPY_NAME)
    start = stream.tell()
    size = dtype.itemsize * math.prod(shape)
    if not dtype.hasobject and path.stat().st_size - start != size:
        raise ValueError(f"it declares {size} bytes and holds {path.stat().st_size - start}")
    return NpzArray(
        path=path, name=NPY_NAME, shape=shape, dtype=dtype, is_fortran=fortran, header_bytes=start, offset=start
    )


def _header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array that a stream holds."""
    version = npy.read_magic(stream)
    if version not in HEADER_READERS:
        raise ValueError(f"array '{name}' has a header of version {version}, expected 1.0 or 2.0")
    try:
        shape, fortran, dtype = HEADER_READERS[version](stream)
    except (OSError, ValueError, MemoryError):  # said well, or nothing of the header
        raise
    except Exception as error:  # numpy reads it as Python, and raises whatever a damaged one makes it do
        raise ValueError(f"array '{name}' has a damaged header") from error
    return shape, fortran, dtype


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NpzArray:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream, name)
        header = stream.tell()
    size = dtype.itemsize * math.prod(shape)
    if not dtype.hasobject and info.file_size - header != size:
        raise ValueError(f"array '{name}' declares {size} bytes and holds {info.file_size - header}")
    stored = info.compress_type == zipfile.ZIP_STORED and size > 0
    offset = _data_offset(path, info) + header if stored else None
    return NpzArray(
        path=path, name=name, shape=shape, dtype=dtype, is_fortran=fortran, header_bytes=header, offset=offset
    )


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return the position in the file of a stored member's content."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset + LENGTHS_OFFSET)
        lengths = stream.read(LOCAL_HEADER_BYTES - LENGTHS_OFFSET)
    return info.header_offset + LOCAL_HEADER_BYTES + sum(int.from_bytes(lengths[k : k + 2], "little") for k in (0, 2))
