"""Learn inverse problems from incomplete measurements alone (Yaman et al. 2020, arXiv 1912.07669).

In each step the measured locations are divided at random: the network gets one part of the measurement, and the loss is
the difference of the measurement from what the operator makes of the output, in the other part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.divisions import LossWeights, plan_division
from leanonnx.commands.finetune.objectives import Objective, Scene
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.parity import run_in_torch
from leanonnx.commands.finetune.physics import PhysicalModel, PhysicalOperator, open_physics
from leanonnx.commands.finetune.strategies import DEFAULT_LOSS_SHARE, SignalOptions
from leanonnx.data.files import list_files
from leanonnx.data.npz import npz_arrays
from leanonnx.data.samples import Dataset, open_data
from leanonnx.errors import DataError, OptionError
from leanonnx.graph.formats import FLOAT_TYPES
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.sessions import Feed
from leanonnx.spelling import option

MASK, MEASUREMENT = "mask", "measurement"
"""Default names of the mask and of the measurement."""
MIN_LOCATIONS = 2
"""Smallest number of measured locations that can be divided."""
ADJOINT_TOLERANCE = 1e-2
"""Largest relative difference of the network's input from the adjoint of the measurement."""


@dataclass(frozen=True)
class _Names:
    """Names of the arrays that hold mask and measurement."""

    mask: str
    measurement: str


def open_measurements(path: Path, model: Model, shapes: Shapes, options: FinetuneOptions) -> Dataset:
    """Open data with the network's inputs, the mask and the measurement.

    Raises:
        DataError: there is no mask or measurement, or the data do not fit.
    """
    archives, images = list_files(path)
    if images:
        raise DataError(f"{path}: images, but measurements are needed; give them as .npz")
    inputs = [value.name for value in model.inputs]
    names = _names(path, model, {*inputs, *npz_arrays(archives[0])}, options.signal)
    extras = [name for name in (names.mask, names.measurement) if name not in inputs]
    return open_data(path, model, shapes, options.images, extras)


def _names(path: object, model: Model, arrays: Collection[str], signal: SignalOptions) -> _Names:
    """Find the mask and the measurement among inputs and arrays.

    Without a name, the measurement is the array ``measurement`` or, if there is none and no adjoint computes an input,
    the network's only float input beside the mask.
    """
    mask, measurement = signal.mask or MASK, signal.measurement or MEASUREMENT
    floats = [v.name for v in model.inputs if v.type.tensor_type.elem_type in FLOAT_TYPES and v.name != mask]
    if measurement not in arrays and signal.measurement is None and signal.adjoint is None and len(floats) == 1:
        measurement = floats[0]
    meanings = {"mask": (mask, "1 where something was measured, else 0"), "measurement": (measurement, "measured")}
    for name, (given, meaning) in meanings.items():
        if given not in arrays:
            raise DataError(
                f"{path}: neither an input of the model nor an array is named '{given}'; name the one that is "
                f"{meaning} with {option(name, 'NAME')} (there are {', '.join(sorted(arrays))})"
            )
    if mask == measurement:
        raise OptionError(f"{option('mask', mask)}: is the measurement as well; name two arrays")
    return _Names(mask, measurement)


