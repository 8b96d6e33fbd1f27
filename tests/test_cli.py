"""The command line as scripts rely on it: what ``compress`` and ``inspect`` print, and exit codes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from leanonnx.ranking.criteria import Chains, Method
from tests.helpers import (
    CNN,
    KERNELS,
    TOTAL,
    build,
    called,
    called_json,
    cli,
    cli_json,
    compressed,
    constant_shapes,
    kernels,
    outputs,
    saved,
)

METHODS = [
    (method, chains)
    for method, chains in product(get_args(Method), get_args(Chains))
    if method == "lean" or chains == "cover"
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


# compress: what is printed


def test_json_of_compress(model: Path) -> None:
    """One object with everything that scripts may read; its numbers are those of the files."""
    out = model.parent / "out.onnx"
    row = cli_json("compress", model, out, "--keep", "0.5", "--no-measure")
    assert row["schema"] == 1
    assert row["latency"] is None
    assert row["warnings"] == []
    for unit in ("kernels", "macs", "params", "bytes"):
        change = row[unit]
        assert 0 < change["after"] < change["before"]
        assert change["fraction"] == pytest.approx(change["after"] / change["before"], abs=1e-6)
    assert row["kernels"]["before"] == TOTAL
    assert row["kernels"]["after"] == kernels(out) <= TOTAL / 2
    assert row["bytes"]["before"] == model.stat().st_size
    assert row["bytes"]["after"] == out.stat().st_size
    assert row["proof"]["status"] == "passed"
    assert 0 <= row["proof"]["max_relative_error"] <= 1e-4
    assert row["proof"]["inputs"] >= 1
    assert {"tensor": "y", "channels": 5, "reason": "graph output 'y'"}.items() <= row["pins"][0].items()
    assert all(pin["reason"] for pin in row["pins"])
    assert {"load", "prove"} <= set(row["seconds"])
    assert all(value >= 0 for value in row["seconds"].values())


def test_native_warnings_stay_out_of_stdout(tmp_path: Path) -> None:
    """onnx's checker writes a warning of experimental operators to file descriptor 1 itself."""
    text = CNN.replace('"" : 17', '"" : 7').replace("(x, w1, b1)", "(s, w1, b1)")
    proto = build(text.replace("{\n", "{\n    s = ImageScaler <scale = 0.5, bias = [0.1, 0.2, 0.3]> (x)\n", 1))
    done = cli("compress", saved(proto, tmp_path / "old.onnx"), tmp_path / "out.onnx", "--keep", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    assert "experimental" in done.stderr
    assert json.loads(done.stdout)["proof"]["status"] == "passed"
    assert done.stdout.startswith("{")


def test_text_of_compress(model: Path) -> None:
    done = called("compress", model, model.parent / "out.onnx", "--keep", "0.5", "--verbose")
    assert (done.returncode, done.stderr) == (0, "")
    after = kernels(model.parent / "out.onnx")
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("kernels"))
    assert [str(TOTAL), str(after), f"{after / TOTAL:.4f}"] == line.split()[1:4]
    for text in ("Proof PASSED", "graph input 'x'", "graph output 'y'", "C1", "C2"):
        assert text in done.stdout


def test_layers_are_listed_only_if_asked_for(model: Path) -> None:
    done = called("compress", model, model.parent / "out.onnx", "--keep", "0.5")
    lines = done.stdout.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert "C1" not in done.stdout and "graph output 'y'" not in done.stdout
    assert "3 layers and 2 pins are listed with --verbose, and on the page of --report" in lines
    assert lines[0].startswith("Speed not measured, accuracy not known, ") and lines[0].endswith(" of the size.")
    assert lines[-1] == f"{model} → {model.parent / 'out.onnx'}: {lines[0]}"
    assert [line.startswith("Next: ") for line in lines].count(True) == 1


# compress: the budget


@pytest.mark.parametrize("unit", ["keep", "macs", "params"])
@pytest.mark.parametrize("fraction", [0.2, 0.75])
def test_budgets_are_kept(model: Path, unit: str, fraction: float) -> None:
    row = called_json("compress", model, model.parent / "out.onnx", f"--{unit}", fraction)
    change = row["kernels" if unit == "keep" else unit]
    assert change["after"] <= fraction * change["before"]
    assert change["after"] > 0.5 * fraction * change["before"]


@pytest.mark.parametrize(("method", "chains"), METHODS)
def test_methods(model: Path, method: str, chains: str) -> None:
    out, calib = model.parent / "out.onnx", ()
    if method == "path-mass":
        calib = ("--calib", model.parent / "x.npz")
        np.savez(calib[1], x=np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32))
    row = called_json("compress", model, out, "--keep", "0.5", "--method", method, "--chains", chains, *calib)
    assert row["proof"]["status"] == "passed"
    assert 0 < kernels(out) <= TOTAL / 2
    assert [value.shape for value in outputs(out)] == [(1, 5)]


def test_methods_choose_differently(model: Path) -> None:
    found = {method: compressed(model, model.parent / "out.onnx", method=method).plan for method in ("lean", "random")}
    assert found["lean"].tensors != found["random"].tensors


def test_seed(model: Path) -> None:
    """A seed names one random choice."""
    found = [
        compressed(model, model.parent / "out.onnx", method="random", seed=seed).plan.tensors for seed in (0, 1, 0, 2)
    ]
    assert found[0] == found[2]
    assert not found[0] == found[1] == found[3]


