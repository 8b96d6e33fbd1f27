"""Remarks of a report are true of the result."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from leanonnx.commands.compress.tables import compression_tables
from leanonnx.page.headline import headline
from leanonnx.reporting.encoding import from_json
from leanonnx.reporting.reports import CompressionReport, DataFreeRow
from leanonnx.reporting.summary import SummaryContext
from tests.helpers import CNN, build, called_json, saved

FIRST = "before its weights were changed, "
CONTEXT = SummaryContext(options={"kernels": 0.5}, source="a.onnx", output="b.onnx")
NOTHING = DataFreeRow(constants=0, means=0, merged=0, declined=False)


def proofs(report: CompressionReport) -> tuple[str, str]:
    """The sentence on the proof: above the tables, and on the page."""
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as capture:
        console.print(compression_tables(report, CONTEXT))
    proof_line = next(line for line in capture.get().splitlines() if line.startswith("Proof"))
    return proof_line, headline(report, CONTEXT).lead[2]


@pytest.mark.parametrize(
    ("options", "made_up_for", "changed"),
    [
        ([], None, False),
        (["--recover", "auto"], None, True),
        (["--recover", "auto"], NOTHING, False),
        (["--recover", "auto"], replace(NOTHING, declined=True), False),
        (["--recover", "auto"], replace(NOTHING, means=1), True),
    ],
)
def test_changed_weights_are_reported_as_changed(
    options: list[str], made_up_for: DataFreeRow | None, changed: bool, tmp_path: Path
) -> None:
    source = saved(build(CNN), tmp_path / "m.onnx")
    json_object = called_json("compress", source, tmp_path / "o.onnx", "--keep", 0.5, "--align", 1, *options)
    report = from_json(CompressionReport, json_object)
    report = replace(report, data_free=made_up_for or report.data_free)
    assert [FIRST in sentence for sentence in proofs(report)] == [changed, changed]
