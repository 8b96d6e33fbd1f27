"""The head of the page: speed, warnings on the budget, and the numbers in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
from leanonnx.reporting.remarks import cross_fit_text, interval_text, percent_interval
from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import FidelityRow, LatencyRow, OutputDeviation, ProofRow
from leanonnx.reporting.summary import Mood, SummaryContext, summarise, worst_output
from leanonnx.selection.metrics import METRICS

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
    """The head of the page; ``mood`` is good, plain or bad, ``step`` what to do next."""

    verdict: str
    mood: Mood
    step: str
    lead: tuple[str, ...]
    tiles: tuple[Tile, ...]
    gauge: Gauge | None


def headline(report: CompressionReport, context: SummaryContext) -> Headline:
    """The head of the page on a compression."""
    summary = summarise(report, context)
    costs = [_cost_tile(metric, cost) for metric, cost in report.costs.items()]
    tiles = _speed_tile(report.latency), _deviation_tile(report), *reversed(costs), _proof_tile(report.proof)
    return Headline(
        verdict=summary.verdict,
        mood=summary.mood,
        step=summary.next_step,
        lead=_lead(report, Path(context.source).name, Path(context.output).name),
        tiles=tiles,
        gauge=_gauge(report.latency),
    )


def _lead(report: CompressionReport, source: str, output: str) -> tuple[str, ...]:
    """Sentences on size, accuracy and proof."""
    costs, proof = report.costs, report.proof
    reference = "the original itself" if report.lossless else "the original whose removed channels are set to zero"
    when = "before its weights were changed, " if report.weights_changed else ""
    return (
        f"{printable_name(output)} holds {percent_text(costs.kernels.fraction)} of the kernels of "
        f"{printable_name(source)}, does {percent_text(costs.macs.fraction)} of its multiply-adds and takes "
        f"{percent_text(costs.bytes.fraction)} of its bytes.",
        _accuracy(report),
        f"The removal is proven: {when}its outputs equalled those of {reference} within "
        f"{proof.max_relative_error:.1e} on {count_text(proof.inputs, 'input')}.",
        *_agreement(report),
    )


def _agreement(report: CompressionReport) -> tuple[str, ...]:
    """A sentence on the runtimes in which the result is the same, if several were asked."""
    same = [row.runtimes for row in report.runtimes or () if row.status == "passed"]
    if not same:
        return ()
    return (f"Its outputs are the same in {', '.join(dict.fromkeys(name for names in same for name in names))}.",)


def _accuracy(report: CompressionReport) -> str:
    """A sentence on the deviation from the original."""
    if report.deviation is None and report.lossless:
        return "The outputs are those of the original: only what contributes nothing was removed."
    if report.deviation is None:
        return "The deviation of its outputs on real inputs is not known: none were given."
    note = " Ranges in brackets are 95 % confidence intervals over samples."
    return f"On {_samples(report, report.deviation)}, {_worst(report.deviation.outputs)}.{note}"


def _samples(report: CompressionReport, deviation: FidelityRow) -> str:
    if report.parts:
        return cross_fit_text(deviation.samples, report.parts)
    return f"{count_text(deviation.samples, 'sample')}{' held out' if report.is_held_out else ''}"


def _worst(outputs: Mapping[str, OutputDeviation]) -> str:
    """The output that deviates most, in words."""
    name = worst_output(outputs)
    worst, known = outputs[name], outputs[name].known
    relative = "" if worst.relative_l2 is None else f" in relative L2{percent_interval(known.relative_l2)}"
    text = f"deviates {_deviation(worst.relative_l2)}{relative}"
    if worst.worst_channel is not None:
        text += f", its channel {worst.worst_channel.index} {_deviation(worst.worst_channel.relative_l2)}"
    if worst.psnr is not None:
        text += f", a PSNR of {worst.psnr:.1f}{UNIT_SPACE}dB{interval_text(known.psnr, '{:.1f}'.format)}"
    if worst.top1 is not None:
        agreement = f"{percent_text(worst.top1)} of the cases{percent_interval(known.top1)}"
        text += f" and decides as the original does in {agreement}"
    return (
        f"the output {text}" if len(outputs) == 1 else f"the output that deviates most, {printable_name(name)}, {text}"
    )


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
    where += "; the machine was busy" if row.busy else ""
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
    name = worst_output(now.outputs)
    output, known = now.outputs[name], now.outputs[name].known
    is_integer = report.quantisation is not None and report.quantisation.kept
    note = "in 8-bit integers" if is_integer else "weights as they were"
    if row is not None and row.kept:
        before = f"{_share(row.removed.outputs[name].relative_l2)} before recovery"
        note = f"{note}, {before}" if is_integer else before
    inputs = _samples(report, now)
    if output.top1 is not None:
        interval = percent_interval(known.top1).strip(" ()")
        meaning = f"share of the decisions on {inputs} that are those of the original" + (
            f"; 95 % interval {interval}" if interval else ""
        )
        return Tile("Agreement", percent_text(output.top1), f"deviation {_share(output.relative_l2)}", meaning)
    interval = percent_interval(known.relative_l2).strip(" ()")
    meaning = f"relative L2 distance from the original's output on {inputs}"
    meaning += f"; 95 % interval {interval}" if interval else ""
    return Tile("Deviation", _share(output.relative_l2), note, meaning)


def _share(relative: float | None) -> str:
    return "infinite" if relative is None else percent_text(relative)
