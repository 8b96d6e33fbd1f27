"""What is told of a sweep: plain data for JSON, one line for each point in CSV, tables for people."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.analysis.cost import UNITS
from leanonnx.commands.sweep.knee import FEWEST, knee
from leanonnx.formatting import counted
from leanonnx.reporting.report import SCHEMA, Row, warned
from leanonnx.selection.selector import Budget
from leanonnx.spelling import option

SIZES = (*UNITS, "bytes")
DEVIATIONS = ("relative_l2", "psnr", "top1")
ABSENT = (*SIZES, "proof", "latency", "deviation", "seconds", "made", "measured", "file")
"""What a point that was not reached has none of."""
COLUMNS = (
    *("model", "asked", "code", "message"),
    *(f"{unit}{end}" for unit in SIZES for end in ("", "_fraction")),
    *("before_ms", "after_ms", "speedup", "speedup_low", "speedup_high", "verdict"),
    *("relative_l2", "psnr", "top1", "metric", "metric_before", "metric_after", "samples", "inputs"),
    *("proof", "proof_error", "seconds", "knee", "file", "warnings"),
)
NO_PLOT = "no plot was drawn: matplotlib is not installed; install it with pip install 'leanonnx[sweep]'"
UNSURE = 10.0
"""How many times as long as its median a time is taken to be at most where its interval is open."""
DRAWS = 400
LIKELY = 0.5
"""Share of draws of the times from their intervals in which a knee has to be where it is, or at a neighbour."""
KNEE = "furthest above the diagonal when both axes are brought to [0, 1] (Kneedle)"
LEFT = {"latency": "time", "kernels": "kernels", "macs": "multiply-adds", "params": "parameters"}
"""What is left of the original along the axis of the knee."""


def point(asked: float, found: Mapping[str, Any]) -> Row:
    """A point of the curve, with means over the outputs beside the deviation of each; null where there is none."""
    empty: Row = {**dict.fromkeys(ABSENT), "warnings": [], "hints": [], "knee": False}
    row = {**empty, **{key: value for key, value in found.items() if key not in ("model", "done")}, "asked": asked}
    if row["deviation"]:
        row["deviation"] = {**row["deviation"], **_means(row["deviation"]["outputs"])}
    return row


def _means(outputs: Mapping[str, Row]) -> Row:
    """Means over the outputs that have a number; a relative error that is infinite (null) stays so."""
    found: Row = {}
    for name in DEVIATIONS:
        known = [one[name] for one in outputs.values()]
        numbers = [number for number in known if number is not None]
        broken = name == "relative_l2" and len(numbers) < len(known)
        found[name] = sum(numbers) / len(numbers) if numbers and not broken else None
    return found


def curve(path: str, name: str, sha256: str, unit: str, points: Sequence[Row]) -> Row:
    """The points of one model, with the knee marked."""
    found = _knee(placed(points, unit), unit)
    marked = [{**row, "knee": row["asked"] == found["asked"]} for row in points]
    return {"model": path, "name": name, "sha256": sha256, "points": marked, "knee": found}


def _knee(points: Sequence[Row], unit: str) -> Row:
    """Where the knee is, along which axis, and how sure that is; or why there is none."""
    axis = "latency" if unit == "latency" or (points and all(row["latency"] for row in points)) else unit
    deviation = [row["deviation"]["relative_l2"] for row in points]
    where = knee([remaining(row, axis) for row in points], deviation)
    if where is None:
        reason = f"fewer than {FEWEST} points" if len(points) < FEWEST else "the curve has no bend that stands out"
        return {"asked": None, "axis": axis, "sure": None, "reason": reason}
    sure, asked = 1.0 if axis != "latency" else _sure(points, deviation, where), points[where]["asked"]
    if sure >= LIKELY:
        return {"asked": asked, "axis": axis, "sure": sure, "reason": None}
    reason = f"the times are too uncertain, it would be near {_short(asked)} in {sure:.0%} of draws"
    return {"asked": None, "axis": axis, "sure": sure, "reason": reason}


def _sure(points: Sequence[Row], deviation: Sequence[float], where: int) -> float:
    """Share of draws of all times from their intervals in which the knee is where it is, or at a neighbour."""
    ends = np.array([row["latency"]["interval"] for row in points])
    middle = np.array([row["latency"]["speedup"] for row in points])
    low, high = np.log(np.clip(ends, middle[:, None] / UNSURE, middle[:, None] * UNSURE)).T
    drawn = np.exp(-np.random.default_rng(0).uniform(low, high, (DRAWS, len(points))))
    found = [knee(list(left), deviation) for left in drawn]
    return round(sum(each is not None and abs(each - where) <= 1 for each in found) / DRAWS, 3)


def placed(points: Sequence[Row], axis: str) -> list[Row]:
    """The points that have a place on the axes: a finite deviation, and a measured time where that is the axis."""
    told = [row for row in points if row["deviation"] and row["deviation"]["relative_l2"] is not None]
    return [row for row in told if row["latency"] or axis != "latency"]


def remaining(row: Row, axis: str) -> float:
    """What is left of the original along an axis: of its measured time, or of its kernels, macs or params."""
    return float(1 / row["latency"]["speedup"] if axis == "latency" else row[axis]["fraction"])


def summary(unit: str, measured: bool, curves: Sequence[Row], about: Row) -> Row:
    """The JSON object of ``leanonnx sweep``; ``about`` says with what all points were made."""
    points = [row for each in curves for row in each["points"]]
    found = []
    slow = sum(bool(row["latency"]) and row["latency"]["verdict"] != "faster" for row in points if row["asked"] < 1)
    if slow:
        found.append(f"{slow} of {len(points)} points are not faster than the original beyond noise: see the speed-up")
    missing = sum(row["code"] != 0 for row in points)
    if missing:
        found.append(f"{missing} of {len(points)} points could not be reached: the message says why")
    if any(row["deviation"] and row["deviation"]["on"] == "random inputs" for row in points):
        found.append(random_inputs_warning())
    return {
        "schema": SCHEMA,
        "unit": unit,
        "measured": measured,
        "about": about,
        "models": list(curves),
        "warnings": found,
        "files": {},
    }


def exit_code(row: Row) -> int:
    """0 if all points were written, else the gravest reason why one was not."""
    return max((each["code"] for model in row["models"] for each in model["points"]), default=0)


def as_json(row: Row) -> str:
    """The text of ``sweep.json``."""
    return json.dumps(row, indent=1) + "\n"


def as_csv(row: Row) -> str:
    """The text of ``sweep.csv``, a line for each point: empty where there is no number, ``inf`` for an infinite one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(model["model"], each) for model in row["models"] for each in model["points"])
    return text.getvalue()


