"""Build the report of ``leanonnx sweep`` from the outcomes of its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from leanonnx.commands.compress.judging import RANDOM_INPUTS
from leanonnx.commands.sweep.knee import MIN_KNEE_POINTS, knee
from leanonnx.commands.sweep.rows import (
    ConditionsRow,
    CurveRow,
    KneeRow,
    LeastRow,
    OutcomeRow,
    PointDeviation,
    PointRow,
    SourcedFidelity,
    SweepReport,
)
from leanonnx.formatting import count_text
from leanonnx.reporting.rows import IntervalRow, IntervalsRow
from leanonnx.runtime.timing import FASTER
from leanonnx.selection.metrics import LATENCY
from leanonnx.spelling import option

MAX_RELATIVE_TIME = 10.0
"""Largest ratio of a time to its median where its interval is open."""
KNEE_DRAWS = 400
MIN_KNEE_SHARE = 0.5
"""Share of draws of the times from their intervals that must have the knee where it is, or at a neighbour."""


def point_row(asked: float, outcome: OutcomeRow, file: str | None = None) -> PointRow:
    """A point of the curve; ``file`` is the candidate, where it is kept."""
    candidate = outcome.candidate
    return PointRow(
        headline=candidate.headline if candidate else None,
        costs=candidate.costs if candidate else None,
        proof=candidate.proof if candidate else None,
        latency=candidate.latency if candidate else None,
        deviation=_point_deviation(candidate.deviation) if candidate and candidate.deviation else None,
        judgement=candidate.judgement if candidate else None,
        tolerance=candidate.tolerance.looks[0] if candidate and candidate.tolerance else None,
        seconds=outcome.seconds,
        made=outcome.made,
        measured=outcome.measured,
        file=file,
        warnings=candidate.warnings if candidate else (),
        hints=candidate.hints if candidate else (),
        knee=False,
        code=outcome.code,
        message=outcome.message,
        asked=asked,
    )


def _point_deviation(source: SourcedFidelity) -> PointDeviation:
    fidelity = source.fidelity
    outputs = fidelity.outputs.values()
    errors = [one.relative_l2 for one in outputs]
    return PointDeviation(
        on=source.on,
        samples=fidelity.samples,
        outputs=fidelity.outputs,
        metric=fidelity.metric,
        relative_l2=None if None in errors else _mean(errors),
        psnr=_mean([one.psnr for one in outputs]),
        top1=_mean([one.top1 for one in outputs]),
        intervals=IntervalsRow(
            relative_l2=_mean_interval([(one.relative_l2, one.known.relative_l2) for one in outputs]),
            psnr=_mean_interval([(one.psnr, one.known.psnr) for one in outputs]),
            top1=_mean_interval([(one.top1, one.known.top1) for one in outputs]),
        ),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None without any."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _mean_interval(numbers: Sequence[tuple[float | None, IntervalRow | None]]) -> IntervalRow | None:
    """The interval of the mean of the numbers that are there, from theirs; None if one is not known.

    The standard deviation of a mean is at most the mean of the standard deviations, whatever the dependence, so that
    the means of the ends are far enough apart.
    """
    intervals = [interval for value, interval in numbers if value is not None]
    known = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(intervals):
        return None
    lows, highs = zip(*known, strict=True)
    return None if None in lows else _mean(lows), None if None in highs else _mean(highs)


def curve_row(
    path: str, name: str, sha256: str, metric: str, points: Sequence[PointRow], minimised: str | None = None
) -> CurveRow:
    """The curve of a model, with the knee marked.

    Args:
        path: of the model.
        name: its name in the sweep.
        sha256: digest of its file.
        metric: that of the budget.
        points: of the curve.
        minimised: the metric to have least of within the tolerances; None for that of the budget.
    """
    row = _knee_row(placed_points(points, metric), metric)
    marked = tuple(replace(point, knee=point.asked == row.asked) for point in points)
    return CurveRow(
        model=path, name=name, sha256=sha256, points=marked, knee=row, least=_least_row(points, minimised or metric)
    )


def _least_row(points: Sequence[PointRow], axis: str) -> LeastRow | None:
    """The point within the tolerances that has least along an axis; None without tolerances."""
    if all(point.tolerance is None for point in points):
        return None
    met = [point for point in points if point.tolerance and point.tolerance.met]
    placed = [point for point in met if point.latency] if axis == LATENCY else met
    best = min(placed, key=lambda point: remaining(point, axis), default=None)
    return LeastRow(asked=None if best is None else best.asked, axis=axis)


def _knee_row(points: Sequence[PointRow], metric: str) -> KneeRow:
    """The knee of points that have a place on the axes, or the reason why there is none."""
    axis = LATENCY if metric == LATENCY or (points and all(point.latency for point in points)) else metric
    errors = [mean_relative_error(point) for point in points]
    index = knee([remaining(point, axis) for point in points], errors)
    if index is None:
        reason = (
            f"fewer than {MIN_KNEE_POINTS} points"
            if len(points) < MIN_KNEE_POINTS
            else "the curve has no bend that stands out"
        )
        return KneeRow(asked=None, axis=axis, sure=None, reason=reason)
    asked, sure = points[index].asked, _knee_share(points, errors, index) if axis == LATENCY else 1.0
    if sure >= MIN_KNEE_SHARE:
        return KneeRow(asked=asked, axis=axis, sure=sure, reason=None)
    reason = f"the times are too uncertain, it would be near {asked:.6g} in {sure:.0%} of draws"
    return KneeRow(asked=None, axis=axis, sure=sure, reason=reason)


def random_inputs_warning() -> str:
    """The warning that a deviation on random inputs is no accuracy."""
    return (
        f"Without {option('calib')} the deviation is that on random inputs. It puts the points in order, but it is not "
        "accuracy: real inputs may be treated better or worse."
    )


def _knee_share(points: Sequence[PointRow], errors: Sequence[float], index: int) -> float:
    """Share of draws of all times from their intervals that have the knee at an index, or at a neighbour."""
    rows = [point.latency.comparison for point in points if point.latency]
    ends, middle = np.array([row.interval for row in rows]), np.array([row.speedup for row in rows])
    low, high = np.log(np.clip(ends, middle[:, None] / MAX_RELATIVE_TIME, middle[:, None] * MAX_RELATIVE_TIME)).T
    times = np.exp(-np.random.default_rng(0).uniform(low, high, (KNEE_DRAWS, len(points))))
    knees = [knee(list(left), errors) for left in times]
    return round(sum(each is not None and abs(each - index) <= 1 for each in knees) / KNEE_DRAWS, 3)


def placed_points(points: Sequence[PointRow], axis: str) -> list[PointRow]:
    """The points with a place on the axes: a finite deviation, and a measured time where that is the axis."""
    finite = [point for point in points if point.deviation and point.deviation.relative_l2 is not None]
    return [point for point in finite if point.latency or axis != LATENCY]


def mean_relative_error(point: PointRow) -> float:
    """Mean relative error of the outputs of a point that has a place on the axes."""
    assert point.deviation is not None and point.deviation.relative_l2 is not None
    return point.deviation.relative_l2


def remaining(point: PointRow, axis: str) -> float:
    """Fraction of the original along an axis: of its measured time, or of the metric of the budget."""
    if axis == LATENCY:
        assert point.latency is not None
        return 1 / point.latency.comparison.speedup
    return dict(point.costs.items())[axis].fraction if point.costs else 0.0


def sweep_report(metric: str, measured: bool, curves: Sequence[CurveRow], conditions: ConditionsRow) -> SweepReport:
    """The report of ``leanonnx sweep``; ``metric`` is that of the budget."""
    points = [point for curve in curves for point in curve.points]
    headline, warnings = _headline(points), _warnings(points)
    return SweepReport(
        headline=headline,
        unit=metric,
        measured=measured,
        about=conditions,
        models=tuple(curves),
        warnings=tuple(warnings if headline is None else [headline, *warnings]),
        files={},
    )


def _headline(points: Sequence[PointRow]) -> str | None:
    """The warning that points are ruined; None if none is."""
    ruined = sum(point.headline is not None for point in points)
    if not ruined:
        return None
    verb = "is" if ruined == 1 else "are"
    return f"{ruined} of {count_text(len(points), 'point')} {verb} ruined: its warning says by what, and what helps"


def _warnings(points: Sequence[PointRow]) -> list[str]:
    """Warnings on points that are not faster, were not reached, or were compared on random inputs."""
    warnings = []
    timed = [point.latency.comparison for point in points if point.latency and point.asked < 1]
    slow = sum(row.verdict != FASTER for row in timed)
    if slow:
        warnings.append(f"{slow} of {len(points)} points are not faster than the original, as far as measured")
    busy = sum(point.latency is not None and point.latency.busy for point in points)
    if busy:
        warnings.append(
            f"{busy} of {len(points)} points were timed while the machine was busy: trust the ratios, taken in turns, "
            "not the milliseconds; to tell points apart, measure again when nothing else runs"
        )
    missing = sum(point.code != 0 for point in points)
    if missing:
        warnings.append(f"{missing} of {len(points)} points could not be reached: the message says why")
    if any(point.deviation and point.deviation.on == RANDOM_INPUTS for point in points):
        warnings.append(random_inputs_warning())
    return warnings
