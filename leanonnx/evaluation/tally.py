"""Sums over samples from which the deviation of one output follows: of all samples nothing else is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from leanonnx.evaluation.kinds import CLASSES, DISCRETE, IMAGE, OTHER, kind_of, slice_axes
from leanonnx.evaluation.slices import ChannelDeviation, SliceErrors, slices_along
from leanonnx.evaluation.variety import NOTHING, Variety, variety_of
from leanonnx.numeric.arrays import Array

BEST = 5
PROBABILITY = 1e-3
"""How far from one probabilities may sum up to."""


@dataclass(frozen=True)
class Deviation:
    """How far one output is from the original's; ``relative_l2`` = ‖difference‖ / ‖original‖ over all samples.

    ``psnr`` is in dB; ``top1`` and ``top5`` are shares 0 … 1.  None: does not apply to this output.  An output that is
    NaN or infinite where the original is not deviates infinitely; ``broken`` counts such elements.  An output of floats
    of which the original's hold no finite number is ``silent``: nothing can be told of it.  One that is ``reshaped``
    had another shape than the original's on some sample, and deviates infinitely too.

    ``channels`` is the same slice by slice, each slice by its own scale; None where an output has none.  ``vacuous``
    says why the comparison tells nothing, although the output depends on the inputs: the original's is empty, or does
    not change.
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

    @property
    def worst(self) -> float:
        """The relative error of the slice that deviates most, or of the whole where that is more."""
        return max(self.relative_l2, self.channels.relative_l2 if self.channels else 0.0)


