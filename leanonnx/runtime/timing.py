"""Time a model, or compare the latency of two, in this process.

Two models take turns, so that a drift of the machine affects both, on several sets of sessions (lots).  The result is
the median of the ratios of neighbouring blocks of runs, with a bootstrap interval.  The first session of a process
decides whether onnxruntime flushes denormal numbers in the calling thread, and threads of earlier work interfere:
``leanonnx.runtime.subprocess_timing`` does the same in a fresh process.
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

from leanonnx.numeric.intervals import Interval, RunTimes, median_interval, noise_floor, time_in_turns, time_ratios
from leanonnx.runtime.fastpath import ConvolutionLayouts, convolution_layouts
from leanonnx.runtime.providers import Setting, open_timed_session, prepare_provider, start_runner
from leanonnx.runtime.sessions import Feed
from leanonnx.system.cores import resident_memory
from leanonnx.system.waiting import WaitingMeter

DEFAULT_TIMING_SECONDS = 3.0
"""Default duration of a timing."""
MIN_BLOCK_SECONDS = 1e-3
"""Shortest duration of a block of runs, in seconds."""
MIN_WARM_UP_RUNS = 3
"""Fewest untimed runs before the first block."""
WARM_UP_SHARE = 0.05
"""Smallest share of the time that is spent on untimed runs."""
WANTED_ROUNDS = 15
"""Rounds to complete even when time is up."""
MIN_ROUNDS = 6
"""Rounds that suffice after ``TIMING_PATIENCE`` times the time: the fewest whose range is a 95 % interval."""
TIMING_PATIENCE = 4
NARROW_SHARE = 0.005
"""Relative half width of an interval that needs no more rounds, if it is ``CLEAR_SHARE`` away from 1."""
CLEAR_SHARE = 0.02
MIN_MARGIN = 0.01
"""Smallest relative difference that can be significant."""
BUSY_NOISE = 0.05
"""Noise above which the machine counts as busy."""
BUSY_SPREAD = 1.5
"""90th percentile / median above which the machine counts as busy."""
BUSY_WAITING = 0.05
"""Share of the time spent waiting for a processor above which the machine counts as busy."""
FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference shown"
"""The verdicts on two models."""
MAX_LOTS = 4
MAX_EQUAL_BLOCK_RATIO = 4
"""Models whose times differ by less than this factor are timed in blocks of the same number of runs."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latency of one model.

    Attributes:
        p10, median, p90: milliseconds of one run (for small models, the mean of a block of runs).
        session: milliseconds to create the session, including optimisation.
        first: milliseconds of the first run.
        runs: number of runs timed.
        memory: bytes of resident (host) memory added by session, inputs and runs; 0 if unknown.
        layouts: number of convolutions by layout (blocked, NCHWc, or not); None on a GPU.
        waited: share of the timed rounds, those of other models included, for which the process waited for a processor.
    """

    p10: float
    median: float
    p90: float
    session: float
    first: float
    runs: int
    memory: int
    layouts: ConvolutionLayouts | None
    waited: float = 0.0

    @property
    def is_busy(self) -> bool:
        """True if the machine had other work, or too few cores: the model had to wait, or its times vary much."""
        return self.waited > BUSY_WAITING or self.spread > BUSY_SPREAD

    @property
    def spread(self) -> float:
        """90th percentile over median."""
        return self.p90 / self.median if self.median else 1.0

    @property
    def busy_signs(self) -> str:
        """The measured signs of other work, in words."""
        return _busy_signs(self.waited, 0.0, self.spread)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Timing:
        """Invert ``dataclasses.asdict``."""
        counts = row["layouts"]
        return cls(**{**row, "layouts": counts and ConvolutionLayouts(**counts)})


def _busy_signs(waited: float, noise: float, spread: float) -> str:
    """The signs that the machine had other work, in words: the share of time waited, noise, and spread of times."""
    signs = [
        (waited > BUSY_WAITING, f"waiting for a processor took {waited:.0%} of the time"),
        (noise > BUSY_NOISE, f"the times of one model differ by {noise:.0%}"),
        (spread > BUSY_SPREAD, f"one run in ten took {spread:.1f} times the median or more"),
    ]
    return ", ".join(text for shown, text in signs if shown)


@dataclass(frozen=True, kw_only=True)
class TimingComparison:
    """Two models timed in turns.

    Attributes:
        speedup: median over the rounds of before / after; above 1 the second model is faster.
        interval: 95 % bootstrap interval of ``speedup``.
        noise: largest distance from 1 of such an interval for either model against itself (A/A).
        rounds: number of blocks timed of each model.
        lots: number of sets of sessions.
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
        """Distance from 1 that the whole interval must exceed to be significant: the noise, at least ``MIN_MARGIN``."""
        return max(MIN_MARGIN, self.noise)

    @property
    def is_faster(self) -> bool:
        """True if the interval lies above 1 by more than the margin: what leanonnx means by "faster" everywhere."""
        return self.interval[0] > 1 + self.margin

    @property
    def is_slower(self) -> bool:
        """True if the interval lies below 1 by more than the margin."""
        return self.interval[1] < 1 / (1 + self.margin)

    @property
    def is_busy(self) -> bool:
        """True if noise, spread or waiting is high: the milliseconds cannot be trusted.

        A model that is faster even then is faster; that it is not shows nothing.
        """
        return self.noise > BUSY_NOISE or self.before.is_busy or self.after.is_busy

    @property
    def busy_signs(self) -> str:
        """The measured signs of other work, in words."""
        sides = (self.before, self.after)
        return _busy_signs(max(each.waited for each in sides), self.noise, max(each.spread for each in sides))

    @property
    def verdict(self) -> str:
        """The second model compared with the first, in words."""
        return FASTER if self.is_faster else SLOWER if self.is_slower else NO_DIFFERENCE


