"""Calibration and training data, read on demand, so that only a few samples are in memory.

Three formats:

1. An .npz file keyed by graph-input name.  An array [samples, ...] of the rank of its input has the samples along the
   batch axis; one with one more axis, [samples, batch, ...], holds a whole input in each row (for example recurrent
   state).  The only array of a file fits the only input of a model under any name.  ``labels``, ``label`` or ``y``
   [samples, ...] are labels, unless an input has that name.
2. A folder of such files, concatenated in the order of their names.
3. A folder of images, for a model with one input.

Arrays in memory are treated as those of an .npz file.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.data.files import (
    IN_MEMORY_TITLE,
    GeneratedArray,
    InputSpec,
    MemoryArray,
    Sample,
    SampleFile,
    input_spec,
    list_files,
    open_arrays,
    open_image_folder,
    open_npz_file,
)
from leanonnx.data.images import IMAGE_OPTIONS
from leanonnx.data.images import ImageFormat as ImageFormat
from leanonnx.data.npz import NpzArray
from leanonnx.errors import DataError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.spelling import option_list

DEFAULT_IMAGE_FORMAT = ImageFormat()
MAX_BATCH_SIZE = 16
MIN_RUNS = 20
"""Smallest number of runs to split the samples into, so that some can be held out."""
SampleSource = Path | Mapping[str, Any]
"""Source of samples: a path, or arrays in memory by name (anything that numpy converts to an array)."""


@dataclass(frozen=True)
class EveryNth:
    """Every ``every``-th sample from ``first`` on if ``held_out``, otherwise all others; ``first`` < ``every``."""

    held_out: bool
    every: int
    first: int

    def size(self, count: int) -> int:
        """Return the number of samples selected from ``count``."""
        held_out = (count + self.every - 1 - self.first) // self.every
        return held_out if self.held_out else count - held_out

    def source_index(self, k: int, count: int) -> int:
        """Return the index of the ``k``-th selected sample among ``count``."""
        if self.held_out:
            return k * self.every + self.first
        return k + (k + self.every - 1 - self.first) // (self.every - 1)


@dataclass(frozen=True)
class EvenlySpaced:
    """At most ``most`` samples, evenly spaced."""

    most: int

    def size(self, count: int) -> int:
        """Return the number of samples selected from ``count``."""
        return min(self.most, count)

    def source_index(self, k: int, count: int) -> int:
        """Return the index of the ``k``-th selected sample among ``count``."""
        return k * count // self.size(count)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples for a model, which can be iterated any number of times, always in the same order.

    ``label_name`` is the name of the array of labels; None if there is none.  ``fixed_batch`` is the number of samples
    in one run; None if the model leaves it free.
    """

    inputs: tuple[InputSpec, ...]
    files: tuple[SampleFile, ...]
    label_name: str | None
    fixed_batch: int | None
    selections: tuple[EveryNth | EvenlySpaced, ...] = ()

    @property
    def count(self) -> int:
        """Number of samples."""
        return self._counts()[-1]

    @property
    def dropped_count(self) -> int:
        """Number of samples at the end that are not fed, because they do not fill the model's fixed batch."""
        return self.count % (self.fixed_batch or 1)

    def feeds(self, batch: int = 1) -> Iterator[Feed]:
        """Yield inputs of the model with ``batch`` samples along axis 0 (fewer at the end, or if shapes change).

        A model with a fixed batch gets batches of that size, and the last ``dropped_count`` samples are left out; one
        that takes whole inputs gets one sample at a time.

        Raises:
            DataError: a file cannot be read, or holds NaN, infinity or numbers that the input's type cannot hold.
        """
        for feed, _ in self._batches(batch, labelled=False):
            yield feed

    def labelled_feeds(self, batch: int = 1) -> Iterator[tuple[Feed, Array | None]]:
        """Yield feeds as ``feeds`` does, each with the labels [samples, ...] of its samples; None if there are none."""
        return self._batches(batch, labelled=True)

    def digest(self) -> str:
        """Return the SHA-256 of all samples as fed, without labels: it depends on the numbers only, not on the files.

        Raises:
            DataError: as ``feeds``.
        """
        sha = hashlib.sha256()
        for rows, _ in self._samples(labelled=False):
            for slot in self.inputs:
                value = rows[slot.name]
                sha.update(f"{slot.name}\0{value.dtype}\0{value.shape}\0".encode())
                sha.update(repr(value.tolist()).encode() if value.dtype.kind == "O" else value.tobytes())
        return sha.hexdigest()

    def part(self, held_out: bool, every: int = 5, first: int | None = None) -> Dataset:
        """Select every ``every``-th sample from ``first`` on (by default every - 1), or all others; may be empty."""
        if every < 2:
            raise ValueError(f"one sample in {every} cannot be held out")
        selection = EveryNth(held_out, every, every - 1 if first is None else first)
        return replace(self, selections=(*self.selections, selection))

    def subsample(self, count: int) -> Dataset:
        """Select at most ``count`` samples, evenly spaced over the data."""
        if count < 1:
            raise ValueError(f"{count} samples are no data")
        return replace(self, selections=(*self.selections, EvenlySpaced(count)))

    def only(self, names: Iterable[str]) -> Dataset:
        """Select some of the arrays."""
        wanted = set(names)
        return replace(self, inputs=tuple(slot for slot in self.inputs if slot.name in wanted))

    def _counts(self) -> list[int]:
        """Return the numbers of samples in the files and after each selection."""
        counts = [sum(file.count for file in self.files)]
        for selection in self.selections:
            counts.append(selection.size(counts[-1]))
        return counts

    def _samples(self, labelled: bool) -> Iterator[Sample]:
        counts = self._counts()

        def index(k: int) -> int:
            """Return the index of sample ``k`` in the files; increasing in ``k``."""
            for selection, count in zip(self.selections[::-1], counts[-2::-1], strict=True):
                k = selection.source_index(k, count)
            return k

        every, start, stop = range(counts[-1]), 0, 0
        for file in self.files:
            start, stop = stop, stop + file.count
            selected = every[bisect_left(every, start, key=index) : bisect_left(every, stop, key=index)]
            with file.open_reader(self.inputs, labelled) as read:
                for k in selected:
                    yield read(index(k) - start)

    def _batches(self, batch: int, labelled: bool) -> Iterator[Sample]:
        if batch < 1:
            raise ValueError(f"a batch of {batch} samples is no input")
        group: list[Sample] = []
        for sample in self._samples(labelled):
            if group and _shapes(group[0]) != _shapes(sample):
                if self.fixed_batch:
                    raise DataError(
                        f"the samples of one run differ in shape: {_shapes(group[0])} and {_shapes(sample)}; give all "
                        "of them one shape"
                    )
                yield self._stack(group)
                group = []
            group.append(sample)
            if len(group) == (self.fixed_batch or batch):
                yield self._stack(group)
                group = []
        if group and not self.fixed_batch:
            yield self._stack(group)

    def _stack(self, group: list[Sample]) -> Sample:
        rows, label = group[0]
        feed = {
            s.name: rows[s.name] if s.is_whole else np.stack([row[s.name] for row, _ in group]) for s in self.inputs
        }
        return feed, None if label is None else np.stack([label for _, label in group if label is not None])


