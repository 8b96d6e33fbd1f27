"""The head of the page: speed, warnings on the budget, and the numbers in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanonnx.formatting import (
    UNIT_SPACE,
    compact_text,
    count_text,
    integer_text,
    milliseconds_text,
    percent_text,
    printable_name,
)
from leanonnx.reporting.costs import CostChange
from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import FidelityRow, LatencyRow, OutputDeviation, ProofRow
from leanonnx.runtime.timing import FASTER, SLOWER
from leanonnx.selection.metrics import LATENCY, METRICS

SPEEDUP_TOLERANCE = 1.0001
"""Factor by which the rounded speed-up may miss the budget."""
GAUGE_END = 0.9
"""Position on the gauge of the larger of 1 and the upper end of the interval."""


@dataclass(frozen=True)
class Tile:
    """One number: its ``value``, its ``detail`` before and after, its meaning, and the ``share`` that is left."""

    title: str
    value: str
    detail: str
    meaning: str
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Positions of 1, of the speed-up and of its interval on a line of length 1."""

    original: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The head of the page; ``mood`` is good, plain or bad."""

    verdict: str
    mood: str
    lead: tuple[str, ...]
    tiles: tuple[Tile, ...]
    gauge: Gauge | None


def headline(report: CompressionReport, options: Mapping[str, Any], source: str, output: str) -> Headline:
    """The head of the page on a compression.

    Args:
        report: the compression.
        options: those recorded in its plan, the budget among them.
        source: name of the original's file.
        output: name of the file written.
    """
    over = _over_budget(report, options)
    speed, mood = _speed_sentence(report, bool(over))
    tiles = [_cost_tile(metric, cost) for metric, cost in report.costs.items()]
    tiles += [_speed_tile(report.latency), _proof_tile(report.proof), _deviation_tile(report)]
    ruined = "" if report.headline is None else "The result is ruined."
    if ruined or over:
        speed, mood = " ".join(filter(None, (ruined, over, speed))), "bad"
    return Headline(
        verdict=speed, mood=mood, lead=_lead(report, source, output), tiles=tuple(tiles), gauge=_gauge(report.latency)
    )


def _speed_sentence(report: CompressionReport, over: bool) -> tuple[str, str]:
    """A sentence on the speed, and its mood; ``over``: it follows one on a budget that was missed."""
    if all(cost.before == cost.after for _, cost in report.costs.items()):
        return "Nothing could be removed: the output equals the input.", "bad"
    if report.latency is None:
        left = f"{percent_text(report.costs.kernels.fraction)} of the kernels are left; the"
        return f"{'The' if over else left} speed was not measured.", "plain"
    comparison, busy = report.latency.comparison, report.latency.busy
    speedup = f"{comparison.speedup:.2f} times its speed"
    if comparison.verdict == FASTER:
        return f"Faster than the original: {speedup}.", "good"
    if busy:
        return f"Could not tell if it is faster than the original, as the machine was busy: {speedup}.", "bad"
    if comparison.verdict == SLOWER:
        return f"Slower than the original: {speedup}.", "bad"
    return f"No difference in speed shown: {speedup}.", "bad"


def _over_budget(report: CompressionReport, options: Mapping[str, Any]) -> str:
    """A sentence on the budget if it was missed, else nothing."""
    shares = {metric: cost.after / max(cost.before, 1) for metric, cost in report.costs.items()}
    if report.latency is not None:
        shares[LATENCY] = 1 / report.latency.comparison.speedup
    for name, metric in METRICS.items():
        tolerance = SPEEDUP_TOLERANCE if metric.measured else 1
        if name in shares and name in options and shares[name] > options[name] * tolerance:
            left, asked = percent_text(shares[name]), percent_text(options[name])
            return f"Over budget: {left} of the {metric.noun} is left, {asked} was asked for."
    return ""


def _lead(report: CompressionReport, source: str, output: str) -> tuple[str, ...]:
    """Sentences on size, proof and accuracy."""
    costs, proof = report.costs, report.proof
    reference = "the original itself" if report.lossless else "the original whose removed channels are set to zero"
    when = "before its weights were changed, " if report.weights_changed else ""
    return (
        f"{printable_name(output)} holds {percent_text(costs.kernels.fraction)} of the kernels of "
        f"{printable_name(source)}, does {percent_text(costs.macs.fraction)} of its multiply-adds and takes "
        f"{percent_text(costs.bytes.fraction)} of its bytes.",
        f"The removal is proven: {when}its outputs equalled those of {reference} within "
        f"{proof.max_relative_error:.1e} on {count_text(proof.inputs, 'input')}.",
        _accuracy(report),
    )


def _accuracy(report: CompressionReport) -> str:
    """A sentence on the deviation from the original."""
    if report.deviation is None and report.lossless:
        return "The outputs are those of the original: only what contributes nothing was removed."
    if report.deviation is None:
        return "The deviation of its outputs on real inputs is not known: none were given."
    return f"On {_samples(report, report.deviation)}, {_worst(report.deviation.outputs)}."


def _samples(report: CompressionReport, deviation: FidelityRow) -> str:
    return f"{count_text(deviation.samples, 'sample')}{' held out' if report.is_held_out else ''}"


def _worst(outputs: Mapping[str, OutputDeviation]) -> str:
    """The output that deviates most, in words."""
    name = _worst_name(outputs)
    worst = outputs[name]
    text = f"deviates {_deviation(worst.relative_l2)}" + ("" if worst.relative_l2 is None else " (relative L2)")
    if worst.worst_channel is not None:
        text += f", its channel {worst.worst_channel.index} {_deviation(worst.worst_channel.relative_l2)}"
    if worst.psnr is not None:
        text += f", a PSNR of {worst.psnr:.1f}{UNIT_SPACE}dB"
    if worst.top1 is not None:
        text += f" and decides as the original does in {percent_text(worst.top1)} of the cases"
    return (
        f"the output {text}" if len(outputs) == 1 else f"the output that deviates most, {printable_name(name)}, {text}"
    )


def _worst_name(outputs: Mapping[str, OutputDeviation]) -> str:
    """Name of the output that deviates most; None is infinite."""

    def size(name: str) -> float:
        relative = outputs[name].relative_l2
        return float("inf") if relative is None else relative

    return max(outputs, key=size)


def _deviation(relative: float | None) -> str:
    return "infinitely" if relative is None else f"by {percent_text(relative)}"


def _cost_tile(name: str, cost: CostChange) -> Tile:
    metric = METRICS[name]
    return Tile(
        metric.title,
        percent_text(cost.fraction),
        f"{compact_text(cost.before)}{metric.symbol} → {compact_text(cost.after)}{metric.symbol}",
        f"{metric.meaning}: {integer_text(cost.before)} → {integer_text(cost.after)}",
        cost.fraction,
    )


def _speed_tile(row: LatencyRow | None) -> Tile:
    if row is None:
        return Tile("Speed", "not measured", "", "time of one run in onnxruntime")
    comparison, (low, high) = row.comparison, row.comparison.interval
    where = f"{count_text(row.threads, 'thread')} on {row.provider}"
    return Tile(
        "Speed",
        f"{comparison.speedup:.2f}{UNIT_SPACE}×",
        f"{milliseconds_text(row.before_ms)} → {milliseconds_text(row.after_ms)}",
        f"95 % interval {low:.2f} to {high:.2f}, median of {comparison.rounds} rounds in turns, {where}",
    )


def _gauge(row: LatencyRow | None) -> Gauge | None:
    if row is None:
        return None
    low, high = row.comparison.interval
    scale = GAUGE_END / max(1.0, high)
    return Gauge(original=scale, speedup=scale * row.comparison.speedup, low=scale * low, high=scale * high)


def _proof_tile(proof: ProofRow) -> Tile:
    return Tile(
        "Proof",
        proof.status,
        f"error {proof.max_relative_error:.1e}, bound {proof.bound:.0e}",
        f"largest relative L2 error of {count_text(len(proof.outputs), 'output')} on "
        f"{count_text(proof.inputs, 'input')}, in onnxruntime",
    )


def _deviation_tile(report: CompressionReport) -> Tile:
    now, row = report.deviation, report.recovery
    if now is None:
        text = ("none", "as the proof has it") if report.lossless else ("not known", "no real inputs were given")
        return Tile("Deviation", *text, "distance from the original's outputs on real inputs")
    name = _worst_name(now.outputs)
    is_integer = report.quantisation is not None and report.quantisation.kept
    note = "in 8-bit integers" if is_integer else "weights as they were"
    if row is not None and row.kept:
        before = f"{_share(row.removed.outputs[name].relative_l2)} before recovery"
        note = f"{note}, {before}" if is_integer else before
    return Tile(
        "Deviation",
        _share(now.outputs[name].relative_l2),
        note,
        f"relative L2 distance from the original's output on {_samples(report, now)}",
    )


def _share(relative: float | None) -> str:
    return "infinite" if relative is None else percent_text(relative)
