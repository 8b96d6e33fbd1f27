"""Terminal tables of ``leanonnx compress``."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.evaluation.tolerances import READING_TEXTS
from leanonnx.formatting import count_text, percent_text
from leanonnx.reporting.remarks import interval_text, metric_text, reading_cell, remarks, sample_text, tolerance_text
from leanonnx.reporting.reports import CompressionReport, QuantisationRow, RecoveryRow, ToleranceRow
from leanonnx.reporting.rows import FidelityRow, LatencyRow, OutputDeviation, RuntimesRow
from leanonnx.reporting.summary import MAX_SPREAD, SummaryContext, summarise
from leanonnx.reporting.tables import (
    headline_lines,
    layer_table,
    other_warnings,
    pin_table,
    product_tables,
    warning_lines,
)
from leanonnx.runtime.timing import FASTER
from leanonnx.selection.metrics import LATENCY, METRICS
from leanonnx.spelling import option

MOOD_STYLES = {"good": "bold green", "plain": "bold yellow", "bad": "bold red"}


def compression_tables(report: CompressionReport, context: SummaryContext, verbose: bool = False) -> RenderableType:
    """The tables of ``leanonnx compress``; with ``verbose``, layers and pins as well."""
    summary = summarise(report, context)
    style = MOOD_STYLES[summary.mood]
    return Group(
        Text(summary.verdict, style=style),
        *headline_lines(report.headline),
        *warning_lines(other_warnings(report)),
        Text(""),
        *_deviation_parts(report.recovery),
        *tolerance_parts(report.tolerance),
        *_quantisation_parts(report.quantisation),
        _cost_table(report),
        *([Text(""), *_network_parts(report)] if verbose else []),
        Text(""),
        *(Text(f"Hint: {text}") for text in report.hints),
        *(Text(line) for line in remarks(report)),
        _proof_text(report),
        *map(_runtimes_text, report.runtimes or ()),
        _latency_text(report.latency),
        *([] if verbose else [Text(_more_text(report), style="dim")]),
        Text(""),
        _long_line(f"Next: {summary.next_step}", "bold"),
        _long_line(f"{context.source} → {context.output}: {summary.verdict}", style),
    )


def _long_line(text: str, style: str) -> Text:
    """A line that is not broken, so that a command in it can be copied."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def _network_parts(report: CompressionReport) -> list[RenderableType]:
    """Layers and pins."""
    return [layer_table(report.layers), *product_tables(report.products), pin_table(report.pins)]


def _more_text(report: CompressionReport) -> str:
    """A line on what is left out."""
    layers, pins = count_text(len(report.layers), "layer"), count_text(len(report.pins), "pin")
    return f"{layers} and {pins} are listed with {option('verbose', True)}, and on the page of {option('report')}"


def _cost_table(report: CompressionReport) -> Table:
    table = Table(box=None)
    for column in ("", "before", "after", "fraction", "meaning"):
        table.add_column(column, justify="left" if column in ("", "meaning") else "right")
    for metric, cost in report.costs.items():
        table.add_row(metric, f"{cost.before:,}", f"{cost.after:,}", f"{cost.fraction:.4f}", METRICS[metric].meaning)
    row = report.latency
    if row is not None:
        times = (f"{row.before_ms:.3f}", f"{row.after_ms:.3f}", f"{1 / row.comparison.speedup:.4f}")
        table.add_row(LATENCY, *times, METRICS[LATENCY].meaning)
    return table


def _proof_text(report: CompressionReport) -> Text:
    proof, reference = report.proof, "original" if report.lossless else "masked original"
    when = "before its weights were changed, " if report.weights_changed else ""
    at_sizes = f" at {proof.sizes} sizes" if proof.sizes > 1 else ""
    return Text(
        f"Proof {proof.status.upper()}: {when}equal to the {reference} within {proof.max_relative_error:.1e} "
        f"(bound {proof.bound:.0e}) on {proof.inputs} inputs{at_sizes}",
        style="green" if proof.status == "passed" else "red",
    )


def _runtimes_text(row: RuntimesRow) -> Text:
    first, second = row.runtimes
    if row.max_relative_error is None:
        return Text(f"Not compared with {second}: {row.reason}")
    text = f"{second} and {first} differ by {row.max_relative_error:.1e} (bound {row.bound:.0e})"
    return Text(f"Proof twice, {row.status}: {text} on {count_text(row.inputs, 'input')}")


