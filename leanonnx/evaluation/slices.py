"""Errors slice by slice, each by its own scale: what is small beside the rest of its tensor is not hidden by it.

Boxes in pixels and scores below one often share a tensor, of which one norm tells the boxes alone.  The relative error
of a slice is ‖difference‖ / max(‖slice‖, floor), norms being over all samples.  The floor is the largest of:

1. ``NOISE`` times the root mean square over all slices: what is below that is what float32 makes of a sum of numbers
   of that size.
2. The median slice / m², m being how many numbers a slice holds.  The norm of few numbers may be small by chance: of a
   thousand slices alike the smallest is about 1000^(-1/m) of the others, that is 1/m² or more for m from 3 on.  With
   many numbers the floor vanishes.
3. Of probabilities that sum to one along the axis, ``PART`` of the root mean square: they have one unit, so that a
   class that no sample shows is not measured by its traces.

A slice that is zero throughout has no scale; it is measured by the median slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import varied

NOISE = 1e-6
PART = 0.1


@dataclass(frozen=True)
class ChannelDeviation:
    """How the slices of an output along one of its axes deviate.

    Attributes:
        axis: the axis.
        index: the slice that deviates most.
        relative_l2: its relative error.
        balanced: mean over the slices of r/√(1 + r²), r being the relative error of one: each counts alike, and one
            that is lost altogether counts one, however small it is.
        scale: root mean square of the original's numbers by slice [slices].
    """

    axis: int
    index: int
    relative_l2: float
    balanced: float
    scale: Floats = field(repr=False, compare=False)


@dataclass(frozen=True)
class SliceErrors:
    """Sums of squares over samples by slice along an axis: of the differences and of the original [slices].

    ``each`` is how many numbers a slice holds.
    """

    axis: int
    error: Floats
    power: Floats
    each: int

    def plus(self, other: SliceErrors) -> SliceErrors | None:
        """The sums over the samples of both; None where they have other slices."""
        if self.axis != other.axis or self.error.shape != other.error.shape:
            return None
        return SliceErrors(self.axis, self.error + other.error, self.power + other.power, self.each + other.each)

    def relative(self, probabilities: bool = False, known: ChannelDeviation | None = None) -> Floats:
        """Relative error of each slice [slices]; infinite where it differs from zeros alone.

        ``known`` is what more samples told of the same slices: none is measured by less than it was there.
        """
        norms, errors = np.sqrt(self.power), np.sqrt(self.error)
        living = norms > 0
        typical = float(np.median(norms[living])) if living.any() else 0.0
        whole = float(np.sqrt(self.power.mean()))
        floor = max(NOISE * whole, typical / max(self.each, 1) ** 2, PART * whole if probabilities else 0.0)
        scales = np.maximum(np.where(living, norms, typical), floor)
        if known is not None and known.axis == self.axis and known.scale.shape == scales.shape:
            scales = np.maximum(scales, known.scale * np.sqrt(self.each))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(errors > 0, errors / scales, 0.0)

    def worst(self, probabilities: bool = False, known: ChannelDeviation | None = None) -> ChannelDeviation:
        """The slice that deviates most; arguments are those of ``relative``."""
        found = self.relative(probabilities, known)
        index, scale = int(found.argmax()), np.sqrt(self.power / max(self.each, 1))
        return ChannelDeviation(self.axis, index, float(found[index]), float(np.mean(bounded(found))), scale)


def slices_along(axis: int, error: Floats, power: Floats) -> SliceErrors:
    """The sums of one run along an axis.

    Args:
        axis: the axis.
        error: squared differences.
        power: squares of the original's numbers, of the same shape.
    """
    others = tuple(k for k in range(error.ndim) if k != axis)
    each = error.size // max(error.shape[axis], 1)
    return SliceErrors(axis, error.sum(others), power.sum(others), each)


def bounded(relative: Floats) -> Floats:
    """r/√(1 + r²) of relative errors: between 0 and 1, in their order; 1 where they are infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(relative), relative / np.hypot(1, relative), 1.0)


def channel_axes(dag: ChannelDag) -> Mapping[str, tuple[int, ...]]:
    """The axes of each graph output that channel labels tell apart."""
    outputs = (value.name for value in dag.model.proto.graph.output)
    return {name: varied(dag.channel_ids[name]) for name in outputs if name in dag.channel_ids}
