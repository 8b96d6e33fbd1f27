"""``--freeze``: weights that are listed as graph inputs become constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.helpers import CALIBRATION, CNN, build, called, called_json, outputs, saved


def listed(ir_version: int = 8) -> onnx.ModelProto:
    """A network whose weights are all graph inputs too."""
    proto = build(CNN)
    proto.ir_version = ir_version
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return proto


def inputs(path: Path) -> list[str]:
    return [value.name for value in onnx.load(path).graph.input]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(listed(), tmp_path / "listed.onnx")


@pytest.mark.parametrize("keep", [1, 0.5])
def test_weights_become_constants(model: Path, keep: float) -> None:
    plain, frozen = model.parent / "plain.onnx", model.parent / "frozen.onnx"
    called_json("compress", model, plain, "--keep", keep, "--align", 1)
    row = called_json("compress", model, frozen, "--keep", keep, "--align", 1, "--freeze")
    assert inputs(plain) == inputs(model)
    assert inputs(frozen) == ["x"]
    assert row["proof"]["status"] == "passed"
    assert not any("nothing could be removed" in text for text in row["warnings"])
    np.testing.assert_allclose(outputs(frozen), outputs(plain), rtol=1e-5)


def test_a_hint_names_the_affected_part(model: Path) -> None:
    row = called_json("compress", model, model.parent / "o.onnx", "--keep", "0.5")
    assert [text for text in row["hints"] if "5 weights are listed as graph inputs" in text and "--freeze" in text]
    assert "Hint: 5 weights" in called("compress", model, model.parent / "o.onnx", "--keep", "0.5").stdout
    assert called_json("compress", model, model.parent / "o.onnx", "--keep", "0.5", "--freeze")["hints"] == []


def test_weights_that_must_be_listed_stay(tmp_path: Path) -> None:
    """Before IR version 4 every initializer is a graph input, and none can be overridden."""
    source = saved(listed(ir_version=3), tmp_path / "old.onnx")
    row = called_json("compress", source, tmp_path / "o.onnx", "--keep", "1", "--freeze")
    assert row["hints"] == []
    assert (tmp_path / "o.onnx").read_bytes() == source.read_bytes()


def test_frozen_plans_replay(model: Path) -> None:
    first, again, plan = (model.parent / name for name in ("a.onnx", "b.onnx", "plan.json"))
    called_json("compress", model, first, "--keep", "0.5", "--freeze", "--plan-out", plan)
    called_json("compress", model, again, "--plan", plan)
    assert first.read_bytes() == again.read_bytes()


def test_exact_finds_more_in_a_frozen_model(tmp_path: Path) -> None:
    """Weights that a caller may override prove nothing; constants do."""
    proto = listed()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[2:5] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    source = saved(proto, tmp_path / "zeros.onnx")
    free = called_json("compress", source, tmp_path / "o.onnx", "--exact")
    frozen = called_json("compress", source, tmp_path / "o.onnx", "--exact", "--freeze")
    assert free["kernels"]["fraction"] == 1
    assert frozen["kernels"]["fraction"] < 1


def test_nothing_is_fitted_where_nothing_is_removed(model: Path) -> None:
    np.savez(model.parent / "x.npz", x=CALIBRATION)
    words = ("compress", model, model.parent / "o.onnx", "--freeze", "--keep", 1, "--calib", model.parent / "x.npz")
    row = called_json(*words, "--no-measure")
    assert row["recovery"] is None and not [text for text in row["warnings"] if "recovery" in text]
    assert "outputs unchanged" in called(*words, "--no-measure").stdout
