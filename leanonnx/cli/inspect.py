"""``leanonnx inspect IN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanonnx.cli.options import AsJson, Library, RulesFile, ShapeOption, parse_shapes, rules_from
from leanonnx.cli.terminal import exit_codes, show, show_json
from leanonnx.commands.compress import pipeline
from leanonnx.reporting.inspection import channel_report, network_report
from leanonnx.reporting.tables import channel_text, network_tables


def inspect_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The model to look at.")],
    why: Annotated[
        str | None, typer.Option(metavar="TENSOR[:CHANNEL]", help="Why a tensor's channels stay or go.")
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
        dag = pipeline.load_dag(source, parse_shapes(shape or []), rules_from(rules), tuple(library or ()))
        if why is None:
            network = network_report(dag)
            show_json(network, results) if as_json else show(network_tables(network, str(source)), results)
        else:
            name, _, tail = why.rpartition(":")
            whole = why in dag.channel_ids or not tail.isdecimal()
            report = channel_report(dag, why) if whole else channel_report(dag, name, int(tail))
            show_json(report, results) if as_json else show(channel_text(report), results)
