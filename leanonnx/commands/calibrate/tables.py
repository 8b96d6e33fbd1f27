"""Terminal tables of ``leanonnx calibrate-device``: each entry with its meaning."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.calibrate.rows import CalibrationReport
from leanonnx.formatting import count_text
from leanonnx.reporting.tables import warning_lines
from leanonnx.spelling import option

STEPS_TEXTS = {
    "read": "block, multiple and grouped are read from onnxruntime's optimised graphs, all else is timed",
    "timed": "block and multiple are found by timing widths, grouped is taken to be multiple",
}
"""How widths that run fast were determined."""


def calibration_tables(report: CalibrationReport) -> RenderableType:
    """The tables of ``leanonnx calibrate-device``."""
    threads, version = count_text(report.threads, "thread"), f"onnxruntime {report.onnxruntime}"
    head = f"{report.target}: {report.provider}, {threads}, {report.processor}, {version}"
    variable = f"for {option('target', 'auto')} to use it, set LEANONNX_TARGETS={Path(report.file).absolute()}"
    use = f"{option('target', 'auto')} uses it from now on" if report.used_by_auto else variable
    return Group(
        Text(head, style="bold"),
        *warning_lines(report.warnings),
        _entry_table(report),
        Text(STEPS_TEXTS[report.steps], style="dim"),
        Text(""),
        *_forecast_parts(report),
        Text(""),
        Text(f"Stored in {report.file} after {report.seconds:.0f} s; {use}."),
    )


def _entry_table(report: CalibrationReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("entry", "measured", "built-in", "unit", "meaning"):
        table.add_column(name, justify="right" if name in ("measured", "built-in") else "left")
    for name, entry in report.entries.items():
        table.add_row(name, f"{entry.measured:g}", f"{entry.built_in:g}", entry.unit, entry.meaning)
    return table


def _forecast_parts(report: CalibrationReport) -> list[RenderableType]:
    """Errors of the predictions for networks that no entry is fitted to."""
    table = Table(box=None, pad_edge=False)
    for name in ("network", "measured", "predicted", "off by", "built-in", "off by"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for row in report.checks:
        predictions = ((row.predicted, row.error), (row.built_in, row.built_in_error))
        cells = [cell for ratio, error in predictions for cell in (f"{ratio:.2f}", f"{error:+.0%}")]
        table.add_row(row.network, f"{row.measured:.2f}", *cells)
    worst = max(abs(row.error) for row in report.checks)
    text = (
        f"Speed-up of two networks by pruning, to which no entry is fitted: the table is off by up to {worst:.0%}. Two "
        "networks say little about others; compress measures its result anyway."
    )
    return [Text("Check", style="bold"), Text(text, style="dim"), table]
