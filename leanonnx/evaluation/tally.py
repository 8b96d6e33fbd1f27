"""Sums over samples from which the deviation of one output is computed; nothing else is kept of the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from leanonnx.evaluation.baseline import (
    NO_DECISIONS,
    NO_SUMS,
    Baseline,
    DecisionCounts,
    MeanSums,
    count_decisions,
    sum_samples,
)
from leanonnx.evaluation.intervals import DeviationIntervals, SampleSums, deviation_intervals
from leanonnx.evaluation.kinds import CLASSES, DISCRETE, IMAGE, IMAGE_OR_MAP, OTHER, output_kind, slice_axes
from leanonnx.evaluation.slices import ChannelDeviation, SliceErrors, slices_along
from leanonnx.evaluation.variety import NO_SAMPLES, Variety, variety_of
from leanonnx.numeric.arrays import Array

TOP_K = 5
PROBABILITY_TOLERANCE = 1e-3
"""Largest deviation from one of a sum of probabilities."""


@dataclass(frozen=True)
class Deviation:
    """Deviation of one output from the original; ``relative_l2`` = ‖difference‖ / ‖original‖ over all samples.

    ``psnr`` is in dB; ``top1`` and ``top5`` are shares 0 … 1.  None: does not apply to this output.  An output that is
    NaN or infinite where the original is finite deviates infinitely; ``broken`` counts such elements.  A float output
    whose original has no finite element is ``silent``: its deviation is undefined.  A ``reshaped`` output differs from
    the original in shape on some sample, and deviates infinitely too.

    ``channels`` is the deviation slice by slice, each relative to its own scale; None if an output has no slices.
    ``intervals``: those of these measures over other samples (95 %).
    ``vacuous``: the reason if the comparison is uninformative although the output depends on the inputs: the original
    is empty, or does not vary.  ``baseline`` is the deviation of answers that ignore the input.
    """

    output: str
    relative_l2: float
    psnr: float | None = None
    top1: float | None = None
    top5: float | None = None
    broken: int = 0
    silent: bool = False
    reshaped: bool = False
    channels: ChannelDeviation | None = None
    vacuous: str = ""
    baseline: Baseline | None = field(default=None, repr=False, compare=False)
    intervals: DeviationIntervals = field(default=DeviationIntervals(), repr=False, compare=False)

    @property
    def worst(self) -> float:
        """Relative error of the slice that deviates most, or of the whole if that is larger."""
        return max(self.relative_l2, self.channels.relative_l2 if self.channels else 0.0)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over samples of one output: squares, the original's range, and agreeing choices out of ``choices``.

    ``slices``: squares by slice for each axis of slices; None if the slices change from run to run.  ``decisions``: the
    choices counted by class; None if there are too many classes.  ``mean``: sum of the original.  ``samples``: sums of
    each sample.
    """

    error: float = 0.0
    power: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    choices: int = 0
    same: int = 0
    near: int | None = None
    sums_to_one: bool = True
    kinds: frozenset[str] = frozenset()
    broken: int = 0
    reshaped: bool = False
    slices: tuple[SliceErrors, ...] | None = ()
    variety: Variety = NO_SAMPLES
    decisions: DecisionCounts | None = NO_DECISIONS
    mean: MeanSums = NO_SUMS
    samples: tuple[SampleSums, ...] = field(default=(), repr=False, compare=False)

    def plus(self, other: Tally) -> Tally:
        """Return the sums over the samples of both."""
        return Tally(
            error=self.error + other.error,
            power=self.power + other.power,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            elements=self.elements + other.elements,
            choices=self.choices + other.choices,
            same=self.same + other.same,
            near=other.near if self.near is None else self.near + (other.near or 0),
            sums_to_one=self.sums_to_one and other.sums_to_one,
            kinds=self.kinds | other.kinds,
            broken=self.broken + other.broken,
            reshaped=self.reshaped or other.reshaped,
            slices=_add_slices(self.slices, other.slices),
            variety=self.variety.plus(other.variety),
            decisions=self.decisions.plus(other.decisions) if self.decisions and other.decisions else None,
            mean=self.mean.plus(other.mean),
            samples=self.samples + other.samples,
        )

    def deviation(self, output: str, depends: bool = True, known: ChannelDeviation | None = None) -> Deviation:
        """Return the deviation that the sums amount to, with its intervals; arguments as in ``_measures``."""
        deviation = self._measures(output, depends, known)
        intervals = deviation_intervals(self.samples, max(self.high - self.low, 0.0), self.near is not None)
        applies = {
            "psnr": deviation.psnr is not None,
            "top1": deviation.top1 is not None,
            "top5": deviation.top5 is not None,
        }
        return replace(deviation, intervals=replace(intervals, **{name: None for name in applies if not applies[name]}))

    def _measures(self, output: str, depends: bool, known: ChannelDeviation | None) -> Deviation:
        """Return the deviation without its intervals.

        Args:
            output: name of the output.
            depends: the output depends on the data of the inputs.
            known: deviation of its channels over more samples.
        """
        relative = math.sqrt(self.error / self.power) if self.power else math.inf if self.error else 0.0
        kind = next(iter(self.kinds)) if len(self.kinds) == 1 else OTHER
        top1 = self.same / self.choices if self.choices else None
        vacuous, baseline = self.variety.vacuity if depends else "", self._baseline()
        if kind == DISCRETE:
            return Deviation(output, relative, top1=top1, reshaped=self.reshaped, vacuous=vacuous, baseline=baseline)
        silent = self.elements > 0 and self.low > self.high and not self.error
        deviation = Deviation(
            output,
            relative,
            broken=self.broken,
            silent=silent,
            reshaped=self.reshaped,
            channels=self._channels(known),
            vacuous="" if silent else vacuous,
            baseline=baseline,
        )
        if kind == IMAGE and not (self.choices and self.sums_to_one):
            return replace(deviation, psnr=self._psnr())
        if kind == IMAGE_OR_MAP and not (self.choices and self.sums_to_one):
            return replace(deviation, psnr=self._psnr(), top1=top1)
        if kind == OTHER:
            return deviation
        top5 = self.near / self.choices if self.near is not None and self.choices else None
        return replace(deviation, top1=top1, top5=top5)

    def _baseline(self) -> Baseline:
        """The deviation of answers that ignore the input."""
        counts = self.decisions if self.decisions and self.decisions.original else None
        return Baseline(
            samples=self.mean.samples,
            decisions=len(counts.original) if counts else None,
            chance=counts.chance if counts else None,
            mean_l2=self.mean.relative_error(self.power),
        )

    def _channels(self, known: ChannelDeviation | None) -> ChannelDeviation | None:
        """Deviation along the axis whose worst slice deviates most."""
        probabilities = bool(self.choices) and self.sums_to_one
        deviations = [slices.worst(probabilities, known) for slices in self.slices or ()]
        return max(deviations, key=lambda each: each.relative_l2, default=None)

    def _psnr(self) -> float | None:
        if not self.elements:
            return None
        peak = max(self.high - self.low, 0.0)
        if not self.error:
            return math.inf
        return 10 * math.log10(peak**2 * self.elements / self.error) if peak and self.error < math.inf else -math.inf