def open_data(
    source: SampleSource,
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    images: ImageFormat = DEFAULT_IMAGE_FORMAT,
    extras: Sequence[str] = (),
) -> Dataset:
    """Open a file, a folder or arrays as data for a model; samples are read on demand.

    Args:
        source: an .npz file, a folder of them, a folder of images, or arrays in memory.
        model: the model to feed.
        shapes: observed shape of each graph input, for the size of images if the model leaves it free.
        images: conversion of images to input tensors.
        extras: names of further arrays of .npz files, which are read along with the inputs.

    Raises:
        DataError: the data do not exist, or do not fit the model.
    """
    title = str(source) if isinstance(source, Path) else IN_MEMORY_TITLE
    if not model.inputs:
        raise DataError(f"{title}: the model has no graph inputs, so that no data can be fed; leave out the data")
    specs = [input_spec(value, shapes) for value in model.inputs]
    if isinstance(source, Path):
        archives, names = list_files(source)
        if names:
            return dataset_of(title, specs, [open_image_folder(source, names, specs, shapes, images)])
        files = [open_npz_file(archive, specs, extras) for archive in archives]
    else:
        files = [open_arrays(source, specs, extras)]
    if images != DEFAULT_IMAGE_FORMAT:
        raise DataError(f"{title}: no images; leave out {option_list(*IMAGE_OPTIONS)}")
    data = dataset_of(title, specs, files)
    return replace(data, inputs=(*data.inputs, *(_extra_spec(name, data) for name in extras)))


