"""Objectives that learn to remove noise from noisy images alone: Noise2Self and Noise2Inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.augment import flip_and_shift, image_inputs
from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.objectives import Objective, Scene
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.strategies import Pairing
from leanonnx.data.splits import splits_name
from leanonnx.errors import OptionError
from leanonnx.spelling import option

MASK_PERIOD = 4
"""One pixel in each block of this side is masked."""
TARGET = "target"
"""Name of the target while it is flipped and shifted along with the input."""


def noise2self_objective(scene: Scene) -> Objective:
    """Learn to predict each pixel of noisy images from its neighbours (Batson & Royer 2019, arXiv 1901.11365).

    One pixel in each 4×4 block is replaced by the mean of its neighbours, and the output is compared with the input
    at these pixels only, so noise that is independent between pixels cannot be learnt.

    Raises:
        OptionError: no output has the shape of an image input.
    """
    images, augment, shapes = scene.augmented or scene.images, scene.options.augment, scene.shapes
    pairs = [
        (name, value.name)
        for name in (images.names if images else ())
        for value in scene.model.proto.graph.output
        if shapes.get(value.name) == shapes[name]
    ]
    if images is None or not pairs:
        raise OptionError(
            f"{option('strategy', 'noise2self')}: no output has the shape of an image input; use "
            f"{option('strategy', 'school')} with {option('teacher')}"
        )
    source, output = pairs[0]
    axes = (images.height, images.width)

    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        batch = flip_and_shift(batch, images, rng) if training and augment else batch
        clean = batch[source]
        mask = _mask(clean, axes, rng)
        return {**batch, source: torch.where(mask, mean_of_neighbours(clean, axes), clean)}, (clean, mask)

    def loss(outputs: Sequence[Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
        clean, mask = wanted
        errors = (outputs[0].float() - clean).square() * mask
        return errors.sum() / mask.expand(errors.shape).sum()

    return Objective((output,), prepare, loss)


def _mask(value: Tensor, axes: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Mask of one pixel in each block, at a random position per sample."""
    count = value.shape[0]
    mask = torch.ones([], dtype=torch.bool)
    for axis in axes:
        places = torch.from_numpy(rng.integers(0, MASK_PERIOD, count)).reshape(-1, *[1] * (value.ndim - 1))
        line = torch.arange(value.shape[axis]).reshape([-1 if k == axis else 1 for k in range(value.ndim)])
        mask = mask & (line % MASK_PERIOD == places)
    return mask.to(value.device)


def mean_of_neighbours(value: Tensor, axes: tuple[int, int]) -> Tensor:
    """Mean of the four neighbours of each pixel, with reflection at the edges."""
    total = torch.zeros_like(value)
    for axis in axes:
        size = value.shape[axis]
        places = np.pad(np.arange(size), 1, mode="reflect")
        for shift in (0, 2):
            total = total + value.index_select(axis, torch.from_numpy(places[shift : shift + size]).to(value.device))
    return total / 4


def noise2inverse_objective(scene: Scene) -> Objective:
    """Learn to predict the noise-free part that splits of a measurement share (Hendriksen et al. 2020, 2001.11801).

    In each step, each object's splits are divided at random into one and all others.  The mean of the one part is the
    input, the mean of the other the target, so noise that is independent between splits cannot be learnt.

    Raises:
        OptionError: no output has the shape of the input.
    """
    (source,), shapes = scene.feeds[0], scene.shapes
    output = next((v.name for v in scene.model.proto.graph.output if shapes.get(v.name) == shapes[source]), None)
    if output is None:
        raise OptionError(
            f"{option('strategy', 'noise2inverse')}: no output has the shape {list(shapes[source])} of input "
            f"'{source}'; use {option('strategy', 'school')} with {option('teacher')}"
        )
    pairing: Pairing = scene.options.signal.pairing or "X:1"
    images = image_inputs({source: shapes[source], TARGET: shapes[source]}) if scene.options.augment else None

    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        one, others = one_and_others(batch[splits_name(source)], rng)
        fed, wanted = (others, one) if pairing == "X:1" else (one, others)
        pair = {source: fed, TARGET: wanted}
        pair = flip_and_shift(pair, images, rng) if training and images else pair
        return {source: pair[source]}, pair[TARGET]

    return Objective((output,), prepare, lambda outputs, wanted: F.mse_loss(outputs[0].float(), wanted.float()))


def one_and_others(splits: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random split of each object, and the mean of its others, from splits [batch, n, splits, ...]."""
    batch, rows, count = splits.shape[:3]
    chosen = torch.from_numpy(rng.integers(0, count, (batch, rows))).to(splits.device)
    places = chosen.reshape(batch, rows, *[1] * (splits.ndim - 2)).expand(-1, -1, 1, *splits.shape[3:])
    one = splits.gather(2, places).squeeze(2)
    return one, (splits.sum(2) - one) / (count - 1)
