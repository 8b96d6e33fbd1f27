"""Reconstructions of several splits of each measurement, for Noise2Inverse: an array [objects, splits, ...]."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from leanonnx.data.files import (
    LABEL_NAMES,
    NUMERIC_KINDS,
    InputSpec,
    MappedArray,
    SampleFile,
    input_spec,
    list_files,
)
from leanonnx.data.npz import NpzArray, npz_arrays
from leanonnx.data.samples import Dataset, dataset_of
from leanonnx.errors import DataError, OptionError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import Shapes

MIN_SPLITS = 2
SPLITS_SUFFIX = "/splits"
"""Suffix of the input's name in the name of the array of splits."""


def splits_name(source: str) -> str:
    """Name of the array of the splits of an input."""
    return f"{source}{SPLITS_SUFFIX}"


def open_splits(path: Path, model: Model, shapes: Shapes) -> Dataset:
    """Open an .npz file, or a folder of them, with reconstructions of K splits [objects, K, ...] of each measurement.

    Each sample is one object, with two arrays: the model's input, which is the mean over the splits, and
    ``splits_name(input)``, the splits themselves.

    Raises:
        OptionError: the model has several inputs, or does not take floats.
        DataError: the data do not exist, or have another form.
    """
    if len(model.inputs) != 1:
        names = ", ".join(f"'{value.name}'" for value in model.inputs) or "none"
        raise OptionError(
            f"{model.path}: Noise2Inverse trains a network of one input, a reconstruction, but its inputs are {names}; "
            "use another strategy"
        )
    slot = input_spec(model.inputs[0], shapes)
    if slot.dtype.kind != "f":
        raise OptionError(
            f"{model.path}: input '{slot.name}' takes {slot.dtype}, which no mean of splits is; give floats"
        )
    archives, images = list_files(path)
    if images:
        raise DataError(f"{path}: images, but Noise2Inverse needs reconstructions of splits; give them as .npz")
    files = [_split_file(archive, slot) for archive in archives]
    data = dataset_of(str(path), [slot], files)
    return replace(data, inputs=(*data.inputs, _splits_spec(slot)))


def split_means(path: Path, model: Model, shapes: Shapes) -> dict[str, Array]:
    """The means over the splits of all objects, in memory, by the name of the input; arguments as ``open_splits``."""
    (name,) = (value.name for value in model.inputs)
    return {name: np.concatenate([feed[name] for feed in open_splits(path, model, shapes).only([name]).feeds()])}


def _splits_spec(slot: InputSpec) -> InputSpec:
    return InputSpec(splits_name(slot.name), (*slot.dims[:1], None, *slot.dims[1:]), slot.dtype)


def _split_file(path: Path, slot: InputSpec) -> SampleFile:
    """The arrays of one file."""
    splits = _split_array(path, slot)
    rows, count, *row = splits.shape
    expected = [None, None, *slot.dims[1:]]
    fits = len(splits.shape) == len(expected) and all(
        d in (None, n) for d, n in zip(expected, splits.shape, strict=True)
    )
    if not fits:
        form = ", ".join(["objects", "splits", *("?" if d is None else str(d) for d in slot.dims[1:])])
        raise DataError(
            f"{path}: array '{splits.name}' has the shape {list(splits.shape)}, but Noise2Inverse takes [{form}] for "
            f"input '{slot.name}'; give reconstructions of the splits of each measurement in this shape"
        )
    if count < MIN_SPLITS:
        raise DataError(
            f"{path}: array '{splits.name}' holds {count} split of each measurement; split the measurement into at "
            f"least {MIN_SPLITS}, and reconstruct each part"
        )

    def mean(value: Array) -> Array:
        return np.asarray(value.mean(axis=0, dtype=np.float64))

    whole = MappedArray(name=slot.name, base=splits, shape=(rows, *row), function=mean)
    return SampleFile(str(path), {slot.name: whole, splits_name(slot.name): splits})


def _split_array(path: Path, slot: InputSpec) -> NpzArray:
    """The array that has the input's name, or the only one."""
    members = npz_arrays(path)
    others = [member for name, member in members.items() if name not in LABEL_NAMES]
    splits = members.get(slot.name, others[0] if len(others) == 1 else None)
    if splits is None or splits.dtype.kind not in NUMERIC_KINDS or len(splits.shape) < MIN_SPLITS:
        raise DataError(
            f"{path}: no array of numbers [objects, splits, ...] for input '{slot.name}'; got "
            f"{', '.join(sorted(members)) or 'none'}; name the array after the input"
        )
    return splits
