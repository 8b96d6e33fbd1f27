"""What a network is trained for: its teacher's numbers, labels, or its own noisy inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.augment import Images, augmented, mixed
from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.losses import cross_entropy, school, spread
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.targets import DistillationTarget, output_targets
from leanonnx.errors import DataError, OptionError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.spelling import option

Teacher: TypeAlias = Callable[[Batch, "tuple[str, ...]"], "list[Tensor]"]
Prepare: TypeAlias = Callable[["Batch", "Tensor | None", np.random.Generator, bool], "tuple[Batch, Any]"]
GRID = 4
"""Every so many pixels along each axis one is masked."""


@dataclass(frozen=True)
class Objective:
    """What a network is trained for.

    names: the network's tensors that the loss needs.
    prepare: from a batch, its labels, random numbers and whether it is for training: what the network is fed, and what
        the loss compares its tensors with.
    loss: of these tensors, a mean over the batch.
    """

    names: tuple[str, ...]
    prepare: Prepare
    loss: Callable[[Sequence[Tensor], Any], Tensor]


def school_lesson(
    targets: Sequence[DistillationTarget], teacher: Teacher, known: Sequence[Batch], images: Images | None
) -> Objective:
    """Learn from a teacher, whose tensors on some known batches say how large an error is large."""
    names = tuple(target.name for target in targets)
    with torch.no_grad():
        rows = [teacher(batch, names) for batch in known]
    pooled = [torch.cat([value.float().reshape(-1) for value in column]) for column in zip(*rows, strict=True)]
    scales = {name: spread(value) for name, value in zip(names, pooled, strict=True)}

    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        if training and images:
            batch = mixed(augmented(batch, images, rng), images, rng)
        with torch.no_grad():
            return batch, teacher(batch, names)

    return Objective(names, prepare, lambda found, wanted: school(targets, scales, found, wanted))


def supervised_lesson(
    model: Model, shapes: Mapping[str, tuple[int, ...]], label: Array, images: Images | None
) -> Objective:
    """Learn labels: cross-entropy of integers, mean squared error of floats.

    Args:
        model: the network; the first output that fits the labels is taught.
        shapes: of its tensors.
        label: the labels of one run, [samples, ...].
        images: inputs that are images, to be flipped and shifted; only where there is one label for each.
    """
    if label.dtype.kind == "f":
        name = next((v.name for v in model.proto.graph.output if shapes.get(v.name) == label.shape), None)
        if name is None:
            raise _unfit(model, shapes, label, "the same shape")
        return Objective(
            (name,), _with_labels(None), lambda found, wanted: F.mse_loss(found[0].float(), wanted.float())
        )
    chosen = _classes(model, shapes, label)
    if chosen is None:
        raise _unfit(model, shapes, label, "the same shape but for an axis of the classes")
    name, axis = chosen
    images = images if label.ndim == 1 else None
    return Objective((name,), _with_labels(images), lambda found, wanted: cross_entropy(found[0], wanted, axis + 1))


def _with_labels(images: Images | None) -> Prepare:
    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        return (augmented(batch, images, rng) if training and images else batch), labels

    return prepare


def _classes(model: Model, shapes: Mapping[str, tuple[int, ...]], label: Array) -> tuple[str, int] | None:
    """The tensor that labels are held against, and its axis of classes."""
    for target in output_targets(model, shapes):
        shape = shapes[target.name]
        for axis in [target.axis] if target.axis is not None else [1, len(shape) - 1]:
            if 0 < axis < len(shape) and (*shape[:axis], *shape[axis + 1 :]) == label.shape:
                return target.name, axis
    return None


def _unfit(model: Model, shapes: Mapping[str, tuple[int, ...]], label: Array, wanted: str) -> DataError:
    outputs = ", ".join(f"'{v.name}' {list(shapes.get(v.name, ()))}" for v in model.proto.graph.output)
    return DataError(
        f"the labels of one run are {label.dtype} {list(label.shape)}, but no output has {wanted} ({outputs}); "
        f"give labels that fit an output, or use {option('strategy', 'school')}"
    )


def noise2self_lesson(
    model: Model, shapes: Mapping[str, tuple[int, ...]], images: Images | None, augment: bool
) -> Objective:
    """Learn to tell each pixel of noisy images from its neighbours (Batson & Royer 2019, arXiv 1901.11365).

    One pixel in each 4×4 block is replaced by the mean of its neighbours, and the output is held against the input
    at these pixels alone; noise that is independent from pixel to pixel cannot be learnt.

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
        batch = augmented(batch, images, rng) if training and augment else batch
        clean = batch[source]
        mask = _mask(clean, axes, rng)
        return {**batch, source: torch.where(mask, neighbours(clean, axes), clean)}, (clean, mask)

    def loss(found: Sequence[Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
        clean, mask = wanted
        errors = (found[0].float() - clean).square() * mask
        return errors.sum() / mask.expand(errors.shape).sum()

    return Objective((output,), prepare, loss)


def _mask(value: Tensor, axes: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """One pixel of each block, at a random place in the blocks of each sample."""
    count = value.shape[0]
    found = torch.ones([], dtype=torch.bool)
    for axis in axes:
        places = torch.from_numpy(rng.integers(0, GRID, count)).reshape(-1, *[1] * (value.ndim - 1))
        line = torch.arange(value.shape[axis]).reshape([-1 if k == axis else 1 for k in range(value.ndim)])
        found = found & (line % GRID == places)
    return found.to(value.device)


def neighbours(value: Tensor, axes: tuple[int, int]) -> Tensor:
    """Mean of the four pixels around each; beyond the edge lies the mirror image."""
    total = torch.zeros_like(value)
    for axis in axes:
        size = value.shape[axis]
        places = np.pad(np.arange(size), 1, mode="reflect")
        for shift in (0, 2):
            total = total + value.index_select(axis, torch.from_numpy(places[shift : shift + size]).to(value.device))
    return total / 4