def measurement_objective(scene: Scene) -> Objective:
    """Predict a random part of each measurement from the rest of it.

    Raises:
        UserError: data, operator or adjoint do not fit each other.
    """
    signal, data = scene.options.signal, scene.loader.data
    title, arrays = data.files[0].title, [slot.name for slot in data.inputs]
    names = _names(title, scene.model, arrays, signal)
    samples = [feed for feed, _ in scene.loader.held_out[: len(scene.feeds)]]
    _check_masks(title, scene, names, samples[0])
    operator, output = _operator(scene, names, samples)
    adjoint = _Adjoint.of(scene, names, samples) if signal.adjoint else None
    inputs = [value.name for value in scene.model.inputs]
    if adjoint is None and names.measurement not in inputs:
        raise OptionError(
            f"{scene.model.path}: no input is the measurement '{names.measurement}', so what the network gets would "
            f"hold the part that it is to predict; give the operator from measurement to input with {option('adjoint')}"
        )
    division = plan_division(_masks_and_measurements(scene, names), signal.loss_share or DEFAULT_LOSS_SHARE)
    wanted_numbers = math.prod(scene.shapes[output][1:])
    if 0 < division.measured < wanted_numbers:
        scene.notes.append(
            f"the samples together measure {division.measured} of the {wanted_numbers} numbers of an output: of the "
            f"others nothing is learned, and they may get worse; compare with {option('strategy', 'school')}"
        )

    def prepare(batch: Batch, labels: Tensor | None, rng: np.random.Generator, training: bool) -> tuple[Batch, Any]:
        kept, weights = division.draw(batch[names.mask], rng)
        seen = {**batch, names.mask: kept, names.measurement: batch[names.measurement] * kept}
        if adjoint is not None:
            seen[adjoint.target] = adjoint.operator(seen[names.measurement], seen)
        return {name: seen[name] for name in inputs}, (batch, weights)

    def loss(outputs: Sequence[Tensor], wanted: tuple[Batch, LossWeights]) -> Tensor:
        batch, weights = wanted
        errors = (operator(outputs[0].float(), batch) - batch[names.measurement]).square()
        return division.loss(errors, weights)

    return Objective((output,), prepare, loss)


def _masks_and_measurements(scene: Scene, names: _Names) -> Iterator[tuple[Array, Array]]:
    """Mask and measurement of each training sample."""
    for feed in scene.loader.data.only([names.mask, names.measurement]).feeds(1):
        yield feed[names.mask], feed[names.measurement]


def _check_masks(title: str, scene: Scene, names: _Names, sample: Feed) -> None:
    """Refuse masks that are not 0 or 1, that leave nothing to divide, or that do not fit the measurement."""
    shape, whole = sample[names.mask].shape, sample[names.measurement].shape
    if len(shape) != len(whole) or any(n not in (1, size) for n, size in zip(shape, whole, strict=True)):
        raise DataError(
            f"{title}: the mask '{names.mask}' of one run has the shape {list(shape)}, the measurement "
            f"'{names.measurement}' {list(whole)}; give the mask as many axes, each as long or of length 1"
        )
    for part in (scene.loader.data, scene.loader.held_out_data):
        for feed in part.only([names.mask]).feeds(1):
            mask = feed[names.mask]
            if not np.isin(mask, (0, 1)).all():
                raise DataError(
                    f"{title}: the mask '{names.mask}' holds {mask[~np.isin(mask, (0, 1))][0]:g}; give 1 where "
                    f"something was measured, else 0, or name another one with {option('mask')}"
                )
            if np.count_nonzero(mask) < MIN_LOCATIONS:
                raise DataError(
                    f"{title}: a mask '{names.mask}' has {np.count_nonzero(mask)} locations, too few to divide; give "
                    f"at least {MIN_LOCATIONS}, or leave the sample out"
                )


def _operator(scene: Scene, names: _Names, samples: Sequence[Feed]) -> tuple[PhysicalOperator, str]:
    """The operator, and the output of the network that it maps to the measurement."""
    arrays = {*samples[0]} - {names.measurement}
    physics = open_physics("operator", scene.options.signal.operator or "", scene.model, arrays)
    floats = [v.name for v in scene.model.proto.graph.output if v.type.tensor_type.elem_type in FLOAT_TYPES]
    output = next((name for name in floats if physics.takes(scene.shapes[name])), None)
    if output is None:
        shapes = ", ".join(f"'{name}' {list(scene.shapes[name])}" for name in floats)
        raise OptionError(
            f"{physics.title}: its input '{physics.source}' takes {_dims_text(physics)}, but the network's outputs are "
            f"{shapes or 'no floats'}; give the operator from one of them to the measurement"
        )
    place = scene.network.outputs.index(output)
    images = [row[place] for row in run_in_torch(scene.network, scene.feeds)]
    operator = physics.bind(images, samples, scene.device)
    measured, wanted = operator.one(images[0], samples[0]), samples[0][names.measurement]
    if measured.shape != wanted.shape:
        raise OptionError(
            f"{physics.title}: makes {list(measured.shape)} of output '{output}', but the measurement "
            f"'{names.measurement}' is {list(wanted.shape)}; give the operator of this measurement, or name another "
            f"one with {option('measurement')}"
        )
    _check_differentiable(operator, images[0], samples[0])
    return operator, output