@dataclass(frozen=True)
class Tally:
    """Sums over samples of one output: squares, the original's range, and choices that agree out of ``choices``.

    ``slices`` holds the squares by slice for each axis of slices; None where these change from run to run.
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
    variety: Variety = NOTHING

    def plus(self, other: Tally) -> Tally:
        """The sums over the samples of both."""
        return Tally(
            self.error + other.error,
            self.power + other.power,
            min(self.low, other.low),
            max(self.high, other.high),
            self.elements + other.elements,
            self.choices + other.choices,
            self.same + other.same,
            other.near if self.near is None else self.near + (other.near or 0),
            self.sums_to_one and other.sums_to_one,
            self.kinds | other.kinds,
            self.broken + other.broken,
            self.reshaped or other.reshaped,
            _joined(self.slices, other.slices),
            self.variety.plus(other.variety),
        )

    def deviation(self, output: str, depends: bool = True, known: ChannelDeviation | None = None) -> Deviation:
        """What the sums say.

        Args:
            output: its name.
            depends: it depends on the data of the inputs.
            known: what more samples told of its channels.
        """
        relative = math.sqrt(self.error / self.power) if self.power else math.inf if self.error else 0.0
        kind = next(iter(self.kinds)) if len(self.kinds) == 1 else OTHER
        top1 = self.same / self.choices if self.choices else None
        vacuous = self.variety.vacuous if depends else ""
        if kind == DISCRETE:
            return Deviation(output, relative, top1=top1, reshaped=self.reshaped, vacuous=vacuous)
        silent = self.elements > 0 and self.low > self.high and not self.error
        found = Deviation(
            output,
            relative,
            broken=self.broken,
            silent=silent,
            reshaped=self.reshaped,
            channels=self._channels(known),
            vacuous="" if silent else vacuous,
        )
        if kind == IMAGE and not (self.choices and self.sums_to_one):
            return replace(found, psnr=self._psnr())
        if kind == OTHER:
            return found
        top5 = self.near / self.choices if self.near is not None and self.choices else None
        return replace(found, top1=top1, top5=top5)

    def _channels(self, known: ChannelDeviation | None) -> ChannelDeviation | None:
        """The slices that deviate most, of all axes."""
        probabilities = bool(self.choices) and self.sums_to_one
        found = [slices.worst(probabilities, known) for slices in self.slices or ()]
        return max(found, key=lambda each: each.relative_l2, default=None)

    def _psnr(self) -> float | None:
        if not self.elements:
            return None
        peak = max(self.high - self.low, 0.0)
        if not self.error:
            return math.inf
        return 10 * math.log10(peak**2 * self.elements / self.error) if peak and self.error < math.inf else -math.inf


def _joined(
    one: tuple[SliceErrors, ...] | None, other: tuple[SliceErrors, ...] | None
) -> tuple[SliceErrors, ...] | None:
    """The sums of both along the axes that both have; ``()`` is the sum over nothing."""
    if one == () or other == ():
        return other if one == () else one
    if one is None or other is None or len(one) != len(other):
        return None
    sums = (a.plus(b) for a, b in zip(one, other, strict=True))
    return tuple(each for each in sums if each is not None) or None


def tally_of(
    wanted: Array, found: Array, rows: int, channels_last: bool, labelled: Sequence[int]
) -> tuple[Tally, tuple[str, int]]:
    """The sums of one run for one output, and what the output is with its axis of classes or colours.

    Args:
        wanted: the original's.
        found: the candidate's.
        rows: samples in the run.
        channels_last: an input is shortest along its last axis.
        labelled: the axes of the output that labels tell apart.
    """
    kind = kind_of(wanted, rows, channels_last)
    return replace(_sums(wanted, found, kind, labelled), variety=variety_of(wanted, rows)), kind


def _sums(wanted: Array, found: Array, kind: tuple[str, int], labelled: Sequence[int]) -> Tally:
    """Squares and choices of one run."""
    name, axis = kind
    if wanted.shape != found.shape:
        worst = Tally(error=math.inf, elements=wanted.size, choices=1, sums_to_one=False, kinds=frozenset({name}))
        return replace(worst, reshaped=True, slices=None)
    if name == DISCRETE:
        return _discrete(wanted, found)
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    with np.errstate(all="ignore"):
        alike = (a == b) | (np.isnan(a) & np.isnan(b))
        errors = np.where(alike, 0.0, a - b) ** 2
    errors[~np.isfinite(errors)] = math.inf
    finite = np.isfinite(a)
    powers = np.where(finite, a, 0.0) ** 2
    slices = tuple(slices_along(k, errors, powers) for k in slice_axes(wanted, kind, labelled)) if a.size else ()
    sums = Tally(
        float(np.sum(errors)),
        float(np.sum(powers)),
        float(a.min(initial=math.inf, where=finite)),
        float(a.max(initial=-math.inf, where=finite)),
        a.size,
        kinds=frozenset({name}),
        broken=int(np.sum(finite & ~np.isfinite(b))),
        slices=slices,
    )
    return sums if name == OTHER or a.shape[axis] < 2 or not a.size else sums.plus(_choices(a, b, kind))


def _discrete(wanted: Array, found: Array) -> Tally:
    """Sums of whole numbers, booleans or text; text that differs counts as a difference of one."""
    same = int(np.sum(wanted == found))
    if wanted.dtype.kind in "biu":
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        error, power = float(np.sum((a - b) ** 2)), float(np.sum(a**2))
    else:
        error, power = float(wanted.size - same), float(wanted.size)
    return Tally(error, power, elements=wanted.size, choices=wanted.size, same=same, kinds=frozenset({DISCRETE}))


def _choices(wanted: Array, found: Array, kind: tuple[str, int]) -> Tally:
    """Which classes both choose along an axis; a choice among NaN is no choice."""
    name, axis = kind
    first = np.argmax(wanted, axis, keepdims=True)
    sound = ~np.isnan(found).any(axis, keepdims=True)
    same = int(np.sum((first == np.argmax(found, axis, keepdims=True)) & sound))
    near = None
    if name == CLASSES and wanted.shape[axis] > BEST:
        better = np.sum(found > np.take_along_axis(found, first, axis), axis, keepdims=True)
        near = int(np.sum((better < BEST) & sound))
    with np.errstate(all="ignore"):
        sums_to_one = bool((np.abs(wanted.sum(axis) - 1) <= PROBABILITY).all())
    return Tally(choices=first.size, same=same, near=near, sums_to_one=sums_to_one, kinds=frozenset({name}))
