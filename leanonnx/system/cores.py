"""Name and available cores of the processor, and the resident memory of this process."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil

TOPOLOGY = Path("/sys/devices/system/cpu")
GROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPU_INFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the name of the processor."""
    lines = _text(CPU_INFO).splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def processor_flags() -> frozenset[str]:
    """Return the flags of the instruction sets that the processor has; empty where the system does not list them."""
    lines = (line.split(":", 1) for line in _text(CPU_INFO).splitlines() if line.startswith("flags"))
    return next((frozenset(flags.split()) for _, flags in lines), frozenset())


def available_cores() -> int:
    """Return the number of physical cores available to this process, by its affinity and its control group's quota."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(psutil.cpu_count() or 1))
    siblings = {_text(TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list") for cpu in usable}
    cores = len(siblings) if "" not in siblings else min(psutil.cpu_count(logical=False) or len(usable), len(usable))
    quota = _quota()
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def _quota() -> float:
    """Return the number of processors that the control group grants; 0 if it sets no limit."""
    granted, _, period = _text(GROUP_QUOTA).partition(" ")
    return int(granted) / int(period) if granted.isdecimal() and period.isdecimal() else 0.0


def resident_memory() -> int:
    """Return the bytes of this process in physical memory, after releasing freed ones if possible."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
