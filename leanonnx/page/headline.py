"""What is said first: whether it is faster, what could not be done, and the numbers in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanonnx.formatting import BLANK, compact, counted, ms, percent, shown, whole
from leanonnx.reporting.remarks import changed
from leanonnx.reporting.report import Row
from leanonnx.selection.metrics import COUNTED_METRICS, METRICS, Metric

ROUNDING = 1.0001
"""How far the rounded speed-up may be off."""
ENDS = 0.9
"""Where on its scale the larger of 1 and the end of the interval lies."""


@dataclass(frozen=True)
class Tile:
    """One number: its ``value``, what it was before and after, the ``share`` left of it, and what it means."""

    title: str
    value: str
    detail: str
    meaning: str
    share: float | None = None


@dataclass(frozen=True)
class Gauge:
    """Where the speed-up, its interval and 1 lie on a line of length 1."""

    original: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Headline:
    """The first lines; ``mood`` is good, plain or bad."""

    verdict: str
    mood: str
    lead: tuple[str, ...]
    tiles: tuple[Tile, ...]
    gauge: Gauge | None


def headline(row: Row, asked: Mapping[str, Any], source: str, target: str) -> Headline:
    """The first lines on a compression, from its JSON object and the options of its plan."""
    over = _over_budget(row, asked)
    speed, mood = _speed(row, bool(over))
    tiles = [
        *(_change(row, metric) for metric in COUNTED_METRICS),
        _speed_tile(row),
        _proof_tile(row),
        _deviation_tile(row),
    ]
    verdict, mood = (f"{over} {speed}", "bad") if over else (speed, mood)
    return Headline(verdict, mood, _lead(row, source, target), tuple(tiles), _gauge(row["latency"]))


def _speed(row: Row, over: bool) -> tuple[str, str]:
    """The first line, what was ``over`` budget apart, and its mood."""
    found = row["latency"]
    if all(row[metric.name]["before"] == row[metric.name]["after"] for metric in COUNTED_METRICS):
        return "Nothing could be removed: the output equals the input.", "bad"
    if found is None:
        left = f"{percent(row['kernels']['fraction'])} of the kernels are left; the"
        return f"{'The' if over else left} speed was not measured.", "plain"
    low, high = found["interval"]
    if high < 1:
        return f"Slower than the original: {found['speedup']:.2f} times its speed.", "bad"
    if low <= 1:
        return f"No faster than the original, beyond noise: {found['speedup']:.2f} times its speed.", "bad"
    return f"{found['speedup']:.2f} times as fast as the original.", "good"


def _over_budget(row: Row, asked: Mapping[str, Any]) -> str:
    """That the budget was not reached, if so."""
    for name, metric in METRICS.items():
        change = row[name]
        if name not in asked or change is None:
            continue
        left = 1 / change["speedup"] if metric.measured else change["after"] / max(change["before"], 1)
        if left > asked[name] * (ROUNDING if metric.measured else 1):
            return f"Over budget: {percent(left)} of the {metric.noun} is left, {percent(asked[name])} was asked for."
    return ""


def _lead(row: Row, source: str, target: str) -> tuple[str, ...]:
    """What was done, in two or three sentences."""
    kernels, macs, size = row["kernels"], row["macs"], row["bytes"]
    proof = row["proof"]
    against = "the original itself" if row["exact"] else "the original whose removed channels are set to zero"
    first = "before its weights were changed, " if changed(row) else ""
    return (
        f"{shown(target)} holds {percent(kernels['fraction'])} of the kernels of {shown(source)}, does "
        f"{percent(macs['fraction'])} of its multiply-adds and takes {percent(size['fraction'])} of its bytes.",
        f"The removal is proven: {first}its outputs equalled those of {against} within "
        f"{proof['max_relative_error']:.1e} on {counted(proof['inputs'], 'input')}.",
        _accuracy(row),
    )


def _accuracy(row: Row) -> str:
    """How near the outputs are to the original's, in a sentence."""
    found = row["recovery"]
    if found is None and row["exact"]:
        return "The outputs are those of the original: only what contributes nothing was removed."
    if found is None:
        return "How far its outputs are from the original's on real inputs is not known: none were given."
    where = f"{counted(found['deviation']['samples'], 'sample')}{' held out' if found['held_out'] else ''}"
    return f"On {where}, {_worst(found['deviation']['outputs'])}."


