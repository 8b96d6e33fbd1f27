"""Channels of the caller's own choice are removed with what has to follow, or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.errors import OptionError
from tests.helpers import CALIBRATION, CNN, build, constant_shapes, outputs, saved

TIED = """
<ir_version: 8, opset_import: ["" : 17]>
tied (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[6, 3, 3, 3] w1, float[6, 6, 3, 3] w2, float[6, 6, 1, 1] w3, float[4, 6, 1, 1] w4, float[4, 4, 1, 1] w5>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Conv <pads = [1, 1, 1, 1]> (a, w2)
    c = Relu (b)
    d = Conv (c, w3)
    e = Add (a, d)
    f = Conv (e, w4)
    g = Conv (f, w5)
    y = Add (f, g)
}
"""
"""``a`` and ``d`` are tied by an Add; ``f`` is tied to the output by another."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["C1", "c1", "r1"])
def test_channels_are_removed_by_node_or_tensor(model: Path, name: str) -> None:
    result = leanonnx.remove_channels(model, {name: [2, 5], "C2": 0})
    assert result.proof.passed
    left = [0, 1, 3, 4, 6, 7]
    assert result.plan.tensors["w1"]["kept"][0] == left
    assert result.plan.tensors["w2"]["kept"][:2] == [[*range(1, 12)], left]
    assert result.plan.options["removed"] == {name: [2, 5], "C2": [0]}


def test_masked_original_has_the_same_outputs(model: Path, tmp_path: Path) -> None:
    """An independent oracle sets the weights that read the removed channel to zero."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "w2":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:, 3] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    result = leanonnx.remove_channels(model, {"c1": 3}, tmp_path / "small.onnx", plan_out=tmp_path / "plan.json")
    masked = saved(proto, tmp_path / "masked.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "small.onnx"), outputs(masked), rtol=1e-4, atol=1e-6)
    assert constant_shapes(tmp_path / "small.onnx")["w1"] == [7, 3, 3, 3]
    again = leanonnx.compress(model, plan=tmp_path / "plan.json")
    assert again.model == result.model


def test_tied_channels_are_removed_too() -> None:
    result = leanonnx.remove_channels(build(TIED), {"D": [1]})
    assert result.proof.passed
    assert {name: result.plan.tensors[name]["after"] for name in ("w1", "w2", "w3", "w4")} == {
        "w1": [5, 3, 3, 3],
        "w2": [6, 5, 3, 3],
        "w3": [5, 6, 1, 1],
        "w4": [4, 5, 1, 1],
    }


def test_weights_are_fitted_to_data(model: Path) -> None:
    result = leanonnx.remove_channels(model, {"C1": [0, 1, 2]}, calib={"x": CALIBRATION})
    bare = leanonnx.remove_channels(model, {"C1": [0, 1, 2]}, calib={"x": CALIBRATION}, recover="none")
    assert result.deviation is not None and bare.deviation is not None
    assert result.plan.recovery is not None and bare.plan.recovery is None


REFUSED: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "unknown name": (CNN, {"ghost": [0]}, "'ghost': no tensor and no node of that name carries channels"),
    "no name": (CNN, {"": [0]}, "'': no tensor and no node"),
    "too large": (CNN, {"C1": [8]}, "channel 8 of 'C1': 'C1' has 8 channels; give indices from 0 to 7"),
    "negative": (CNN, {"C1": [-1]}, "channel -1 of 'C1'"),
    "no whole number": (CNN, {"C1": [1.5]}, "channel 1.5 of 'C1'"),
    "twice": (CNN, {"C1": [3, 3]}, "channel 3 of 'C1' is given twice"),
    "output": (CNN, {"y": [2]}, "channel 2 of 'y' may not be removed: graph output 'y'"),
    "input": (CNN, {"x": [0]}, "channel 0 of 'x' may not be removed: graph input 'x'"),
    "tied to an output": (TIED, {"G": [0]}, "channel 0 of 'G' is tied to a channel of 'y', which may not be removed"),
    "all": (CNN, {"C1": list(range(8))}, "no channel of tensor 'c1' would remain; keep at least one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, channels, says = REFUSED[case]
    with pytest.raises(OptionError) as caught:
        leanonnx.remove_channels(build(text), channels)
    assert says in str(caught.value)