def _check_differentiable(operator: PhysicalOperator, image: Array, feed: Feed) -> None:
    """Refuse an operator whose output has no gradient."""
    value = torch.from_numpy(np.array(image))[None].to(operator.device).requires_grad_()
    batch = {name: torch.from_numpy(np.array(feed[name]))[None].to(operator.device) for name in operator.physics.arrays}
    result = operator(value, batch)
    slope = torch.autograd.grad(result.square().sum(), value, allow_unused=True)[0] if result.requires_grad else None
    if slope is None or not bool(slope.abs().sum() > 0) or not bool(torch.isfinite(slope).all()):
        raise OptionError(
            f"{operator.physics.title}: is not differentiable; give an operator without rounding or the like"
        )


@dataclass(frozen=True)
class _Adjoint:
    """The operator that computes one of the network's inputs, ``target``, from the measurement."""

    operator: PhysicalOperator
    target: str

    @staticmethod
    def of(scene: Scene, names: _Names, samples: Sequence[Feed]) -> _Adjoint:
        """Open the adjoint, and compare it with the network's input in the data.

        Raises:
            UserError: it does not compute that input from the measurement.
        """
        arrays = {*samples[0]} - {names.measurement}
        physics = open_physics("adjoint", scene.options.signal.adjoint or "", scene.model, arrays)
        measured = [_restricted(feed, names) for feed in samples]
        if not physics.takes(measured[0].shape):
            raise OptionError(
                f"{physics.title}: its input '{physics.source}' takes {_dims_text(physics)}, but the measurement "
                f"'{names.measurement}' is {list(measured[0].shape)}; give the operator from it to the network's input"
            )
        operator = physics.bind(measured, samples, scene.device)
        result = operator.one(measured[0], samples[0])
        inputs = {v.name for v in scene.model.inputs if v.type.tensor_type.elem_type in FLOAT_TYPES}
        others = sorted(inputs - {names.mask, names.measurement})
        errors = {
            name: _difference(samples[0][name], result) for name in others if samples[0][name].shape == result.shape
        }
        if not errors:
            shapes = ", ".join(f"'{name}' {list(samples[0][name].shape)}" for name in others)
            raise OptionError(
                f"{physics.title}: makes {list(result.shape)} of the measurement, which is the shape of no input to "
                f"compute ({shapes or 'there is none beside mask and measurement'}); give the operator of an input"
            )
        target = min(errors, key=lambda name: errors[name])
        if errors[target] > ADJOINT_TOLERANCE:
            raise OptionError(
                f"{physics.title}: differs from input '{target}' of the data by {errors[target]:.1%}; give the "
                "operator that the inputs were computed with"
            )
        return _Adjoint(operator, target)


def _restricted(feed: Feed, names: _Names) -> Array:
    """The measurement at the locations of the mask, else 0."""
    measured = feed[names.measurement]
    return (measured * feed[names.mask]).astype(measured.dtype)


def _difference(wanted: Array, value: Array) -> float:
    return float(np.linalg.norm(wanted - value) / max(float(np.linalg.norm(wanted)), 1e-30))


def _dims_text(physics: PhysicalModel) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in physics.dims or ())}]"
