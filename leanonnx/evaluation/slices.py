"""Errors slice by slice, each relative to its own scale, so that large slices of a tensor do not hide small ones.

Boxes in pixels and scores below one often share a tensor, whose norm is that of the boxes alone.  The relative error
of a slice is ‖difference‖ / max(‖slice‖, floor), with norms over all samples.  The floor is the largest of:

1. ``NOISE`` times the root mean square over all slices: the rounding error of float32 sums of that size.
2. The median slice norm / m², m being the number of elements of a slice.  The norm of few numbers may be small by
   chance: among a thousand similar slices the smallest is about 1000^(-1/m) of the others, which is 1/m² or more for
   m ≥ 3.  With many numbers this floor vanishes.
3. For probabilities that sum to one along the axis, ``PART`` of the root mean square: they share one unit, so that a
   class that occurs in no sample is not measured relative to its traces.

A slice that is all zero has no scale of its own; the median slice norm is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.evaluation.intervals import IntervalEnds, root_interval
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import varied_axes

FLOAT32_NOISE = 1e-6
PROBABILITY_FLOOR = 0.1
SCALE_ROUNDING = 1e-9
"""Share by which the scale of a slice that is its own norm may miss that."""


@dataclass(frozen=True, kw_only=True)
class ChannelDeviation:
    """Deviation of the slices of an output along one of its axes.

    Attributes:
        axis: the axis.
        index: the slice that deviates most.
        relative_l2: its relative error.
        balanced: mean over the slices of r/√(1 + r²), r being the relative error of a slice: all slices weigh the same,
            and a slice that is lost completely counts as one, however small it is.
        scale: root mean square of the original by slice [slices].
        interval: that of the relative error over other samples (95 %); None where the samples do not tell.
    """

    axis: int
    index: int
    relative_l2: float
    balanced: float
    scale: Floats = field(repr=False, compare=False)
    interval: IntervalEnds | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class SliceErrors:
    """Sums of squares over samples by slice along an axis: of the differences and of the original [slices].

    ``each``: number of elements of a slice.  ``samples``: error and power of each sample [samples, slices].
    """

    axis: int
    error: Floats
    power: Floats
    each: int
    samples: tuple[tuple[Floats, Floats], ...] = field(default=(), repr=False, compare=False)

    def plus(self, other: SliceErrors) -> SliceErrors | None:
        """Return the sums over the samples of both; None if their slices differ."""
        if self.axis != other.axis or self.error.shape != other.error.shape:
            return None
        return SliceErrors(
            axis=self.axis,
            error=self.error + other.error,
            power=self.power + other.power,
            each=self.each + other.each,
            samples=self.samples + other.samples,
        )

    def relative_errors(self, probabilities: bool = False, known: ChannelDeviation | None = None) -> Floats:
        """Relative error of each slice [slices]; infinite if the original is all zero and the candidate is not.

        ``known``: deviation of the same slices over more samples, whose scales are lower bounds here.
        """
        norms, errors = np.sqrt(self.power), np.sqrt(self.error)
        nonzero = norms > 0
        typical = float(np.median(norms[nonzero])) if nonzero.any() else 0.0
        whole = float(np.sqrt(self.power.mean()))
        floor = max(
            FLOAT32_NOISE * whole, typical / max(self.each, 1) ** 2, PROBABILITY_FLOOR * whole if probabilities else 0.0
        )
        scales = np.maximum(np.where(nonzero, norms, typical), floor)
        if known is not None and known.axis == self.axis and known.scale.shape == scales.shape:
            scales = np.maximum(scales, known.scale * np.sqrt(self.each))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(errors > 0, errors / scales, 0.0)

    def worst(self, probabilities: bool = False, known: ChannelDeviation | None = None) -> ChannelDeviation:
        """Return the deviation, with the slice that deviates most; arguments as in ``relative``."""
        errors = self.relative_errors(probabilities, known)
        index, scale = int(errors.argmax()), np.sqrt(self.power / max(self.each, 1))
        return ChannelDeviation(
            axis=self.axis,
            index=index,
            relative_l2=float(errors[index]),
            balanced=float(np.mean(bound_errors(errors))),
            scale=scale,
            interval=self._interval(index, float(errors[index])),
        )

    def _interval(self, index: int, relative: float) -> IntervalEnds | None:
        """The interval of the relative error of a slice; a scale that is not its own norm is taken as known."""
        if not self.samples or not 0 < relative < math.inf:
            return None
        error, power = (np.concatenate([each[k][:, index] for each in self.samples]) for k in (0, 1))
        square = self.error[index] / relative**2
        if square > self.power[index] * (1 + SCALE_ROUNDING):
            power = np.full(len(error), square / len(error))
        return root_interval(error, power)


def slices_along(axis: int, error: Floats, power: Floats, rows: int = 1) -> SliceErrors:
    """Return the sums of one run along an axis.

    Args:
        axis: the axis.
        error: squared differences.
        power: squares of the original, of the same shape.
        rows: samples in the run.
    """
    others = tuple(k for k in range(error.ndim) if k != axis)
    each = error.size // max(error.shape[axis], 1)
    total, whole = error.sum(others), power.sum(others)
    samples = ((total[None], whole[None]),)
    if rows > 1 and axis and error.shape[0] == rows:
        samples = ((error.sum(others[1:]), power.sum(others[1:])),)
    return SliceErrors(axis=axis, error=total, power=whole, each=each, samples=samples)


def bound_errors(relative: Floats) -> Floats:
    """Map relative errors r to r/√(1 + r²): monotonic, between 0 and 1, and 1 for infinite errors."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(relative), relative / np.hypot(1, relative), 1.0)


def channel_axes(dag: ChannelDag) -> Mapping[str, tuple[int, ...]]:
    """Axes of each graph output along which channel ids differ."""
    outputs = (value.name for value in dag.model.proto.graph.output)
    return {name: varied_axes(dag.channel_ids[name]) for name in outputs if name in dag.channel_ids}
