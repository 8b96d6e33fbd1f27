"""Memory available to this process."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Numbers of parameters of glibc's mallopt."""
DEFAULT_TRIM_BYTES, DEFAULT_MMAP_COUNT = 1 << 17, 1 << 16
"""Their defaults: free bytes at the end of the heap that are returned, and number of blocks mapped one by one."""
MIN_SPARE_BYTES = 1 << 33
"""Available memory from which a process may keep all that it frees."""
LARGE_BLOCK_BYTES = 1 << 20
"""Bytes from which a block of memory goes back to the system as soon as it is freed."""


REUSED_BLOCK_BYTES = 1 << 25
"""The same limit where blocks are reused: the largest that glibc allows."""
_RETURNS_BLOCKS = threading.Event()
"""Set once large blocks are returned."""


def return_large_blocks() -> None:
    """Make the allocator of this process return large blocks when they are freed, where it is glibc's.

    By default it raises that limit with the sizes that it sees, and keeps tens of megabytes for later use.
    """
    _RETURNS_BLOCKS.set()
    _set_threshold(LARGE_BLOCK_BYTES)


@contextmanager
def reuse_of_blocks() -> Iterator[None]:
    """Inside the context, let the allocator keep freed blocks for later use, even after ``return_large_blocks``.

    Calibration allocates blocks of a few megabytes all the time; to map and clear each anew takes a quarter of its
    processor time.
    """
    if not _RETURNS_BLOCKS.is_set():
        yield
        return
    _set_threshold(REUSED_BLOCK_BYTES)
    try:
        yield
    finally:
        _set_threshold(LARGE_BLOCK_BYTES)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside the context, let the allocator keep all blocks that are freed, of any size, if memory is plentiful.

    Training allocates the same activations in every step; mapping and clearing them anew takes as long as computing
    them.  The peak rises by about a third.
    """
    if available_memory() < MIN_SPARE_BYTES:
        yield
        return
    _set_parameter(MMAP_MAX, 0)
    _set_parameter(TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        _set_parameter(MMAP_MAX, DEFAULT_MMAP_COUNT)
        _set_parameter(TRIM_THRESHOLD, DEFAULT_TRIM_BYTES)


def _set_threshold(size: int) -> None:
    _set_parameter(MMAP_THRESHOLD, size)


def _set_parameter(number: int, value: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(number, value)


def available_memory() -> int:
    """Return the bytes available: the least of machine, control group and process limit; 0 if unknown."""
    limits = psutil.virtual_memory().total, _group_limit(), _process_limit()
    return min((limit for limit in limits if limit > 0), default=0)


def _group_limit() -> int:
    try:
        text = GROUP_LIMIT.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0


def _process_limit() -> int:
    """Return the limit of the address space (ulimit -v); 0 if there is none."""
    try:
        resource = importlib.import_module("resource")
    except ModuleNotFoundError:
        return 0
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 0 if limit == resource.RLIM_INFINITY else int(limit)