def data_from_feeds(name: str, model: Model, sizes: Mapping[str, tuple[int, ...]], feeds: Sequence[Feed]) -> Dataset:
    """Make data from feeds in memory: each feed is one sample; all have the same input shapes."""
    slots = tuple(replace(input_spec(value, sizes), is_whole=True) for value in model.inputs)

    def rows(slot: InputSpec) -> GeneratedArray:
        return GeneratedArray((len(feeds), *sizes[slot.name]), lambda k: feeds[k][slot.name])

    return Dataset(
        inputs=slots,
        files=(SampleFile(name, {slot.name: rows(slot) for slot in slots}),),
        label_name=None,
        fixed_batch=1,
    )


def _extra_spec(name: str, data: Dataset) -> InputSpec:
    """Describe an extra array: floats become float32, and its rows are whole inputs where those of all inputs are."""
    array = data.files[0].arrays[name]
    assert isinstance(array, NpzArray | MemoryArray)
    whole = all(slot.is_whole for slot in data.inputs)
    kind = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype
    return InputSpec(name, (None,) * (len(array.shape) - whole), kind, is_whole=whole)


def dataset_of(title: str, slots: list[InputSpec], files: list[SampleFile]) -> Dataset:
    """Combine the samples of all files."""
    slots = [replace(slot, is_whole=_takes_whole_inputs(title, slot, files)) for slot in slots]
    labels = {file.label.name if file.label else None for file in files}
    if len(labels) > 1:
        names = ", ".join(sorted(repr(name) for name in labels))
        raise DataError(f"{title}: the labels of its files have different names ({names}); name them 'labels' in all")
    takes = {slot.name: 1 if slot.is_whole else slot.dims[0] for slot in slots}
    fixed = {size for size in takes.values() if size is not None}
    if len(fixed) > 1:
        text = ", ".join(f"'{name}' {size}" for name, size in takes.items() if size is not None)
        raise DataError(
            f"{title}: the inputs take different numbers of samples in one run ({text}); "
            "give every input an axis more, [runs, ...], with the whole input in each row"
        )
    data = Dataset(
        inputs=tuple(slots), files=tuple(files), label_name=labels.pop(), fixed_batch=fixed.pop() if fixed else None
    )
    if data.count < (data.fixed_batch or 1):
        raise DataError(
            f"{title}: {data.count} samples, but one run of the model takes {data.fixed_batch or 1}; give more data"
        )
    return data


def batch_size(data: Dataset) -> int:
    """Return the number of samples per run for a model that leaves it free."""
    return max(1, min(MAX_BATCH_SIZE, data.count // MIN_RUNS))


def with_runnable_batch(data: Dataset, model: Model) -> Dataset:
    """Return the data with a fixed batch of 1 if the model declares a free batch but does not run with more."""
    if data.fixed_batch or batch_size(data) == 1:
        return data
    try:
        run(model.proto, [next(data.feeds(batch_size(data)))], libraries=model.libraries)
    except RunFailed:
        return replace(data, fixed_batch=1)
    return data


def _takes_whole_inputs(title: str, slot: InputSpec, files: list[SampleFile]) -> bool:
    """Return True if samples are whole inputs; the same must hold in all files."""
    ranks = {len(array.shape) for array in (file.arrays[slot.name] for file in files)}
    if len(ranks) > 1:
        raise DataError(
            f"{title}: the arrays of input '{slot.name}' have {min(ranks)} axes in some files and {max(ranks)} in "
            "others; give the same in all"
        )
    return ranks.pop() > len(slot.dims)


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    feed, label = sample
    return [value.shape for value in feed.values()] + ([] if label is None else [label.shape])
