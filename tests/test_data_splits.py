"""Arrays beside the inputs of a model: splits of measurements, and extra arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leanonnx.data.samples import open_data
from leanonnx.data.splits import open_splits, split_means, splits_name
from leanonnx.errors import DataError, OptionError
from leanonnx.graph.model import Model, load
from leanonnx.runtime.observation import observe
from tests.datasets import body
from tests.helpers import build, saved

PARTS = np.random.default_rng(0).standard_normal((7, 3, 2, 6, 6))


def model(folder: Path, kind: str = "float[N, 2, 6, 6]") -> Model:
    return load(saved(build(body(f"{kind} x", f"{kind} y", "y = Identity (x)")), folder / "model.onnx"))


@pytest.mark.parametrize("batch", ["N", "1", "2"])
def test_the_input_is_the_mean_over_the_splits(tmp_path: Path, batch: str) -> None:
    network = model(tmp_path, f"float[{batch}, 2, 6, 6]")
    np.savez(tmp_path / "a.npz", anything=PARTS[:4])
    np.savez(tmp_path / "b.npz", x=PARTS[4:], other=PARTS, labels=np.zeros(3))
    for path, rows in ((tmp_path / "a.npz", PARTS[:4]), (tmp_path / "b.npz", PARTS[4:])):
        data = open_splits(path, network, observe(network, {}).shapes)
        assert data.count == len(rows)
        assert data.label_name is None
        feeds = list(data.feeds())
        size = 2 if batch == "2" else 1
        assert feeds[0]["x"].shape == (size, 2, 6, 6)
        assert feeds[0][splits_name("x")].shape == (size, 3, 2, 6, 6)
        whole = np.concatenate([feed["x"] for feed in feeds])
        assert whole.dtype == np.float32
        assert np.allclose(whole, rows[: len(whole)].mean(1), atol=1e-6)
        parts = np.concatenate([feed[splits_name("x")] for feed in feeds])
        assert np.allclose(parts, rows[: len(parts)], atol=1e-6)
        assert [*next(data.only(["x"]).feeds())] == ["x"]
        means = split_means(path, network, observe(network, {}).shapes)
        assert np.array_equal(means["x"], whole)


def test_splits_are_floats_in_an_npz_file(tmp_path: Path) -> None:
    whole = model(tmp_path, "int32[N, 2, 6, 6]")
    np.savez(tmp_path / "a.npz", x=PARTS)
    with pytest.raises(OptionError, match="input 'x' takes int32, which no mean of splits is"):
        open_splits(tmp_path / "a.npz", whole, observe(whole, {}).shapes)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(b"")
    network = model(tmp_path)
    with pytest.raises(DataError, match="images, but Noise2Inverse needs reconstructions"):
        open_splits(tmp_path / "folder", network, observe(network, {}).shapes)


def test_extra_arrays_are_read_along(tmp_path: Path) -> None:
    network = model(tmp_path)
    mask, x = PARTS[:, 0, :1] > 0, PARTS[:, 0].astype(np.float32)
    np.savez(tmp_path / "a.npz", images=x, mask=mask, y=PARTS[:, 1])
    shapes = observe(network, {}).shapes
    data = open_data(tmp_path / "a.npz", network, shapes, extras=("mask", "y"))
    assert data.label_name is None
    feed = next(data.feeds(2))
    assert np.array_equal(feed["x"], x[:2])
    assert np.array_equal(feed["mask"], mask[:2])
    assert feed["y"].dtype == np.float32
    assert open_data(tmp_path / "a.npz", network, shapes, extras=("mask",)).label_name == "y"
    with pytest.raises(DataError, match="no array 'maps', only images, mask, "):
        open_data(tmp_path / "a.npz", network, shapes, extras=("mask", "maps"))


def test_extra_arrays_are_whole_where_the_inputs_are(tmp_path: Path) -> None:
    network = model(tmp_path, "float[1, 2, 6, 6]")
    rows = PARTS[:, :1].astype(np.float32)
    np.savez(tmp_path / "a.npz", x=rows, mask=rows[:, :, :1])
    data = open_data(tmp_path / "a.npz", network, observe(network, {}).shapes, extras=("mask",))
    assert {name: value.shape for name, value in next(data.feeds()).items()} == {
        "x": (1, 2, 6, 6),
        "mask": (1, 1, 6, 6),
    }
    flat = data.part(held_out=True)
    assert [*next(flat.feeds())] == ["x", "mask"]
