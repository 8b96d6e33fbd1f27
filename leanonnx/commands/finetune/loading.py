"""Batches of training data: shuffled, from memory where they fit, else streamed through a bounded buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from leanonnx.data.samples import Data
from leanonnx.errors import DataError
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed

Sample: TypeAlias = "tuple[Feed, Array | None]"
"""One whole input of the network, and its labels."""
IN_MEMORY = 1 << 30
"""Bytes of training data that are held in memory."""
BUFFER = 1 << 28
"""Bytes of the buffer that streamed data are shuffled in."""
EVERY = 5
"""One sample in so many is held out."""


@dataclass(frozen=True)
class Loader:
    """Training samples, and those held out; ``kept`` holds the former where they fit into memory."""

    data: Data
    held_data: Data
    held: tuple[Sample, ...]
    kept: tuple[Sample, ...] | None
    room: int
    batch: int

    @property
    def count(self) -> int:
        """Training samples of one epoch."""
        return self.data.count // (self.data.fixed or 1)

    @property
    def batches(self) -> int:
        """Batches of one epoch, the last one may be smaller (more where shapes differ)."""
        return max(-(-self.count // self.batch), 1)

    def epoch(self, seed: tuple[int, ...]) -> Iterator[list[Sample]]:
        """All training samples once, in an order that the seed decides, by batches of equal shapes."""
        rng = np.random.default_rng(seed)
        if self.kept is not None:
            order: Iterable[Sample] = (self.kept[k] for k in rng.permutation(len(self.kept)))
        else:
            order = _shuffled(self.data.labelled(1), rng, self.room)
        return grouped(order, self.batch)


def open_loader(data: Data, batch: int) -> Loader:
    """Split data into training and held-out samples.

    Raises:
        DataError: there are too few samples.
    """
    train, held = data.part(held_out=False, every=EVERY), data.part(held_out=True, every=EVERY)
    if held.count < (data.fixed or 1) or train.count < (data.fixed or 1):
        raise DataError(
            f"{data.count} samples are too few to train on: one in {EVERY} is held out to tell when to stop; give at "
            f"least {EVERY * (data.fixed or 1)}"
        )
    first = next(iter(train.labelled(1)))
    size = sum(value.nbytes for value in first[0].values()) + (0 if first[1] is None else first[1].nbytes)
    most = max(IN_MEMORY // EVERY // max(size, 1), 1)
    fits = size * train.count // (data.fixed or 1) <= IN_MEMORY
    held = held.first(min(held.count, most * (data.fixed or 1)))
    return Loader(
        train,
        held,
        tuple(held.labelled(1)),
        tuple(train.labelled(1)) if fits else None,
        max(BUFFER // max(size, 1), batch),
        batch,
    )


def grouped(samples: Iterable[Sample], batch: int) -> Iterator[list[Sample]]:
    """Lists of at most so many samples, those of equal shapes together."""
    open_groups: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
    for sample in samples:
        feed, label = sample
        shapes = (*(value.shape for value in feed.values()), () if label is None else label.shape)
        group = open_groups.setdefault(shapes, [])
        group.append(sample)
        if len(group) == batch:
            yield open_groups.pop(shapes)
    yield from open_groups.values()


def _shuffled(samples: Iterable[Sample], rng: np.random.Generator, room: int) -> Iterator[Sample]:
    """Each sample changes places with a random one of those that wait."""
    waiting: list[Sample] = []
    for sample in samples:
        if len(waiting) < room:
            waiting.append(sample)
            continue
        k = int(rng.integers(room))
        yield waiting[k]
        waiting[k] = sample
    for k in rng.permutation(len(waiting)):
        yield waiting[k]