@dataclass(frozen=True, kw_only=True)
class WarmModel:
    """A warmed-up model.

    Attributes:
        run: computes once.
        fastest_seconds: seconds of the fastest run so far.
        session: milliseconds to create the session.
        first: milliseconds of the first run.
        memory: bytes of resident memory added.
    """

    run: Callable[[], object]
    fastest_seconds: float
    session: float
    first: float
    memory: int


@dataclass(frozen=True)
class TimingLot:
    """Times on one set of sessions: milliseconds [rounds, models]; block sizes and facts of ``WarmModel`` [models].

    ``waited``: share of the time that the process waited for a processor.
    """

    times: RunTimes
    waited: float
    block_sizes: list[int]
    session: list[float]
    first: list[float]
    memory: list[int]


def compare_latency(
    before: Path, after: Path, feed: Feed, setting: Setting, seconds: float = DEFAULT_TIMING_SECONDS, seed: int = 0
) -> TimingComparison:
    """Time two models in turns, on one input, for ``seconds`` (longer if needed for ``WANTED_ROUNDS``).

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run one of them.
    """
    lots = _time_lots([before, after], [feed, feed], setting, seconds, seed)
    times = [lot.times for lot in lots]
    speedups = time_ratios(times)
    return TimingComparison(
        before=_summary(before, 0, lots, setting),
        after=_summary(after, 1, lots, setting),
        speedup=float(np.median(np.concatenate(speedups))),
        interval=median_interval(speedups, seed),
        noise=noise_floor(times, seed),
        rounds=sum(map(len, times)),
        lots=len(lots),
    )


def time_model(path: Path, feed: Feed, setting: Setting, seconds: float = DEFAULT_TIMING_SECONDS) -> Timing:
    """Time one model for ``seconds`` (longer if needed for ``WANTED_ROUNDS``).

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run it.
    """
    return time_models([path], [feed], setting, seconds)[0]


def time_models(
    paths: Sequence[Path], feeds: Sequence[Feed], setting: Setting, seconds: float = DEFAULT_TIMING_SECONDS
) -> tuple[Timing, ...]:
    """Time models in turns, each on its own input, for ``seconds`` in total (longer if needed for ``WANTED_ROUNDS``).

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run one of them.
    """
    lots = _time_lots(paths, feeds, setting, seconds, 0)
    return tuple(_summary(path, which, lots, setting) for which, path in enumerate(paths))


