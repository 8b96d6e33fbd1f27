"""Flips, shifts and mixtures of images, the same for all images of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.data.images import image_axes

SHIFT = 4
"""Pixels by which an image is moved at most."""
SMALLEST = 8
"""Pixels of an image's shorter side from which on it is moved at all, by an eighth of it at most."""


@dataclass(frozen=True)
class Images:
    """The inputs that are images, all of one size, and their axes of height and width in a batch."""

    names: tuple[str, ...]
    height: int
    width: int


def images_of(shapes: Mapping[str, tuple[int, ...]]) -> Images | None:
    """The inputs [n, channels, height, width] or [n, height, width, channels]; None if there are none of one size."""
    found = {name: axes for name, shape in shapes.items() if (axes := image_axes(shape)) is not None}
    sizes = {tuple(shapes[name][axis] for axis in axes) for name, axes in found.items()}
    if len(sizes) != 1 or len(set(found.values())) != 1 or min(min(size) for size in sizes) < SMALLEST:
        return None
    height, width = next(iter(found.values()))
    return Images(tuple(sorted(found)), height + 1, width + 1)


def augmented(batch: Batch, images: Images, rng: np.random.Generator) -> Batch:
    """Half of the samples flipped from left to right, all shifted; the border mirrors what is inside."""
    count = len(batch[images.names[0]])
    flips = rng.random(count) < 0.5
    sides = [batch[images.names[0]].shape[axis] for axis in (images.height, images.width)]
    reach = [min(SHIFT, side // SMALLEST) for side in sides]
    shifts = [rng.integers(-r, r + 1, count) for r in reach]
    result = dict(batch)
    for name in images.names:
        rows = [
            _moved(value, images, bool(flip), (int(down), int(right)))
            for value, flip, down, right in zip(batch[name], flips, *shifts, strict=True)
        ]
        result[name] = torch.stack(rows)
    return result


def mixed(batch: Batch, images: Images, rng: np.random.Generator) -> Batch:
    """Each sample mixed with another one, for a teacher to tell what that is; few samples last longer so.

    1. Half of the batches: blended with a smaller share of the other (mixup, Zhang et al. 2018, arXiv 1710.09412).
    2. The other half: a rectangle taken from the other (CutMix, Yun et al. 2019, arXiv 1905.04899).

    That a teacher can take the place of labels in this: Beyer et al. 2022, arXiv 2106.05237.
    """
    count, cut = len(batch[images.names[0]]), bool(rng.random() < 0.5)
    others, shares = rng.permutation(count), rng.uniform(0.5, 1, count).astype(np.float32)
    corners = rng.random((2, 2, count))
    result = dict(batch)
    for name in images.names:
        value = batch[name]
        if not value.is_floating_point():
            continue
        other = value[torch.from_numpy(others).to(value.device)]
        if cut:
            result[name] = torch.where(_rectangles(value, images, corners), other, value)
        else:
            share = torch.from_numpy(shares).to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            result[name] = share * value + (1 - share) * other
    return result


def _rectangles(value: Tensor, images: Images, corners: NDArray[np.float64]) -> Tensor:
    """One rectangle in each sample, from a quarter to three quarters of each side long.

    Args:
        value: the samples.
        images: their axes.
        corners: numbers in [0, 1) that say how long and where [axis, length or place, batch].
    """
    inside = torch.ones([], dtype=torch.bool)
    for axis, (long, place) in zip((images.height, images.width), corners, strict=True):
        size = value.shape[axis]
        length = np.floor((0.25 + 0.5 * long) * size)
        start = np.floor(place * (size - length + 1))
        line = torch.arange(size).reshape([-1 if k == axis else 1 for k in range(value.ndim)])
        low, high = (torch.from_numpy(v).reshape(-1, *[1] * (value.ndim - 1)) for v in (start, start + length))
        inside = inside & (line >= low) & (line < high)
    return inside.to(value.device)


def _moved(value: Tensor, images: Images, flip: bool, shift: tuple[int, int]) -> Tensor:
    """One sample [n, ...]."""
    for axis, by in ((images.height - 1, shift[0]), (images.width - 1, shift[1])):
        turned = flip and axis == images.width - 1
        if not by and not turned:
            continue
        size = value.shape[axis]
        places = np.pad(np.arange(size), abs(by), mode="reflect")[abs(by) + by :][:size]
        places = places[::-1] if turned else places
        value = value.index_select(axis, torch.from_numpy(places.copy()).to(value.device))
    return value
