"""``leanonnx inspect IN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from leanonnx.cli.options import Library, RulesFile, ShapeOption, parse_shapes, rules_from
from leanonnx.cli.several import matching_models, report_each
from leanonnx.cli.terminal import AsJson, exit_codes
from leanonnx.commands.compress import pipeline
from leanonnx.reporting.inspection import carries_channels, channel_report, network_report
from leanonnx.reporting.reports import ChannelReport, NetworkReport
from leanonnx.reporting.tables import channel_text, network_tables


def inspect_command(
    sources: Annotated[
        list[Path], typer.Argument(metavar="IN…", help="The model to look at, or several, or a pattern: '*.onnx'.")
    ],
    why: Annotated[
        str | None,
        typer.Option(metavar="NAME[:CHANNEL]", help="Why the channels of a tensor or layer stay or go."),
    ] = None,
    shape: ShapeOption = None,
    rules: RulesFile = None,
    library: Library = None,
    as_json: AsJson = False,
) -> None:
    """Show layers, channels, ties, pins with their reasons, and the costs of the model (in Python: ``analyse``).

    Exit codes: 0 shown, 2 wrong file or option, 3 a bug.
    """
    with exit_codes() as results:
        shapes, table, libraries = parse_shapes(shape or []), rules_from(rules), tuple(library or ())

        def report_of(source: Path) -> NetworkReport | ChannelReport:
            dag = pipeline.load_dag(source, shapes, table, libraries)
            if why is None:
                return network_report(dag)
            name, _, tail = why.rpartition(":")
            whole = carries_channels(dag, why) or not tail.isdecimal()
            return channel_report(dag, why) if whole else channel_report(dag, name, int(tail))

        report_each(matching_models(sources), report_of, _tables, results, as_json)


def _tables(source: Path, report: NetworkReport | ChannelReport) -> RenderableType:
    """A report as people read it."""
    if isinstance(report, ChannelReport):
        return channel_text(report)
    return network_tables(report, str(source))
