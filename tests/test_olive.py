"""The pass for Olive: the workflow of docs/recipes.md with the real package, and what the pass makes of refusals."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import leanonnx
from tests.documented import PAGES, ROOT, furnish
from tests.helpers import CNN, TIMEOUT, build, saved, saved_external

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("olive") is None, reason="needs the extra 'olive' (olive-ai), and its torch"
)
WORKFLOW = re.search(
    r"^```json\n(\{\n  \"input_model.*?)^```$", PAGES["docs/recipes.md"].read_text("utf-8"), re.M | re.S
)
SCRIPT = """
import json
from pathlib import Path
from olive.hardware import DEFAULT_CPU_ACCELERATOR
from olive.hardware.accelerator import AcceleratorSpec
from olive.workflows import run
from leanonnx.integrations.olive import LeanOnnx, package_config

def passed(name, model, **options):
    run(
        {
            "input_model": {"type": "OnnxModel", "model_path": model},
            "passes": {"prune": {"type": "LeanOnnx", **options}},
            "output_dir": name,
            "cache_dir": "cache",
        },
        package_config=package_config(),
    )
    return [str(path) for path in Path(name).rglob("*.onnx*") if path.is_file()]

params = LeanOnnx.default_config(DEFAULT_CPU_ACCELERATOR)
cuda = AcceleratorSpec("gpu", "CUDAExecutionProvider")
print(json.dumps({
    "params": {name: [str(each.type_), each.default_value, each.description] for name, each in params.items()},
    "provider": [LeanOnnx.default_config(each)["provider"].default_value for each in (DEFAULT_CPU_ACCELERATOR, cuda)],
    "external": passed("external", "external.onnx", keep=0.5, align=1, pin=["C1"], shape={"x": [1, 3, 8, 8]}),
    "refused": passed("refused", "cnn.onnx", macs=0.000001),
    "wrong": passed("wrong", "cnn.onnx", keep=0.5, calib="nowhere.npz"),
}))
"""


def olive(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder; Olive reports nothing to its makers."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OLIVE_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=5 * TIMEOUT,
        check=False,
    )


def test_the_recipe_runs(tmp_path: Path) -> None:
    """Pruned, then in half precision by Olive's own pass, and run by onnxruntime."""
    assert WORKFLOW is not None
    furnish(tmp_path, WORKFLOW[1])
    (tmp_path / "workflow.json").write_text(WORKFLOW[1], encoding="utf-8")
    for words in (
        ("-m", "leanonnx.integrations.olive", "passes.json"),
        ("-m", "olive", "run", "--config", "workflow.json", "--package-config", "passes.json"),
    ):
        done = olive(tmp_path, *words)
        assert done.returncode == 0, done.stderr
    paths = list((tmp_path / json.loads(WORKFLOW[1])["output_dir"]).rglob("*.onnx"))
    assert len(paths) == 1, done.stdout + done.stderr
    path = paths[0]
    kernels = [
        [tensor for tensor in onnx.load(each).graph.initializer if len(tensor.dims) == 4]
        for each in (tmp_path / "classifier.onnx", path)
    ]
    before, after = (sum(int(np.prod(tensor.dims)) for tensor in each) for each in kernels)
    assert after < 0.7 * before
    assert {tensor.data_type for tensor in kernels[1]} == {onnx.TensorProto.FLOAT16}
    with np.load(tmp_path / "inputs.npz") as arrays:
        x = arrays["x"]
    outputs = [
        ort.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for each in (tmp_path / "classifier.onnx", path)
    ]
    assert outputs[0].shape == outputs[1].shape
    assert (tmp_path / json.loads(WORKFLOW[1])["passes"]["prune"]["report"]).is_file()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A folder, what the script prints, and what Olive logs."""
    folder = tmp_path_factory.mktemp("olive")
    saved(build(CNN), folder / "cnn.onnx")
    saved_external(build(CNN), folder / "external.onnx")
    done = olive(folder, "-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def test_options_are_those_of_compress(results: tuple[Path, dict[str, Any], str]) -> None:
    _, row, _ = results
    keywords = inspect.signature(leanonnx.compress).parameters
    assert set(row["params"]) == set(keywords) - {"model", "out", "images", "progress"} | {"preprocessor"}
    for name, (kind, default, text) in row["params"].items():
        assert name == "preprocessor" or [default] == json.loads(json.dumps([keywords[name].default]))
        assert text
        assert "Callable" not in kind
    assert row["params"]["keep"][0] == "<class 'float'>"
    assert row["provider"] == ["cpu", "cuda"]


def test_weights_stay_in_a_file_of_their_own(results: tuple[Path, dict[str, Any], str]) -> None:
    folder, row, _ = results
    data, path = sorted(row["external"], key=lambda name: name.endswith(".onnx"))
    assert data.endswith(".onnx.data")
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(folder / path).graph.initializer}
    assert shapes["w1"][0] == 8
    assert shapes["w2"][0] < 12


def test_refusals_and_errors_make_the_pass_fail(results: tuple[Path, dict[str, Any], str]) -> None:
    """No model comes out, and the log has the message of leanonnx."""
    folder, row, text = results
    assert (row["refused"], row["wrong"]) == ([], [])
    assert "OlivePassError: " in text
    assert "best_effort=True" in text
    assert f"{folder / 'nowhere.npz'}" in text
