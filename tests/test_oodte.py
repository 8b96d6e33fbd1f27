"""The judge of the published protocol sees a right file and a wrong one, by a mask of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.oodte import OWN_FACTOR, TOLERANCE, totals
from benchmarks.oodte_judge import NotMaskable, difference, is_classifier, judge, mask_by_plan
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.selection.metrics import Budget
from tests.calibrated import net
from tests.helpers import CALIBRATION, CNN, Options, build, saved

Row = dict[str, Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Row]:
    """A network, what half of its kernels compute, and the plan."""
    folder = tmp_path_factory.mktemp("oodte")
    source, target, plan = saved(build(CNN), folder / "in.onnx"), folder / "out.onnx", folder / "plan.json"
    compress_file(source, target, Options(Budget("kernels", 0.5)), plan)
    return source, target, json.loads(plan.read_text())


def test_right_file(files: tuple[Path, Path, Row], tmp_path: Path) -> None:
    source, target, plan = files
    np.savez(tmp_path / "x.npz", x=CALIBRATION)
    row = judge(source, target, plan, tmp_path / "x.npz", {})
    assert row["status"] == "compared"
    assert row["difference"] <= TOLERANCE
    assert (row["inputs"], row["classifier"], row["changed_decisions"]) == (16, True, 0)
    assert judge(source, target, None, None, {})["difference"] > TOLERANCE


def test_samples_of_a_network_without_a_batch_axis(tmp_path: Path) -> None:
    """The file has one axis more than the input, and ends before the judge has enough of them."""
    source = saved(net("(float[T,3] x) => (float[T,2] y)", "float[3,2] w", "y = MatMul (x, w)"), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 5, 3), np.float32))
    assert judge(source, source, None, tmp_path / "x.npz", {})["inputs"] == 2


def test_wrong_file(files: tuple[Path, Path, Row], tmp_path: Path) -> None:
    """Two channels in the wrong order in one of the weights only."""
    source, target, plan = files
    proto = onnx.load(target)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w2")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), "w2"))
    row = judge(source, saved(proto, tmp_path / "wrong.onnx"), plan, None, {})
    assert row["difference"] > max(TOLERANCE, OWN_FACTOR * row["own"])


def test_outputs_near_the_resolution_of_their_function(tmp_path: Path) -> None:
    """Sigmoid computes around 0.5: far below, its last place is a large share of the output, whatever one compares."""
    constant = "c = Constant <value = float {-14.0}> ()"
    body = f'<ir_version: 8, opset_import: ["" : 17]> g (float[1, 64] x) => (float[1, 64] y) {{ {constant}'
    source = saved(onnx.parser.parse_model(f"{body} a = Add (x, c) y = Sigmoid (a) }}"), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 1, 64))
    row = judge(source, source, None, tmp_path / "x.npz", {})
    assert row["difference"] == 0 and row["own"] > TOLERANCE / OWN_FACTOR


def test_invalid_file(files: tuple[Path, Path, Row], tmp_path: Path) -> None:
    source, target, plan = files
    proto = onnx.load(target)
    proto.graph.node[0].input[0] = "nobody"
    assert judge(source, saved(proto, tmp_path / "wrong.onnx"), plan, None, {})["status"] == "invalid"


def test_readers_that_keep_different_entries(files: tuple[Path, Path, Row]) -> None:
    source, _, plan = files
    entry = {**plan["tensors"]["w2"], "others": [[None] * 4]}
    with pytest.raises(NotMaskable, match="'w2'"):
        mask_by_plan(source, {"tensors": {"w2": entry}})


QUANTISED = """
<ir_version: 8, opset_import: ["" : 17]>
quantised (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y)
<uint8[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}, float scale = {0.1}, uint8 zero = {7}>
{
    d = DequantizeLinear (w, scale, zero)
    y = Conv (x, d)
}
"""


def test_integer_weights_are_masked_by_their_zero_point(tmp_path: Path) -> None:
    source = saved(onnx.parser.parse_model(QUANTISED), tmp_path / "q.onnx")
    proto = mask_by_plan(source, {"tensors": {"w": {"kept": [[0, 2], None, None, None]}}})
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == "w"]
    assert numpy_helper.to_array(weight).reshape(3, 2).tolist() == [[1, 2], [7, 7], [5, 6]]


def test_differences() -> None:
    one = np.array([[1.0, -4.0]], np.float32)
    assert difference(one, one) == 0
    assert difference(one, one + np.float32([0, 1])) == pytest.approx(0.25)
    assert difference(one, one[:, :1]) == np.inf
    assert difference(one, np.array([[1.0, np.nan]], np.float32)) == np.inf
    assert difference(np.array([1, 2]), np.array([1, 3])) == 0.5
    assert is_classifier([one])
    assert not is_classifier([one, one])


def test_totals_count_only_models_that_run() -> None:
    same = {"status": "same", "classifier": True, "changed_decisions": 0}
    changed = {"status": "changed", "classifier": True, "changed_decisions": 2}
    rows = [
        {"runs": True, "exact": same, "keep": changed},
        {"runs": True, "exact": {"status": "refused"}, "keep": same},
        {"runs": False, "exact": changed, "keep": changed},
    ]
    table = totals(rows)
    assert table["exact"] == {
        "models": 2,
        "refused": 1,
        "same": 1,
        "classifiers": 1,
        "classifiers_changed": 0,
        "classifiers_with_another_top1": 0,
    }
    assert table["keep"]["classifiers_with_another_top1"] == 1
