"""``leanonnx check`` at other sizes than the first: free axes, batches, and comparisons without information."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from leanonnx.commands.check.sizes import batch_axes, fit_samples, join_samples
from leanonnx.commands.check.telling import vacuous_outputs
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.tally import Deviation
from leanonnx.evaluation.variety import CONSTANT, EMPTY, FIXED, UNCOMPARED, Variety, variety_of
from leanonnx.graph.model import load
from tests.helpers import build, called, saved
from tests.test_check_pairs import FREE, checked, gate

HEADS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 8, T] x) => (float[N, 8, T] y)
<float[8, 8, 1] w>
{{
    c = Conv (x, w)
    {target}
    h = Reshape (c, t)
    s = Transpose <perm = [0, 2, 1]> (h)
    a = MatMul (h, s)
    p = Softmax <axis = 2> (a)
    m = MatMul (p, h)
    q = Shape (x)
    y = Reshape (m, q)
}}
"""
"""Attention of two heads that are folded into the batch: [N·2, 4, T]."""
RIGHT = HEADS.format(
    target="""n = Shape <start = 0, end = 1> (x)
    two = Constant <value = int64[1] {2}> ()
    b = Mul (n, two)
    four = Constant <value = int64[1] {4}> ()
    l = Shape <start = 2, end = 3> (x)
    t = Concat <axis = 0> (b, four, l)"""
)
FIXED_HEADS = HEADS.format(
    target="""two = Constant <value = int64[1] {2}> ()
    four = Constant <value = int64[1] {-1}> ()
    l = Shape <start = 2, end = 3> (x)
    t = Concat <axis = 0> (two, four, l)"""
)
"""The same at batch 1; at batch 2 what belongs to different samples is mixed up, at any other T it runs as well."""
ROWS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, H, W] x) => (float[N, 3, H, W] y)
<float[3, 3, 1, 1] w, int64[2] t>
{ c = Conv (x, w) r = Reshape (c, t) m = Relu (r) s = Shape (x) y = Reshape (m, s) }
"""
"""Rows of a fixed number: runs at any batch and size that the number divides."""
BOXES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 9] x) => (float[K, 3] boxes)
<float[4, 4] w>
{
    a = MatMul (w, x)
    limit = Constant <value = float {1000000}> ()
    g = Greater (a, limit)
    k = NonZero (g)
    f = Transpose (k)
    boxes = Cast <to = 1> (f)
}
"""
CHOICE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 6] x) => ({outputs})
<float[6, 4] w>
{{
    h = MatMul (x, w)
    far = Constant <value = float[4] {{0, 0, 1000000, 0}}> ()
    l = Add (h, far)
    {more}
    c = ArgMax <axis = 1, keepdims = 0> (l)
}}
"""
"""A model that predicts the same class for every input."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def pair(folder: Path, base: str, new: str, seed: int = 0, **constants: Any) -> None:
    for name, text, number in (("base", base, 0), ("new", new, seed)):
        proto = build(text, number)
        for tensor in proto.graph.initializer:
            if tensor.name in constants:
                tensor.CopyFrom(onnx.numpy_helper.from_array(constants[tensor.name], tensor.name))
        saved(proto, folder / f"{name}.onnx")


# sizes


def test_a_batch_is_compared_with_its_samples(folder: Path) -> None:
    """NEW equals BASE at the first size and runs at all others; its batches mix samples."""
    pair(folder, RIGHT, FIXED_HEADS)
    row = checked(folder, "--max-deviation", 1e-4, code=1)
    assert set(row["failed"]) == {"batches", "max-deviation"}
    assert all(worst(each) < 1e-5 for each in row["deviation"])
    batches = gate(row, "batches")
    assert batches["measured"] > 0.01 > batches["limit"] > batches["base"]
    assert "'y' of a batch of" in batches["detail"] and "one by one by" in batches["detail"]
    assert "at x=" in gate(row, "max-deviation")["detail"]


