"""Shuffled batches of training data, from memory if they fit, else streamed through a bounded buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from leanonnx.data.samples import Dataset
from leanonnx.errors import DataError
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed

LabelledSample: TypeAlias = "tuple[Feed, Array | None]"
"""One whole input of the network, with its labels if any."""
MAX_BYTES_IN_MEMORY = 1 << 30
"""Training data of at most this many bytes are kept in memory."""
SHUFFLE_BUFFER_BYTES = 1 << 28
"""Size of the buffer in which streamed data are shuffled."""
HOLD_OUT_INTERVAL = 5
"""One sample in this many is held out."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Training and held-out samples; ``in_memory`` holds the training samples if they fit into memory."""

    data: Dataset
    held_out_data: Dataset
    held_out: tuple[LabelledSample, ...]
    in_memory: tuple[LabelledSample, ...] | None
    buffer_size: int
    batch: int

    @property
    def count(self) -> int:
        """Number of training samples of one epoch."""
        return self.data.count // (self.data.fixed_batch or 1)

    @property
    def batches(self) -> int:
        """Number of batches of one epoch if all shapes are equal; the last one may be smaller."""
        return max(-(-self.count // self.batch), 1)

    def epoch(self, seed: tuple[int, ...]) -> Iterator[list[LabelledSample]]:
        """Yield all training samples once, in an order set by the seed, in batches of equal shapes."""
        rng = np.random.default_rng(seed)
        if self.in_memory is not None:
            order: Iterable[LabelledSample] = (self.in_memory[k] for k in rng.permutation(len(self.in_memory)))
        else:
            order = _shuffle(self.data.labelled_feeds(1), rng, self.buffer_size)
        return group_by_shape(order, self.batch)


def open_loader(data: Dataset, batch: int) -> Loader:
    """Split data into training and held-out samples.

    Raises:
        DataError: there are too few samples to hold some out.
    """
    train, held = data.part(held_out=False, every=HOLD_OUT_INTERVAL), data.part(held_out=True, every=HOLD_OUT_INTERVAL)
    if held.count < (data.fixed_batch or 1) or train.count < (data.fixed_batch or 1):
        raise DataError(
            f"{data.count} samples are too few to train on: one in {HOLD_OUT_INTERVAL} is held out to tell when to "
            f"stop; give at least {HOLD_OUT_INTERVAL * (data.fixed_batch or 1)}"
        )
    first = next(iter(train.labelled_feeds(1)))
    size = sum(value.nbytes for value in first[0].values()) + (0 if first[1] is None else first[1].nbytes)
    max_held_out = max(MAX_BYTES_IN_MEMORY // HOLD_OUT_INTERVAL // max(size, 1), 1)
    fits = size * train.count // (data.fixed_batch or 1) <= MAX_BYTES_IN_MEMORY
    held = held.subsample(min(held.count, max_held_out * (data.fixed_batch or 1)))
    return Loader(
        data=train,
        held_out_data=held,
        held_out=tuple(held.labelled_feeds(1)),
        in_memory=tuple(train.labelled_feeds(1)) if fits else None,
        buffer_size=max(SHUFFLE_BUFFER_BYTES // max(size, 1), batch),
        batch=batch,
    )


def group_by_shape(samples: Iterable[LabelledSample], batch: int) -> Iterator[list[LabelledSample]]:
    """Yield lists of at most ``batch`` samples of equal shapes."""
    open_groups: dict[tuple[tuple[int, ...], ...], list[LabelledSample]] = {}
    for sample in samples:
        feed, label = sample
        shapes = (*(value.shape for value in feed.values()), () if label is None else label.shape)
        group = open_groups.setdefault(shapes, [])
        group.append(sample)
        if len(group) == batch:
            yield open_groups.pop(shapes)
    yield from open_groups.values()


def _shuffle(samples: Iterable[LabelledSample], rng: np.random.Generator, buffer_size: int) -> Iterator[LabelledSample]:
    """Shuffle a stream by exchanging each sample with a random one of the buffer."""
    buffer: list[LabelledSample] = []
    for sample in samples:
        if len(buffer) < buffer_size:
            buffer.append(sample)
            continue
        k = int(rng.integers(buffer_size))
        yield buffer[k]
        buffer[k] = sample
    for k in rng.permutation(len(buffer)):
        yield buffer[k]
