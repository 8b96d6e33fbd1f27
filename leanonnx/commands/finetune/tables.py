"""Terminal tables of ``leanonnx finetune``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.finetune.rows import FinetuneReport, HeldOutRow, StepRow, TrainingRow
from leanonnx.formatting import count_text
from leanonnx.reporting.remarks import interval_text
from leanonnx.reporting.rows import IntervalRow, OutputDeviation
from leanonnx.reporting.tables import headline_lines, other_warnings, warning_lines

MAX_NAMES = 6
"""Number of names in a line."""
MEASURE_FORMATS = {"relative_l2": "{:.4f}", "top1": "{:.1%}", "psnr": "{:.1f}"}
MEASURE_TEXTS = {"relative_l2": "relative error", "top1": "same class", "psnr": "PSNR, dB"}
"""The measures of an output that are shown: format and name."""


def finetune_tables(report: FinetuneReport, output: str) -> RenderableType:
    """The tables of ``leanonnx finetune``; ``output`` is the path as given."""
    training = report.training
    amount = f"{count_text(training.samples, 'sample')}, {count_text(training.epochs, 'epoch')}"
    head = f"{training.strategy}: {count_text(training.parameters, 'parameter')} trained on {amount}"
    error = f"{training.round_trip.after.max_relative_error:.1e}"
    end = f"Wrote {output}: epoch {training.best_epoch}, torch and onnxruntime agree to {error}"
    steps = [_step_line(step) for step in report.steps or ()]
    table = _held_out_table(training.held_out)
    warnings = warning_lines(other_warnings(training))
    first = headline_lines(training.headline)
    weights = _weight_lines(training)
    return Group(*first, Text(head, style="bold"), *warnings, *weights, *steps, table, Text(""), Text(end))


def _weight_lines(training: TrainingRow) -> Iterator[Text]:
    """Constants that are trained and, by reason, those that are held."""
    yield Text(f"trained: {_names_text(training.trained)}")
    for row in training.held:
        yield Text(f"held: {_names_text(row.names)} ({row.reason})")


def _names_text(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _held_out_table(row: HeldOutRow) -> Table:
    """Loss, metric and deviation on held-out samples, before and after training."""
    table = Table(box=None, pad_edge=False)
    table.add_column(f"on {count_text(row.samples, 'held-out sample')}", justify="left")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("loss", _cell(row.loss.before, "{:.4g}"), _cell(row.loss.after, "{:.4g}"))
    if row.metric:
        sides = (row.before.value, row.before.interval), (row.after.value, row.after.interval)
        table.add_row(row.metric, *(_cell(value, "{:.4g}", interval) for value, interval in sides))
    for name, before in row.before.outputs.items():
        for measure, form in MEASURE_FORMATS.items():
            sides = _measure(before, measure), _measure(row.after.outputs[name], measure)
            if sides[0][0] is not None:
                cells = (_cell(value, form, interval) for value, interval in sides)
                table.add_row(f"{name}: {MEASURE_TEXTS[measure]}", *cells)
    return table


def _measure(row: OutputDeviation, name: str) -> tuple[float | None, IntervalRow | None]:
    """A measure of an output, with its interval."""
    return getattr(row, name), getattr(row.known, name)


def _step_line(step: StepRow) -> Text:
    loss = step.training.held_out.loss
    ((metric, share),) = step.shares.items()
    before, after = _cell(loss.before, "{:.4g}"), _cell(loss.after, "{:.4g}")
    return Text(f"step {step.step}: {share.reached:.4f} of the {metric}, held-out loss {before} → {after}")


def _cell(value: float | None, form: str, interval: IntervalRow | None = None) -> str:
    return "–" if value is None else f"{form.format(value)}{interval_text(interval, form.format)}"