def _add_slices(
    one: tuple[SliceErrors, ...] | None, other: tuple[SliceErrors, ...] | None
) -> tuple[SliceErrors, ...] | None:
    """Add the sums along the axes that both have; ``()`` is the empty sum."""
    if one == () or other == ():
        return other if one == () else one
    if one is None or other is None or len(one) != len(other):
        return None
    sums = (a.plus(b) for a, b in zip(one, other, strict=True))
    return tuple(each for each in sums if each is not None) or None


def tally_of(
    wanted: Array,
    computed: Array,
    rows: int,
    channels_last: bool,
    labelled: Sequence[int],
    complex_input: bool = False,
) -> tuple[Tally, tuple[str, int]]:
    """Return the sums of one run for one output, its kind, and its axis of classes or colours.

    Args:
        wanted: output of the original.
        computed: output of the candidate.
        rows: samples in the run.
        channels_last: an input is shortest along its last axis.
        labelled: the axes of the output along which channel ids differ.
        complex_input: an input is an image of two channels.
    """
    kind = output_kind(wanted, rows, channels_last, complex_input)
    sums = _sums(wanted, computed, kind, labelled, rows)
    samples = _sample_sums(sums, wanted, computed, kind, rows)
    return replace(sums, variety=variety_of(wanted, rows), mean=sum_samples(wanted, rows), samples=samples), kind