def _worst(outputs: Row) -> str:
    """The output that deviates most, in words."""
    name, worst = max(outputs.items(), key=lambda item: _size(item[1]["relative_l2"]))
    lost = worst["relative_l2"]
    text = f"deviates {_off(lost)}" + ("" if lost is None else " (relative L2)")
    channel = worst["worst_channel"]
    if channel is not None:
        text += f", its channel {channel['index']} {_off(channel['relative_l2'])}"
    if worst["psnr"] is not None:
        text += f", a PSNR of {worst['psnr']:.1f}{BLANK}dB"
    if worst["top1"] is not None:
        text += f" and decides as the original does in {percent(worst['top1'])} of the cases"
    return f"the output {text}" if len(outputs) == 1 else f"the output that is furthest off, {shown(name)}, {text}"


def _off(lost: float | None) -> str:
    return "infinitely" if lost is None else f"by {percent(lost)}"


def _size(deviation: float | None) -> float:
    return float("inf") if deviation is None else deviation


def _change(row: Row, metric: Metric) -> Tile:
    change = row[metric.name]
    before, after = (f"{compact(change[key])}{metric.symbol}" for key in ("before", "after"))
    exactly = f"{whole(change['before'])} → {whole(change['after'])}"
    return Tile(
        metric.title,
        percent(change["fraction"]),
        f"{before} → {after}",
        f"{metric.meaning}: {exactly}",
        change["fraction"],
    )


def _speed_tile(row: Row) -> Tile:
    found = row["latency"]
    if found is None:
        return Tile("Speed", "not measured", "", "time of one run in onnxruntime")
    low, high = found["interval"]
    where = f"{counted(found['threads'], 'thread')} on {found['provider']}"
    return Tile(
        "Speed",
        f"{found['speedup']:.2f}{BLANK}×",
        f"{ms(found['before_ms'])} → {ms(found['after_ms'])}",
        f"95 % interval {low:.2f} to {high:.2f}, median of {found['rounds']} rounds in turns, {where}",
    )


def _gauge(found: Row | None) -> Gauge | None:
    if found is None:
        return None
    low, high = found["interval"]
    scale = ENDS / max(1.0, high)
    return Gauge(scale, scale * found["speedup"], scale * low, scale * high)


def _proof_tile(row: Row) -> Tile:
    proof = row["proof"]
    return Tile(
        "Proof",
        proof["status"],
        f"error {proof['max_relative_error']:.1e}, bound {proof['bound']:.0e}",
        f"largest relative L2 error of {counted(len(proof['outputs']), 'output')} on "
        f"{counted(proof['inputs'], 'input')}, in onnxruntime",
    )


def _deviation_tile(row: Row) -> Tile:
    found = row["recovery"]
    if found is None:
        text = ("none", "as the proof has it") if row["exact"] else ("not known", "no real inputs were given")
        return Tile("Deviation", *text, "distance from the original's outputs on real inputs")
    outputs, first = found["deviation"]["outputs"], found["removed"]["outputs"]
    name = max(outputs, key=lambda key: _size(outputs[key]["relative_l2"]))
    now, was = (side[name]["relative_l2"] for side in (outputs, first))
    samples = counted(found["deviation"]["samples"], "sample")
    recovered = f"{_share(was)} before recovery" if found["kept"] else "weights as they were"
    return Tile(
        "Deviation",
        _share(now),
        recovered,
        f"relative L2 distance from the original's output on {samples}{' held out' if found['held_out'] else ''}",
    )


def _share(value: float | None) -> str:
    return "infinite" if value is None else percent(value)
