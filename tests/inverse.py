"""Small inverse problems for tests of fine-tuning: incomplete orthonormal measurements, splits of noisy ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.helpers import build, saved

SIDE = 16
# The transform is computed from constants, so that it is no weight that is trained.
UNROLLED = """
<ir_version: 8, opset_import: ["" : 17]>
unrolled (float[N, 1, 16, 16] y, float[N, 1, 16, 16] mask) => (float[N, 1, 16, 16] image)
<float[16, 16] stored_dct, float[16, 16] stored_back, float[6, 1, 3, 3] w1, float[6] b1, float[1, 6, 3, 3] w2,
 float[1] b2>
{
    one = Constant <value_float = 1.0> ()
    dct = Mul (stored_dct, one)
    back = Mul (stored_back, one)
    r0 = MatMul (back, y)
    x0 = MatMul (r0, dct)
    c1 = Conv <pads = [1, 1, 1, 1]> (x0, w1, b1)
    a1 = Relu (c1)
    d1 = Conv <pads = [1, 1, 1, 1]> (a1, w2, b2)
    x1 = Add (x0, d1)
    f1 = MatMul (dct, x1)
    k1 = MatMul (f1, back)
    m1 = Mul (mask, k1)
    e1 = Sub (m1, y)
    g1 = MatMul (back, e1)
    h1 = MatMul (g1, dct)
    image = Sub (x1, h1)
}
"""
DENOISER = """
<ir_version: 8, opset_import: ["" : 17]>
denoiser (float[N, 1, 16, 16] z) => (float[N, 1, 16, 16] image)
<float[6, 1, 3, 3] w1, float[6] b1, float[1, 6, 3, 3] w2, float[1] b2>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (z, w1, b1)
    a1 = Relu (c1)
    d1 = Conv <pads = [1, 1, 1, 1]> (a1, w2, b2)
    image = Add (z, d1)
}
"""
OPERATOR = """
<ir_version: 8, opset_import: ["" : 17]>
operator (float[N, 1, 16, 16] x) => (float[N, 1, 16, 16] spectrum)
<float[16, 16] LEFT, float[16, 16] RIGHT>
{
    half = MatMul (LEFT, x)
    spectrum = MatMul (half, RIGHT)
}
"""


def cosines() -> np.ndarray:
    """The orthonormal cosine transform [frequencies, pixels]."""
    steps = np.arange(SIDE)
    matrix = np.cos(np.pi * np.outer(steps, steps + 0.5) / SIDE) * np.sqrt(2 / SIDE)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def with_transform(text: str, seed: int = 0) -> onnx.ModelProto:
    """A model with the cosine transform where a name has ``dct``, and its inverse where it has ``back``."""
    proto = build(text, seed)
    for tensor in proto.graph.initializer:
        if "dct" in tensor.name or "back" in tensor.name:
            value = cosines() if "dct" in tensor.name else cosines().T
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    return proto


def operator(path: Path, adjoint: bool = False) -> Path:
    """The transform of images, or of spectra back to images."""
    sides = ("back", "dct") if adjoint else ("dct", "back")
    return saved(with_transform(OPERATOR.replace("LEFT", sides[0]).replace("RIGHT", sides[1])), path)


def images(count: int, seed: int = 0) -> np.ndarray:
    """Smooth images [count, 1, SIDE, SIDE]."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(np.cumsum(rng.standard_normal((count, 1, SIDE, SIDE)), axis=2), axis=3)
    return (steps / 16).astype(np.float32)


def measured(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Images, masks, and the measurements at these."""
    truth, matrix = images(count, seed), cosines()
    mask = (np.random.default_rng(seed + 1).random(truth.shape) < 0.6).astype(np.float32)
    mask[:, :, :2, :2] = 1
    return {"truth": truth, "mask": mask, "y": mask * (matrix @ truth @ matrix.T)}


def splits(count: int, parts: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images, and noisy reconstructions [count, parts, 1, SIDE, SIDE] of splits of their measurement."""
    truth = images(count, seed)
    noise = np.random.default_rng(seed + 1).standard_normal((count, parts, *truth.shape[1:]))
    return truth, (truth[:, None] + noise).astype(np.float32)
