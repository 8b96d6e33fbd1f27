"""The objects that are to be reconstructed: grey images in [0, 1], phantoms of ellipses and parts of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from leanonnx.numeric.arrays import Array

SIZE = 64
"""Height and width of an object in pixels."""
SHORT_SIDE = 128
"""Pixels of the short side to which a photograph is shrunk before a part of it is taken."""
ELLIPSES = (6, 14)
EDGE = 1.0
"""Standard deviation of the blur of the edges of a phantom, in half pixels."""
SUFFIXES = (".jpg", ".jpeg", ".png")
SCORED = 5
"""One photograph in so many is only scored on."""


def phantom(rng: np.random.Generator, size: int = SIZE) -> Array:
    """A head-like object [size, size]: a bright rim around ellipses of random place, shape and brightness."""
    fine = 2 * size
    axis = (np.arange(fine) + 0.5) / fine * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    image = np.zeros((fine, fine))
    radii = rng.uniform(0.65, 0.9, 2)
    skull, inner = rng.uniform(0.6, 1.0), rng.uniform(0.2, 0.5)
    image[(x / radii[0]) ** 2 + (y / radii[1]) ** 2 < 1] = skull
    body = (x / (radii[0] - 0.07)) ** 2 + (y / (radii[1] - 0.07)) ** 2 < 1
    image[body] = inner
    for _ in range(rng.integers(*ELLIPSES, endpoint=True)):
        angle, (a, b) = rng.uniform(0, np.pi), rng.uniform(0.05, 0.35, 2)
        cx, cy = rng.uniform(-0.5, 0.5, 2)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        image[body & ((u / a) ** 2 + (v / b) ** 2 < 1)] += rng.uniform(-0.3, 0.4)
    smooth = ndimage.gaussian_filter(image, EDGE).reshape(size, 2, size, 2).mean((1, 3))
    return np.asarray(np.clip(smooth, 0, 1), np.float32)


def phantoms(count: int, seed: int) -> Array:
    """Phantoms [count, SIZE, SIZE]."""
    rng = np.random.default_rng(seed)
    return np.stack([phantom(rng) for _ in range(count)])


def photographs(folder: Path | None) -> tuple[list[Array], list[Array]]:
    """The photographs of a folder in grey, shrunk: those to train on, and those to score on."""
    if folder is None:
        return [], []
    from PIL import Image

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    images = []
    for path in paths:
        with Image.open(path) as file:
            scale = SHORT_SIDE / min(file.size)
            size = (max(round(file.width * scale), SHORT_SIDE), max(round(file.height * scale), SHORT_SIDE))
            grey = file.convert("L").resize(size, Image.Resampling.LANCZOS)
            images.append(np.asarray(grey, np.float32) / 255)
    return [image for k, image in enumerate(images) if k % SCORED], images[::SCORED]


def part(image: Array, rng: np.random.Generator) -> Array:
    """A random part [SIZE, SIZE] of a photograph, mirrored by chance."""
    top, left = (rng.integers(0, extent - SIZE, endpoint=True) for extent in image.shape)
    cut = image[top : top + SIZE, left : left + SIZE]
    return cut[:, ::-1] if rng.integers(2) else cut


def objects(count: int, photos: list[Array], seed: int) -> Array:
    """Objects [count, SIZE, SIZE]: parts of photographs and phantoms by turns, or phantoms alone."""
    rng = np.random.default_rng(seed)
    images = [phantom(rng) if k % 2 or not photos else part(photos[k // 2 % len(photos)], rng) for k in range(count)]
    return np.stack(images)
