"""Time for which threads of this process wait for a processor that other work has taken."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

THREADS = Path("/proc/self/task")
"""Folder of the threads of this process, on Linux."""
NANOSECOND = 1e-9


@dataclass(frozen=True)
class WaitingMeter:
    """A meter of the time from its start on.

    Attributes:
        wall: seconds on the clock at the start.
        busy: seconds of processor time that the calling thread had used by then.
        delays: seconds that each thread had waited for a processor by then, as the scheduler of Linux counts them.
    """

    wall: float
    busy: float
    delays: dict[str, float]

    @classmethod
    def start(cls) -> WaitingMeter:
        """Begin to measure."""
        return cls(time.perf_counter(), time.thread_time(), _delays())

    def share(self, computes: bool = True) -> float:
        """Share of the time since the start for which the thread that waited most had no processor.

        Args:
            computes: the calling thread had work all the time, so that it has waited whenever it did not compute.
        """
        now = WaitingMeter.start()
        elapsed = now.wall - self.wall
        waited = max((delay - self.delays.get(thread, 0.0) for thread, delay in now.delays.items()), default=0.0)
        if computes:
            waited = max(waited, elapsed - (now.busy - self.busy))
        return min(max(waited / max(elapsed, NANOSECOND), 0.0), 1.0)


def _delays() -> dict[str, float]:
    """Seconds that each thread of this process has waited for a processor; empty where the system does not tell."""
    delays = {}
    try:
        for thread in THREADS.iterdir():
            delays[thread.name] = int((thread / "schedstat").read_text().split()[1]) * NANOSECOND
    except (OSError, ValueError, IndexError):  # no such file, or a thread that has just ended
        return delays
    return delays
