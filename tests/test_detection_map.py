"""docs/examples/detection_map.py: average precision by hand, and the example as a score of all three verbs."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.documented import ROOT
from tests.helpers import build, called, called_json, saved
from tests.sweeps import QUICK, points
from tests.sweeps import run as swept
from tests.tolerated import doubled

EXAMPLE = ROOT / "docs" / "examples" / "detection_map.py"
ZOO = Path(__file__).parents[2] / "shared" / "zoo"
YOLOX, PHOTOS = ZOO / "models" / "yolox_nano.onnx", ZOO / "data" / "imagenet"
SIDE, CLASSES, COUNT = 64, 2, 36
SCORE = ("--score", "detection_map.py:map50")
DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[1, 3, 64, 64] images) => (float[1, 84, 7] output)
<float[16, 3, 8, 8] w1, float[16] b1, float[24, 16, 1, 1] w2, float[24] b2, float[32, 24, 2, 2] w3, float[32] b3,
    float[32, 32, 2, 2] w4, float[4, 24, 1, 1] l1, float[3, 24, 1, 1] s1, float[4, 32, 1, 1] l2, float[3, 32, 1, 1] s2,
    float[4, 32, 1, 1] l3, float[3, 32, 1, 1] s3, int64[3] rows = {1, 7, -1}>
{
    c1 = Conv <strides = [8, 8]> (images, w1, b1)
    r1 = Relu (c1)
    c2 = Conv (r1, w2, b2)
    r2 = Relu (c2)
    c3 = Conv <strides = [2, 2]> (r2, w3, b3)
    r3 = Relu (c3)
    c4 = Conv <strides = [2, 2]> (r3, w4)
    r4 = Relu (c4)
    p1 = Conv (r2, l1)
    t1 = Conv (r2, s1)
    q1 = Sigmoid (t1)
    h1 = Concat <axis = 1> (p1, q1)
    f1 = Reshape (h1, rows)
    p2 = Conv (r3, l2)
    t2 = Conv (r3, s2)
    q2 = Sigmoid (t2)
    h2 = Concat <axis = 1> (p2, q2)
    f2 = Reshape (h2, rows)
    p3 = Conv (r4, l3)
    t3 = Conv (r4, s3)
    q3 = Sigmoid (t3)
    h3 = Concat <axis = 1> (p3, q3)
    f3 = Reshape (h3, rows)
    joined = Concat <axis = 2> (f1, f2, f3)
    output = Transpose <perm = [0, 2, 1]> (joined)
}
"""
"""A detector as YOLOX makes them: three strides, offsets on grids, and a score for any object beside two classes."""


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("detection_map", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLES = example()


def drawn(folder: Path, model: str, source: str, target: str) -> np.ndarray[Any, Any]:
    """Boxes that the example takes from a model, run as a program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(EXAMPLE), model, source, target])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    with np.load(folder / target) as arrays:
        boxes: np.ndarray[Any, Any] = arrays["boxes"]
    return boxes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a detector, half of whose channels are copies, samples with its own boxes, and the example."""
    tmp_path = tmp_path_factory.mktemp("detector")
    proto = doubled(build(DETECTOR), "w1", "b1", "w2", "b2", "w3", "b3", "w4")
    saved(proto, tmp_path / "detector.onnx")
    images = np.random.default_rng(0).standard_normal((COUNT, 3, SIDE, SIDE)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    shutil.copy(EXAMPLE, tmp_path)
    boxes = drawn(tmp_path, "detector.onnx", "images.npz", "boxes.npz")
    assert set(np.unique(boxes[..., 0])) == {-1, 0, 1}
    return tmp_path


# The number


def box(score: float, left: float, label: int = 0) -> list[float]:
    """A box of 10 by 10 pixels."""
    return [label, left, 0, left + 10, 10, score]


def test_average_precision_by_hand() -> None:
    """Hit, miss, hit, double of a hit, of three drawn boxes: (1 + 2/3) / 3."""
    rows = [np.array([box(0.9, 1), box(0.8, 50), box(0.6, 2)]), np.array([box(0.7, 3)])]
    wanted = [np.array([box(0, 0)[:5], box(0, 100)[:5]]), np.array([box(0, 0)[:5]])]
    assert EXAMPLES.average_precision(rows, wanted) == pytest.approx((1 + 2 / 3) / 3)


def test_classes_count_alike() -> None:
    rows = [np.array([box(0.9, 0), box(0.8, 30, 1), box(0.7, 60, 2)])]
    wanted = [np.array([box(0, 0)[:5], box(0, 90, 1)[:5]])]
    assert EXAMPLES.mean_average_precision(rows, wanted) == 0.5
    assert EXAMPLES.mean_average_precision(rows, [np.zeros((0, 5))]) == 0


def test_both_layouts_are_read() -> None:
    """The same two boxes as YOLOX and as ultralytics put them out."""
    yolox = np.zeros((84, 5 + CLASSES))
    yolox[[9, 83]] = [[0.5, 0.5, 0, 0, 1, 0.9, 0], [-0.5, -0.5, *np.log([0.25, 0.5]), 1, 0, 0.8]]
    ultralytics = np.zeros((4 + CLASSES, 84))
    ultralytics[:, [5, 6]] = np.array([[12, 12, 8, 8, 0.9, 0], [16, 16, 8, 16, 0, 0.8]]).T
    expected = np.array([[0, 8, 8, 16, 16, 0.9], [1, 12, 8, 20, 24, 0.8]])
    for output in (yolox, ultralytics):
        assert EXAMPLES.detections(output, SIDE) == pytest.approx(expected)


def test_doubles_are_dropped() -> None:
    output = np.zeros((4 + CLASSES, 84))
    output[:, :3] = np.array([[20, 20, 20, 20, 0.9, 0], [21, 20, 20, 20, 0.8, 0.7], [20, 20, 20, 20, 0.01, 0]]).T
    rows = EXAMPLES.detections(output, SIDE)
    assert [tuple(row) for row in rows[:, [0, 5]]] == [(0, 0.9), (1, 0.7)]


# The verbs


def test_compress_looks_for_the_smallest_within_it(folder: Path) -> None:
    words = ("compress", folder / "detector.onnx", folder / "small.onnx", "--calib", folder / "boxes.npz")
    row = called_json(
        *words, "--score", f"{folder / 'detection_map.py'}:map50", "--max-drop", 0.4, "--effort", "quick", *QUICK
    )
    look = row["tolerance"]["looks"][row["tolerance"]["chosen"]]
    reading = look["readings"]["max_drop"]
    assert reading["value"] <= reading["bound"] <= 0.4
    assert row["macs"]["after"] < row["macs"]["before"]
    with np.load(folder / "boxes.npz") as arrays:
        data = dict(arrays)
    assert EXAMPLES.map50(str(folder / "detector.onnx"), data) == 1
    assert EXAMPLES.map50(str(folder / "small.onnx"), data) > 0.6


def test_check_judges_a_smaller_network(folder: Path) -> None:
    called_json("compress", folder / "detector.onnx", folder / "tiny.onnx", "--keep", 0.3, *QUICK)
    for model, code in (("tiny.onnx", 1), ("detector.onnx", 0)):
        words = ("check", "detector.onnx", model, "--data", "boxes.npz", *SCORE, "--max-drop", 0.001, "--json")
        done = called(*words, cwd=folder)
        assert done.returncode == code
        gates = {gate["gate"]: gate["measured"] for gate in json.loads(done.stdout)["gates"]}
        assert (gates["max-drop"] > 0.001) == code


def test_sweep_marks_points_within_it(folder: Path) -> None:
    words = ("detector.onnx", "--keep", "0.9,0.05", "--calib", "boxes.npz", *SCORE, "--max-drop", 0.4)
    many, few = points(swept(folder, *words, "--effort", "quick", "--jobs", 1, *QUICK))
    readings = [point["tolerance"]["readings"]["max_drop"] for point in (many, few)]
    assert readings[0]["value"] < readings[1]["value"]
    assert [point["tolerance"]["met"] for point in (many, few)] == [each["bound"] <= 0.4 for each in readings]


# A real detector


@pytest.mark.skipif(not YOLOX.is_file(), reason="the collection of real models is not beside the repository")
def test_a_real_detector_scores_one_on_its_own_boxes(tmp_path: Path) -> None:
    photos = [Image.open(path).convert("RGB").resize((416, 416)) for path in sorted(PHOTOS.iterdir())[:3]]
    images = np.stack([np.asarray(photo, np.float32)[..., ::-1].transpose(2, 0, 1) for photo in photos])
    np.savez(tmp_path / "images.npz", images=images)
    boxes = drawn(tmp_path, str(YOLOX), "images.npz", "boxes.npz")
    assert boxes.shape == (3, EXAMPLES.MOST, 5)
    assert (boxes[..., 0] >= 0).any()
    assert EXAMPLES.map50(str(YOLOX), {"images": images, "boxes": boxes}) == 1
