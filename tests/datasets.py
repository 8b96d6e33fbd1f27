"""Data files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from leanonnx.data.samples import Dataset, ImageFormat, open_data
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from tests.helpers import saved

RNG = np.random.default_rng(0)

IMAGES = RNG.standard_normal((13, 3, 6, 6)).astype(np.float32)


def body(inputs: str, outputs: str, nodes: str) -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {nodes} }}'


def data_for(folder: Path, inputs: str, path: Path | None = None, images: ImageFormat | None = None) -> Dataset:
    """The data at a path, for a model that returns its inputs."""
    names = [text.split()[-1] for text in inputs.split("; ")]
    kinds = [text.split()[0] for text in inputs.split("; ")]
    outputs = ", ".join(f"{kind} o{k}" for k, kind in enumerate(kinds))
    nodes = " ".join(f"o{k} = Identity ({name})" for k, name in enumerate(names))
    proto = onnx.parser.parse_model(body(inputs.replace("; ", ", "), outputs, nodes))
    model = load(saved(proto, folder / "model.onnx"))
    return open_data(path or folder / "data.npz", model, observe(model, {}).shapes, images or ImageFormat())


def fed(data: Dataset, name: str = "x", batch: int = 1) -> list[np.ndarray]:
    return [feed[name] for feed in data.feeds(batch)]


def gradient(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full((height, width), 7)], -1).astype(np.uint8)


def png(path: Path, side: int = 6) -> None:
    Image.fromarray(gradient(side, side)).save(path)
