"""Training objectives: the teacher's tensors, labels, or the network's own noisy inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.augment import ImageInputs, flip_and_shift, mix_samples, move_with_labels
from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.losses import cross_entropy, distillation_loss, loss_scale
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.targets import DistillationTarget, output_targets
from leanonnx.errors import DataError, OptionError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.spelling import option

Teacher: TypeAlias = Callable[[Batch, "tuple[str, ...]"], "list[Tensor]"]
Prepare: TypeAlias = Callable[["Batch", "Tensor | None", np.random.Generator, bool], "tuple[Batch, Any]"]
MASK_PERIOD = 4
"""One pixel in each block of this side is masked."""


@dataclass(frozen=True)
class Objective:
    """A training objective.

    names: the network's tensors that the loss needs.
    prepare: maps a batch, its labels, a random generator and a training flag to the network's feed and the loss's
        reference.
    loss: maps these tensors and the reference to a mean over the batch.
    """

    names: tuple[str, ...]
    prepare: Prepare
    loss: Callable[[Sequence[Tensor], Any], Tensor]


def distillation_objective(
    targets: Sequence[DistillationTarget], teacher: Teacher, known: Sequence[Batch], images: ImageInputs | None
) -> Objective:
    """Distil from a teacher; its tensors on the ``known`` batches set the scale of the loss."""
    names = tuple(target.name for target in targets)
    with torch.no_grad():
        rows = [teacher(batch, names) for batch in known]
    pooled = [torch.cat([value.float().reshape(-1) for value in column]) for column in zip(*rows, strict=True)]
    scales = {name: loss_scale(value) for name, value in zip(names, pooled, strict=True)}

    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        if training and images:
            batch = mix_samples(flip_and_shift(batch, images, rng), images, rng)
        with torch.no_grad():
            return batch, teacher(batch, names)

    return Objective(names, prepare, lambda outputs, wanted: distillation_loss(targets, scales, outputs, wanted))


def supervised_objective(
    model: Model, shapes: Mapping[str, tuple[int, ...]], label: Array, images: ImageInputs | None
) -> Objective:
    """Learn labels: cross-entropy for integers, mean squared error for floats.

    Args:
        model: the network; the first output that fits the labels is trained.
        shapes: shapes of its tensors.
        label: the labels of one run, [samples, ...].
        images: image inputs to flip and shift, with labels that live on their grid.
    """
    if label.dtype.kind == "f":
        name = next((v.name for v in model.proto.graph.output if shapes.get(v.name) == label.shape), None)
        if name is None:
            raise _mismatch(model, shapes, label, "the same shape")
        return Objective(
            (name,),
            _with_labels(images, label.shape),
            lambda outputs, wanted: F.mse_loss(outputs[0].float(), wanted.float()),
        )
    chosen = _class_logits(model, shapes, label)
    if chosen is None:
        raise _mismatch(model, shapes, label, "the same shape but for an axis of the classes")
    name, axis = chosen
    prepare = _with_labels(images, label.shape)
    return Objective((name,), prepare, lambda outputs, wanted: cross_entropy(outputs[0], wanted, axis + 1))


def _with_labels(images: ImageInputs | None, shape: tuple[int, ...]) -> Prepare:
    """Flip and shift images, with labels [samples, ...] that live on their grid; other labels must be one per image."""
    grid = images.grid_of(shape) if images else None

    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        if training and images and labels is not None and (grid or len(shape) == 1):
            return move_with_labels(batch, labels, grid, images, rng)
        return batch, labels

    return prepare


def _class_logits(model: Model, shapes: Mapping[str, tuple[int, ...]], label: Array) -> tuple[str, int] | None:
    """The tensor that the labels are compared with, and its class axis."""
    for target in output_targets(model, shapes):
        shape = shapes[target.name]
        for axis in [target.axis] if target.axis is not None else [1, len(shape) - 1]:
            if 0 < axis < len(shape) and (*shape[:axis], *shape[axis + 1 :]) == label.shape:
                return target.name, axis
    return None


def _mismatch(model: Model, shapes: Mapping[str, tuple[int, ...]], label: Array, wanted: str) -> DataError:
    outputs = ", ".join(f"'{v.name}' {list(shapes.get(v.name, ()))}" for v in model.proto.graph.output)
    return DataError(
        f"the labels of one run are {label.dtype} {list(label.shape)}, but no output has {wanted} ({outputs}); "
        f"give labels that fit an output, or use {option('strategy', 'school')}"
    )


def noise2self_objective(
    model: Model, shapes: Mapping[str, tuple[int, ...]], images: ImageInputs | None, augment: bool
) -> Objective:
    """Learn to predict each pixel of noisy images from its neighbours (Batson & Royer 2019, arXiv 1901.11365).

    One pixel in each 4×4 block is replaced by the mean of its neighbours, and the output is compared with the input
    at these pixels only, so noise that is independent between pixels cannot be learnt.

    Raises:
        OptionError: no output has the shape of an image input.
    """
    pairs = [
        (name, value.name)
        for name in (images.names if images else ())
        for value in model.proto.graph.output
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
