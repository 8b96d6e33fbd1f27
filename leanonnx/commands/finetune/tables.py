"""Terminal tables of ``leanonnx finetune``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.finetune.rows import FinetuneReport, HeldOutRow, StepRow, TrainedOutputRow, TrainingRow
from leanonnx.formatting import count_text
from leanonnx.reporting.tables import headline_lines, other_warnings, warning_lines

MAX_NAMES = 6
"""Number of names in a line."""


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
    """What is trained and, by reason, what is held."""
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
        table.add_row(row.metric, _cell(row.before.value, "{:.4g}"), _cell(row.after.value, "{:.4g}"))
    for name, before in row.before.outputs.items():
        for measure, numbers, form in _measures(before, row.after.outputs[name]):
            if numbers[0] is not None:
                table.add_row(f"{name}: {measure}", *(_cell(number, form) for number in numbers))
    return table


def _measures(before: TrainedOutputRow, after: TrainedOutputRow) -> Iterator[tuple[str, Sequence[float | None], str]]:
    """The measures of an output: name, values before and after, format."""
    yield "relative error", (before.relative_l2, after.relative_l2), "{:.4f}"
    yield "same class", (before.top1, after.top1), "{:.1%}"
    yield "PSNR, dB", (before.psnr, after.psnr), "{:.1f}"


def _step_line(step: StepRow) -> Text:
    loss = step.training.held_out.loss
    ((metric, share),) = step.shares.items()
    before, after = _cell(loss.before, "{:.4g}"), _cell(loss.after, "{:.4g}")
    return Text(f"step {step.step}: {share.reached:.4f} of the {metric}, held-out loss {before} → {after}")


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
