"""Memory available to this process."""

from __future__ import annotations

import ctypes
import importlib
import os
from contextlib import suppress
from pathlib import Path

GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

MMAP_THRESHOLD = -3
"""Number of the parameter M_MMAP_THRESHOLD of glibc's mallopt."""
LARGE_BLOCK_BYTES = 1 << 20
"""Bytes from which a block of memory goes back to the system as soon as it is freed."""


def return_large_blocks() -> None:
    """Make the allocator of this process return large blocks when they are freed, where it is glibc's.

    By default it raises that limit with the sizes that it sees, and keeps tens of megabytes for later use.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


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
