"""What a report says in words is true of what was done."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leanonnx.page.headline import headline
from leanonnx.reporting.report import result_tables
from tests.helpers import CNN, build, called_json, saved

FIRST = "before its weights were changed, "
NOTHING = {"constants": 0, "means": 0, "merged": 0, "declined": False}


def proofs(row: dict[str, Any]) -> tuple[str, str]:
    """The sentence on the proof: above the tables, and on the page."""
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as capture:
        console.print(result_tables(row, "a.onnx", "b.onnx"))
    told = next(line for line in capture.get().splitlines() if line.startswith("Proof"))
    return told, headline(row, {"kernels": 0.5}, "a.onnx", "b.onnx").lead[1]


@pytest.mark.parametrize(
    ("options", "made_up_for", "changed"),
    [
        ([], None, False),
        (["--recover", "auto"], None, True),
        (["--recover", "auto"], NOTHING, False),
        (["--recover", "auto"], {**NOTHING, "declined": True}, False),
        (["--recover", "auto"], {**NOTHING, "means": 1}, True),
    ],
)
def test_weights_are_said_to_have_changed_where_they_have(
    options: list[str], made_up_for: dict[str, Any] | None, changed: bool, tmp_path: Path
) -> None:
    source = saved(build(CNN), tmp_path / "m.onnx")
    row = called_json("compress", source, tmp_path / "o.onnx", "--keep", 0.5, "--align", 1, *options)
    row["blind"] = made_up_for or row["blind"]
    assert [FIRST in sentence for sentence in proofs(row)] == [changed, changed]
