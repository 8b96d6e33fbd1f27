"""Latency of a model, or of two against each other, in this process.

Two models take turns, so that a drift of the machine hits both, on several sets of sessions.  The result is the median
of the ratios of neighbouring blocks of runs, with a bootstrap interval.  Whether onnxruntime flushes denormal numbers
in the calling thread is decided by the first session of a process, and threads of earlier work disturb:
``leanonnx.runtime.subprocess_timing`` measures the same in a process of its own.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.numeric.intervals import Interval, Times, median_interval, noise, ratios, take_turns
from leanonnx.runtime.fastpath import Layouts, layouts
from leanonnx.runtime.providers import Setting, opened_on, prepare, runner
from leanonnx.runtime.sessions import Feed
from leanonnx.system.cores import resident_memory

SECONDS = 3.0
BLOCK = 1e-3
"""Seconds that a block of runs takes at least."""
WARM_UP = 3
"""Runs before the first that counts, at least; ``WARM_SHARE`` of the time, at least."""
WARM_SHARE = 0.05
ROUNDS = 15
"""Rounds that are wanted even when time is up."""
FEW_ROUNDS = 6
"""Rounds that must do when ``PATIENCE`` times the time is up: the fewest whose range is a 95 % interval."""
PATIENCE = 4
NARROW = 0.005
"""Half width, as a share, of an interval that needs no more rounds, if it lies ``CLEAR`` of 1."""
CLEAR = 0.02
MARGIN = 0.01
"""A difference below this is not called one."""
BUSY = 0.05
"""Noise from which on the machine is called busy."""
SPREAD = 1.5
"""90th percentile / median from which on it is."""
MOST_LOTS = 4
ALIKE = 4
"""Models whose times differ by less than this factor are timed in blocks of as many runs."""


@dataclass(frozen=True)
class Timing:
    """How long one model takes.

    Attributes:
        p10, median, p90: milliseconds of one run (of small models: of a run in a block of some).
        session: milliseconds to create the session, its optimisations included.
        first: milliseconds of the first run.
        runs: number of runs timed.
        memory: bytes of resident (host) memory that session, inputs and runs added; 0 if unknown.
        layouts: convolutions in onnxruntime's blocked layout (NCHWc) and not; None on a GPU.
    """

    p10: float
    median: float
    p90: float
    session: float
    first: float
    runs: int
    memory: int
    layouts: Layouts | None

    @property
    def busy(self) -> bool:
        """The times vary so much that the machine had other work, or too few cores."""
        return self.p90 > SPREAD * self.median

    @classmethod
    def read(cls, row: dict[str, Any]) -> Timing:
        """The inverse of ``dataclasses.asdict``."""
        found = row["layouts"]
        return cls(**{**row, "layouts": found and Layouts(**found)})


@dataclass(frozen=True)
class TimingComparison:
    """Two models timed in turns.

    Attributes:
        speedup: median over the rounds of before / after; above 1 the second model is faster.
        interval: 95 % bootstrap interval of ``speedup``.
        noise: how far from 1 such an interval reaches for either model against itself (A/A).
        rounds: how often both were timed.
        lots: on how many sets of sessions.
    """

    before: Timing
    after: Timing
    speedup: float
    interval: Interval
    noise: float
    rounds: int
    lots: int

    @property
    def margin(self) -> float:
        """How far from 1 the whole interval must lie to be called a difference: the noise, at least ``MARGIN``."""
        return max(MARGIN, self.noise)

    @property
    def faster(self) -> bool:
        """The interval lies above 1 by more than the margin."""
        return self.interval[0] > 1 + self.margin

    @property
    def slower(self) -> bool:
        """The interval lies below 1 by more than the margin."""
        return self.interval[1] < 1 / (1 + self.margin)

    @property
    def busy(self) -> bool:
        """The noise is high, or the times of one of the models vary much: trust the ratio, not the milliseconds."""
        return self.noise > BUSY or self.before.busy or self.after.busy

    @property
    def words(self) -> str:
        """What the second model is, next to the first."""
        return "faster" if self.faster else "slower" if self.slower else "no significant difference"


@dataclass(frozen=True)
class Warm:
    """A model that is ready to be timed; ``once``: seconds of its quickest run so far."""

    run: Callable[[], object]
    once: float
    session: float
    first: float
    memory: int


@dataclass(frozen=True)
class Lot:
    """What was timed on one set of sessions: milliseconds by round and model; runs in a block, and facts, by model."""

    times: Times
    sizes: list[int]
    session: list[float]
    first: list[float]
    memory: list[int]


def compare(
    before: Path, after: Path, feed: Feed, setting: Setting, seconds: float = SECONDS, seed: int = 0
) -> TimingComparison:
    """Time two models in turns, on one input, for ``seconds`` (longer for fewer than ``ROUNDS`` rounds).

    Raises:
        ProviderMissing: the provider is not there.
        RunFailed: onnxruntime cannot load or run one of them.
    """
    lots = _timed([before, after], [feed, feed], setting, seconds, seed)
    times = [lot.times for lot in lots]
    found = ratios(times)
    return TimingComparison(
        before=_timing(before, 0, lots, setting),
        after=_timing(after, 1, lots, setting),
        speedup=float(np.median(np.concatenate(found))),
        interval=median_interval(found, seed),
        noise=noise(times, seed),
        rounds=sum(map(len, times)),
        lots=len(lots),
    )


def alone(path: Path, feed: Feed, setting: Setting, seconds: float = SECONDS) -> Timing:
    """Time one model for ``seconds`` (longer for fewer than ``ROUNDS`` rounds).

    Raises:
        ProviderMissing: the provider is not there.
        RunFailed: onnxruntime cannot load or run it.
    """
    return several([path], [feed], setting, seconds)[0]


def several(
    paths: Sequence[Path], feeds: Sequence[Feed], setting: Setting, seconds: float = SECONDS
) -> tuple[Timing, ...]:
    """Time models in turns, each on its own input, all together for ``seconds`` (longer for fewer than ``ROUNDS``).

    Raises:
        ProviderMissing: the provider is not there.
        RunFailed: onnxruntime cannot load or run one of them.
    """
    lots = _timed(paths, feeds, setting, seconds, 0)
    return tuple(_timing(path, which, lots, setting) for which, path in enumerate(paths))


def _timed(paths: Sequence[Path], feeds: Sequence[Feed], setting: Setting, seconds: float, seed: int) -> list[Lot]:
    """Time the models on new sessions again and again, as long as opening them is cheap.

    Where the memory of a session lies decides over a percent or two; which is opened first changes from lot to lot.
    """
    prepare(setting)
    lots: list[Lot] = []
    wanted = MOST_LOTS
    while len(lots) < wanted:
        start = time.perf_counter()
        order = -1 if len(lots) % 2 else 1
        pairs = list(zip(paths, feeds, strict=True))[::order]
        warm = [_warmed(path, feed, setting, seconds / wanted) for path, feed in pairs][::order]
        if not lots:
            wanted = lot_count(time.perf_counter() - start, seconds)
        sizes = block_sizes([each.once for each in warm])
        blocks = [_block(each.run, size) for each, size in zip(warm, sizes, strict=True)]
        with _no_garbage_collection():
            times = take_turns(blocks, enough(seconds / wanted, -(-ROUNDS // wanted), seed))
        facts = ([getattr(each, name) for each in warm] for name in ("session", "first", "memory"))
        lots.append(Lot(times, sizes, *facts))
        del warm, blocks
    return lots


def lot_count(opening: float, seconds: float) -> int:
    """Lots of sessions, by the seconds that opening one takes: all together no more than half of the time."""
    return max(1, min(MOST_LOTS, int(seconds / 2 / max(opening, 1e-9))))


def block_sizes(seconds: Sequence[float]) -> list[int]:
    """Runs in a block of each model, by the seconds of one: a block lasts ``BLOCK`` or more.

    Models that are about as fast get blocks of one size, so that they are treated alike.
    """
    sizes = [max(math.ceil(BLOCK / max(once, 1e-7)), 1) for once in seconds]
    return [max(sizes)] * len(sizes) if max(seconds) < ALIKE * min(seconds) else sizes


def _warmed(path: Path, feed: Feed, setting: Setting, seconds: float) -> Warm:
    before = resident_memory()
    start = time.perf_counter()
    session = opened_on(path, setting)
    created = time.perf_counter() - start
    ready = runner(session, feed, setting)
    once = math.inf
    start = time.perf_counter()
    count = 0
    while count < WARM_UP or time.perf_counter() - start < WARM_SHARE * seconds:
        begun = time.perf_counter()
        ready.run()
        once = min(once, time.perf_counter() - begun)
        count += 1
    memory = max(resident_memory() - before, 0)
    return Warm(ready.run, once, created * 1e3, ready.first * 1e3, memory)


def _block(run: Callable[[], object], count: int) -> Callable[[], float]:
    """A function that runs so many times and gives the milliseconds of one."""

    def timed() -> float:
        start = time.perf_counter_ns()
        for _ in range(count):
            run()
        return (time.perf_counter_ns() - start) / count / 1e6

    return timed


def enough(
    seconds: float, fewest: int, seed: int, clock: Callable[[], float] = time.perf_counter
) -> Callable[[Times], bool]:
    """When to stop: time is up, or the ratio is known narrowly and is clearly not 1.

    Of ``fewest`` rounds some are given up only when ``PATIENCE`` times the time is up. The ratio is looked at when the
    number of rounds has doubled, seldom enough not to find a difference by looking.
    """
    start = clock()

    def stop(times: Times) -> bool:
        elapsed, rounds = clock() - start, len(times)
        if rounds < fewest:
            return rounds >= min(FEW_ROUNDS, fewest) and elapsed >= PATIENCE * seconds
        return elapsed >= seconds or (_doubled(rounds) and settled(times, seed))

    return stop


def _doubled(rounds: int) -> bool:
    return rounds % ROUNDS == 0 and (rounds // ROUNDS).bit_count() == 1


def settled(times: Times, seed: int) -> bool:
    """The interval of the ratio is narrow and lies clear of 1; never of one model alone, nor of more than two."""
    if times.shape[1] != 2 or 1 / (1 + CLEAR) < np.median(ratios([times])) < 1 + CLEAR:
        return False
    low, high = median_interval(ratios([times]), seed)
    return high - low < NARROW * (high + low) and (low > 1 + CLEAR or high < 1 / (1 + CLEAR))


def _timing(path: Path, which: int, lots: Sequence[Lot], setting: Setting) -> Timing:
    """What the lots say of one model; memory is that of the first, since later ones use what it has freed."""
    times = np.concatenate([lot.times[:, which] for lot in lots])
    p10, median, p90 = (float(q) for q in np.quantile(times, [0.1, 0.5, 0.9]))
    return Timing(
        p10,
        median,
        p90,
        session=statistics.median(lot.session[which] for lot in lots),
        first=statistics.median(lot.first[which] for lot in lots),
        runs=sum(lot.sizes[which] * len(lot.times) for lot in lots),
        memory=lots[0].memory[which],
        layouts=layouts(path, setting),
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's sweeps would fall into one model's time or the other's."""
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()
