"""Scores of outputs on labels.  The metric follows from the shapes of the labels and of the outputs.

1. Integers [n], or one-hot labels [n, K], and an output of K classes: top-1 accuracy.
2. Integers [n, H, W] and floats [n, K, H, W] or [n, H, W, K], K ≥ 2: pixel accuracy.
3. Integers and an output of integers of the same shape: share of equal elements, named as in 1 or 2.
4. Numbers and floats of the same shape: mean squared error.

Axes of size 1 do not count.  The first output that matches is used, 1–3 before 4.  Integers that are no class
(negative, or K and above) mean "no label".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from leanonnx.evaluation.intervals import IntervalEnds, SampleScores, agreement_interval, mean_interval
from leanonnx.evaluation.kinds import MAP_RANK
from leanonnx.graph.formats import is_float, is_integer
from leanonnx.numeric.arrays import Array

ACCURACY, PIXELS, SQUARES = "top-1 accuracy", "pixel accuracy", "mean squared error"
LOWER_IS_BETTER = (SQUARES,)
"""Metrics for which lower is better."""


@dataclass(frozen=True)
class LabelMetric:
    """A metric, the output that it scores, and the axis of classes (None: the output holds class numbers)."""

    metric: str
    output: int
    axis: int | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over labelled samples: scores of both models, out of ``weight`` labels; ``samples``: those of each."""

    before: float = 0.0
    after: float = 0.0
    weight: int = 0
    measures: frozenset[LabelMetric | None] = frozenset()
    samples: tuple[SampleScores, ...] = field(default=(), repr=False, compare=False)

    def plus(self, other: Score) -> Score:
        """Return the sums over the samples of both."""
        return Score(
            before=self.before + other.before,
            after=self.after + other.after,
            weight=self.weight + other.weight,
            measures=self.measures | other.measures,
            samples=self.samples + other.samples,
        )

    def result(self) -> tuple[str | None, float | None, float | None]:
        """Return the metric and its value for both models; None if labels are absent or do not fit on all samples."""
        measures = list(self.measures)
        if len(measures) != 1 or measures[0] is None or not self.weight:
            return None, None, None
        return measures[0].metric, self.before / self.weight, self.after / self.weight

    def intervals(self) -> tuple[IntervalEnds | None, IntervalEnds | None]:
        """Return the intervals of both values over other samples (95 %); None where they are not known."""
        if self.result()[0] is None:
            return None, None
        before, after, weights = np.array(self.samples, np.float64).T
        (measure,) = self.measures
        interval = mean_interval if measure and measure.metric == SQUARES else agreement_interval
        return interval(before, weights), interval(after, weights)


def score_outputs(label: Array, before: Sequence[Array], after: Sequence[Array], axes: Sequence[int | None]) -> Score:
    """Score the outputs of both models on labels.

    Args:
        label: labels [n, ...].
        before: outputs of the original.
        after: outputs of the candidate.
        axes: for each output, its axis of classes if it holds one class per sample, else None.
    """
    label = class_numbers(label, before, axes)
    measure = metric_for_labels(label, before, axes)
    if measure is None:
        return Score(measures=frozenset({None}))
    first, second = before[measure.output], after[measure.output]
    rows = [slice(k, k + 1) for k in range(len(label))] if len(label) == first.shape[0] else [slice(None)]
    worst = math.inf if measure.metric == SQUARES else 0.0
    samples = []
    for row in rows:
        score, weight = _score_output(label[row], first[row], measure)
        other = _score_output(label[row], second[row], measure)[0] if second.shape == first.shape else worst
        samples.append(SampleScores(score, other, weight))
    score, other, weight = map(sum, zip(*samples, strict=True))
    return Score(before=score, after=other, weight=weight, measures=frozenset({measure}), samples=tuple(samples))


def class_numbers(label: Array, outputs: Sequence[Array], axes: Sequence[int | None]) -> Array:
    """Class numbers [n] of one-hot labels [n, K] for an output of K classes; all other labels as they are."""
    fits = any(
        axis is not None and label.shape == output.reshape(output.shape[0], -1).shape
        for output, axis in zip(outputs, axes, strict=True)
    )
    is_one_hot = fits and np.isin(label, (0, 1)).all() and (label.sum(axis=1) == 1).all()
    return np.argmax(label, axis=1) if is_one_hot else label


def metric_for_labels(label: Array, outputs: Sequence[Array], axes: Sequence[int | None]) -> LabelMetric | None:
    """Return the metric that fits labels and outputs; None if none does."""
    sizes = _long_sizes(label.shape)
    if label.dtype.kind in "biu":
        for k, (output, axis) in enumerate(zip(outputs, axes, strict=True)):
            if not is_float(output) and (is_integer(output) or output.dtype.kind == "b"):
                if _long_sizes(output.shape) == sizes:
                    return LabelMetric(ACCURACY if len(sizes) < 2 else PIXELS, k)
            elif axis is not None and label.size == output.shape[0]:
                return LabelMetric(ACCURACY, k, axis)
            elif output.ndim == MAP_RANK and len(sizes) > 1:
                for place in (1, 3):
                    if (
                        output.shape[place] > 1
                        and _long_sizes((*output.shape[:place], *output.shape[place + 1 :])) == sizes
                    ):
                        return LabelMetric(PIXELS, k, place)
    fitting = (k for k, output in enumerate(outputs) if is_float(output) and _long_sizes(output.shape) == sizes)
    return next((LabelMetric(SQUARES, k) for k in fitting), None)


def _long_sizes(shape: Sequence[int]) -> list[int]:
    return [int(size) for size in shape if size != 1]


def _score_output(label: Array, output: Array, measure: LabelMetric) -> tuple[float, int]:
    """Score of an output, and the number of labels."""
    if measure.metric == SQUARES:
        with np.errstate(all="ignore"):
            error = float(np.sum((output.astype(np.float64).reshape(-1) - label.reshape(-1)) ** 2))
        return (error if math.isfinite(error) else math.inf), label.size
    wanted = label.astype(np.int64).reshape(-1)
    if measure.axis is None:
        known = wanted >= 0
        return float(np.sum((output.astype(np.int64).reshape(-1) == wanted) & known)), int(known.sum())
    known = (wanted >= 0) & (wanted < output.shape[measure.axis])
    chosen = np.argmax(output, measure.axis).reshape(-1)
    sound = ~np.isnan(output).any(measure.axis).reshape(-1)
    return float(np.sum((chosen == wanted) & known & sound)), int(known.sum())
