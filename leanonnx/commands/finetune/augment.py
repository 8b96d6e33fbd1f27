"""Augmentation: random flips, shifts and mixtures, the same for all image inputs of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.data.images import image_axes

MAX_SHIFT = 4
"""Largest shift of an image, in pixels."""
SHIFT_DIVISOR = 8
"""Shifts are at most a side divided by this; images with a shorter side than this are not augmented."""


@dataclass(frozen=True)
class ImageInputs:
    """The image inputs, all of one size, and their height and width axes in a batch."""

    names: tuple[str, ...]
    height: int
    width: int


def image_inputs(shapes: Mapping[str, tuple[int, ...]]) -> ImageInputs | None:
    """Image inputs, [n, channels, height, width] or [n, height, width, channels]; None unless all have one size."""
    axes_by_name = {name: axes for name, shape in shapes.items() if (axes := image_axes(shape)) is not None}
    sizes = {tuple(shapes[name][axis] for axis in axes) for name, axes in axes_by_name.items()}
    if len(sizes) != 1 or len(set(axes_by_name.values())) != 1 or min(min(size) for size in sizes) < SHIFT_DIVISOR:
        return None
    height, width = next(iter(axes_by_name.values()))
    return ImageInputs(tuple(sorted(axes_by_name)), height + 1, width + 1)


def flip_and_shift(batch: Batch, images: ImageInputs, rng: np.random.Generator) -> Batch:
    """Flip half of the samples horizontally and shift all of them, with reflection padding."""
    count = len(batch[images.names[0]])
    flips = rng.random(count) < 0.5
    sides = [batch[images.names[0]].shape[axis] for axis in (images.height, images.width)]
    reach = [min(MAX_SHIFT, side // SHIFT_DIVISOR) for side in sides]
    shifts = [rng.integers(-r, r + 1, count) for r in reach]
    result = dict(batch)
    for name in images.names:
        rows = [
            _flip_and_shift_sample(value, images, bool(flip), (int(down), int(right)))
            for value, flip, down, right in zip(batch[name], flips, *shifts, strict=True)
        ]
        result[name] = torch.stack(rows)
    return result


def mix_samples(batch: Batch, images: ImageInputs, rng: np.random.Generator) -> Batch:
    """Mix each sample with another one; the teacher labels the mixture (Beyer et al. 2022, arXiv 2106.05237).

    1. Half of the batches are blended with a smaller share of the other (mixup, Zhang et al. 2018, arXiv 1710.09412).
    2. In the other half, a rectangle is replaced by the other's (CutMix, Yun et al. 2019, arXiv 1905.04899).
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


def _rectangles(value: Tensor, images: ImageInputs, corners: NDArray[np.float64]) -> Tensor:
    """Mask of one rectangle in each sample; its sides are a quarter to three quarters of the image's.

    Args:
        value: the samples.
        images: the image inputs, whose axes are used.
        corners: numbers in [0, 1) that give length and position [axis, length or position, batch].
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


def _flip_and_shift_sample(value: Tensor, images: ImageInputs, flip: bool, shift: tuple[int, int]) -> Tensor:
    """Flip and shift one sample [n, ...]."""
    for axis, by in ((images.height - 1, shift[0]), (images.width - 1, shift[1])):
        flipped = flip and axis == images.width - 1
        if not by and not flipped:
            continue
        size = value.shape[axis]
        places = np.pad(np.arange(size), abs(by), mode="reflect")[abs(by) + by :][:size]
        places = places[::-1] if flipped else places
        value = value.index_select(axis, torch.from_numpy(places.copy()).to(value.device))
    return value
