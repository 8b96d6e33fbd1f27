"""Judge measured numbers by the limits of their gates.

A speed-up is known only as an interval.  Its gate fails if the whole interval lies below the limit by more than the
noise (of either model against itself, at least ``MARGIN``), so that the jitter of a machine fails no model; if the
limit lies within the interval, NEW passes.  It also fails if interval or noise are too wide (``is_too_noisy``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leanonnx.commands.bench.benchmark import BenchCase
from leanonnx.commands.check.gates import (
    AGREEMENT,
    DETERMINISTIC,
    DEVIATION,
    FINITE,
    LATENCY_MS,
    PSNR,
    SPEEDUP,
    GateLimit,
)
from leanonnx.errors import OptionError
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.intervals import IntervalEnds
from leanonnx.evaluation.tally import Deviation
from leanonnx.formatting import UNIT_SPACE, count_text
from leanonnx.reporting.builders import interval_row
from leanonnx.reporting.remarks import interval_text, percent_interval
from leanonnx.runtime.timing import Timing, TimingComparison
from leanonnx.spelling import option

Status = Literal["passed", "failed", "skipped"]
PASSED: Status = "passed"
FAILED: Status = "failed"
SKIPPED: Status = "skipped"
MAX_NOISE = 0.25
"""Largest noise, and width of an interval relative to its lower end, with which a limit can be judged."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Verdict on a gate, with the measured number, its limit and BASE's number, if it has them."""

    gate: str
    status: Status
    detail: str = ""
    measured: float | None = None
    limit: float | None = None
    base: float | None = None


def status_of(passed: bool) -> Status:
    """Status of a gate that passed or failed."""
    return PASSED if passed else FAILED


def count_verdict(gate: str, limit: GateLimit, measured: int, base: int) -> Verdict:
    """Judge bytes, parameters or multiply-adds of NEW."""
    most = limit.absolute(base)
    detail = f"{limit.number:g} times BASE's {base:,}" if limit.share else ""
    return Verdict(
        gate=gate, status=status_of(measured <= most), detail=detail, measured=measured, limit=most, base=base
    )


def finite_verdict(fidelities: Mapping[str, Fidelity]) -> Verdict:
    """Judge NaN and infinities where BASE has none."""
    broken: dict[str, int] = {}
    for fidelity in fidelities.values():
        for one in fidelity.outputs:
            broken[one.output] = broken.get(one.output, 0) + one.broken
    text = "; ".join(
        f"'{name}': {count_text(count, 'value')} of NaN or infinity" for name, count in broken.items() if count
    )
    total = sum(broken.values())
    return Verdict(gate=FINITE, status=status_of(not total), detail=text, measured=total, limit=0)


def determinism_verdict(base: bool, new: bool) -> Verdict:
    """Judge NEW by whether two runs of each model gave the same bytes."""
    if not base:
        return Verdict(gate=DETERMINISTIC, status=SKIPPED, detail="BASE does not output the same bytes twice either")
    return Verdict(
        gate=DETERMINISTIC,
        status=status_of(new),
        detail="" if new else "two runs on the same input output different bytes",
    )


def deviation_verdict(limit: GateLimit, fidelities: Mapping[str, Fidelity], vacuous: Mapping[str, str]) -> Verdict:
    """Judge the relative L2 error of the worst channel of the worst output.

    ``vacuous``: outputs whose comparison is vacuous, with the reason; with any, the gate fails, as NEW may be anything.
    """
    silent = set.intersection(
        *({one.output for one in fidelity.outputs if one.silent} for fidelity in fidelities.values())
    )
    if silent:
        text = (
            f"BASE outputs only NaN or infinity in '{min(silent)}', so its deviation is undefined; give other "
            f"{option('data')}"
        )
        return Verdict(gate=DEVIATION, status=FAILED, detail=text, measured=None, limit=limit.number)
    if vacuous:
        return Verdict(gate=DEVIATION, status=FAILED, detail=_vacuous_text(vacuous), measured=None, limit=limit.number)
    source, worst = max(_outputs(fidelities), key=lambda pair: pair[1].worst)
    in_channel = worst.channels is not None and worst.worst > worst.relative_l2
    interval = worst.channels.interval if worst.channels and in_channel else worst.intervals.relative_l2
    text = f"'{worst.output}' on {source}"
    if not math.isfinite(worst.worst):
        text += ": NaN or infinite, of another shape, or not zero as BASE's is"
    else:
        text += interval_text(interval_row(interval), "{:.3g}".format)
    if math.isfinite(worst.worst) and worst.channels and in_channel:
        text += f", no. {worst.channels.index} along axis {worst.channels.axis}; the whole {worst.relative_l2:.4g}"
    return Verdict(
        gate=DEVIATION,
        status=status_of(worst.worst <= limit.number),
        detail=text,
        measured=worst.worst,
        limit=limit.number,
    )


def _vacuous_text(vacuous: Mapping[str, str]) -> str:
    """Message on outputs whose comparison is vacuous."""
    names = ", ".join(f"'{name}' is {reason}" for name, reason in vacuous.items())
    return f"the comparison is vacuous: in BASE {names}; give inputs that change it with {option('data')}"


