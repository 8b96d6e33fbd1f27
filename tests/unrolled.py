"""An unrolled network for MRI: gradient steps through a DFT, each followed by the same denoiser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.numeric.arrays import Array
from tests.helpers import build
from tests.tuning import saved

SIDE = 16
STEPS = 2


def dft(side: int = SIDE) -> tuple[Array, Array]:
    """Real and imaginary part of the unitary DFT."""
    places = np.arange(side)
    matrix = np.exp(-2j * np.pi * np.outer(places, places) / side) / np.sqrt(side)
    return matrix.real.astype(np.float32), matrix.imag.astype(np.float32)


def transform(source: str, result: str, inverse: bool) -> str:
    """Nodes of the DFT of a complex image along both axes, by products with real matrices on the left and right."""
    less, more = ("Add", "Sub") if inverse else ("Sub", "Add")
    k = result
    return f"""
        {k}r, {k}i = Split <axis = 1> ({source})
        {k}1 = MatMul (real, {k}r) {k}2 = MatMul (imag, {k}i) {k}3 = MatMul (real, {k}i) {k}4 = MatMul (imag, {k}r)
        {k}u = {less} ({k}1, {k}2) {k}v = {more} ({k}3, {k}4)
        {k}5 = MatMul ({k}u, real) {k}6 = MatMul ({k}v, imag) {k}7 = MatMul ({k}v, real) {k}8 = MatMul ({k}u, imag)
        {k}x = {less} ({k}5, {k}6) {k}y = {more} ({k}7, {k}8)
        {k} = Concat <axis = 1> ({k}x, {k}y)
    """


def unrolled(width: int = 4, seed: int = 0, step: float = 1.0, with_mask: bool = True) -> onnx.ModelProto:
    """Images [n, 2, side, side] from coefficients and a mask of those that were measured, an input or a constant."""
    nodes = [transform("y", "x0", inverse=True)]
    for k in range(STEPS):
        nodes += [
            transform(f"x{k}", f"f{k}", inverse=False),
            f"m{k} = Mul (mask, f{k}) d{k} = Sub (m{k}, y)",
            transform(f"d{k}", f"g{k}", inverse=True),
            f"s{k} = Mul (step, g{k}) z{k} = Sub (x{k}, s{k})",
            f"a{k} = Conv <pads = [1, 1, 1, 1]> (z{k}, w1, b1) r{k} = Relu (a{k})",
            f"c{k} = Conv <pads = [1, 1, 1, 1]> (r{k}, w2, b2) x{k + 1} = Add (z{k}, c{k})",
        ]
    mask = f"float[N, 1, {SIDE}, {SIDE}] mask" if with_mask else ""
    proto = build(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        unrolled (float[N, 2, {SIDE}, {SIDE}] y{", " if mask else ""}{mask}) => (float[N, 2, {SIDE}, {SIDE}] x{STEPS})
        <float[{SIDE}, {SIDE}] real, float[{SIDE}, {SIDE}] imag, float step,
        {"" if mask else f"float[1, 1, {SIDE}, {SIDE}] mask,"}
        float[{width}, 2, 3, 3] w1, float[{width}] b1, float[2, {width}, 3, 3] w2, float[2] b2>
        {{ {" ".join(nodes)} }}""",
        seed,
    )
    real, imag = dft()
    scale = {"w1": 0.3, "w2": 0.3, "b1": 0.1, "b2": 0.1}
    for tensor in proto.graph.initializer:
        known = {"real": real, "imag": imag, "step": np.float32(step), "mask": np.ones((1, 1, SIDE, SIDE))}
        value = known.get(tensor.name)
        given = scale.get(tensor.name, 1.0) * numpy_helper.to_array(tensor) if value is None else value
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(given, np.float32), tensor.name))
    return proto


def measured(path: Path, count: int = 20, **more: Array) -> Path:
    """Coefficients of smooth images, masks, and the images as labels."""
    rng = np.random.default_rng(3)
    images = np.cumsum(np.cumsum(rng.standard_normal((count, 2, SIDE, SIDE)), 2), 3) / SIDE
    mask = (rng.random((count, 1, SIDE, SIDE)) < 0.6).astype(np.float32)
    spectrum = np.fft.fft2(images[:, 0] + 1j * images[:, 1], norm="ortho")
    y = mask * np.stack([spectrum.real, spectrum.imag], axis=1)
    np.savez(path, y=y.astype(np.float32), mask=mask, labels=images.astype(np.float32), **more)
    return path


def saved_unrolled(path: Path, width: int = 4, seed: int = 0, with_mask: bool = True) -> Path:
    return saved(unrolled(width, seed, with_mask=with_mask), path)
