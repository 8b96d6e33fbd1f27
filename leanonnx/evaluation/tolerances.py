"""Tolerances of a compression, and bounds by which held-out samples show that a model is within them.

The numbers are those of ``leanonnx check``: the agreement is that of the output that agrees least, the deviation that
of the worst channel of the worst output, the PSNR that of the worst image.  A tolerance is met if the one-sided
confidence bound of its number is within it.  The unit is the sample: pixels of one image are not independent.  A
tolerance holds for the worst of several outputs and channels, so that their bounds need no further correction (Berger
1982).  The error probability is divided among the looks at the same samples by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from leanonnx.data.samples import Dataset
from leanonnx.evaluation.deviation import DeviationSums, Fidelity, OutputAxes, run_side_by_side
from leanonnx.evaluation.kinds import sample_count
from leanonnx.evaluation.slices import SliceErrors
from leanonnx.evaluation.tally import Tally
from leanonnx.graph.formats import ElementTypes
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.bounds import ratio_upper_bounds, share_lower_bound
from leanonnx.runtime.sessions import Feed

ToleranceName = Literal["min_agreement", "max_deviation", "min_psnr", "max_drop"]
ERROR_PROBABILITY = 0.05
"""Error probability of all looks together."""
AMPLITUDE_DECIBELS = 20.0
"""Decibels of a factor of ten in amplitude."""
Measure = Callable[[Path], "ToleranceReading"]


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """The loss that may be borne; None for what is not limited.

    Attributes:
        min_agreement: least share of equal decisions.
        max_deviation: largest relative error of a channel.
        min_psnr: least PSNR in dB.
        max_drop: largest fall of the score.
    """

    min_agreement: float | None = None
    max_deviation: float | None = None
    min_psnr: float | None = None
    max_drop: float | None = None

    @property
    def limits(self) -> dict[ToleranceName, float]:
        """The limits that were given, by name."""
        names: tuple[ToleranceName, ...] = ("min_agreement", "max_deviation", "min_psnr", "max_drop")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class ToleranceReading:
    """A number that a tolerance limits: its value on held-out samples and its confidence bound."""

    name: ToleranceName
    value: float
    bound: float
    limit: float

    @property
    def spent(self) -> float:
        """Share of the tolerance that the bound uses up; at most 1 if it is met."""
        if math.isnan(self.bound):
            return math.inf
        if self.name == "min_agreement":
            return (1 - self.bound) / (1 - self.limit)
        if self.name == "min_psnr":
            return float(10 ** min((self.limit - self.bound) / AMPLITUDE_DECIBELS, 300.0))
        return self.bound / self.limit

    @property
    def met(self) -> bool:
        """True if the bound is within the limit."""
        return self.spent <= 1


@dataclass(frozen=True, kw_only=True)
class Look:
    """A candidate that was judged by held-out samples.

    Attributes:
        fraction: share of what is minimised, as predicted.
        macs: share of the multiply-adds.
        readings: one for each tolerance.
        seconds: that making and judging it took.
    """

    fraction: float
    macs: float
    readings: tuple[ToleranceReading, ...]
    seconds: float = field(compare=False)

    @property
    def spent(self) -> float:
        """Share that is used up of the tolerance that is used up most."""
        return max((reading.spent for reading in self.readings), default=0.0)

    @property
    def met(self) -> bool:
        """True if all tolerances are met."""
        return self.spent <= 1


@dataclass(frozen=True, kw_only=True)
class ToleranceCurve:
    """The candidates that were judged, in order.

    Attributes:
        unit: the metric that was minimised.
        samples: number of held-out samples, which nothing else has seen.
        confidence: level of the bounds of all looks together.
        allowed: number of looks that the level allows for.
        looks: what was seen.
        chosen: index of the one that was taken.
        ended: why no more were judged; empty for one of several points.
    """

    unit: str
    samples: int
    allowed: int
    looks: tuple[Look, ...]
    chosen: int
    ended: str
    confidence: float = 1 - ERROR_PROBABILITY


@dataclass(frozen=True, kw_only=True)
class SampleDeviations:
    """Deviation of one output, sample by sample: sums of one sample in each row.

    ``slices``: errors, squares of the original and number of elements, by axis; None if they change between samples.
    """

    tally: Tally
    numbers: Floats
    slices: tuple[tuple[SliceErrors, Floats, Floats], ...]

    @property
    def error(self) -> Floats:
        """Squared differences [samples]."""
        return self.numbers[:, 0]

    @property
    def power(self) -> Floats:
        """Squares of the original [samples]."""
        return self.numbers[:, 1]

    @property
    def elements(self) -> Floats:
        """Number of elements [samples]."""
        return self.numbers[:, 2]

    @property
    def choices(self) -> Floats:
        """Number of decisions [samples]."""
        return self.numbers[:, 3]

    @property
    def same(self) -> Floats:
        """Number of equal ones [samples]."""
        return self.numbers[:, 4]


READING_TEXTS: dict[str, tuple[str, str, str]] = {
    "min_agreement": ("agreement", "at least", ""),
    "max_deviation": ("deviation", "at most", ""),
    "min_psnr": ("PSNR", "at least", " dB"),
    "max_drop": ("fall of the score", "at most", ""),
}
"""Name of each number, the side of its bound, and its unit."""


def reading_text(reading: ToleranceReading) -> str:
    """A reading in words."""
    name, side, unit = READING_TEXTS[reading.name]
    return f"{name} {reading.value:.4g}{unit}, {side} {reading.bound:.4g} by its bound, {reading.limit:g} asked for"


class HeldOut:
    """Held-out samples that candidates are judged by."""

    def __init__(self, model: Model, data: Dataset, axes: OutputAxes, replaced: ElementTypes) -> None:
        self.model, self.data, self.axes, self.replaced = model, data, axes, replaced

    @property
    def count(self) -> int:
        """Number of samples that a model is run on."""
        return self.data.count - self.data.dropped_count

    def compare(self, candidate: Path, by_channel: bool = True) -> tuple[Fidelity, list[SampleDeviations]]:
        """The deviation of a candidate from the original, and that of each output sample by sample.

        Raises:
            DataError, RunFailed: as ``deviation.compare_outputs``.
        """
        total = DeviationSums(self.model, self.axes)
        rows: list[list[Tally]] = []
        runs = run_side_by_side(self.model, self.model.path, [candidate], self.data, 1, self.replaced)
        for feed, label, wanted, (computed,) in runs:
            for part in _single_samples(feed, wanted, computed, label):
                one = DeviationSums(self.model, self.axes)
                one.add(*part)
                total.tallies = [a.plus(b) for a, b in zip(total.tallies, one.tallies, strict=True)]
                total.score = total.score.plus(one.score)
                rows.append([_numbers_only(tally, by_channel) for tally in one.tallies])
        fidelity = total.fidelity(self.count, self.data.label_name)
        columns = zip(total.tallies, zip(*rows, strict=True), strict=True)
        return fidelity, [_sample_deviations(tally, parts) for tally, parts in columns]


def _single_samples(
    feed: Feed, wanted: Sequence[Array], computed: Sequence[Array], label: Array | None
) -> Iterator[tuple[Feed, list[Array], list[Array], Array | None]]:
    """The samples of a run one by one; the whole run where an array does not have them along its first axis."""
    rows, arrays = sample_count(feed), (*feed.values(), *wanted, *computed)
    if rows == 1 or any(value.ndim < 1 or value.shape[0] != rows for value in arrays):
        yield feed, list(wanted), list(computed), label
        return
    for k in range(rows):
        at = slice(k, k + 1)
        own = {name: value[at] for name, value in feed.items()}
        yield own, [each[at] for each in wanted], [each[at] for each in computed], None if label is None else label[at]


def _numbers_only(tally: Tally, by_channel: bool) -> Tally:
    """The sums of a sample, without the arrays that only the whole needs."""
    return Tally(
        error=tally.error,
        power=tally.power,
        elements=tally.elements,
        choices=tally.choices,
        same=tally.same,
        slices=tally.slices if by_channel else None,
    )


def _sample_deviations(tally: Tally, rows: Sequence[Tally]) -> SampleDeviations:
    """The deviations of an output from the sums of all samples and of each."""
    numbers = np.array([(row.error, row.power, row.elements, row.choices, row.same) for row in rows], np.float64)
    slices = []
    for whole in tally.slices or ():
        own = [each for row in rows for each in row.slices or () if each.axis == whole.axis]
        if len(own) == len(rows) and all(each.error.shape == whole.error.shape for each in own):
            slices.append((whole, np.array([each.error for each in own]), np.array([each.power for each in own])))
    return SampleDeviations(tally=tally, numbers=numbers, slices=tuple(slices))


def read_tolerances(
    tolerances: Tolerances, fidelity: Fidelity, deviations: Sequence[SampleDeviations], doubt: float
) -> tuple[ToleranceReading, ...]:
    """The readings of all tolerances but that of the score.

    Args:
        tolerances: the limits.
        fidelity: deviation of a candidate.
        deviations: the same sample by sample, for each output.
        doubt: error probability of each bound.
    """
    reading, limits = ToleranceReading, tolerances.limits
    outputs = list(zip(fidelity.outputs, deviations, strict=True))
    found: list[ToleranceReading] = []
    if "min_agreement" in limits:
        shares = [(one.top1, samples) for one, samples in outputs if one.top1 is not None and not one.vacuous]
        value = min((share for share, _ in shares), default=math.nan)
        bound = min((_agreement_bound(samples, doubt) for _, samples in shares), default=math.nan)
        found.append(reading("min_agreement", value, bound, limits["min_agreement"]))
    if "max_deviation" in limits:
        value = max((one.worst for one, _ in outputs), default=math.nan)
        bound = max((_deviation_bound(samples, doubt) for _, samples in outputs), default=math.nan)
        found.append(reading("max_deviation", value, max(bound, value), limits["max_deviation"]))
    if "min_psnr" in limits:
        images = [(one.psnr, samples) for one, samples in outputs if one.psnr is not None]
        value = min((psnr for psnr, _ in images), default=math.nan)
        bound = min((_psnr_bound(samples, doubt) for _, samples in images), default=math.nan)
        found.append(reading("min_psnr", value, bound, limits["min_psnr"]))
    return tuple(found)


def _agreement_bound(samples: SampleDeviations, doubt: float) -> float:
    """Lower bound of the share of equal decisions; an output of another shape has none."""
    if samples.tally.reshaped or not samples.choices.all():
        return 0.0
    return share_lower_bound(samples.same / samples.choices, samples.choices, doubt)


def _deviation_bound(samples: SampleDeviations, doubt: float) -> float:
    """Upper bound of the relative error of the whole and of each of its channels."""
    whole = float(ratio_upper_bounds(samples.error[:, None], samples.power[:, None], doubt)[0])
    worst = math.sqrt(whole)
    probabilities = bool(samples.tally.choices) and samples.tally.sums_to_one
    for total, errors, powers in samples.slices:
        relative = total.relative_errors(probabilities)
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = np.where(relative > 0, total.error / relative**2, total.power)
        floored = scales > total.power * (1 + 1e-9)
        wholes = np.where(floored, scales / len(powers), powers)
        worst = max(worst, float(np.sqrt(ratio_upper_bounds(errors, wholes, doubt).max(initial=0.0))))
    return worst


def _psnr_bound(samples: SampleDeviations, doubt: float) -> float:
    """Lower bound of the PSNR; the peak is the range of the original over all samples."""
    error = float(ratio_upper_bounds(samples.error[:, None], samples.elements[:, None], doubt)[0])
    peak = samples.tally.high - samples.tally.low
    if not error:
        return math.inf
    return 10 * math.log10(peak**2 / error) if 0 < peak < math.inf and error < math.inf else -math.inf
