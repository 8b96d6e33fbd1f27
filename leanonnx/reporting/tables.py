"""Terminal tables of the rows that reports share, and of ``leanonnx inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.formatting import change_text, count_text
from leanonnx.reporting.remarks import folded_remarks, uncounted_remarks
from leanonnx.reporting.reports import ChannelReport, NetworkReport
from leanonnx.reporting.rows import LayerRow, PinRow, ProductRow, TieRow
from leanonnx.selection.metrics import METRICS

MAX_LISTED_TENSORS = 20
"""Tied tensors that are listed."""


def warning_lines(warnings: Sequence[str]) -> list[Text]:
    """A line for each warning."""
    return [Text(f"Warning: {text}", style="yellow") for text in warnings]


def headline_lines(headline: str | None) -> list[Text]:
    """The warning that a result is ruined, if it is."""
    return [] if headline is None else [Text(f"WARNING: {headline}", style="bold red")]


class Warned(Protocol):
    """A report with warnings, the first of which may be its headline."""

    @property
    def headline(self) -> str | None:
        """The warning that a result is ruined."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings."""


def other_warnings(report: Warned) -> tuple[str, ...]:
    """The warnings without the headline."""
    return report.warnings if report.headline is None else report.warnings[1:]


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """Layers with their channels and kernels, before and after."""
    table = Table(title="Layers", title_justify="left", box=None)
    for column in ("layer", "operator", "in", "out", "groups", "kernels"):
        table.add_column(column, justify="left" if column in ("layer", "operator") else "right", overflow="fold")
    for row in rows:
        counts = (row.inputs, row.outputs, row.groups, row.kernels)
        table.add_row(row.name, row.operator, *(change_text(count) for count in counts))
    return table


def product_tables(rows: Sequence[ProductRow]) -> list[RenderableType]:
    """Nodes with multiply-adds but no kernels, before and after; nothing where there are none."""
    if not rows:
        return []
    table = Table(title="Multiply-adds beside the kernels", title_justify="left", box=None)
    for column in ("node", "operator", "multiply-adds"):
        table.add_column(column, justify="right" if column == "multiply-adds" else "left", overflow="fold")
    for row in rows:
        table.add_row(row.name, row.operator, change_text(row.macs))
    return [table]


def pin_table(rows: Sequence[PinRow]) -> RenderableType:
    """Channels that may not be removed, and what to do about it."""
    if not rows:
        return Text("Nothing is pinned.")
    table = Table(title="Pinned (may not be removed)", title_justify="left", box=None)
    for column in ("tensor", "channels", "kernels held", "reason", "what to do"):
        table.add_column(column, justify="right" if column in ("channels", "kernels held") else "left", overflow="fold")
    for row in rows:
        table.add_row(row.tensor, str(row.channels), f"{row.kernels:,}", row.reason, row.advice)
    return table


def network_tables(report: NetworkReport, source: str) -> RenderableType:
    """The tables of ``leanonnx inspect``."""
    costs = Table(title=None, box=None)
    for column in ("", "", "meaning"):
        costs.add_column(column, justify="right" if column == "" else "left")
    for metric, count in report.costs.items():
        costs.add_row(metric, f"{count:,}", METRICS[metric].meaning)
    channels, inputs = report.channels, {name: list(shape) for name, shape in report.inputs.items()}
    note = f"{channels.groups} independent channels, {channels.pinned} of them pinned; inputs {inputs}"
    lines = [note, *folded_remarks(report.folded), *uncounted_remarks(report.uncounted)]
    return Group(
        Text(source, style="bold"),
        costs,
        *(Text(line) for line in lines),
        layer_table(report.layers),
        *product_tables(report.products),
        _tie_table(report.ties),
        pin_table(report.pins),
    )


def channel_text(report: ChannelReport) -> RenderableType:
    """The text of ``leanonnx inspect --why``."""
    axes, more = list(report.channel_axes), len(report.tied) - MAX_LISTED_TENSORS
    lines = [f"'{report.tensor}' {list(report.shape)}: {count_text(report.channels, 'channel')} on axes {axes}"]
    lines += [f"  {report.removable} of them may be removed"]
    lines += [f"  pinned: {pin.reason} ({pin.advice})" for pin in report.pins]
    for row in report.tied[:MAX_LISTED_TENSORS]:
        lines.append(f"  tied to {count_text(row.channels, 'channel')} of '{row.tensor}'")
    lines += [f"  … and {more} more tensors"] if more > 0 else []
    lines += [f"  read by '{name}'" for name in report.consumers]
    return Text("\n".join(lines))


def _tie_table(rows: Sequence[TieRow]) -> RenderableType:
    if not rows:
        return Text("No layers are tied.")
    table = Table(title="Tied layers (their channels are kept or removed together)", title_justify="left", box=None)
    table.add_column("channels", justify="right")
    table.add_column("layers", overflow="fold")
    for row in rows:
        table.add_row(str(row.groups), ", ".join(row.layers))
    return table