def _cells(model: str, row: Row) -> Row:
    time, told, proof = row["latency"] or {}, row["deviation"] or {}, row["proof"] or {}
    low, high = time.get("interval", (None, None))
    metric, relative = told.get("metric") or {}, told.get("relative_l2")
    sizes = {unit: row[unit] or {} for unit in SIZES}
    return {
        **{unit: change.get("after") for unit, change in sizes.items()},
        **{f"{unit}_fraction": change.get("fraction") for unit, change in sizes.items()},
        **{name: time.get(name) for name in ("before_ms", "after_ms", "speedup", "verdict")},
        **{name: told.get(name) for name in (*DEVIATIONS, "samples")},
        **{name: row[name] for name in ("asked", "code", "message", "seconds", "file")},
        "model": model,
        "speedup_low": low,
        "speedup_high": high,
        "relative_l2": math.inf if told and relative is None else relative,
        "inputs": told.get("on"),
        "metric": metric.get("name"),
        "metric_before": metric.get("before"),
        "metric_after": metric.get("after"),
        "proof": proof.get("status"),
        "proof_error": proof.get("max_relative_error"),
        "knee": int(row["knee"]),
        "warnings": "; ".join(row["warnings"]),
    }


def tables(row: Row) -> RenderableType:
    """``leanonnx sweep`` for people."""
    parts = [part for model in row["models"] for part in (Text(""), *_model(model, row["unit"]))]
    files = ", ".join(row["files"].values())
    return Group(*warned(row), *parts, Text(""), *_about(row), Text(f"Written: {files}"))


