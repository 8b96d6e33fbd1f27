"""Name and available cores of the processor, and the resident memory of this process."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
GROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPU_INFO = Path("/proc/cpuinfo")
PROCESS_MEMORY = Path("/proc/self/statm")


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
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_text(TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in usable})
    quota = _quota()
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def _quota() -> float:
    """Return the number of processors that the control group grants; 0 if it sets no limit."""
    granted, _, period = _text(GROUP_QUOTA).partition(" ")
    return int(granted) / int(period) if granted.isdecimal() and period.isdecimal() else 0.0


def resident_memory() -> int:
    """Return the bytes of this process in physical memory, after releasing freed ones if possible; 0 if unknown."""
    pages = _text(PROCESS_MEMORY).split()
    if len(pages) < 2:
        return 0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(_text(PROCESS_MEMORY).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
