"""Trials of sizes for free axes: only shapes tell that a tensor is empty, and no trial may take too much memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from leanonnx.graph.model import load
from leanonnx.runtime import observation
from leanonnx.runtime.free_axes import InputShapes
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.trials import (
    MAX_BLIND_ELEMENTS,
    MAX_OUTPUT_ELEMENTS,
    MAX_TENSOR_ELEMENTS,
    MAX_TENSOR_GROWTH,
    PROBE_SHARE,
    Growth,
    SizeLimits,
    element_count,
    permitted_trials,
    probe_shapes,
    trial_shapes,
)
from tests.helpers import build, saved

ZERO_VALUES = """
<ir_version: 8, opset_import: ["" : 13]>
zeros (float[N, 3, 8, 8] x) => (float[N, M] y)
<float[4, 3, 3, 3] w, int64[2] flat = {0, -1}, int64[2] none = {0, 0}>
{
    pads = Identity (none)  sum = Add (pads, flat)
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Reshape (c, sum)
}
"""
WIDE = """
<ir_version: 8, opset_import: ["" : 13]>
wide (float[1, 3, H, W] x) => (float[1, 8, h, w] y) <float[8, 3, 3, 3] w>
{
    y = Conv <pads = [1, 50000, 1, 1]> (x, w)
}
"""
ROWS = """
<ir_version: 8, opset_import: ["" : 13]>
rows (float[N, 1, H, W] x) => (float[N, K, L] y)
<float[2, 1, 3, 3] w, int64[3] to = {0, 2, -1}, int64[1] first = {0}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  f = Reshape (c, to)
    t = Transpose <perm = [0, 2, 1]> (f)  p = MatMul (t, f)  y = Relu (p)
}
"""


def sizes_run(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[Shapes]:
    """The input shapes of all runs of an observation."""
    shapes: list[Shapes] = []
    original = observation._Observer.run

    def run(self: observation._Observer, inputs: Shapes, like: object = None) -> object:
        shapes.append(inputs)
        return original(self, inputs, like)  # type: ignore[arg-type]

    monkeypatch.setattr(observation._Observer, "run", run)
    observe(load(path), {})
    return shapes


def test_zeros_among_values_are_no_empty_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = sizes_run(monkeypatch, saved(build(ZERO_VALUES), tmp_path / "m.onnx"))
    assert shapes[0]["x"] == (1, 3, 8, 8)
    assert max(shape["x"][0] for shape in shapes) <= 3


def test_a_tensor_that_grows_with_the_square_of_an_image_is_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = sizes_run(monkeypatch, saved(build(ROWS), tmp_path / "m.onnx"))
    assert max(shape["x"][0] * math.prod(shape["x"][2:]) ** 2 for shape in shapes) <= MAX_TENSOR_ELEMENTS


def inputs(*shape: int) -> InputShapes:
    return {"x": shape}


def test_a_tensor_grows_in_proportion_after_one_run_and_by_its_power_after_two() -> None:
    growth = Growth()
    assert growth.largest_tensor(inputs(4, 8)) == 0
    growth.add_run(inputs(1, 8), [np.array([8, 8]), np.array([100])])
    assert growth.largest_tensor(inputs(4, 8)) == 400
    growth.add_run(inputs(2, 8), [np.array([16, 16]), np.array([100])])
    assert growth.largest_tensor(inputs(4, 8)) == pytest.approx(1024)
    assert growth.largest_tensor(inputs(1, 4)) == 0


def test_graph_outputs_are_limited_together() -> None:
    growth = Growth(outputs=[0, 2])
    assert growth.output_elements(inputs(1, 8)) == 0
    growth.add_run(inputs(1, 8), [np.array([8, 8]), np.array([10, 10]), np.array([4, 4])])
    assert growth.output_elements(inputs(4, 8)) == 4 * (64 + 16)
    assert growth.permits(inputs(4, 8), SizeLimits(tensor=400, outputs=320))
    assert not growth.permits(inputs(4, 8), SizeLimits(tensor=399, outputs=320))
    assert not growth.permits(inputs(4, 8), SizeLimits(tensor=400, outputs=319))


def test_large_outputs_are_observed_at_small_sizes(tmp_path: Path) -> None:
    """Outputs are held for all inputs of a proof; none is so large but in the small runs that foresee it."""
    path = saved(build(WIDE), tmp_path / "m.onnx")
    observed = observe(load(path), {})
    sizes = [math.prod(run.shapes["y"]) for run in (observed, *observed.further_runs)]
    assert len(sizes) > 1
    assert sizes[0] <= MAX_OUTPUT_ELEMENTS
    assert max(sizes) <= MAX_TENSOR_GROWTH * MAX_OUTPUT_ELEMENTS


def test_a_long_record_is_left_out_if_a_short_one_was_large() -> None:
    growth, trials = Growth(), [inputs(1, 1024), inputs(6144, 1024), inputs(1024, 1)]
    growth.add_run(trials[0], [np.array([256, 1024])])
    assert inputs(6144, 1024) not in list(permitted_trials(trials, growth))
    assert list(permitted_trials([inputs(6144, 1024)], growth)) == [inputs(6144, 1024)]


def test_large_trials_that_nothing_is_known_about_come_last() -> None:
    trials = [inputs(1, 8), inputs(1, MAX_BLIND_ELEMENTS + 1), inputs(1, 9)]
    assert list(permitted_trials(trials, Growth())) == [trials[0], trials[2], trials[1]]


def test_probes_are_small_and_stop_when_enough_have_run(tmp_path: Path) -> None:
    trials = trial_shapes(load(saved(build(ROWS), tmp_path / "m.onnx")), {})
    growth = Growth()
    counts = []
    for shapes in probe_shapes(trials, growth):
        counts.append(element_count(shapes))
        growth.add_run(shapes, [np.array([1])])
    assert len(counts) == 2
    assert counts[1] * PROBE_SHARE <= element_count(trials[0])
    assert counts[0] * PROBE_SHARE <= counts[1]


def test_a_small_probe_forbids_a_large_one(tmp_path: Path) -> None:
    trials = trial_shapes(load(saved(build(ROWS), tmp_path / "m.onnx")), {})
    growth = Growth()
    probes = probe_shapes(trials, growth)
    smaller = next(probes)
    growth.add_run(smaller, [np.array([MAX_TENSOR_ELEMENTS // 2])])
    last = next(probes)
    assert element_count(last) * PROBE_SHARE <= element_count(smaller)
    growth.add_run(last, [np.array([1])])
    assert list(probes) == []


def test_a_probe_between_them_shows_that_a_large_tensor_does_not_grow(tmp_path: Path) -> None:
    trials = trial_shapes(load(saved(build(ROWS), tmp_path / "m.onnx")), {})
    growth = Growth()
    for shapes in probe_shapes(trials, growth):
        growth.add_run(shapes, [np.array([MAX_TENSOR_ELEMENTS // 8])])
    assert len(growth.runs) == 2
    assert growth.runs[0].count < growth.runs[1].count < PROBE_SHARE * growth.runs[0].count
    assert growth.permits(trials[0])


def test_probes_that_do_not_run_are_followed_by_others(tmp_path: Path) -> None:
    trials = trial_shapes(load(saved(build(ROWS), tmp_path / "m.onnx")), {})
    tried = list(probe_shapes(trials, Growth()))
    assert len(tried) > 2
    assert all(shapes not in tried[:k] for k, shapes in enumerate(tried))
    assert max(map(element_count, tried)) * PROBE_SHARE <= element_count(trials[0])