def _sample_sums(
    sums: Tally, wanted: Array, computed: Array, kind: tuple[str, int], rows: int
) -> tuple[SampleSums, ...]:
    """Sums of each sample of a run; of the run as one, if its outputs are not those of one sample each."""
    parts = [sums]
    if rows > 1 and wanted.shape == computed.shape and wanted.shape[:1] == (rows,):
        parts = [_sums(wanted[k : k + 1], computed[k : k + 1], kind, ()) for k in range(rows)]
    return tuple(
        SampleSums(part.error, part.power, part.elements, part.choices, part.same, part.near or 0) for part in parts
    )


def _sums(wanted: Array, computed: Array, kind: tuple[str, int], labelled: Sequence[int], rows: int = 1) -> Tally:
    """Sums of squares and choices of one run."""
    name, axis = kind
    if wanted.shape != computed.shape:
        worst = Tally(error=math.inf, elements=wanted.size, choices=1, sums_to_one=False, kinds=frozenset({name}))
        return replace(worst, reshaped=True, slices=None)
    if name == DISCRETE:
        return _discrete(wanted, computed)
    a, b = wanted.astype(np.float64), computed.astype(np.float64)
    with np.errstate(all="ignore"):
        alike = (a == b) | (np.isnan(a) & np.isnan(b))
        errors = np.where(alike, 0.0, a - b) ** 2
    errors[~np.isfinite(errors)] = math.inf
    finite = np.isfinite(a)
    powers = np.where(finite, a, 0.0) ** 2
    slices = tuple(slices_along(k, errors, powers, rows) for k in slice_axes(wanted, kind, labelled)) if a.size else ()
    sums = Tally(
        error=float(np.sum(errors)),
        power=float(np.sum(powers)),
        low=float(a.min(initial=math.inf, where=finite)),
        high=float(a.max(initial=-math.inf, where=finite)),
        elements=a.size,
        kinds=frozenset({name}),
        broken=int(np.sum(finite & ~np.isfinite(b))),
        slices=slices,
    )
    return sums if name == OTHER or a.shape[axis] < 2 or not a.size else sums.plus(_choices(a, b, kind))


def _discrete(wanted: Array, computed: Array) -> Tally:
    """Sums for integers, booleans or text; unequal text counts as a difference of one."""
    same = int(np.sum(wanted == computed))
    if wanted.dtype.kind in "biu":
        a, b = wanted.astype(np.float64), computed.astype(np.float64)
        error, power = float(np.sum((a - b) ** 2)), float(np.sum(a**2))
    else:
        error, power = float(wanted.size - same), float(wanted.size)
    return Tally(
        error=error,
        power=power,
        elements=wanted.size,
        choices=wanted.size,
        same=same,
        kinds=frozenset({DISCRETE}),
        decisions=count_decisions(wanted, computed),
    )


def _choices(wanted: Array, computed: Array, kind: tuple[str, int]) -> Tally:
    """Count the classes that both choose along an axis; NaN among the candidate scores counts as no choice."""
    name, axis = kind
    first = np.argmax(wanted, axis, keepdims=True)
    sound = ~np.isnan(computed).any(axis, keepdims=True)
    chosen = np.argmax(computed, axis, keepdims=True)
    same = int(np.sum((first == chosen) & sound))
    near = None
    if name == CLASSES and wanted.shape[axis] > TOP_K:
        better = np.sum(computed > np.take_along_axis(computed, first, axis), axis, keepdims=True)
        near = int(np.sum((better < TOP_K) & sound))
    with np.errstate(all="ignore"):
        sums_to_one = bool((np.abs(wanted.sum(axis) - 1) <= PROBABILITY_TOLERANCE).all())
    decisions = NO_DECISIONS if name == IMAGE and not sums_to_one else count_decisions(first, chosen)
    return Tally(
        choices=first.size,
        same=same,
        near=near,
        sums_to_one=sums_to_one,
        kinds=frozenset({name}),
        decisions=decisions,
    )