def _deviation_parts(row: RecoveryRow | None) -> list[RenderableType]:
    """Deviation of each output from the original."""
    if row is None:
        return []
    table = _deviation_table(row.removed, row.deviation, row.kept)
    when = ", before → after recovery" if row.kept else ""
    limit = "" if row.minutes is None else f", within {row.minutes:g} min"
    effort = f" (effort {row.effort}{limit})" if row.layers else ""
    parts: list[RenderableType] = [Text(f"Deviation from the original on {sample_text(row)}{when}{effort}"), table]
    metric = row.deviation.metric
    return [*parts, Text(metric_text(metric))] if metric else parts


def _deviation_table(before: FidelityRow, after: FidelityRow, changed: bool) -> Table:
    """Deviation of each output; with its former one where it has changed."""
    lines = [_deviation_cells(name, before.outputs[name], now, changed) for name, now in after.outputs.items()]
    table = Table(box=None)
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in columns:
        table.add_column(name, justify="left" if name == "output" else "right")
    for line in lines:
        table.add_row(*(line[name] for name in columns))
    return table


def _deviation_cells(name: str, first: OutputDeviation, now: OutputDeviation, changed: bool) -> dict[str, str]:
    """The cells of an output by their heads, intervals in brackets; empty where a measure does not apply."""
    known = now.known
    measures = (
        ("top-1 agreement", first.top1, now.top1, known.top1, percent_text),
        ("top-5", first.top5, now.top5, known.top5, percent_text),
        ("PSNR (dB)", first.psnr, now.psnr, known.psnr, "{:.1f}".format),
        ("relative L2", first.relative_l2, now.relative_l2, known.relative_l2, "{:.3g}".format),
    )
    cells = {"output": name}
    for head, was, value, interval, form in measures:
        missing = head != "relative L2" and was is None
        cells[head] = "" if value is None and missing else _change_text(was, value, changed, form)
        cells[head] += interval_text(interval, form) if cells[head] else ""
    return {**cells, "worst channel": _worst_channel_text(now)}


def _quantisation_parts(row: QuantisationRow | None) -> list[RenderableType]:
    """Deviation of each output from the original, in floats and in 8-bit integers."""
    if row is None or row.before is None or row.after is None:
        return []
    table = _deviation_table(row.before, row.after, changed=True)
    kind = "held-out sample" if row.held_out else "sample"
    kept = "" if row.kept else " (the floats were kept)"
    inputs = count_text(row.after.samples, kind)
    return [Text(f"Deviation from the original on {inputs}, in floats → in 8-bit integers{kept}"), table]


def tolerance_parts(row: ToleranceRow | None) -> list[RenderableType]:
    """The candidates that were judged by tolerances."""
    if row is None:
        return []
    table = Table(box=None)
    names = (READING_TEXTS[name][0] for name in row.looks[0].readings)
    for column in (f"{METRICS[row.unit].noun} aimed at", "multiply-adds", *names, "met", "s", ""):
        table.add_column(column, justify="right")
    for k, look in enumerate(row.looks):
        readings = (reading_cell(name, reading) for name, reading in look.readings.items())
        shares = f"{look.fraction:.4f}", f"{look.macs:.4f}"
        mark = "◄ taken" if k == row.chosen else ""
        table.add_row(*shares, *readings, "yes" if look.met else "no", f"{look.seconds:.1f}", mark)
    return [Text(tolerance_text(row)), table]


def _worst_channel_text(output: OutputDeviation) -> str:
    """The channel of the result that deviates most, by its own scale."""
    worst = output.worst_channel
    if worst is None:
        return ""
    number = "∞" if worst.relative_l2 is None else f"{worst.relative_l2:.3g}"
    return f"{number}{interval_text(worst.interval, '{:.3g}'.format)}, no. {worst.index}"


def _change_text(first: float | None, now: float | None, kept: bool, form: Callable[[float], str]) -> str:
    """A measure before and after, or after only; None is infinite."""
    sides = ["∞" if value is None else form(value) for value in ((first, now) if kept else (now,))]
    return " → ".join(sides)


def _latency_text(row: LatencyRow | None) -> Text:
    if row is None:
        return Text("Latency was not measured.", style="dim")
    comparison, (low, high) = row.comparison, row.comparison.interval
    ratio = f"{comparison.speedup:.2f} times the speed (95 % interval {low:.2f} to {high:.2f})"
    text = f"{comparison.verdict.capitalize()}: {ratio} on {row.provider}, {count_text(row.threads, 'thread')}"
    if row.busy:
        is_known = high <= MAX_SPREAD * low
        told = "trust the ratio, taken in turns, not the milliseconds" if is_known else "time it again when it is idle"
        text += f"; the machine was busy: {told}"
    return Text(text, style="green" if comparison.verdict == FASTER else "yellow")
