"""The gate on PSNR: what ``check`` measures, and the limit that the next step of ``compress`` proposes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import leanonnx
from leanonnx.reporting.rows import IntervalsRow, OutputDeviation
from tests.helpers import build, called, refused, saved
from tests.pages import residual
from tests.test_summary import UNSURE, channel_of, context, judged, output, step

FLAT = """
<ir_version: 8, opset_import: ["" : 17]>
flat (float[N, 6] x) => (float[N, 5] y) <float[6, 5] w> { y = MatMul (x, w) }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image network, and one whose weights differ a little."""
    saved(residual(), tmp_path / "base.onnx")
    proto = residual()
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    rough = weight + 0.1 * np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(rough, proto.graph.initializer[0].name))
    saved(proto, tmp_path / "new.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((24, 3, 16, 16)).astype(np.float32))
    return tmp_path


def gate_row(folder: Path, *words: object) -> dict[str, Any]:
    """The gate on PSNR of a check on the samples."""
    names = (folder / "base.onnx", folder / "new.onnx", "--data", folder / "x.npz")
    report = json.loads(called("check", *names, *words, "--json").stdout)
    return next(row for row in report["gates"] if row["gate"] == "min-psnr")


def test_measured(folder: Path) -> None:
    """It is the PSNR that the report gives, with its interval; the limit is a lower one."""
    result = leanonnx.check(folder / "base.onnx", folder / "new.onnx", data=folder / "x.npz", min_psnr="1 dB")
    gate = next(verdict for verdict in result.verdicts if verdict.gate == "min-psnr")
    rows = [row.fidelity.outputs["y"] for row in result.report.deviation]
    known = [row.psnr for row in rows if row.psnr is not None]
    assert gate.measured == min(known) and gate.status == "passed" and gate.limit == 1
    assert " dB to " in gate.detail.replace("\N{NO-BREAK SPACE}", " ")
    assert gate_row(folder, "--min-psnr", min(known) - 0.1)["status"] == "passed"
    assert gate_row(folder, "--min-psnr", min(known) + 0.1)["status"] == "failed"


def test_from_a_file(folder: Path) -> None:
    (folder / "gates.toml").write_text('min-psnr = "200dB"\n')
    assert gate_row(folder, "--gates", folder / "gates.toml")["limit"] == 200


def test_equal_outputs_pass(folder: Path) -> None:
    saved(residual(), folder / "new.onnx")
    row = gate_row(folder, "--min-psnr", 300)
    assert (row["status"], row["measured"]) == ("passed", None)


def test_refused_without_images(tmp_path: Path) -> None:
    saved(build(FLAT), tmp_path / "base.onnx")
    says = ("--min-psnr", "no output of base.onnx is an image", "--max-deviation")
    refused(tmp_path, "check", "base.onnx", "base.onnx", "--min-psnr", 40, says=says)
    refused(tmp_path, "check", "base.onnx", "base.onnx", "--min-psnr", -3, says=("expected decibels", "40"))


def image(psnr: float, low: float | None, agreement: tuple[float, float] | None = None) -> OutputDeviation:
    """An image output with the interval of its PSNR, and with decisions where they agree."""
    return OutputDeviation(
        relative_l2=0.05,
        psnr=psnr,
        top1=None if agreement is None else agreement[1],
        top5=None,
        worst_channel=channel_of(0.3, (0.2, 0.41)),
        vacuous=None,
        intervals=IntervalsRow(
            psnr=(low, psnr + 1),
            top1=agreement,
            relative_l2=(0.04, 0.06),
        ),
    )


def proposed(*outputs: OutputDeviation) -> list[str]:
    """The gates that the next step proposes."""
    return shlex.split(step(judged(*outputs), context()).partition(": ")[2])[4:]


def test_a_gate_fits_the_measure_of_the_first_line() -> None:
    """PSNR for images, agreement for decisions, both where there are both; else the deviation, which holds for all."""
    data = ["--data", "DATA"]
    assert proposed(image(41, 38.27)) == [*data, "--min-psnr", "38.2"]
    assert proposed(image(41, 38.27), image(35, 31)) == [*data, "--min-psnr", "31"]
    both = proposed(image(41, 38.27), output(top1=0.97, ends=(0.94, 0.99)))
    assert both == [*data, "--min-agreement", "0.94", "--min-psnr", "38.2"]
    assert proposed(image(41, None)) == [*data, "--max-deviation", "0.41"]
    assert proposed(image(41, 38.27), output(0.05, ends=(0.04, 0.07))) == [*data, "--max-deviation", "0.41"]


@given(lows=st.lists(st.floats(0.1, 200), min_size=1, max_size=3))
def test_the_result_keeps_the_limit(lows: list[float]) -> None:
    words = proposed(*(image(low + 1, low) for low in lows))
    assert float(words[words.index("--min-psnr") + 1]) <= min(lows)


@pytest.mark.parametrize("report", [judged(output(top1=0.97, ends=(0.94, 0.99))), judged(UNSURE)])
def test_no_command_takes_the_samples_that_the_result_was_made_of(report: Any) -> None:
    """Neither as those that a check is to be trusted on, nor as the further ones of a training."""
    text = step(report, context(macs=0.99, calib="used.npz"))
    assert "--data DATA" in text and "used.npz" not in text
