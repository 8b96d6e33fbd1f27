"""Variety of an output: an output that is empty, or equal on every input, says nothing about a model.

Floats of a single input are informative if they hold two different numbers; integers only if they change between
inputs, since a decision may be the same whatever it is based on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array

VARIETY_TOLERANCE = 1e-6
"""Relative difference up to which two numbers count as equal."""
EMPTY, CONSTANT, FIXED = "empty", "one number throughout", "the same on every input"
UNCOMPARED = "known on one input only, and may be the same on every other"


@dataclass(frozen=True, kw_only=True)
class Variety:
    """Summary of an output: its first sample, the number of samples, and whether others differ from the first."""

    first: Array | None = None
    samples: int = 0
    elements: int = 0
    varies: bool = False

    def plus(self, other: Variety) -> Variety:
        """Return the variety over the samples of both."""
        if self.first is None or other.first is None:
            return other if self.first is None else self
        varies = self.varies or other.varies or _differ(self.first, other.first)
        return replace(
            self, samples=self.samples + other.samples, elements=self.elements + other.elements, varies=varies
        )

    @property
    def vacuity(self) -> str:
        """Reason why the output is uninformative; empty if it is informative."""
        if self.first is None:
            return ""
        if not self.elements:
            return EMPTY
        if self.varies:
            return ""
        if _is_single_value(self.first) and self.first.size > 1:
            return CONSTANT
        if self.samples > 1:
            return FIXED
        return "" if is_float(self.first) else UNCOMPARED


NO_SAMPLES = Variety()
"""Variety of no samples."""


def variety_of(value: Array, rows: int) -> Variety:
    """Variety of the output of one run with ``rows`` samples."""
    if not value.ndim or value.shape[0] != rows or not rows:
        return Variety(first=value, samples=1, elements=value.size)
    varies = any(_differ(value[:1], value[k : k + 1]) for k in range(1, rows))
    return Variety(first=value[:1].copy(), samples=rows, elements=value.size, varies=varies)


def _differ(one: Array, other: Array) -> bool:
    """True if two samples differ by more than rounding; one number repeated differs in size only, which is equal."""
    if one.shape != other.shape:
        if one.size and other.size and _is_single_value(one) and _is_single_value(other):
            return _differ(one.reshape(-1)[:1], other.reshape(-1)[:1])
        return bool(one.size or other.size)
    if not is_float(one):
        return not np.array_equal(one, other)
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return bool(
            (~((np.abs(a - b) <= VARIETY_TOLERANCE * np.abs(a)) | (a == b) | (np.isnan(a) & np.isnan(b)))).any()
        )


def _is_single_value(value: Array) -> bool:
    """True if all elements of the array are equal."""
    flat = value.reshape(-1)
    return flat.size == 0 or not _differ(flat, np.broadcast_to(flat[:1], flat.shape))