def value_verdicts(
    limits: Mapping[str, GateLimit],
    first: Mapping[str, Fidelity],
    further: Mapping[str, Fidelity],
    vacuous: Mapping[str, str],
    base: Path,
) -> list[Verdict]:
    """Judge the outputs by the limits that were given.

    Args:
        limits: by the name of their gate.
        first, further: deviations by the source of the inputs, at the first size and at further ones.
        vacuous: outputs whose comparison is vacuous, with the reason.
        base: file of BASE.

    Raises:
        OptionError: a limit is on what no output holds.
    """
    rows = []
    if DEVIATION in limits:
        rows.append(deviation_verdict(limits[DEVIATION], {**first, **further}, vacuous))
    if AGREEMENT in limits:
        shares = [(one.top1, source, one) for source, one in _outputs(first) if one.top1 is not None]
        if not shares:
            raise OptionError(
                f"{option(AGREEMENT)}: no output of {base} holds classes or whole numbers; use {option(DEVIATION)}"
            )
        rows.append(_least_verdict(AGREEMENT, limits[AGREEMENT], shares, first, vacuous))
    if PSNR in limits:
        decibels = [(one.psnr, source, one) for source, one in _outputs(first) if one.psnr is not None]
        if not decibels:
            raise OptionError(f"{option(PSNR)}: no output of {base} is an image; use {option(DEVIATION)}")
        rows.append(_least_verdict(PSNR, limits[PSNR], decibels, first, vacuous))
    return rows


def _least_verdict(
    gate: str,
    limit: GateLimit,
    rows: Sequence[tuple[float, str, Deviation]],
    fidelities: Mapping[str, Fidelity],
    vacuous: Mapping[str, str],
) -> Verdict:
    """Judge the smallest of the numbers of outputs; those whose comparison tells nothing do not count."""
    telling = [row for row in rows if row[2].output not in vacuous and not row[2].silent]
    if not telling:
        same = {one.output: vacuous.get(one.output, "only NaN or infinity") for _, _, one in rows}
        return Verdict(gate=gate, status=FAILED, detail=_vacuous_text(same), measured=None, limit=limit.number)
    worst, source, output = min(telling, key=lambda row: row[:2])
    intervals = output.intervals
    interval = percent_interval(interval_row(intervals.top1)) if gate == AGREEMENT else _psnr_text(intervals.psnr)
    text = f"'{output.output}' on {source}, {count_text(fidelities[source].samples, 'sample')}{interval}"
    return Verdict(gate=gate, status=status_of(worst >= limit.number), detail=text, measured=worst, limit=limit.number)


def _psnr_text(interval: IntervalEnds | None) -> str:
    return interval_text(interval_row(interval), f"{{:.1f}}{UNIT_SPACE}dB".format)


def _outputs(fidelities: Mapping[str, Fidelity]) -> Iterable[tuple[str, Deviation]]:
    return ((source, one) for source, fidelity in fidelities.items() for one in fidelity.outputs)


def speedup_verdict(limit: GateLimit, cases: Sequence[BenchCase]) -> Verdict:
    """Judge the smallest speed-up over BASE, among failing cases if any fails."""
    rows = [
        (*_judge_speedup(limit, case), case.outcome.speedup)
        for case in cases
        if isinstance(case.outcome, TimingComparison)
    ]
    status, text, ratio = min(rows, key=lambda row: (row[0] != FAILED, row[2]))
    return Verdict(gate=SPEEDUP, status=status, detail=text, measured=ratio, limit=limit.number)


def is_too_noisy(limit: GateLimit, case: BenchCase) -> bool:
    """Return True if a comparison is too noisy to tell on which side of the limit NEW is."""
    comparison = case.outcome
    if isinstance(comparison, Timing) or _reaches(limit.number, comparison) is not None:
        return False
    low, high = comparison.interval
    return comparison.margin > MAX_NOISE or high > low * (1 + MAX_NOISE)


def _reaches(limit: float, comparison: TimingComparison) -> bool | None:
    """True if the speed-up reaches the limit, False if not, None if that is within noise."""
    if comparison.interval[0] >= limit:
        return True
    return False if comparison.interval[1] < limit / (1 + comparison.margin) else None


def _judge_speedup(limit: GateLimit, case: BenchCase) -> tuple[Status, str]:
    """Judge one comparison: status, and interval and noise in words."""
    comparison = case.outcome
    assert isinstance(comparison, TimingComparison)
    low, high = comparison.interval
    text = f"95 % interval {low:.3g} to {high:.3g}, noise {comparison.noise:.1%}; {_setting_text(case)}"
    if is_too_noisy(limit, case):
        return FAILED, f"too noisy to tell: {text}; measure where nothing else runs, or for more {option('seconds')}"
    reached = _reaches(limit.number, comparison)
    if reached is None:
        return PASSED, f"not slower than the limit beyond noise: {text}"
    return (PASSED, text) if reached else (FAILED, f"slower, beyond noise: {text}")


def latency_verdict(limit: GateLimit, cases: Sequence[BenchCase]) -> Verdict:
    """Judge the median milliseconds of one run in the slowest case."""
    slowest = max(cases, key=lambda case: new_timing(case).median)
    timing = new_timing(slowest)
    text = f"10th to 90th percentile {timing.p10:.3f} to {timing.p90:.3f}; {_setting_text(slowest)}"
    return Verdict(
        gate=LATENCY_MS,
        status=status_of(timing.median <= limit.number),
        detail=text,
        measured=timing.median,
        limit=limit.number,
    )


def new_timing(case: BenchCase) -> Timing:
    """Timing of NEW, measured alone or against BASE."""
    return case.outcome if isinstance(case.outcome, Timing) else case.outcome.after


def _setting_text(case: BenchCase) -> str:
    batch = "" if case.batch is None else f", batch {case.batch}"
    return f"{case.setting.provider}, {count_text(case.setting.threads, 'thread')}{batch}"
