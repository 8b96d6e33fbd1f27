"""leanonnx in Python: analyse, prove and bench, and the examples of docstrings."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.api import channels
from leanonnx.api import verbs as api
from leanonnx.errors import (
    OptionError,
    PlanError,
)
from leanonnx.reporting.encoding import to_json
from tests.helpers import ANY, CNN, build, called_json, saved

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


# analyse, prove, bench


def test_analysis_agrees_with_inspect(model: Path) -> None:
    row = called_json("inspect", model)
    for given in (model, onnx.load(model)):
        found = leanonnx.analyse(given)
        assert found.to_dict() == row
        names = ("kernels", "macs", "params", "bytes", "inputs", "channels", "layers", "ties", "pins")
        assert to_json({name: getattr(found, name) for name in names}) == {name: row[name] for name in names}
        assert to_json(found.why("r1", 3)) == called_json("inspect", model, "--why", "r1:3")
        assert to_json(found.why("r1")) == called_json("inspect", model, "--why", "r1")
        assert repr(found) == f"<3 layers, {row['kernels']} kernels; 26 channels, 6 of them pinned>"
    with pytest.raises(OptionError, match="why='ghost': no tensor and no layer named 'ghost' carries channels"):
        found.why("ghost")
    with pytest.raises(OptionError, match="why='r1:8': 'r1' has 8 channels"):
        found.why("r1", 8)


@pytest.mark.parametrize("options", [{"keep": 0.4}, {"exact": True}], ids=["keep", "exact"])
def test_proof_can_be_made_again(tmp_path: Path, options: dict[str, Any]) -> None:
    proto = build(CNN)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    model = saved(proto, tmp_path / "model.onnx")
    result = leanonnx.compress(model, **options, **ANY)
    assert result.kernels.after < result.kernels.before
    found = leanonnx.prove(model, result.model, result.plan)
    assert (found.passed, found.outputs.keys()) == (True, result.proof.outputs.keys())
    assert leanonnx.prove(model, result.model).passed == ("exact" in options)
    assert leanonnx.prove(model, model).passed


def test_proof_recognises_another_network(model: Path) -> None:
    result = leanonnx.compress(model, keep=0.5, **ANY)
    other = leanonnx.compress(model, keep=0.5, method="random", **ANY)
    changed = result.model
    for tensor in changed.graph.initializer:
        if tensor.name == "w2":
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    for new, plan in ((changed, result.plan), (other.model, result.plan), (model, result.plan)):
        found = leanonnx.prove(model, new, plan)
        assert not found.passed
        assert found.max_relative_error > found.bound


def test_proof_without_comparable_outputs(model: Path, tmp_path: Path) -> None:
    other = build(CNN, seed=1)
    plan = leanonnx.compress(model, keep=0.5, **ANY).plan
    with pytest.raises(PlanError, match="made for another model"):
        leanonnx.prove(other, model, plan)
    renamed = build(CNN.replace(" y)", " z)").replace("y = Gemm", "z = Gemm"))
    with pytest.raises(OptionError, match="its outputs are not those of"):
        leanonnx.prove(model, renamed)
    with pytest.raises(OptionError, match="take the same inputs"):
        leanonnx.prove(model, build(CNN.replace(" x)", " i)").replace("(x,", "(i,")))


def test_proof_of_a_model_that_was_frozen(tmp_path: Path) -> None:
    proto = build(CNN)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = leanonnx.compress(proto, keep=0.5, freeze=True, **ANY)
    assert len(result.model.graph.input) == 1
    assert leanonnx.prove(proto, result.model, result.plan).passed


def test_bench_agrees_with_the_command_line(model: Path) -> None:
    small = leanonnx.compress(model, keep=0.5, **ANY)
    row = called_json("bench", model, model, "--seconds", "0.05", "--threads", "1")
    found = leanonnx.bench(model, small.model, seconds=0.05, threads=1)
    assert found.to_dict().keys() == row.keys()
    assert (found.to_dict()["before"], found.to_dict()["after"]) == (str(model), "the model")
    assert found.to_dict()["fixed"] == row["fixed"]
    assert [result.keys() for result in found.to_dict()["results"]] == [result.keys() for result in row["results"]]
    assert found.cases[0].outcome.verdict in repr(found)  # type: ignore[union-attr]
    (alone, _) = leanonnx.bench(model, seconds=0.05, threads=[1, 2]).cases
    assert alone.outcome.median > 0  # type: ignore[union-attr]
    for wrong in ({"seconds": 0}, {"batch": 0}, {"threads": -1}, {"cuda_graph": True}, {"seed": -1}):
        with pytest.raises(OptionError, match=f"^{next(iter(wrong))}\\b"):
            leanonnx.bench(model, **wrong)  # type: ignore[arg-type]


# the package


@pytest.mark.parametrize(
    "function",
    [api.compress, api.analyse, api.prove, api.bench, channels.remove_channels, leanonnx.check],
    ids=lambda f: f.__name__,
)
def test_examples_in_docstrings(function: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=vars(leanonnx).copy())
    assert found.examples
    runner = doctest.DocTestRunner()
    runner.run(found)
    assert runner.summarize().failed == 0


def test_types_are_published() -> None:
    assert (Path(leanonnx.__file__).parent / "py.typed").is_file()