def _model(model: Row, unit: str) -> list[RenderableType]:
    """The points of one model, and where its knee is."""
    points, heading = model["points"], option(Budget(unit, 1.0).option)
    parts: list[RenderableType] = [Text(model["model"], style="bold")]
    if any(point["code"] == 0 for point in points):
        parts.append(_table(points, heading))
    said: dict[str, list[str]] = {}
    for point in points:
        for text in ([point["message"]] if point["code"] else []) + point["warnings"]:
            said.setdefault(text, []).append(_short(point["asked"]))
    parts += [Text(f"{heading} {', '.join(asked)}: {text}", style="yellow") for text, asked in said.items()]
    found = model["knee"]
    if found["asked"] is None:
        return [*parts, Text(f"No knee: {found['reason']}.")]
    words = f"Knee at {heading} {_short(found['asked'])}: {LEFT[found['axis']]} left against deviation, {KNEE}"
    words += (
        f"; it is there or at a neighbour in {found['sure']:.0%} of draws from the intervals."
        if found["sure"] < 1
        else "."
    )
    return [*parts, Text(words, style="green")]


def _table(points: Sequence[Row], option: str) -> Table:
    """A line for each point that was reached, in the columns that hold anything."""
    metrics = [row["deviation"]["metric"]["name"] for row in points if row["deviation"] and row["deviation"]["metric"]]
    rows = [_line(row, option, metrics[0] if metrics else "metric") for row in points if row["code"] == 0]
    table = Table(box=None, pad_edge=False)
    shown = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in shown:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _line(row: Row, option: str, labelled: str) -> dict[str, str]:
    """The cells of a point by their heads; ``labelled`` is that of the metric from labels."""
    time, told = row["latency"] or {}, row["deviation"] or {}
    low, high = time.get("interval", (0, 0))
    relative, metric = told.get("relative_l2"), told.get("metric")
    return {
        option: _short(row["asked"]),
        **{unit: f"{row[unit]['fraction']:.3f}" for unit in SIZES},
        "ms": f"{time['before_ms']:.3g} → {time['after_ms']:.3g}" if time else "",
        "speed-up": f"{time['speedup']:.2f} ({low:.2f}–{high:.2f})" if time else "",
        "relative L2": "∞" if told and relative is None else _number(relative, ".4f"),
        "PSNR dB": _number(told.get("psnr"), ".1f"),
        "top-1": _number(told.get("top1"), ".4f"),
        labelled: f"{metric['before']:.4f} → {metric['after']:.4f}" if metric else "",
        "s": f"{row['seconds']:.1f}",
        "": "◄ knee" if row["knee"] else "",
    }


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _short(asked: float) -> str:
    return f"{asked:.6g}"


def random_inputs_warning() -> str:
    """The warning that a deviation on random inputs is no accuracy."""
    return (
        f"Without {option('calib')} the deviation is that on random inputs. It puts the points in order, but it is not "
        "accuracy: real inputs may be treated better or worse."
    )


def _about(row: Row) -> list[RenderableType]:
    """What all points have in common."""
    about = row["about"]
    told = [point["deviation"] for model in row["models"] for point in model["points"] if point["deviation"]]
    lines = ["kernels, macs, params, bytes: fraction of the original that is left. Every point written is proven."]
    if row["measured"]:
        lines += [
            f"ms, speed-up: median before → after and its ratio with 95 % interval, {about['provider']}, "
            f"{counted(about['threads'], 'thread')}, {about['processor']}; one point at a time, on the machine that "
            "runs sweep."
        ]
    else:
        lines += ["Latency was not measured."]
    on = dict.fromkeys(f"{each['samples']} {each['on']}" for each in told if each["samples"])
    if on:
        lines += [f"relative L2, PSNR, top-1: deviation from the original on {', '.join(on)}, means over the outputs."]
    return [Text(line, style="dim") for line in lines]
