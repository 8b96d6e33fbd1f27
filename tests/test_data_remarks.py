"""Data that are read without error, but perhaps not as they are meant, are called out with the remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import leanonnx
from leanonnx.evaluation.baseline import Baseline
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.plausibility import chance_remark
from leanonnx.evaluation.scores import ACCURACY, SQUARES, class_numbers, score_outputs
from leanonnx.evaluation.tally import Deviation
from tests.helpers import ANY, CALIBRATION, CNN, build, saved

RNG = np.random.default_rng(1)
IMAGES = RNG.standard_normal((80, 3, 8, 8)).astype(np.float32)
BYTES = RNG.integers(0, 256, IMAGES.shape).astype(np.uint8)
PIXELS, CHANCE, UNUSED = "whole numbers up to 255", "no better than by chance", "arrays of the data are not used"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undecided(tmp_path_factory.mktemp("remarks") / "m.onnx", IMAGES)


def undecided(path: Path, images: np.ndarray) -> Path:
    """A network whose decisions differ from image to image."""
    proto = build(CNN)
    (bias,) = (each for each in proto.graph.initializer if each.name == "b3")
    saved(proto, path)
    mean = np.mean([_run(path, image) for image in images], 0)
    centred = onnx.numpy_helper.to_array(bias) - mean
    bias.CopyFrom(onnx.numpy_helper.from_array(centred.astype(np.float32), bias.name))
    return saved(proto, path)


def _run(path: Path, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": image[None].astype(np.float32)})[0][0])


def true_labels(model: Path, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.array([_run(model, image).argmax() for image in images])


def warnings(model: Path, **arrays: np.ndarray) -> str:
    found = leanonnx.compress(model, keep=0.9, calib=arrays, recover="none", **ANY).warnings
    return "\n".join(found)


def test_sound_data_are_not_called_out(model: Path) -> None:
    text = warnings(model, x=IMAGES, labels=true_labels(model))
    assert [sign for sign in (PIXELS, CHANCE, UNUSED) if sign in text] == []


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_raw_pixels(model: Path, kind: type) -> None:
    text = warnings(model, x=BYTES.astype(kind))
    assert PIXELS in text and "scale them as in training" in text
    assert PIXELS not in warnings(model, x=BYTES / np.float32(255))


def test_raw_pixels_on_which_the_original_scores_well(tmp_path: Path) -> None:
    """A network that scales its pixels itself: its score shows that the range is right."""
    model = undecided(tmp_path / "m.onnx", BYTES)
    labels = true_labels(model, BYTES)
    assert len(set(labels)) > 2
    assert PIXELS not in warnings(model, x=BYTES, labels=labels)
    assert PIXELS in warnings(model, x=BYTES)


def test_labels_that_count_otherwise(model: Path) -> None:
    labels = true_labels(model)
    assert len(set(labels)) > 2
    text = warnings(model, x=IMAGES, labels=(labels + 1) % 5)
    assert CHANCE in text and "count its classes from 0" in text
    assert CHANCE not in warnings(model, x=IMAGES, labels=np.eye(5, dtype=np.float32)[labels])


def test_arrays_that_are_not_used(model: Path) -> None:
    text = warnings(model, x=IMAGES, target=true_labels(model))
    assert f"{UNUSED}: 'target'; name labels 'labels' or 'label' or 'y'" in text
    text = warnings(model, x=IMAGES, labels=true_labels(model), other=IMAGES[:, 0])
    assert f"{UNUSED}: 'other'; the model has no such inputs" in text


def test_check_notes_them(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=BYTES, target=np.zeros(80, int))
    notes = "\n".join(leanonnx.check(model, model, data=tmp_path / "x.npz").notes)
    assert PIXELS in notes and UNUSED in notes
    assert "\n".join(leanonnx.check(model, model).notes).count(PIXELS) == 0


# one-hot labels


def test_one_hot_labels_are_class_numbers() -> None:
    outputs, axes = [RNG.standard_normal((6, 4, 1, 1))], [1]
    numbers = np.array([0, 1, 2, 3, 1, 0])
    for kind in (np.float32, np.int64, bool):
        np.testing.assert_array_equal(class_numbers(np.eye(4, dtype=kind)[numbers], outputs, axes), numbers)
    score = score_outputs(np.eye(4)[numbers], outputs, outputs, axes)
    assert score.result()[0] == ACCURACY
    assert score.result()[1] == np.mean(outputs[0].argmax(1).reshape(-1) == numbers)


def test_other_labels_are_left_alone() -> None:
    outputs = [RNG.standard_normal((6, 4))]
    for label in (np.full((6, 4), 0.25), np.ones((6, 4)), np.zeros((6, 4)), np.arange(6), np.eye(6)[:, :3]):
        np.testing.assert_array_equal(class_numbers(label, outputs, [1]), label)
    one_hot = np.eye(4)[[0, 1, 2, 3, 0, 1]]
    assert score_outputs(one_hot, outputs, outputs, [None]).result()[0] == SQUARES, "the output holds no classes"


# chance


def fidelity(before: float, samples: int, decisions: int = 10, metric: str = ACCURACY) -> Fidelity:
    output = Deviation("y", 0.1, top1=0.9, baseline=Baseline(samples=samples, decisions=decisions))
    return Fidelity(samples=samples, outputs=(output,), metric=metric, before=before, after=before)


@pytest.mark.parametrize(
    ("before", "samples", "decisions", "called_out"),
    [
        (0.0, 12, 10, True),
        (0.25, 12, 10, True),
        (0.1, 1000, 10, True),
        (0.2, 1000, 10, False),
        (0.75, 12, 10, False),
        (0.5, 12, 2, True),
        (1.0, 4, 2, False),
        (1.0, 1, 1, False),
        (0.0, 1, 1, True),
    ],
)
def test_chance(before: float, samples: int, decisions: int, called_out: bool) -> None:
    assert (chance_remark(fidelity(before, samples, decisions)) is not None) == called_out


def test_decisions_that_are_not_counted_are_two() -> None:
    """Where an output has too many different decisions to count them."""
    outputs = (Deviation("y", 0.1, top1=0.9),)
    assert chance_remark(Fidelity(samples=12, outputs=outputs, metric=ACCURACY, before=0.1, after=0.1)) is not None


def test_errors_have_no_chance() -> None:
    assert chance_remark(fidelity(0.0, 12, metric=SQUARES)) is None
    assert chance_remark(Fidelity(samples=CALIBRATION.shape[0], outputs=())) is None
