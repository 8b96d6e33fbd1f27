"""Calibration and training data, read as needed: however many samples there are, few are in memory.

Three formats:

1. An .npz file keyed by graph-input name.  An array [samples, ...] of the rank of its input has the samples along the
   batch axis; one with an axis more, [samples, batch, ...], holds a whole input in each row (recurrent state, say).
   The only array of a file fits the only input of a model whatever its name.  ``labels``, ``label`` or ``y``
   [samples, ...], where no input is called so, are labels.
2. A folder of such files, which follow each other in the order of their names.
3. A folder of images, for a model with one input.

Arrays in memory by their names are taken as those of an .npz file.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.data.files import IN_MEMORY, File, Made, Sample, Slot, folder_file, held_file, listed, npz_file, slot_of
from leanonnx.data.images import IMAGE_OPTIONS
from leanonnx.data.images import ImageFormat as ImageFormat
from leanonnx.errors import DataError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.spelling import option_list

PLAIN = ImageFormat()
LARGEST_BATCH = 16
RUNS = 20
"""Runs that there should be at least, so that some can be held out."""
Samples = Path | Mapping[str, Any]
"""Where samples are: a path, or arrays in memory by their names (anything that numpy takes for an array)."""


@dataclass(frozen=True)
class Part:
    """Every ``every``-th sample, or all others."""

    held_out: bool
    every: int

    def size(self, count: int) -> int:
        """How many of ``count`` samples these are."""
        held = count // self.every
        return held if self.held_out else count - held

    def place(self, k: int, count: int) -> int:
        """Which of ``count`` samples is number ``k`` of these."""
        return k * self.every + self.every - 1 if self.held_out else k + k // (self.every - 1)


@dataclass(frozen=True)
class Spread:
    """At most ``most`` samples at equal distances."""

    most: int

    def size(self, count: int) -> int:
        """How many of ``count`` samples these are."""
        return min(self.most, count)

    def place(self, k: int, count: int) -> int:
        """Which of ``count`` samples is number ``k`` of these."""
        return k * count // self.size(count)


@dataclass(frozen=True)
class Data:
    """Samples for a model, which can be gone through any number of times, always in the same order.

    ``labels`` is the name of the array of labels, None where there is none.  ``fixed`` is how many samples one run
    takes, None where the model leaves that free.
    """

    slots: tuple[Slot, ...]
    files: tuple[File, ...]
    labels: str | None
    fixed: int | None
    steps: tuple[Part | Spread, ...] = ()

    @property
    def count(self) -> int:
        """Number of samples."""
        return self._counts()[-1]

    @property
    def dropped(self) -> int:
        """Samples at the end that are not fed, because the model takes a fixed number at once that they do not fill."""
        return self.count % (self.fixed or 1)

    def feeds(self, batch: int = 1) -> Iterator[Feed]:
        """Inputs of the model, ``batch`` samples at once along axis 0 (fewer at the end, or where shapes change).

        A model with a fixed batch is fed as many as it takes, whatever ``batch`` is, and the last ``dropped`` samples
        are not; one that takes whole inputs is fed one at a time.

        Raises:
            DataError: a file cannot be read, or holds NaN, infinity or what the type of the input cannot hold.
        """
        for feed, _ in self._fed(batch, labelled=False):
            yield feed

    def labelled(self, batch: int = 1) -> Iterator[tuple[Feed, Array | None]]:
        """As ``feeds``, each with the labels [samples, ...] of its samples, None where there are none."""
        return self._fed(batch, labelled=True)

    def digest(self) -> str:
        """SHA-256 of all samples as they are fed, labels aside: other files with the same numbers have the same.

        Raises:
            DataError: as ``feeds``.
        """
        found = hashlib.sha256()
        for rows, _ in self._samples(labelled=False):
            for slot in self.slots:
                value = rows[slot.name]
                found.update(f"{slot.name}\0{value.dtype}\0{value.shape}\0".encode())
                found.update(repr(value.tolist()).encode() if value.dtype.kind == "O" else value.tobytes())
        return found.hexdigest()

    def part(self, held_out: bool, every: int = 5) -> Data:
        """Every ``every``-th sample (index % every == every - 1), or all the others; it may hold no sample."""
        if every < 2:
            raise ValueError(f"one sample in {every} cannot be held out")
        return replace(self, steps=(*self.steps, Part(held_out, every)))

    def first(self, count: int) -> Data:
        """At most ``count`` samples, spread evenly over the data."""
        if count < 1:
            raise ValueError(f"{count} samples are no data")
        return replace(self, steps=(*self.steps, Spread(count)))

    def _counts(self) -> list[int]:
        """Number of samples in the files, and after each step."""
        found = [sum(file.count for file in self.files)]
        for step in self.steps:
            found.append(step.size(found[-1]))
        return found

    def _samples(self, labelled: bool) -> Iterator[Sample]:
        counts = self._counts()

        def place(k: int) -> int:
            """Where in the files sample ``k`` is; grows with ``k``."""
            for step, count in zip(self.steps[::-1], counts[-2::-1], strict=True):
                k = step.place(k, count)
            return k

        every, start, stop = range(counts[-1]), 0, 0
        for file in self.files:
            start, stop = stop, stop + file.count
            wanted = every[bisect_left(every, start, key=place) : bisect_left(every, stop, key=place)]
            with file.opened(self.slots, labelled) as read:
                for k in wanted:
                    yield read(place(k) - start)

    def _fed(self, batch: int, labelled: bool) -> Iterator[Sample]:
        if batch < 1:
            raise ValueError(f"a batch of {batch} samples is no input")
        group: list[Sample] = []
        for sample in self._samples(labelled):
            if group and _shapes(group[0]) != _shapes(sample):
                if self.fixed:
                    raise DataError(
                        f"the samples of one run differ in shape: {_shapes(group[0])} and {_shapes(sample)}; give all "
                        "of them one shape"
                    )
                yield self._stacked(group)
                group = []
            group.append(sample)
            if len(group) == (self.fixed or batch):
                yield self._stacked(group)
                group = []
        if group and not self.fixed:
            yield self._stacked(group)

    def _stacked(self, group: list[Sample]) -> Sample:
        rows, label = group[0]
        feed = {s.name: rows[s.name] if s.whole else np.stack([row[s.name] for row, _ in group]) for s in self.slots}
        return feed, None if label is None else np.stack([label for _, label in group if label is not None])


def open_data(
    source: Samples, model: Model, shapes: Mapping[str, tuple[int, ...]], images: ImageFormat = PLAIN
) -> Data:
    """Look at what a file, a folder or arrays hold for a model; samples are read when they are asked for.

    Args:
        source: an .npz file, a folder of them, a folder of images, or arrays in memory.
        model: the model that is to be fed.
        shapes: observed shape of each graph input, for the size of images where the model leaves it free.
        images: how images become input tensors.

    Raises:
        DataError: no such data, or they do not fit the model.
    """
    title = str(source) if isinstance(source, Path) else IN_MEMORY
    if not model.inputs:
        raise DataError(f"{title}: the model has no graph inputs, so that no data can be fed; leave out the data")
    slots = [slot_of(value, shapes) for value in model.inputs]
    if isinstance(source, Path):
        archives, names = listed(source)
        if names:
            return _data(title, slots, [folder_file(source, names, slots, shapes, images)])
        files = [npz_file(archive, slots) for archive in archives]
    else:
        files = [held_file(source, slots)]
    if images != PLAIN:
        raise DataError(f"{title}: no images; leave out {option_list(*IMAGE_OPTIONS)}")
    return _data(title, slots, files)


def made_data(name: str, model: Model, sizes: Mapping[str, tuple[int, ...]], feeds: Sequence[Feed]) -> Data:
    """Data that no file holds: inputs of whole runs, each of which is a sample, all of one size for each input."""
    slots = tuple(replace(slot_of(value, sizes), whole=True) for value in model.inputs)

    def rows(slot: Slot) -> Made:
        return Made((len(feeds), *sizes[slot.name]), lambda k: feeds[k][slot.name])

    return Data(slots, (File(name, {slot.name: rows(slot) for slot in slots}),), None, 1)


def _data(title: str, slots: list[Slot], files: list[File]) -> Data:
    """The samples of all files together."""
    slots = [replace(slot, whole=_whole(title, slot, files)) for slot in slots]
    labels = {file.label.name if file.label else None for file in files}
    if len(labels) > 1:
        found = ", ".join(sorted(repr(name) for name in labels))
        raise DataError(f"{title}: the labels of its files have different names ({found}); name them 'labels' in all")
    takes = {slot.name: 1 if slot.whole else slot.dims[0] for slot in slots}
    fixed = {size for size in takes.values() if size is not None}
    if len(fixed) > 1:
        text = ", ".join(f"'{name}' {size}" for name, size in takes.items())
        raise DataError(
            f"{title}: the inputs take different numbers of samples in one run ({text}); "
            "give every input an axis more, [runs, ...], with the whole input in each row"
        )
    data = Data(tuple(slots), tuple(files), labels.pop(), fixed.pop() if fixed else None)
    if data.count < (data.fixed or 1):
        raise DataError(
            f"{title}: {data.count} samples, but one run of the model takes {data.fixed or 1}; give more data"
        )
    return data


def batch_size(data: Data) -> int:
    """Samples in one run, where the model leaves that free."""
    return max(1, min(LARGEST_BATCH, data.count // RUNS))


def runnable(data: Data, model: Model) -> Data:
    """The data, fed one by one where the model runs no more at once, although it leaves the batch free."""
    if data.fixed or batch_size(data) == 1:
        return data
    try:
        run(model.proto, [next(data.feeds(batch_size(data)))], libraries=model.libraries)
    except RunFailed:
        return replace(data, fixed=1)
    return data


def _whole(title: str, slot: Slot, files: list[File]) -> bool:
    """Whether a sample is the whole of an input, in all files alike."""
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