def test_unreachable_budget_names_the_lowest_reachable(model: Path) -> None:
    """The fraction in the message is one that can indeed be reached, and nothing below it can."""
    out = model.parent / "out.onnx"
    done = cli("compress", model, out, "--keep", "0.001")
    assert (done.returncode, done.stdout) == (1, "")
    assert "0.001 of the kernels was asked for" in done.stderr
    assert not out.exists()
    lowest = done.stderr.split("at least ")[1].split(",")[0]
    assert called_json("compress", model, out, "--keep", lowest)["kernels"]["fraction"] <= float(lowest)
    below = called("compress", model, model.parent / "below.onnx", "--keep", float(lowest) - 0.001)
    assert below.returncode == 1


def test_best_effort_writes_the_lowest_and_warns(model: Path) -> None:
    out = model.parent / "out.onnx"
    row = called_json("compress", model, out, "--keep", "0.001", "--best-effort")
    assert len(row["warnings"]) == 1
    assert f"{row['kernels']['fraction']:.4f} of the kernels is the lowest reachable" in row["warnings"][0]
    assert row["kernels"]["after"] == kernels(out) == 3 + 1 + 5
    text = called("compress", model, out, "--keep", "0.001", "--best-effort").stdout
    assert row["warnings"][0][:40] in text


def test_best_effort_when_nothing_is_removable(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3] x) => (float[1, 3] y) { y = Relu (x) }'
    source = saved(build(text), tmp_path / "relu.onnx")
    row = called_json("compress", source, tmp_path / "out.onnx", "--keep", "0.5", "--best-effort")
    assert any("the output equals the input" in warning for warning in row["warnings"])
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


# compress: what may not be removed


@pytest.mark.parametrize("name", ["c1", "r1", "C1"])
def test_pin_keeps_all_channels(model: Path, name: str) -> None:
    """Pin a tensor, one that shares its channels, or the node that outputs it."""
    out = model.parent / "out.onnx"
    called_json("compress", model, out, "--keep", "0.4", "--pin", name)
    shapes = constant_shapes(out)
    assert shapes["w1"] == [8, 3, 3, 3]
    assert shapes["w2"][0] < 12
    assert shapes["w2"][1] == 8
    assert kernels(out) <= 0.4 * TOTAL


@pytest.mark.parametrize("name", ["C2", "c2"])
def test_ignored_layer_keeps_its_outputs_and_is_not_counted(model: Path, name: str) -> None:
    row = called_json("compress", model, model.parent / "out.onnx", "--keep", "0.9", "--ignore", name)
    shapes = constant_shapes(model.parent / "out.onnx")
    assert row["kernels"]["before"] == TOTAL - KERNELS["w2"]
    assert shapes["w2"] == [12, shapes["w1"][0], 3, 3]
    assert shapes["w1"][0] < 8


def test_ignored_layer_leaves_the_rest_to_be_pruned(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
    <float[9, 3, 1, 1] w1, float[9, 9, 1, 1] w2, float[9, 9, 1, 1] w3, float[4, 9, 1, 1] w4>
    { a = Conv (x, w1) b = Conv (a, w2) c = Conv (b, w3) y = Conv (c, w4) }"""
    source = saved(build(text), tmp_path / "model.onnx")
    row = called_json("compress", source, tmp_path / "out.onnx", "--keep", "0.6", "--ignore", "Y")
    shapes = constant_shapes(tmp_path / "out.onnx")
    assert shapes["w4"] == [4, shapes["w3"][0], 1, 1]
    assert row["kernels"]["before"] == 9 * 3 + 9 * 9 + 9 * 9
    assert sum(shapes[name][0] * shapes[name][1] for name in ("w1", "w2", "w3")) == row["kernels"]["after"]
    assert row["kernels"]["after"] <= 0.6 * row["kernels"]["before"]


# inspect


def test_inspect(model: Path) -> None:
    row = called_json("inspect", model)
    assert (row["schema"], row["kernels"]) == (1, TOTAL)
    assert row["params"] == sum(int(np.prod(shape)) for shape in constant_shapes(model).values())
    assert [(layer["name"], layer["operator"]) for layer in row["layers"]] == [
        ("C1", "Conv"),
        ("C2", "Conv"),
        ("Y", "Gemm"),
    ]
    done = cli("inspect", model)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("C1", "C2", "kernels", str(TOTAL), "graph output 'y'"):
        assert text in done.stdout


def test_inspect_shows_ties(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
    <float[9, 3, 1, 1] w1, float[9, 9, 1, 1] w2, float[4, 9, 1, 1] w3>
    { a = Conv (x, w1) b = Conv (a, w2) s = Add (a, b) y = Conv (s, w3) }"""
    row = called_json("inspect", saved(build(text), tmp_path / "model.onnx"))
    assert row["ties"] == [{"layers": ["A", "B"], "classes": 9}]


def test_why(model: Path) -> None:
    row = called_json("inspect", model, "--why", "r1")
    assert (row["tensor"], row["shape"], row["channels"], row["channel_axes"]) == ("r1", [1, 8, 8, 8], 8, [1])
    assert called_json("inspect", model, "--why", "r1:3")["channels"] == 1
    done = called("inspect", model, "--why", "y:2")
    assert done.returncode == 0
    assert "graph output 'y'" in done.stdout
