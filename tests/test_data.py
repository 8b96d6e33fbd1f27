"""Data for a model: the feeds equal the content of the files, and little of it is in memory."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.data.files import InputSpec, open_arrays
from leanonnx.data.samples import open_data
from leanonnx.errors import DataError
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import run
from tests.datasets import IMAGES, RNG, body, data_for, fed
from tests.helpers import saved

SAVERS = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])

Save = Callable[..., None]


@SAVERS
@pytest.mark.parametrize(("first", "batch"), [("1", 1), ("N", 1), ("N", 4), ("1", 4)])
def test_rows_of_an_array_are_fed_in_order(save: Save, first: str, batch: int, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=IMAGES)
    data = data_for(tmp_path, f"float[{first},3,6,6] x", tmp_path / "data.npz")
    size = batch if first == "N" else 1
    feeds = fed(data, batch=batch)
    assert [len(feed) for feed in feeds] == [size] * (13 // size) + [13 % size] * bool(13 % size)
    np.testing.assert_array_equal(np.concatenate(feeds), IMAGES)
    np.testing.assert_array_equal(np.concatenate(fed(data)), IMAGES)
    assert (data.count, data.dropped_count, data.label_name) == (13, 0, None)


@SAVERS
def test_a_fixed_batch_is_filled_and_the_rest_dropped(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=IMAGES, y=np.arange(13))
    data = data_for(tmp_path, "float[4,3,6,6] x")
    feeds = list(data.labelled_feeds(batch=2))
    np.testing.assert_array_equal(np.stack([feed["x"] for feed, _ in feeds]), IMAGES[:12].reshape(3, 4, 3, 6, 6))
    assert [label.tolist() for _, label in feeds if label is not None] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (data.count, data.dropped_count, data.label_name) == (13, 1, "y")


@SAVERS
def test_whole_inputs_are_fed_row_by_row(save: Save, tmp_path: Path) -> None:
    state, rate = RNG.standard_normal((13, 2, 1, 5)).astype(np.float32), np.arange(13)
    save(tmp_path / "data.npz", x=IMAGES, s=state, r=rate)
    data = data_for(tmp_path, "float[N,3,6,6] x; float[2,1,5] s; int64 r")
    feeds = list(data.feeds(batch=8))
    assert len(feeds) == 13
    for k, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], IMAGES[k : k + 1])
        np.testing.assert_array_equal(feed["s"], state[k])
        assert feed["r"].shape == () and feed["r"] == k and feed["r"].dtype == np.int64


@SAVERS
def test_one_number_is_fed_with_every_sample(save: Save, tmp_path: Path) -> None:
    """An input without axes, such as a sampling rate, may be given once."""
    save(tmp_path / "data.npz", x=IMAGES, r=np.int64(16000))
    feeds = list(data_for(tmp_path, "float[N,3,6,6] x; int64 r").feeds())
    assert [int(feed["r"]) for feed in feeds] == [16000] * 13 and feeds[0]["r"].shape == ()
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), IMAGES)
    slots = [InputSpec("x", (None, 3, 6, 6), np.dtype(np.float32)), InputSpec("r", (), np.dtype(np.int64))]
    held = open_arrays({"x": IMAGES, "r": 16000}, slots)
    with held.open_reader(slots, labelled=False) as read:
        assert held.count == 13 and read(12)[0]["r"] == 16000


def test_the_only_array_fits_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", IMAGES, labels=np.arange(13))
    data = data_for(tmp_path, "float[N,3,6,6] x")
    np.testing.assert_array_equal(np.concatenate(fed(data)), IMAGES)
    assert data.label_name == "labels"


def test_an_input_named_like_labels_is_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", y=IMAGES)
    data = data_for(tmp_path, "float[N,3,6,6] y")
    assert data.label_name is None and len(fed(data, "y")) == 13


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("uint8", np.uint8), ("double", np.float64)])
def test_rows_get_the_type_of_the_input(kind: str, dtype: type, tmp_path: Path) -> None:
    numbers = RNG.integers(0, 255, (4, 6)).astype(">f4")
    np.savez(tmp_path / "data.npz", x=numbers)
    found = np.concatenate(fed(data_for(tmp_path, f"{kind}[N,6] x")))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, numbers)


@SAVERS
def test_reversed_axes_are_read_right_or_refused(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=np.asfortranarray(IMAGES))
    data = data_for(tmp_path, "float[N,3,6,6] x")
    if save is np.savez:
        np.testing.assert_array_equal(np.concatenate(fed(data)), IMAGES)
    else:
        with pytest.raises(DataError, match=r"'x' is compressed with its axes reversed.*ascontiguousarray"):
            fed(data)


def test_free_sizes_are_fed_as_they_are_and_not_mixed_in_a_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES[:3])
    np.savez(tmp_path / "b.npz", x=IMAGES[:3, :, :4])
    (tmp_path / "model").mkdir()
    data = data_for(tmp_path / "model", "float[N,3,H,W] x", tmp_path)
    assert [feed.shape for feed in fed(data, batch=2)] == [(2, 3, 6, 6), (1, 3, 6, 6), (2, 3, 4, 6), (1, 3, 4, 6)]
    fixed = data_for(tmp_path / "model", "float[2,3,H,W] x", tmp_path)
    with pytest.raises(DataError, match="samples of one run differ in shape"):
        fed(fixed)


@SAVERS
def test_files_of_a_folder_follow_each_other(save: Save, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name, part in (("b", slice(4, 13)), ("a", slice(0, 4))):
        save(tmp_path / f"{name}.npz", x=IMAGES[part], label=np.arange(13)[part])
    save(tmp_path / ".hidden.npz", x=IMAGES)
    data = data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path)
    found = list(data.labelled_feeds(batch=5))
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed, _ in found]), IMAGES)
    assert [label.tolist() for _, label in found if label is not None] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12],
    ]
    held = [label.item() for _, label in data.part(held_out=True, every=3).labelled_feeds() if label is not None]
    assert held == [2, 5, 8, 11]


@SAVERS
@pytest.mark.parametrize("every", [2, 3, 5, 20])
def test_parts_are_disjoint_and_complete(save: Save, every: int, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=np.arange(37.0))
    data = data_for(tmp_path, "float[N] x")
    held, others = (data.part(held_out, every) for held_out in (True, False))
    numbers = [np.concatenate([*fed(part), []]).astype(int).tolist() for part in (held, others)]
    assert numbers == [[k for k in range(37) if (k % every == every - 1) == out] for out in (True, False)]
    assert [held.count, others.count] == [len(part) for part in numbers]


@pytest.mark.parametrize("most", [1, 5, 36, 37, 100])
def test_the_first_samples_are_spread_evenly(most: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(37.0))
    data = data_for(tmp_path, "float[N] x").subsample(most)
    found = np.concatenate(fed(data)).astype(int)
    assert len(found) == data.count == min(most, 37)
    gaps = np.diff([*found, 37])
    assert found[0] == 0 and gaps.max() - gaps.min() <= 1


def test_parts_of_parts(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=np.arange(100.0))
    data = data_for(tmp_path, "float[N] x").part(held_out=False).subsample(10).part(held_out=True, every=2)
    kept = [k for k in range(100) if k % 5 != 4]
    assert np.concatenate(fed(data)).tolist() == [kept[k * 8] for k in range(10)][1::2]


def test_few_samples_are_in_memory(tmp_path: Path) -> None:
    """400 MB that are deflated, 40 MB that are stored."""
    deflated, rows, size = tmp_path / "deflated.npz", 1000, 100_000
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
        np.lib.format.write_array_header_1_0(out, header)
        for _ in range(rows):
            out.write(bytes(4 * size))
    np.savez(tmp_path / "stored.npz", x=np.broadcast_to(np.float32(0), (100, size)))
    for path, most in ((deflated, 40e6), (tmp_path / "stored.npz", 10e6)):
        data = data_for(tmp_path, f"float[N,{size}] x", path)
        tracemalloc.start()
        total = sum(feed["x"].size for part in (data, data.subsample(20)) for feed in part.feeds(batch=4))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == (data.count + 20) * size
        assert peak < most


def test_the_feeds_run(tmp_path: Path) -> None:
    """onnxruntime accepts the feeds."""
    proto = onnx.parser.parse_model(
        body("float16[N,3,H,W] x, int64[1] k, bool[2] b", "float16[N,3,H,W] y", "c = Cast <to = 10> (k) y = Add (x, c)")
    )
    path = saved(proto, tmp_path / "model.onnx")
    model = load(path)
    np.savez_compressed(tmp_path / "data.npz", x=IMAGES, k=np.arange(13), b=np.ones((13, 2), np.uint8))
    data = open_data(tmp_path / "data.npz", model, observe(model, {}).shapes)
    found = run(path, list(data.feeds(batch=4)))
    wanted = IMAGES.astype(np.float16) + np.arange(13, dtype=np.float16).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(np.concatenate([values[0] for values in found]), wanted, rtol=1e-2)
