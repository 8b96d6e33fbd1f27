"""leanonnx in Python: check, sweep, finetune and calibrate_device."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import leanonnx
from leanonnx.errors import OptionError, OutputError
from tests.helpers import ANY, CNN, build, called, called_json, saved

TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


# check


def test_check_agrees_with_the_command_line(model: Path) -> None:
    small = model.parent / "small.onnx"
    leanonnx.compress(model, small, keep=0.5, **ANY)
    row = called_json("check", model, small, "--max-deviation", "1000", "--max-bytes", "1x")
    result = leanonnx.check(model, small, max_deviation=1000, max_bytes="1x")
    assert without_seconds(result.to_dict()) == without_seconds(row)
    assert result.passed and result.failed == ()
    assert {verdict.gate for verdict in result.verdicts} >= {"valid", "max-deviation", "max-bytes"}


def test_a_failed_gate_is_no_error(model: Path) -> None:
    small = leanonnx.compress(model, keep=0.5, **ANY)
    result = leanonnx.check(onnx.load(model), small.model, max_deviation=0, max_params="0.1x")
    assert result.failed == ("max-deviation", "max-params")
    assert not result.passed
    assert "max-deviation" in repr(result)


def test_limits_of_a_file_are_overridden(model: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text('max-params = "1x"\nmax-macs = 1\n')
    assert leanonnx.check(model, model, gates=gates).failed == ("max-macs",)
    assert leanonnx.check(model, model, gates=gates, max_macs="1x").passed
    with pytest.raises(OptionError, match=r"^max_bytes 5XB: expected bytes such as 5MB"):
        leanonnx.check(model, model, max_bytes="5XB")
    with pytest.raises(OptionError, match=r"layout, size and preprocessor go with data; leave them out"):
        leanonnx.check(model, model, images=leanonnx.ImageFormat(scale=1.0))


# sweep


def test_sweep_agrees_with_the_command_line(model: Path, tmp_path: Path) -> None:
    options = ("--align", 1, "--no-measure", "--jobs", 1)
    row = called_json("sweep", model, "--keep", "0.75,0.5", "--out", tmp_path / "cli", *options)
    result = leanonnx.sweep(model, tmp_path / "api", keep=[0.5, 0.75], align=1, jobs=1, save_models=True)
    assert (result.unit, [point.fraction for point in result.points]) == ("kernels", [0.75, 0.5])
    for point, expected in zip(result.points, row["models"][0]["points"], strict=True):
        assert (point.model, point.message, point.speedup) == (str(model), "", None)
        assert (point.kernels, point.bytes) == (expected["kernels"]["fraction"], expected["bytes"]["fraction"])
        assert point.deviation == expected["deviation"]["relative_l2"]
        assert point.file is not None and point.file.is_file()
    assert set(result.files) >= {"csv", "json"}
    assert "Without calib the deviation is that on random inputs" in result.warnings[0]
    assert "Without --calib the deviation" in row["warnings"][0]


def test_points_of_a_sweep_speak_to_their_caller(model: Path, tmp_path: Path) -> None:
    """The processes that make points spell options as the caller of the sweep does."""
    done = called("sweep", model, "--keep", "1,0.001", "--out", tmp_path / "cli", "--no-measure", "--json")
    row = json.loads(done.stdout)
    (point,) = [point for point in leanonnx.sweep(model, tmp_path / "api", keep=[1, 0.001]).points if point.message]
    assert "best_effort=True" in point.message and point.kernels is None
    assert "--best-effort" in row["models"][0]["points"][1]["message"]


def test_wrong_sweeps(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"exactly one of keep, macs, params"):
        leanonnx.sweep(model, tmp_path / "s")
    with pytest.raises(OptionError, match=r"^keep=1.5: expected a fraction"):
        leanonnx.sweep(model, tmp_path / "s", keep=1.5)
    with pytest.raises(OptionError, match=r"^latency measures as it searches.*leave out dask and jobs"):
        leanonnx.sweep(model, tmp_path / "s", latency=0.5, jobs=2)
    assert not (tmp_path / "s").exists()


# finetune, calibrate_device


@pytest.mark.skipif(TORCH, reason="torch is installed")
def test_finetune_says_that_it_needs_torch(model: Path) -> None:
    with pytest.raises(OptionError, match=r"finetune needs torch; install it with pip install torch"):
        leanonnx.finetune(model, model.parent / "out.onnx", data="x.npz")


WRONG = [
    ({"lr": 2.0}, "^lr=2: expected a number above 0 and below 1"),
    ({"minutes": 0.0}, "^minutes=0: expected a number above 0"),
    ({"keep": 0.5}, "^keep goes with steps"),
    ({"keep_steps": "folder"}, "^keep_steps goes with steps"),
    ({"steps": 3}, "exactly one of keep, macs, params or bytes"),
    ({"resume": True}, "^resume=True goes on from a checkpoint"),
    ({}, "^strategy='school' learns from the original"),
    ({"strategy": "measurement"}, r"give the operator from image to measurement with operator='FILE.onnx'"),
    ({"operator": "a.onnx"}, "^operator goes with strategy='measurement'"),
    ({"pairing": "2:X"}, "^pairing='2:X': expected one of X:1, 1:X"),
    ({"strategy": "guess"}, "^strategy='guess': expected one of school, supervised"),
]


@pytest.mark.skipif(not TORCH, reason="torch is not installed: pip install torch")
@pytest.mark.parametrize(("wrong", "says"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_wrong_trainings(model: Path, wrong: dict[str, Any], says: str) -> None:
    teacher = {"teacher": model} if wrong else {}
    with pytest.raises(OptionError, match=says):
        leanonnx.finetune(model, model.parent / "out.onnx", data=model.parent / "x.npz", **{**teacher, **wrong})


def test_calibration_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no regular file; give another one with out"):
        leanonnx.calibrate_device(tmp_path)
    with pytest.raises(OptionError, match=r"^provider='tpu'"):
        leanonnx.calibrate_device(tmp_path / "t.toml", provider="tpu")  # type: ignore[arg-type]
