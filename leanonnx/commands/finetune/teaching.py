"""Objectives that learn from a teacher's tensors or from labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.augment import ImageInputs, flip_and_shift, mix_samples, move_with_labels
from leanonnx.commands.finetune.batching import Batch, stack_feeds
from leanonnx.commands.finetune.loading import group_by_shape
from leanonnx.commands.finetune.losses import cross_entropy, distillation_loss, loss_scale
from leanonnx.commands.finetune.objectives import Objective, Prepare, Scene
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.targets import DistillationTarget, common_targets, output_targets
from leanonnx.commands.finetune.teachers import Teacher, open_teacher
from leanonnx.errors import DataError, OptionError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import observe
from leanonnx.spelling import option


def school_objective(scene: Scene) -> Objective:
    """Distil from the original.

    Raises:
        OptionError: the original has other inputs or outputs.
    """
    base, model = scene.base, scene.model
    assert base is not None
    ours, theirs = (
        {v.name: v.type.tensor_type.elem_type for v in (*m.inputs, *m.proto.graph.output)} for m in (model, base)
    )
    if ours != theirs:
        raise OptionError(
            f"{option('teacher', str(base.path))}: its inputs and outputs, or their types, are not those of "
            f"{model.path}; give the original that was compressed"
        )
    seen = observe(base, {name: value.shape for name, value in scene.feeds[0].items()}).shapes
    targets = common_targets(base, model, scene.shapes, seen)
    if not any(not target.inner for target in targets):
        raise OptionError(
            f"{option('teacher', str(base.path))}: no float output has the shape that it has in {model.path}; "
            "give the original that was compressed"
        )
    teacher, note = open_teacher(base, scene.feeds, tuple(target.name for target in targets), scene.device)
    scene.notes.extend([note] if note else [])
    held = group_by_shape(scene.loader.held_out, scene.options.settings.batch)
    known = [stack_feeds([feed for feed, _ in samples], scene.device) for samples in held]
    return distillation_objective(targets, teacher, known, scene.augmented)


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


def supervised_objective(scene: Scene) -> Objective:
    """Learn labels: cross-entropy for integers, mean squared error for floats.

    The first output that fits the labels of one run is trained; images are flipped and shifted if each has a single
    label, or with labels that live on their grid.
    """
    model, shapes = scene.model, scene.shapes
    label = next(label for _, label in scene.loader.held_out if label is not None)
    if label.dtype.kind == "f":
        name = next((v.name for v in model.proto.graph.output if shapes.get(v.name) == label.shape), None)
        if name is None:
            raise _mismatch(model, shapes, label, "the same shape")
        prepare = _with_labels(scene, label.shape)
        return Objective((name,), prepare, lambda outputs, wanted: F.mse_loss(outputs[0].float(), wanted.float()))
    chosen = _class_logits(model, shapes, label)
    if chosen is None:
        raise _mismatch(model, shapes, label, "the same shape but for an axis of the classes")
    name, axis = chosen
    prepare = _with_labels(scene, label.shape)
    return Objective((name,), prepare, lambda outputs, wanted: cross_entropy(outputs[0], wanted, axis + 1))


def _with_labels(scene: Scene, shape: tuple[int, ...]) -> Prepare:
    """Flip and shift images, with labels [samples, ...] that live on their grid; other labels must be one per image."""
    grid = scene.images.grid_of(shape) if scene.images else None
    images = scene.augmented if grid or len(shape) == 1 else None

    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        if training and images and labels is not None:
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
