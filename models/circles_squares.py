"""Circles and squares: the simulated segmentation data of the LEAN paper, in numpy alone.

Each 256x256 image holds 24 objects of 32x32 pixels on a background of 0, six of each kind, at random places where
they do not touch each other's pixels. Every object has its own intensity from U[0.2, 1); then noise N(0, 1) is added
to every pixel. The task is to name the kind of object at each pixel:

    0 background    1 filled square    2 hollow square    3 disc    4 ring

The hole of a hollow square or a ring has the background's intensity but the label of its object, as in the authors'
published images. So every image has the same 44368 background pixels (67.7 %): the accuracy of a constant answer.

Source: Schoonhoven et al. 2020, "LEAN: graph-based pruning for convolutional neural networks by extracting longest
chains" (arXiv 2011.06923).

Run as a script, it writes a few labelled images for calibration and evaluation:

    python -m models.circles_squares --count 16 --out models/cs_unet_samples.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import count as count_up
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 256
OBJECT_SIZE: Final = 32
OBJECTS: Final = 24
CLASSES: Final = ("background", "filled square", "hollow square", "disc", "ring")
TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 1, 2, 3

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]


class Shape(NamedTuple):
    """One kind of object: the pixels that shine and the pixels that carry its label, each ``[32, 32]``."""

    lit: Bools
    labelled: Bools


class Scene(NamedTuple):
    """An image without noise, ``[256, 256]``, and its labels, ``[256, 256]``."""

    clean: Floats
    labels: Labels


class Batch(NamedTuple):
    """Noisy images ``[B, 1, 256, 256]`` and labels ``[B, 256, 256]``."""

    images: Floats
    labels: Labels


def shapes() -> tuple[Shape, ...]:
    """The four kinds of object, in the order of their labels 1 to 4."""
    axis = np.linspace(-1.0, 1.0, OBJECT_SIZE)
    chebyshev = np.maximum(abs(axis[:, None]), abs(axis))
    radius = np.hypot(axis[:, None], axis)
    square, square_hole = chebyshev <= 1.0, chebyshev < 0.5
    disc, disc_hole = radius < 1.0, radius < 0.5
    return (
        Shape(square, square),
        Shape(square & ~square_hole, square),
        Shape(disc, disc),
        Shape(disc & ~disc_hole, disc),
    )


SHAPES: Final = shapes()


def free_corners(labels: Labels) -> NDArray[np.intp]:
    """Top left corners ``[F, 2]`` of all 32x32 boxes that hold background only, by a summed-area table."""
    area = np.pad(labels > 0, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    step = OBJECT_SIZE
    occupied = area[step:, step:] - area[:-step, step:] - area[step:, :-step] + area[:-step, :-step]
    return np.argwhere(occupied[:-1, :-1] == 0)  # the paper's images never touch the last row and column


def place(scene: Scene, kind: int, rng: np.random.Generator) -> bool:
    """Draw one object of the kind (0 to 3) into the scene, uniformly among the free places; False if there is none."""
    corners = free_corners(scene.labels)
    if not len(corners):
        return False
    row, column = corners[rng.integers(len(corners))]
    box = slice(row, row + OBJECT_SIZE), slice(column, column + OBJECT_SIZE)
    scene.clean[box][SHAPES[kind].lit] = rng.uniform(0.2, 1.0)
    scene.labels[box][SHAPES[kind].labelled] = kind + 1
    return True


def draw_scene(rng: np.random.Generator) -> Scene:
    """Place the 24 objects, the kinds by turns; start again in the rare case that one finds no free place."""
    while True:
        scene = Scene(np.zeros((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE), np.uint8))
        if all(place(scene, k % len(SHAPES), rng) for k in range(OBJECTS)):
            return scene


def scene(seed: int, index: int) -> Scene:
    """Image number ``index`` of the series ``seed``, without its noise."""
    return draw_scene(np.random.default_rng((seed, index)))


def images(count: int, seed: int, start: int = 0) -> Batch:
    """Images ``start`` to ``start + count`` of the series ``seed``: each depends on its own number only."""
    noisy = np.empty((count, 1, SIZE, SIZE), np.float32)
    labels = np.empty((count, SIZE, SIZE), np.uint8)
    for k in range(count):
        rng = np.random.default_rng((seed, start + k))
        clean, labels[k] = draw_scene(rng)
        noisy[k, 0] = clean + rng.standard_normal(clean.shape, np.float32)
    return Batch(noisy, labels)


def batches(size: int, seed: int) -> Iterator[Batch]:
    """The endless series ``seed``, cut into batches of ``size`` images."""
    return (images(size, seed, start) for start in count_up(0, size))


def main() -> None:
    """Write labelled images of the test series, rounded to 1/16 (the noise is 16 times that) to compress well."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=16, help="how many images")
    parser.add_argument("--seed", type=int, default=TEST_SEED, help="which series of images")
    parser.add_argument("--out", default="cs_unet_samples.npz", help="file to write: 'input' and 'labels'")
    options = parser.parse_args()
    noisy, labels = images(options.count, options.seed)
    np.savez_compressed(options.out, input=np.round(noisy * 16) / 16, labels=labels)
    print(f"{options.out}: {options.count} images of series {options.seed}")


if __name__ == "__main__":
    main()
