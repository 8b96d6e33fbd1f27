"""Pictures of images on the page of ``compress --report``."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from tests.helpers import build
from tests.pages import RESIDUAL, Found, images, page_of, parsed, residual

# Pictures of images


def pictures(found: Found) -> list[Image.Image]:
    """The pictures of a page."""
    uris = [image["src"] or "" for image in found.all("img")]
    return [Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) for uri in uris]


def test_images_side_by_side(calibrated: tuple[Found, str, dict[str, Any]], page_folder: Path) -> None:
    """Up to four held-out samples; the pictures are onnxruntime's outputs for them, black 0 and white 1."""
    found, _, _ = calibrated
    shown = pictures(found)
    assert len(shown) == 3 * 4
    assert {image.size for image in shown} == {(16, 16)}
    held_out = np.load(page_folder / "x.npz")["x"][4::5][:1]
    original, compressed, difference = (np.asarray(image, float) for image in shown[:3])
    for file, picture in (("model.onnx", original), ("out.onnx", compressed)):
        assert np.abs(255 * run(page_folder / file, held_out)[0].transpose(1, 2, 0) - picture).max() <= 0.51
    apart = np.abs(run(page_folder / "model.onnx", held_out) - run(page_folder / "out.onnx", held_out))[0].mean(0)
    factor = int(re.findall(r"difference × (\d+)", found.text("deviation"))[0])
    assert np.abs(np.clip(255 * factor * apart, 0, 255) - difference).max() <= 0.51
    assert difference.max() > 100
    assert "samples held out" in found.text("deviation")


def run(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Output of onnxruntime for an input."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float64)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda text: text, 12),
        (
            lambda text: text.replace(
                "y = Sigmoid (j)", "k = Sigmoid (j)\n white = Constant <value_float = 255.0> ()\n y = Mul (k, white)"
            ),
            12,
        ),
        (lambda text: text.replace("y = Sigmoid (j)", "ten = Constant <value_float = -10.0> ()\n y = Add (j, ten)"), 0),
        (lambda text: text.replace("y = Sigmoid (j)", "y = Softmax <axis = 1> (j)"), 0),
    ],
    ids=["to 1", "to 255", "no image", "probabilities"],
)
def test_recognised_image_outputs(tmp_path: Path, change: Callable[[str], str], count: int) -> None:
    page, _ = page_of(tmp_path, build(change(RESIDUAL)), "--keep", 0.5, "--calib", images(tmp_path / "x.npz"))
    shown = pictures(parsed(page))
    assert len(shown) == count
    assert all(np.asarray(image).mean() > 40 for image in shown[:2])


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the pictures is there, and what to install."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    page, _ = page_of(tmp_path, residual(), "--keep", 0.5, "--calib", images(tmp_path / "x.npz"))
    found = parsed(page)
    assert found.all("img") == []
    assert "pip install pillow" in found.text("deviation")
