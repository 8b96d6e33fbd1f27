"""The committed network is valid and as accurate as stated, on data that have the properties of the paper's."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest

from models import circles_squares as cs

MODELS = Path(__file__).parents[1] / "models"
BACKGROUND_SHARE = 44368 / 65536  # what a constant answer scores
STATED_ACCURACY = 0.96


def logits(images: cs.Floats) -> cs.Floats:
    """Answer of the committed network, ``[B, 5, 256, 256]``."""
    session = onnxruntime.InferenceSession(MODELS / "cs_unet.onnx", providers=["CPUExecutionProvider"])
    answer: cs.Floats = session.run(None, {"input": images})[0]
    return answer


@pytest.fixture(scope="module")
def batch() -> cs.Batch:
    """Five images of a series that was used neither in training nor in choosing anything."""
    return cs.images(5, seed=2020)


def test_images_have_the_shapes_and_types_of_the_network(batch: cs.Batch) -> None:
    assert batch.images.shape == (5, 1, 256, 256)
    assert batch.images.dtype == np.float32
    assert batch.labels.shape == (5, 256, 256)
    assert batch.labels.dtype == np.uint8


def test_each_image_has_six_whole_objects_of_each_kind(batch: cs.Batch) -> None:
    """The counts of the authors' images; an object that covered part of another would lower them."""
    for channel_ids in batch.labels:
        assert np.bincount(channel_ids.ravel()).tolist() == [44368, 6144, 6144, 4440, 4440]


def test_objects_do_not_overlap_when_placed_one_by_one() -> None:
    rng = np.random.default_rng(0)
    scene = cs.Scene(np.zeros((256, 256), np.float32), np.zeros((256, 256), np.uint8))
    for placed in range(cs.OBJECTS):
        before = scene.labels.copy()
        assert cs.place(scene, placed % 4, rng)
        assert np.array_equal(scene.labels[before > 0], before[before > 0])
        new = scene.labels[(scene.labels > 0) & (before == 0)]
        assert len(new) == cs.SHAPES[placed % 4].labelled.sum()


def test_a_full_scene_takes_no_object() -> None:
    scene = cs.Scene(np.zeros((256, 256), np.float32), np.ones((256, 256), np.uint8))
    assert not cs.place(scene, 0, np.random.default_rng(0))
    assert not scene.clean.any()


def test_free_corners_are_the_corners_of_empty_boxes() -> None:
    channel_ids = cs.scene(3, 0).labels
    free = np.zeros((224, 224), bool)
    free[tuple(cs.free_corners(channel_ids).T)] = True
    windows = np.lib.stride_tricks.sliding_window_view(channel_ids, (32, 32))[:224, :224]
    assert np.array_equal(free, windows.max(axis=(2, 3)) == 0)


@pytest.mark.parametrize(("kind", "lit"), [(0, 1024), (1, 768), (2, 740), (3, 552)])
def test_hollow_kinds_carry_their_label_in_the_hole(kind: int, lit: int) -> None:
    shape = cs.SHAPES[kind]
    assert shape.lit.sum() == lit
    assert (shape.labelled | ~shape.lit).all()
    assert shape.labelled[16, 16]
    assert shape.lit[16, 16] == (kind in (0, 2))


def test_intensities_are_within_the_stated_range_and_the_background_is_zero() -> None:
    for index in range(5):
        scene = cs.scene(11, index)
        values = np.unique(scene.clean)
        assert values[0] == 0
        assert len(values) == 1 + cs.OBJECTS
        assert 0.2 <= values[1] < values[-1] < 1
        assert not scene.clean[scene.labels == 0].any()


def test_noise_is_standard_normal(batch: cs.Batch) -> None:
    clean = np.stack([cs.scene(2020, index).clean for index in range(5)])
    noise = batch.images[:, 0] - clean
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.01


def test_images_depend_on_seed_and_number_alone(batch: cs.Batch) -> None:
    again = cs.images(2, seed=2020, start=3)
    assert np.array_equal(again.images, batch.images[3:])
    assert np.array_equal(again.labels, batch.labels[3:])
    assert not np.array_equal(cs.images(1, seed=2021).labels[0], batch.labels[0])


def test_batches_continue_the_series(batch: cs.Batch) -> None:
    first, second = islice(cs.batches(2, seed=2020), 2)
    assert np.array_equal(np.concatenate([first.images, second.images]), batch.images[:4])
    assert np.array_equal(np.concatenate([first.labels, second.labels]), batch.labels[:4])


def test_network_passes_the_checker_and_describes_itself() -> None:
    model = onnx.load(MODELS / "cs_unet.onnx")
    onnx.checker.check_model(model, full_check=True)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["name"] == "cs_unet"
    assert float(properties["accuracy"]) >= STATED_ACCURACY
    assert properties["how made"]
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_network_reaches_the_stated_accuracy(batch: cs.Batch) -> None:
    found = float((logits(batch.images).argmax(1) == batch.labels).mean())
    assert found >= STATED_ACCURACY > BACKGROUND_SHARE + 0.2


def test_network_answers_images_one_at_a_time_as_in_a_batch(batch: cs.Batch) -> None:
    together, alone = logits(batch.images[:4]), logits(batch.images[:1])
    assert together.shape == (4, 5, 256, 256)
    np.testing.assert_allclose(together[:1], alone, atol=1e-4)


def test_samples_are_images_of_the_test_series() -> None:
    samples = np.load(MODELS / "cs_unet_samples.npz")
    expected = cs.images(len(samples["input"]), cs.TEST_SEED)
    assert np.array_equal(samples["labels"], expected.labels)
    assert samples["input"].dtype == np.float32
    np.testing.assert_allclose(samples["input"], expected.images, atol=1 / 32)
