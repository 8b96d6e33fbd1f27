"""Memory available to this process."""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

MMAP_THRESHOLD = -3
"""Number of the parameter M_MMAP_THRESHOLD of glibc's mallopt."""
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


def _set_threshold(size: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, size)


def available_memory() -> int:
    """Return the bytes available: the least of machine, control group and process limit; 0 if unknown."""
    return min((limit for limit in (_machine_memory(), _group_limit(), _process_limit()) if limit > 0), default=0)


def _machine_memory() -> int:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
