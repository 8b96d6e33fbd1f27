"""``leanonnx inspect IN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanonnx import pipeline, report
from leanonnx.analysis import ChannelDag
from leanonnx.cli.options import parse_shapes, rules_from
from leanonnx.cli.terminal import exit_codes, show, show_json
from leanonnx.errors import OptionError


def inspect(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The model to look at.")],
    why: Annotated[
        str | None, typer.Option(metavar="TENSOR[:CHANNEL]", help="Why a tensor's channels stay or go.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME=1,3,224,224", help="Size of a free graph input.")
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="R.py", help="Python file with rules of your own; it is run.")
    ] = None,
    library: Annotated[
        list[Path] | None, typer.Option(metavar="L.so", help="Library of custom operators for onnxruntime.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show layers, channels, ties, pins with their reasons, and what the model costs."""
    with exit_codes() as results:
        dag = pipeline.inspect(source, parse_shapes(shape or []), rules_from(rules), tuple(library or ()))
        if why is None:
            row = report.overview(dag)
            show_json(row, results) if as_json else show(report.overview_tables(row, str(source)), results)
        else:
            row = _why(dag, why)
            show_json(row, results) if as_json else show(report.why_text(row), results)


def _why(dag: ChannelDag, text: str) -> report.Row:
    name, _, tail = text.rpartition(":")
    tensor, channel = (text, None) if text in dag.labels or not tail.isdecimal() else (name, int(tail))
    try:
        return report.why(dag, tensor, channel)
    except KeyError:
        raise OptionError(
            f"--why {text}: no tensor named '{tensor}' carries channels; see `leanonnx inspect`"
        ) from None
    except IndexError:
        size = len(dag.labels[tensor].reshape(-1))
        raise OptionError(f"--why {text}: '{tensor}' has {size} channels, counted from 0") from None
