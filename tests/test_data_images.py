"""Images as data for a model: made to fit, or refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leanonnx.cli.options import image_format
from leanonnx.data.samples import ImageFormat
from leanonnx.errors import DataError, OptionError
from leanonnx.spelling import spelled_for
from tests.datasets import data_for, fed, gradient, png


@pytest.fixture(autouse=True)
def command_line() -> Iterator[None]:
    """Spell parameters in messages as on the command line."""
    with spelled_for("command line"):
        yield


def test_images_become_tensors(tmp_path: Path) -> None:
    Image.fromarray(gradient(6, 10)).save(tmp_path / "b.png")
    Image.fromarray(gradient(6, 6)).save(tmp_path / "a.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "model").mkdir()
    images = ImageFormat(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    wide = (gradient(6, 10)[:, 2:8] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    data = data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path, images)
    assert data.count == 2 and data.label_name is None
    np.testing.assert_allclose(fed(data)[1][0], wide.transpose(2, 0, 1), rtol=1e-5)
    data = data_for(tmp_path / "model", "float[1,6,6,3] x", tmp_path, images)
    np.testing.assert_allclose(fed(data)[1][0], wide, rtol=1e-5)
    data = data_for(tmp_path / "model", "float[3,6,6] x", tmp_path, ImageFormat(scale=1, order="bgr"))
    np.testing.assert_array_equal(fed(data)[0], gradient(6, 6).transpose(2, 0, 1)[::-1])
    data = data_for(tmp_path / "model", "uint8[N,6,6,3] x", tmp_path)
    np.testing.assert_array_equal(fed(data, batch=2)[0], [gradient(6, 6), gradient(6, 10)[:, 2:8]])


def test_images_are_made_to_fit(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 17, 3), 200, np.uint8)).convert("RGBA").save(tmp_path / "a.png")
    Image.fromarray(np.full((9, 200), 100, np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "model").mkdir()
    data = data_for(tmp_path / "model", "float[N,1,H,W] x", tmp_path, ImageFormat(size=(12, 20), layout="nchw"))
    np.testing.assert_allclose(
        np.concatenate(fed(data)).reshape(2, -1).T, np.full((240, 2), [200, 100]) / 255, atol=0.01
    )
    assert fed(data)[0].shape == (1, 1, 12, 20)


REFUSED_IMAGES = {
    "two inputs": ("float[N,3,6,6] x; float[1] s", {}, "images can feed one input, but the model has 'x', 's'"),
    "no image": ("float[N,6] x", {}, "input 'x' takes 1×6, no image"),
    "channels": ("float[N,4,6,6] x", {"layout": "nchw"}, "4 channels, expected 1 or 3"),
    "which axis": ("float[N,3,6,3] x", {}, "cannot be told; add --layout nchw or --layout nhwc"),
    "size": ("float[N,3,6,6] x", {"size": (8, 6)}, "--size 8x6: input 'x' takes 6x6"),
    "means": ("float[N,3,6,6] x", {"mean": (0.0, 1.0)}, "--mean: 2 numbers, but input 'x' takes 3 channels"),
    "stds": ("float[N,3,6,6] x", {"std": (1.0, 1.0)}, "--std: 2 numbers"),
    "bytes": ("uint8[N,3,6,6] x", {"mean": (0.5,)}, "pixels as they are; leave out --mean"),
}


@pytest.mark.parametrize("name", REFUSED_IMAGES)
def test_images_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    inputs, images, message = REFUSED_IMAGES[name]
    png(tmp_path / "a.png")
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=message):
        data_for(tmp_path / "model", inputs, tmp_path, ImageFormat(**images))


def test_broken_and_deep_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
        fed(data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path))
    (tmp_path / "a.jpg").unlink()
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: more than 8 bits"):
        fed(data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path))


def test_without_pillow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "model").mkdir()
    data = data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"pip install pillow"):
        fed(data)


def test_options_of_images_are_read() -> None:
    assert image_format("0", "1", 255, "auto", None) == ImageFormat()
    found = image_format("0.5,0.4,0.3", "2", 1, "nhwc,bgr", "224x320")
    assert found == ImageFormat(mean=(0.5, 0.4, 0.3), std=(2.0,), scale=1, layout="nhwc", size=(224, 320), order="bgr")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("mean", text) for text in ("", "a", "1,,2", "nan", "1;2")),
        *(("std", text) for text in ("0", "1,0,1", "inf", "x")),
        *(("scale", number) for number in (0.0, -1.0, float("nan"), float("inf"))),
        *(("layout", text) for text in ("", "chw", "nchw,rgb", "bgr")),
        *(("size", text) for text in ("", "224", "0x3", "3x", "-1x3", "1.5x2")),
    ],
)
def test_wrong_options_of_images_are_refused(option: str, value: Any) -> None:
    plain = {"mean": "0", "std": "1", "scale": 255.0, "layout": "auto", "size": None}
    with pytest.raises(OptionError, match=f"^--{option} .*: expected .*"):
        image_format(**{**plain, option: value})