def _time_lots(
    paths: Sequence[Path], feeds: Sequence[Feed], setting: Setting, seconds: float, seed: int
) -> list[TimingLot]:
    """Time the models on several sets of sessions, as many as can be opened cheaply.

    The location of a session's memory accounts for a percent or two; the order of opening alternates between lots.
    """
    prepare_provider(setting)
    lots: list[TimingLot] = []
    count = MAX_LOTS
    while len(lots) < count:
        start = time.perf_counter()
        order = -1 if len(lots) % 2 else 1
        pairs = list(zip(paths, feeds, strict=True))[::order]
        warm = [_warm_up(path, feed, setting, seconds / count) for path, feed in pairs][::order]
        if not lots:
            count = lot_count(time.perf_counter() - start, seconds)
        sizes = block_sizes([each.fastest_seconds for each in warm])
        blocks = [_timed_block(each.run, size) for each, size in zip(warm, sizes, strict=True)]
        with _no_garbage_collection():
            meter = WaitingMeter.start()
            times = time_in_turns(blocks, stopping_rule(seconds / count, -(-WANTED_ROUNDS // count), seed))
            waited = meter.share(computes=not setting.uses_gpu)
        facts = ([getattr(each, name) for each in warm] for name in ("session", "first", "memory"))
        lots.append(TimingLot(times, waited, sizes, *facts))
        del warm, blocks
    return lots


def lot_count(opening: float, seconds: float) -> int:
    """Return the number of lots, if one takes ``opening`` seconds to open: opening takes at most half of the time."""
    return max(1, min(MAX_LOTS, int(seconds / 2 / max(opening, 1e-9))))


def block_sizes(seconds: Sequence[float]) -> list[int]:
    """Return the runs in a block of each model, given the seconds of one: a block lasts ``MIN_BLOCK_SECONDS`` or more.

    Models of similar speed get blocks of the same size, so that they are treated alike.
    """
    sizes = [max(math.ceil(MIN_BLOCK_SECONDS / max(once, 1e-7)), 1) for once in seconds]
    return [max(sizes)] * len(sizes) if max(seconds) < MAX_EQUAL_BLOCK_RATIO * min(seconds) else sizes


def _warm_up(path: Path, feed: Feed, setting: Setting, seconds: float) -> WarmModel:
    before = resident_memory()
    start = time.perf_counter()
    session = open_timed_session(path, setting)
    created = time.perf_counter() - start
    ready = start_runner(session, feed, setting)
    once = math.inf
    start = time.perf_counter()
    count = 0
    while count < MIN_WARM_UP_RUNS or time.perf_counter() - start < WARM_UP_SHARE * seconds:
        begun = time.perf_counter()
        ready.run()
        once = min(once, time.perf_counter() - begun)
        count += 1
    memory = max(resident_memory() - before, 0)
    return WarmModel(
        run=ready.run, fastest_seconds=once, session=created * 1e3, first=ready.first_seconds * 1e3, memory=memory
    )


def _timed_block(run: Callable[[], object], count: int) -> Callable[[], float]:
    """Return a function that times ``count`` runs and returns the milliseconds of one."""

    def time_block() -> float:
        start = time.perf_counter_ns()
        for _ in range(count):
            run()
        return (time.perf_counter_ns() - start) / count / 1e6

    return time_block


def stopping_rule(
    seconds: float, fewest: int, seed: int, clock: Callable[[], float] = time.perf_counter
) -> Callable[[RunTimes], bool]:
    """Return a stopping rule: time is up, or the interval of the ratio is narrow and clearly excludes 1.

    Fewer than ``fewest`` rounds suffice only after ``TIMING_PATIENCE`` times the time.  The ratio is tested only when
    the number of rounds has doubled, which limits the bias of repeated testing.
    """
    start = clock()

    def stop(times: RunTimes) -> bool:
        elapsed, rounds = clock() - start, len(times)
        if rounds < fewest:
            return rounds >= min(MIN_ROUNDS, fewest) and elapsed >= TIMING_PATIENCE * seconds
        return elapsed >= seconds or (_is_doubled(rounds) and is_settled(times, seed))

    return stop


def _is_doubled(rounds: int) -> bool:
    return rounds % WANTED_ROUNDS == 0 and (rounds // WANTED_ROUNDS).bit_count() == 1


def is_settled(times: RunTimes, seed: int) -> bool:
    """Return True if the interval of the ratio is narrow and clearly excludes 1; always False unless models are two."""
    if times.shape[1] != 2 or 1 / (1 + CLEAR_SHARE) < np.median(time_ratios([times])) < 1 + CLEAR_SHARE:
        return False
    low, high = median_interval(time_ratios([times]), seed)
    return high - low < NARROW_SHARE * (high + low) and (low > 1 + CLEAR_SHARE or high < 1 / (1 + CLEAR_SHARE))


def _summary(path: Path, which: int, lots: Sequence[TimingLot], setting: Setting) -> Timing:
    """Summarise the lots of one model; memory is that of the first, as later ones reuse what it has freed."""
    times = np.concatenate([lot.times[:, which] for lot in lots])
    p10, median, p90 = (float(q) for q in np.quantile(times, [0.1, 0.5, 0.9]))
    return Timing(
        p10=p10,
        median=median,
        p90=p90,
        session=statistics.median(lot.session[which] for lot in lots),
        first=statistics.median(lot.first[which] for lot in lots),
        runs=sum(lot.block_sizes[which] * len(lot.times) for lot in lots),
        memory=lots[0].memory[which],
        layouts=convolution_layouts(path, setting),
        waited=statistics.fmean(lot.waited for lot in lots),
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which would fall into the time of one model or the other."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