def test_a_batch_is_made_of_real_samples(folder: Path) -> None:
    pair(folder, RIGHT, FIXED_HEADS)
    x = np.random.default_rng(0).standard_normal((5, 8, 6)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    row = checked(folder, "--data", "x.npz", code=1)
    assert row["failed"] == ["batches"]
    sizes = [each["inputs"] for each in row["sizes"]]
    assert all(name.startswith("x.npz at x=") for name in sizes)
    assert {"x.npz at x=2,8,6", "x.npz at x=3,8,6"} <= set(sizes)


def worst(row: dict[str, Any]) -> float:
    return max(float(one["relative_l2"]) for one in row["outputs"].values())


def test_equal_models_pass_at_all_sizes(folder: Path) -> None:
    pair(folder, RIGHT, RIGHT)
    row = checked(folder, "--max-deviation", 0)
    assert {each["inputs"].partition("=")[0] for each in row["sizes"]} == {"random normal inputs at x"}
    assert len(row["sizes"]) >= 3
    assert all(worst(each) == 0 for each in row["sizes"])
    assert gate(row, "batches")["status"] == "passed"
    assert "further sizes" in called("check", "base.onnx", "new.onnx", cwd=folder).stdout


def test_new_has_to_run_at_every_size_of_base(folder: Path) -> None:
    base = np.array([-1, 1], np.int64)
    pair(folder, ROWS, ROWS, t=base)
    assert checked(folder)["passed"]
    pair(
        folder, ROWS, ROWS.replace("int64[2] t", "int64[2] u").replace("(c, t)", "(c, u)"), t=base, u=base * [1, 2**15]
    )
    row = checked(folder, "--shape", "x=1,3,256,128", code=1)
    assert row["failed"] == ["runs"]
    assert "does not run at x=" in gate(row, "runs")["detail"]


def test_batches_are_skipped_if_base_mixes_samples(folder: Path) -> None:
    """A softmax over the batch: BASE's batches are not its samples."""
    text = FREE.replace("y = Gemm", "g = Gemm").replace("w3, b3)\n", "w3, b3)\n    y = Softmax <axis = 0> (g)\n")
    pair(folder, text, text)
    row = checked(folder)
    assert gate(row, "batches")["status"] == "skipped"
    assert "BASE does not" in gate(row, "batches")["detail"]


def test_a_fixed_batch_has_nothing_to_compare(folder: Path) -> None:
    text = FREE.replace("[N, ", "[1, ")
    pair(folder, text, text)
    row = checked(folder)
    assert (gate(row, "batches")["status"], row["sizes"]) == ("passed", [])
    assert "fixed" in gate(row, "batches")["detail"]


def test_batch_axes_are_those_of_one_name(folder: Path) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g ({}) => (float[N, 4] y) {{ y = Identity (x) }}'
    for inputs, places in (
        ("float[N, 4] x, float[2, N, 4] h, float[4] k", [("x", 0), ("h", 1)]),
        ("float[?, 4] x, float[?, 3] h, float[M, 3] k", [("x", 0), ("h", 0)]),
        ("float[1, 4] x, float[2, N, 4] h", []),
    ):
        path = saved(onnx.parser.parse_model(head.format(inputs)), folder / "m.onnx")
        assert batch_axes(load(path)) == places


def test_samples_are_cut_off_and_repeated() -> None:
    samples = [{"x": np.full((1, 2, 4), k) + np.arange(4), "k": np.array([k])} for k in (10, 20, 30)]
    together = join_samples(samples[:2], [("x", 0)])
    assert together["x"][:, 0, 0].tolist() == [10, 20] and together["k"].tolist() == [10]
    found = fit_samples(samples, {"x": (2, 2, 6), "k": (1,)}, [("x", 0)])
    assert found["x"].shape == (2, 2, 6)
    assert found["x"][1, 0].tolist() == [20, 21, 22, 23, 20, 21]
    assert fit_samples(samples, {"x": (5, 2, 3), "k": (1,)}, [("x", 0)])["x"][:, 0, 0].tolist() == [10, 20, 30, 10, 20]


# channels

DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 6, 9] x) => (float[N, 7, 9] y)
<float[4, 6, 1] boxes, float[3, 6, 1] scores>
{
    b = Conv (x, boxes)
    k = Constant <value = float {300}> ()
    p = Mul (b, k)
    s = Conv (x, scores)
    q = Sigmoid (s)
    y = Concat <axis = 1> (p, q)
}
"""


def test_scores_beside_boxes_are_judged(folder: Path) -> None:
    """Channel ids identify the channel axis: of [N, 7, 9] the axis of 7, though 9 is possible too."""
    pair(folder, DETECTOR, DETECTOR)
    proto = onnx.load(folder / "new.onnx")
    scores = next(t for t in proto.graph.initializer if t.name == "scores")
    scores.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(scores), "scores"))
    saved(proto, folder / "new.onnx")
    row = checked(folder, "--max-deviation", 0.05, code=1)
    found = [one["outputs"]["y"] for one in row["deviation"]]
    assert all(one["relative_l2"] < 0.01 for one in found)
    assert all(one["worst_channel"]["axis"] == 1 and one["worst_channel"]["index"] > 3 for one in found)
    assert row["failed"] == ["max-deviation"]
    assert "along axis 1; the whole 0.00" in gate(row, "max-deviation")["detail"]


# comparisons without information


def test_empty_outputs_give_no_information(folder: Path) -> None:
    """NEW has other weights, and finds no box either."""
    pair(folder, BOXES, BOXES, seed=1)
    row = checked(folder, "--max-deviation", 0.05, code=1)
    detail = gate(row, "max-deviation")["detail"]
    assert "'boxes' is empty" in detail and "--data" in detail
    assert row["deviation"][0]["outputs"]["boxes"]["vacuous"] == EMPTY
    assert checked(folder)["passed"]


@pytest.mark.parametrize("options", [("--max-deviation", 0.05), ("--min-agreement", 0.9)])
def test_one_class_for_all_inputs_gives_no_information(folder: Path, options: tuple[object, ...]) -> None:
    text = CHOICE.format(outputs="int64[N] c", more="")
    pair(folder, text, text, seed=1)
    row = checked(folder, *options, code=1)
    assert f"'c' is {CONSTANT}" in row["gates"][-1]["detail"] or f"'c' is {FIXED}" in row["gates"][-1]["detail"]


def test_a_class_beside_its_scores_needs_no_option(folder: Path) -> None:
    text = CHOICE.format(outputs="int64[N] c, float[N, 4] z", more="z = Sub (l, far)")
    pair(folder, text, text)
    assert checked(folder, "--max-deviation", 0.05)["passed"]
    apart = CHOICE.format(outputs="int64[N] c, float[N, 6] z", more="z = Relu (x)")
    pair(folder, apart, apart)
    row = checked(folder, "--max-deviation", 0.05, code=1)
    assert "'c' is" in gate(row, "max-deviation")["detail"] and "'z'" not in gate(row, "max-deviation")["detail"]


def test_outputs_informative_on_some_inputs_are_informative(folder: Path) -> None:
    path = saved(build(CHOICE.format(outputs="int64[N] c", more="")), folder / "m.onnx")
    blank, full = (Fidelity(samples=1, outputs=(Deviation("c", 0.0, vacuous=why),)) for why in (FIXED, ""))
    assert vacuous_outputs(load(path), [blank, blank]) == {"c": FIXED}
    assert vacuous_outputs(load(path), [blank, full]) == {}


ONES = np.ones((3, 2))


@pytest.mark.parametrize(
    ("values", "vacuous"),
    [
        ([np.zeros((3, 0))], EMPTY),
        ([ONES], CONSTANT),
        ([np.array([[1.0, 2.0]] * 3)], FIXED),
        ([np.array([[1.0, 2.0]] * 3, np.float32) + np.array([[0], [1e-8], [0]])], FIXED),
        ([np.array([[1.0, 2.0], [1.0, 2.5], [1.0, 2.0]])], ""),
        ([np.array([[1.0, 2.0]])], ""),
        ([np.array([[1, 2]])], UNCOMPARED),
        ([np.array([[1, 2]]), np.array([[1, 2]])], FIXED),
        ([np.array([[1, 2]]), np.array([[1, 3]])], ""),
        ([ONES, np.ones((3, 5))], CONSTANT),
        ([ONES, np.zeros((3, 5))], ""),
        ([np.zeros((3, 0)), ONES], ""),
        ([np.full((3, 2), np.nan)], CONSTANT),
        ([np.array(1.0)], ""),
        ([np.array(1.0), np.array(1.0)], FIXED),
        ([np.array([["a"], ["b"]], object)], ""),
        ([], ""),
    ],
)
def test_informative_outputs(values: list[np.ndarray], vacuous: str) -> None:
    found = Variety()
    for value in values:
        found = found.plus(variety_of(value, value.shape[0] if value.ndim else 1))
    assert found.vacuity == vacuous
