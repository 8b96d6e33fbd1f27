"""Augmentation: random flips, shifts and mixtures, the same for all that lives on the grid of the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.data.images import IMAGE_BATCH_RANK, image_axes

MAX_SHIFT = 4
"""Largest shift of an image, in pixels."""
SHIFT_DIVISOR = 8
"""Shifts are at most a side divided by this; images with a shorter side than this are not augmented."""
PLANE_RANK = 2
CHANNELS_FIRST, CHANNELS_LAST = (-2, -1), (-3, -2)
"""Axes of height and width, counted from the last."""
Augmentation = Literal["flip", "shift", "blend", "rectangle"]
MOVES: frozenset[Augmentation] = frozenset(get_args(Augmentation))
"""Mirrored left to right; shifted by some pixels; blended with another sample; with a rectangle of another one."""


@dataclass(frozen=True)
class Grid:
    """Axes of height and width, counted from the last; an axis of size 1 stands for all positions.

    ``size``: height and width of the smallest images; ``factor``: the pixels for each of theirs.
    """

    height: int
    width: int
    size: tuple[int, int]
    factor: int = 1

    @property
    def axes(self) -> tuple[int, int]:
        """Both axes."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """The inputs on the grid of the images.

    Attributes:
        names: the images of the smallest size.
        height, width: their axes in a batch.
        size: their height and width.
        grids: the axes of all inputs that live on the grid.
        moves: the augmentations that are used.
    """

    names: tuple[str, ...]
    height: int
    width: int
    size: tuple[int, int]
    grids: Mapping[str, Grid]
    moves: frozenset[Augmentation] = MOVES

    def grid_of(self, shape: tuple[int, ...]) -> Grid | None:
        """The axes of another tensor, such as an output, that lives on the grid; None if it does not."""
        own = CHANNELS_FIRST if self.width == IMAGE_BATCH_RANK else CHANNELS_LAST
        order = (own, CHANNELS_FIRST) if len(shape) >= IMAGE_BATCH_RANK else (CHANNELS_FIRST,)
        return next((grid for axes in order if (grid := _fit(shape, axes, self.size)) is not None), None)


def image_inputs(shapes: Mapping[str, tuple[int, ...]]) -> ImageInputs | None:
    """Image inputs, [n, channels, height, width] or [n, height, width, channels], and all others on their grid.

    None unless all images have one layout, and sizes that are multiples of the smallest.
    """
    axes_by_name = {name: axes for name, shape in shapes.items() if (axes := image_axes(shape)) is not None}
    if len(set(axes_by_name.values())) != 1:
        return None
    height, width = next(iter(axes_by_name.values()))
    size = min((shapes[name][height], shapes[name][width]) for name in axes_by_name)
    images = ImageInputs(
        names=tuple(sorted(name for name in axes_by_name if (shapes[name][height], shapes[name][width]) == size)),
        height=height + 1,
        width=width + 1,
        size=size,
        grids={},
    )
    grids = {name: grid for name, shape in shapes.items() if (grid := images.grid_of(shape)) is not None}
    if min(size) < SHIFT_DIVISOR or not axes_by_name.keys() <= grids.keys():
        return None
    whole = all(shapes[name][axis] > 1 for name, grid in grids.items() for axis in grid.axes)
    return ImageInputs(
        names=images.names,
        height=images.height,
        width=images.width,
        size=size,
        grids=grids,
        moves=MOVES if whole else MOVES - {"rectangle"},
    )


def _fit(shape: tuple[int, ...], axes: tuple[int, int], size: tuple[int, int]) -> Grid | None:
    """The grid if a shape has a multiple of the size on two axes, or (of rank 4) 1 on one of them."""
    if len(shape) < max(PLANE_RANK, -axes[0]):
        return None
    sides = [(shape[axis], side) for axis, side in zip(axes, size, strict=True)]
    if len(shape) == PLANE_RANK:
        return Grid(*axes, size) if all(own == side for own, side in sides) else None
    factors = {own // side for own, side in sides if own > 1}
    if any(own % side for own, side in sides if own > 1) or len(factors) != 1:
        return None
    alone = any(own == 1 for own, _ in sides)
    return None if alone and len(shape) != IMAGE_BATCH_RANK else Grid(*axes, size, factors.pop())


@dataclass(frozen=True)
class Motion:
    """For each sample of a batch: mirrored or not, and the pixels by which it moves down and to the right."""

    flips: NDArray[np.bool_]
    down: NDArray[np.int64]
    right: NDArray[np.int64]

    def apply_to_inputs(self, batch: Batch, images: ImageInputs) -> Batch:
        """Move all inputs that live on the grid."""
        return {**batch, **{name: self.apply(batch[name], grid) for name, grid in images.grids.items()}}

    def apply(self, value: Tensor, grid: Grid) -> Tensor:
        """Move a tensor [batch, ...] on a grid."""
        samples = zip(value, self.flips, self.down, self.right, strict=True)
        return torch.stack([_moved(x, grid, bool(f), (int(d), int(r))) for x, f, d, r in samples])


def reach(images: ImageInputs) -> tuple[int, int]:
    """Largest shifts down and to the right, in pixels."""
    height, width = (min(MAX_SHIFT, side // SHIFT_DIVISOR) for side in images.size)
    return height, width


def draw_motion(count: int, images: ImageInputs, rng: np.random.Generator) -> Motion:
    """Half of the samples are mirrored and all of them are shifted, as far as these moves are used."""
    flips = rng.random(count) < 0.5
    down, right = (rng.integers(-r, r + 1, count) for r in reach(images))
    flips = flips if "flip" in images.moves else np.zeros_like(flips)
    return Motion(flips, down, right) if "shift" in images.moves else Motion(flips, 0 * down, 0 * right)


def flip_and_shift(batch: Batch, images: ImageInputs, rng: np.random.Generator) -> Batch:
    """Flip half of the samples horizontally and shift all of them, mirrored at the border."""
    return draw_motion(len(batch[images.names[0]]), images, rng).apply_to_inputs(batch, images)


def move_with_labels(
    batch: Batch, labels: Tensor, grid: Grid | None, images: ImageInputs, rng: np.random.Generator
) -> tuple[Batch, Tensor]:
    """Flip and shift samples, and labels that live on the grid with them."""
    motion = draw_motion(len(labels), images, rng)
    moved = motion.apply_to_inputs(batch, images)
    return moved, labels if grid is None else motion.apply(labels, grid)


def _moved(value: Tensor, grid: Grid, flip: bool, shift: tuple[int, int]) -> Tensor:
    """Flip and shift one sample [n, ...].

    What moves in is mirrored at the border, not at the outermost pixel, so that images of all sizes stay aligned.
    """
    for axis, pixels in zip(grid.axes, shift, strict=True):
        size, by = value.shape[axis], pixels * grid.factor
        flipped = flip and axis == grid.width
        if size == 1 or not (by or flipped):
            continue
        places = np.pad(np.arange(size), abs(by), mode="symmetric")[abs(by) + by :][:size]
        places = places[::-1] if flipped else places
        value = value.index_select(axis % value.ndim, torch.from_numpy(places.copy()).to(value.device))
    return value


@dataclass(frozen=True)
class Mixture:
    """A mixture of each sample of a batch with one of ``others``: ``shares`` of itself, or all but a rectangle.

    ``corners``: numbers in [0, 1) that give length and position of the rectangle [axis, length or position, batch];
    None for a blend.
    """

    others: NDArray[np.int64]
    shares: NDArray[np.float32]
    corners: NDArray[np.float64] | None

    def apply_to_inputs(self, batch: Batch, images: ImageInputs) -> Batch:
        """Mix all float inputs that live on the grid."""
        floats = {name: grid for name, grid in images.grids.items() if batch[name].is_floating_point()}
        return {**batch, **{name: self.apply(batch[name], grid) for name, grid in floats.items()}}

    def apply(self, value: Tensor, grid: Grid) -> Tensor:
        """Mix a tensor [batch, ...] on a grid."""
        other = value[torch.from_numpy(self.others).to(value.device)]
        if self.corners is not None:
            return torch.where(_rectangles(value, grid, self.corners), other, value)
        share = torch.from_numpy(self.shares).to(value.device).reshape(-1, *[1] * (value.ndim - 1))
        return share * value + (1 - share) * other


def mix_samples(batch: Batch, images: ImageInputs, rng: np.random.Generator) -> Batch:
    """Mix each sample with another one; the teacher labels the mixture (Beyer et al. 2022, arXiv 2106.05237).

    1. Half of the batches are blended with a smaller share of the other (mixup, Zhang et al. 2018, arXiv 1710.09412).
    2. In the other half, a rectangle is replaced by the other's (CutMix, Yun et al. 2019, arXiv 1905.04899).

    If one of the two is not used, the other takes its place.
    """
    kinds = [kind for kind in get_args(Augmentation)[2:] if kind in images.moves]
    if not kinds:
        return batch
    count, cut = len(batch[images.names[0]]), bool(rng.random() < 0.5)
    others, shares = rng.permutation(count), rng.uniform(0.5, 1, count).astype(np.float32)
    corners = rng.random((2, 2, count))
    cut = cut if len(kinds) > 1 else kinds == ["rectangle"]
    return Mixture(others, shares, corners if cut else None).apply_to_inputs(batch, images)


def _rectangles(value: Tensor, grid: Grid, corners: NDArray[np.float64]) -> Tensor:
    """Mask of one rectangle in each sample; its sides are a quarter to three quarters of the image's."""
    inside = torch.ones([], dtype=torch.bool)
    for axis, side, (long, place) in zip(grid.axes, grid.size, corners, strict=True):
        length = np.floor((0.25 + 0.5 * long) * side)
        start = np.floor(place * (side - length + 1))
        line = torch.arange(value.shape[axis]).reshape([-1 if k == value.ndim + axis else 1 for k in range(value.ndim)])
        ends = (grid.factor * bound for bound in (start, start + length))
        low, high = (torch.from_numpy(end).reshape(-1, *[1] * (value.ndim - 1)) for end in ends)
        inside = inside & (line >= low) & (line < high)
    return inside.to(value.device)
