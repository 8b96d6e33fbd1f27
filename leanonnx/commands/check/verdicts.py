"""What measured numbers mean for the gates they were measured for.

A speed-up is known to an interval only.  The gate fails where all of it lies below the limit by more than the noise
(either model against itself, at least ``MARGIN``), so that a model is not refused for the jitter of a machine; where
the limit lies within the interval, the benefit of the doubt is NEW's.  It fails too where the interval or the noise are
too wide to tell anything (``unsure``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from leanonnx.commands.bench.benchmark import Case
from leanonnx.commands.check.gates import AGREEMENT, DETERMINISTIC, DEVIATION, FINITE, LATENCY_MS, SPEEDUP, Limit
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.tally import Deviation
from leanonnx.formatting import counted
from leanonnx.runtime.timing import Timing, TimingComparison
from leanonnx.spelling import option

Status = Literal["passed", "failed", "skipped"]
PASSED: Status = "passed"
FAILED: Status = "failed"
SKIPPED: Status = "skipped"
NOISY = 0.25
"""Noise, or width of an interval as a share of its lower end, from which on a limit within it cannot be judged."""


@dataclass(frozen=True)
class Verdict:
    """What became of a gate: the number measured, its limit, and BASE's own number, where there are such."""

    gate: str
    status: Status
    detail: str = ""
    measured: float | None = None
    limit: float | None = None
    base: float | None = None


def status_of(passed: bool) -> Status:
    """Passed or failed."""
    return PASSED if passed else FAILED


def amount(gate: str, limit: Limit, measured: int, base: int) -> Verdict:
    """Bytes, parameters or multiply-adds, of NEW and of BASE."""
    most = limit.over(base)
    detail = f"{limit.number:g} times BASE's {base:,}" if limit.share else ""
    return Verdict(gate, status_of(measured <= most), detail, measured, most, base)


def finite(found: Mapping[str, Fidelity]) -> Verdict:
    """NaN and infinities where BASE has none, by what the inputs were."""
    broken: dict[str, int] = {}
    for fidelity in found.values():
        for one in fidelity.outputs:
            broken[one.output] = broken.get(one.output, 0) + one.broken
    text = "; ".join(
        f"'{name}': {counted(count, 'value')} of NaN or infinity" for name, count in broken.items() if count
    )
    total = sum(broken.values())
    return Verdict(FINITE, status_of(not total), text, total, 0)


def repeatable(base: bool, new: bool) -> Verdict:
    """Whether two runs of the models gave the same bytes."""
    if not base:
        return Verdict(DETERMINISTIC, SKIPPED, "BASE does not put out the same bytes twice either")
    return Verdict(DETERMINISTIC, status_of(new), "" if new else "two runs on the same input put out different bytes")


def deviation(limit: Limit, found: Mapping[str, Fidelity], untold: Mapping[str, str]) -> Verdict:
    """Relative L2 error of the worst channel of the worst output, by what the inputs were.

    ``untold`` names outputs that tell nothing, and why; there the gate fails, since NEW may be anything.
    """
    silent = set.intersection(*({one.output for one in fidelity.outputs if one.silent} for fidelity in found.values()))
    if silent:
        text = (
            f"BASE puts out NaN or infinity alone in '{min(silent)}': nothing can be told of it; give other "
            f"{option('data')}"
        )
        return Verdict(DEVIATION, FAILED, text, None, limit.number)
    if untold:
        return Verdict(DEVIATION, FAILED, nothing_told(untold), None, limit.number)
    source, worst = max(_outputs(found), key=lambda pair: pair[1].worst)
    text = f"'{worst.output}' on {source}"
    if not math.isfinite(worst.worst):
        text += ": NaN or infinite, of another shape, or not zero as BASE's is"
    elif worst.channels and worst.worst > worst.relative_l2:
        text += f", no. {worst.channels.index} along axis {worst.channels.axis}; the whole {worst.relative_l2:.4g}"
    return Verdict(DEVIATION, status_of(worst.worst <= limit.number), text, worst.worst, limit.number)


