"""Whether an output tells anything: what is empty, or the same on every input, is the same in any model.

Floats of one input tell something if they hold two different numbers; whole numbers do only if they change from one
input to another, since a decision may well be the same whatever it is made of.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array

ROUNDING = 1e-6
"""Share of a number by which it may differ from itself."""
EMPTY, CONSTANT, FIXED = "empty", "one number throughout", "the same on every input"


@dataclass(frozen=True)
class Variety:
    """What an output held: its first sample, how many samples there were, and whether others differ from the first."""

    first: Array | None = None
    samples: int = 0
    elements: int = 0
    varies: bool = False

    def plus(self, other: Variety) -> Variety:
        """That of the samples of both."""
        if self.first is None or other.first is None:
            return other if self.first is None else self
        varies = self.varies or other.varies or _differ(self.first, other.first)
        return replace(
            self, samples=self.samples + other.samples, elements=self.elements + other.elements, varies=varies
        )

    @property
    def vacuous(self) -> str:
        """Why nothing can be told of the output; empty where something can."""
        if self.first is None:
            return ""
        if not self.elements:
            return EMPTY
        if self.varies:
            return ""
        alone = self.samples == 1 and is_float(self.first)
        single = _single(self.first) and self.first.size > 1
        return (CONSTANT if single else "") if alone else CONSTANT if single else FIXED


NOTHING = Variety()
"""That of no samples."""


def variety_of(value: Array, rows: int) -> Variety:
    """What one run put out, for so many samples."""
    if not value.ndim or value.shape[0] != rows or not rows:
        return Variety(value, 1, value.size)
    varies = any(_differ(value[:1], value[k : k + 1]) for k in range(1, rows))
    return Variety(value[:1].copy(), rows, value.size, varies)


def _differ(one: Array, other: Array) -> bool:
    """Whether two samples differ by more than rounding; other sizes of one number repeated are no difference."""
    if one.shape != other.shape:
        if one.size and other.size and _single(one) and _single(other):
            return _differ(one.reshape(-1)[:1], other.reshape(-1)[:1])
        return bool(one.size or other.size)
    if not is_float(one):
        return not np.array_equal(one, other)
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return bool((~((np.abs(a - b) <= ROUNDING * np.abs(a)) | (a == b) | (np.isnan(a) & np.isnan(b)))).any())


def _single(value: Array) -> bool:
    """Whether one number fills the array."""
    flat = value.reshape(-1)
    return flat.size == 0 or not _differ(flat, np.broadcast_to(flat[:1], flat.shape))
