"""preprocessor_config.json of Hugging Face: what it says becomes the image format, and images come out the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import leanonnx
from leanonnx.data.images import ImageFormat, resized_to
from leanonnx.data.preprocessor import FILE_NAME, read_preprocessor
from leanonnx.errors import OptionError
from leanonnx.surgery.recipe import Recipe
from tests.datasets import data_for, fed, gradient
from tests.helpers import CNN, build, called, refused, saved

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}
"""As for microsoft/resnet-50."""
VIT = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
"""As for google/vit-base-patch16-224, an older file with a number as size."""
CLIP = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 256},
}
MOBILEVIT = {"crop_size": 256, "do_center_crop": True, "do_flip_channel_order": True, "do_rescale": True, "size": 288}
RAW = {"do_rescale": False, "do_normalize": False, "image_mean": [1.0], "size": {"height": 20, "width": 30}}


def written(folder: Path, row: Any) -> Path:
    path = folder / FILE_NAME
    path.write_text(json.dumps(row), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (RESNET, ImageFormat(mean=MEAN, std=STD, size=(224, 224), resized=256, resample=3)),
        (VIT, ImageFormat(mean=(0.5,) * 3, std=(0.5,) * 3, size=(224, 224), resized=(224, 224))),
        (
            CLIP,
            ImageFormat(
                mean=tuple(CLIP["image_mean"]),  # type: ignore[arg-type]
                std=tuple(CLIP["image_std"]),  # type: ignore[arg-type]
                size=(224, 224),
                resized=256,
                resample=3,
            ),
        ),
        (MOBILEVIT, ImageFormat(order="bgr", size=(256, 256), resized=288)),
        (RAW, ImageFormat(scale=1.0, size=(20, 30), resized=(20, 30))),
        ({"image_mean": 0.5, "image_std": 0.25}, ImageFormat(mean=(0.5,), std=(0.25,))),
    ],
    ids=["resnet", "vit", "clip", "mobilevit", "raw", "plain"],
)
def test_formats(tmp_path: Path, row: Any, expected: ImageFormat) -> None:
    path = written(tmp_path, row)
    found = read_preprocessor(path)
    assert found.scale == pytest.approx(expected.scale)
    kept = {"preprocessor": str(path), "scale": found.scale}
    assert found == ImageFormat(**{**vars(expected), **kept})
    assert read_preprocessor(tmp_path).mean == found.mean, "the folder stands for its file"


def test_sizes_before_the_crop() -> None:
    """As transformers computes them: the short side, and the other rounded down."""
    assert resized_to((375, 500), (224, 224), 256) == (256, 341)
    assert resized_to((500, 375), (224, 224), (224, 224)) == (224, 224)
    assert resized_to((375, 500), (224, 224), None) == (224, 299)
    assert resized_to((375, 500), (300, 300), 256) == (300, 400), "never smaller than the crop"


def test_pixels(tmp_path: Path) -> None:
    """Resize with the filter of the file, crop, rescale and normalise, by hand."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(gradient(12, 18)).save(folder / "a.png")
    row = {**RESNET, "crop_pct": None, "size": {"shortest_edge": 10}, "crop_size": 8, "do_center_crop": True}
    (found,) = fed(data_for(tmp_path, "float[N,3,8,8] x", folder, read_preprocessor(written(tmp_path, row))))
    with Image.open(folder / "a.png") as image:
        large = np.asarray(image.resize((15, 10), Image.Resampling.BICUBIC))
    wanted = (large[1:9, 3:11] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(found[0], wanted.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no image processor"),
        ('{"model_type": "resnet"}', "no image processor"),
        ('{"image_mean": "a"}', "unexpected values"),
        ('{"image_mean": 0, "rescale_factor": 0}', "unexpected values"),
        ('{"size": 1e999}', "unexpected values"),
        ('{"size": 100, "crop_pct": 1e-320}', "unexpected values"),
        ('{"size": 8, "resample": 6}', "unexpected values: resample is 6"),
        ('{"size": {"shortest_edge": 800, "longest_edge": 1333}}', "pads"),
        ('{"image_mean": 0, "image_std": [0, 1, 1]}', "std"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(OptionError, match=says):
        read_preprocessor(tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        leanonnx.read_preprocessor(tmp_path / "none.json")


def test_on_the_command_line(tmp_path: Path) -> None:
    """It goes without what it says itself; the plan says how to repeat the run."""
    saved(build(CNN), tmp_path / "m.onnx")
    (tmp_path / "images").mkdir()
    for k in range(8):
        Image.fromarray(np.roll(gradient(12, 12), k, 0)).save(tmp_path / "images" / f"{k}.png")
    written(tmp_path, {**VIT, "size": 8})
    words = ("compress", "m.onnx", "o.onnx", "--keep", "0.5", "--align", 1)
    given = ("--calib", "images", "--preprocessor", FILE_NAME)
    done = called(*words, *given, "--plan-out", "p.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused(tmp_path, *words, *given, "--mean", "0.5", says=("--mean: --preprocessor", "leave out one"))
    refused(tmp_path, *words, "--preprocessor", FILE_NAME, says=("there are none; add --calib",))
    images = vars(read_preprocessor(tmp_path / FILE_NAME))
    recipe = Recipe(calib="images", calib_sha256=None, seed=0, images=images)
    assert recipe.as_options() == f"calib='images' preprocessor='{tmp_path / FILE_NAME}' layout='auto'"