def nothing_told(untold: Mapping[str, str]) -> str:
    """Outputs that tell nothing, in words."""
    names = ", ".join(f"'{name}' is {reason}" for name, reason in untold.items())
    return f"the comparison tells nothing: in BASE {names}; give inputs that change it with {option('data')}"


def agreement(limit: Limit, found: Mapping[str, Fidelity], untold: Mapping[str, str]) -> Verdict | None:
    """Share of equal decisions of the worst output; None if none of them decides anything.

    Decisions that are the same whatever the input, which ``untold`` names, do not count.
    """
    every = [(one.top1, source, one.output) for source, one in _outputs(found) if one.top1 is not None]
    if not every:
        return None
    shares = [each for each in every if each[2] not in untold]
    if not shares:
        same = {output: untold[output] for _, _, output in every}
        return Verdict(AGREEMENT, FAILED, nothing_told(same), None, limit.number)
    worst, source, output = min(shares)
    text = f"'{output}' on {source}, {found[source].samples} samples"
    return Verdict(AGREEMENT, status_of(worst >= limit.number), text, worst, limit.number)


def _outputs(found: Mapping[str, Fidelity]) -> Iterable[tuple[str, Deviation]]:
    return ((source, one) for source, fidelity in found.items() for one in fidelity.outputs)


def speedup(limit: Limit, cases: Sequence[Case]) -> Verdict:
    """Times as fast as BASE, by the least speed-up, of those that fail where any does."""
    found = [
        (*_judged(limit, case), case.outcome.speedup) for case in cases if isinstance(case.outcome, TimingComparison)
    ]
    status, text, ratio = min(found, key=lambda row: (row[0] != FAILED, row[2]))
    return Verdict(SPEEDUP, status, text, ratio, limit.number)


def unsure(limit: Limit, case: Case) -> bool:
    """Whether a comparison is too noisy to tell on which side of the limit NEW is."""
    found = case.outcome
    if isinstance(found, Timing) or _within(limit.number, found) is not None:
        return False
    low, high = found.interval
    return found.margin > NOISY or high > low * (1 + NOISY)


def _within(limit: float, found: TimingComparison) -> bool | None:
    """Whether a model is as many times as fast; None if that cannot be told from noise."""
    if found.interval[0] >= limit:
        return True
    return False if found.interval[1] < limit / (1 + found.margin) else None


def _judged(limit: Limit, case: Case) -> tuple[Status, str]:
    """Whether NEW is as many times as fast, and in words how well that is known."""
    found = case.outcome
    assert isinstance(found, TimingComparison)
    low, high = found.interval
    text = f"95 % interval {low:.3g} to {high:.3g}, noise {found.noise:.1%}; {_where(case)}"
    if unsure(limit, case):
        return FAILED, f"too noisy to tell: {text}; measure where nothing else runs, or for more {option('seconds')}"
    within = _within(limit.number, found)
    if within is None:
        return PASSED, f"no slower than asked for, as far as can be told: {text}"
    return (PASSED, text) if within else (FAILED, f"slower, beyond noise: {text}")


def latency(limit: Limit, cases: Sequence[Case]) -> Verdict:
    """Median milliseconds of one run, in the slowest case."""
    slowest = max(cases, key=lambda case: timing_of_new(case).median)
    found = timing_of_new(slowest)
    text = f"10th to 90th percentile {found.p10:.3f} to {found.p90:.3f}; {_where(slowest)}"
    return Verdict(LATENCY_MS, status_of(found.median <= limit.number), text, found.median, limit.number)


def timing_of_new(case: Case) -> Timing:
    """The times of NEW, measured alone or beside BASE."""
    return case.outcome if isinstance(case.outcome, Timing) else case.outcome.after


def _where(case: Case) -> str:
    batch = "" if case.batch is None else f", batch {case.batch}"
    return f"{case.setting.provider}, {counted(case.setting.threads, 'thread')}{batch}"
