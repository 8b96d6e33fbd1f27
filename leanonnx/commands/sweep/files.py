"""The texts of ``sweep.json`` and ``sweep.csv``."""

from __future__ import annotations

import csv
import io
import json
import math

from leanonnx.commands.sweep.rows import PointRow, SweepReport
from leanonnx.reporting.encoding import to_json
from leanonnx.reporting.rows import IntervalRow
from leanonnx.selection.metrics import COUNTED_METRICS

MEASURES = ("relative_l2", "psnr", "top1")
CSV_COLUMNS = (
    *("model", "asked", "code", "message"),
    *(f"{metric.name}{end}" for metric in COUNTED_METRICS for end in ("", "_fraction")),
    *("before_ms", "after_ms", "speedup", "speedup_low", "speedup_high", "verdict"),
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
    *("metric", "metric_before", "metric_after", "metric_after_low", "metric_after_high", "samples", "inputs"),
    *("proof", "proof_error", "seconds", "knee", "meets", "file", "warnings"),
)


def json_text(report: SweepReport) -> str:
    """The text of ``sweep.json``."""
    return json.dumps(to_json(report), indent=1) + "\n"


def csv_text(report: SweepReport) -> str:
    """The text of ``sweep.csv``, a line for each point: empty where there is no number, ``inf`` for an infinite one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(curve.model, point) for curve in report.models for point in curve.points)
    return text.getvalue()


def _cells(model: str, point: PointRow) -> dict[str, object]:
    return {
        "model": model,
        "asked": point.asked,
        "code": point.code,
        "message": point.message,
        **_cost_cells(point),
        **_latency_cells(point),
        **_deviation_cells(point),
        "proof": point.proof and point.proof.status,
        "proof_error": point.proof and point.proof.max_relative_error,
        "seconds": point.seconds,
        "knee": int(point.knee),
        "meets": None if point.tolerance is None else int(point.tolerance.met),
        "file": point.file,
        "warnings": "; ".join(point.warnings),
    }


def _cost_cells(point: PointRow) -> dict[str, object]:
    cells: dict[str, object] = {}
    for metric, cost in point.costs.items() if point.costs else ():
        cells |= {metric: cost.after, f"{metric}_fraction": cost.fraction}
    return cells


def _latency_cells(point: PointRow) -> dict[str, object]:
    row = point.latency
    if row is None:
        return {}
    low, high = row.comparison.interval
    return {
        "before_ms": row.before_ms,
        "after_ms": row.after_ms,
        "speedup": row.comparison.speedup,
        "speedup_low": low,
        "speedup_high": high,
        "verdict": row.comparison.verdict,
    }


def _deviation_cells(point: PointRow) -> dict[str, object]:
    row = point.deviation
    if row is None:
        return {}
    metric = row.metric
    low, high = (metric and metric.after_interval) or (None, None)
    return {
        **{key: value for name in MEASURES for key, value in _ends(name, getattr(row.intervals, name)).items()},
        "relative_l2": math.inf if row.relative_l2 is None else row.relative_l2,
        "psnr": row.psnr,
        "top1": row.top1,
        "metric": metric and metric.name,
        "metric_before": metric and metric.before,
        "metric_after": metric and metric.after,
        "metric_after_low": low,
        "metric_after_high": high,
        "samples": row.samples,
        "inputs": row.on,
    }


def _ends(name: str, interval: IntervalRow | None) -> dict[str, float | None]:
    """The ends of an interval by their columns; one that is not finite is infinite."""
    if interval is None:
        return {}
    low, high = interval
    return {f"{name}_low": -math.inf if low is None else low, f"{name}_high": math.inf if high is None else high}
