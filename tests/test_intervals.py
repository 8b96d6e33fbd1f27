"""Confidence intervals of deviations and scores over samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, t

from leanonnx.evaluation.intervals import SampleSums, agreement_interval, deviation_intervals, mean_interval
from leanonnx.evaluation.scores import score_outputs
from leanonnx.evaluation.tally import Tally, tally_of
from leanonnx.numeric.bounds import share_interval
from leanonnx.reporting.rows import IntervalsRow, MetricChange
from tests.test_sweep_report import deviating, lines, made, printed, swept

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("same", "count"), [(6, 12), (0, 12), (12, 12), (380, 500)])
def test_shares_of_single_decisions_have_the_exact_interval(same: int, count: int) -> None:
    decisions = np.arange(count) < same
    interval = agreement_interval(decisions * 1.0, np.ones(count))
    exact = binomtest(same, count).proportion_ci(method="exact")
    assert interval == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_many_alike_decisions_of_one_sample_count_once() -> None:
    low, high = share_interval(np.ones(4), np.array([100.0, 50, 100, 100]), 0.05)
    assert (low, high) == pytest.approx((0.025 ** (1 / 4), 1.0))


def test_samples_that_do_not_differ_tell_nothing() -> None:
    assert agreement_interval(np.array([3.0, 3, 3]), np.array([4.0, 4, 4])) is None
    assert agreement_interval(np.array([3.0]), np.array([4.0])) is None
    assert agreement_interval(np.array([0.0, 0]), np.array([0.0, 0])) is None


def test_a_mean_without_skewness_has_students_interval() -> None:
    values = np.concatenate([1 - RNG.random(20), np.zeros(0)])
    values = np.concatenate([values, 2 - values])  # symmetric about one
    low, high = mean_interval(values, np.ones(40)) or (0, 0)
    half = t.ppf(0.975, 39) * values.std(ddof=1) / math.sqrt(40)
    assert (low, high) == pytest.approx((1 - half, 1 + half))


def test_intervals_hold_as_often_as_they_say() -> None:
    error = RNG.lognormal(-4, 1, (2000, 40))
    truth = math.sqrt(math.exp(-4 + 0.5))
    hits = [
        interval.relative_l2[0] <= truth <= interval.relative_l2[1]
        for row in error
        if (interval := deviation_intervals([SampleSums(e, 1.0, 4, 0, 0, 0) for e in row], 1.0, False)).relative_l2
    ]
    assert len(hits) == 2000 and np.mean(hits) > 0.93


def test_one_sample_gives_no_interval_of_an_error() -> None:
    intervals = deviation_intervals([SampleSums(1.0, 2.0, 4, 1, 1, 1)], 1.0, True)
    assert intervals.relative_l2 is None and intervals.psnr is None
    assert intervals.top1 == pytest.approx((0.025, 1.0))


def test_an_output_that_breaks_down_has_no_upper_end() -> None:
    rows = [SampleSums(math.inf, 1.0, 4, 0, 0, 0), SampleSums(0.1, 1.0, 4, 0, 0, 0)]
    intervals = deviation_intervals(rows, 1.0, False)
    assert intervals.relative_l2 is not None and intervals.relative_l2[1] == math.inf
    assert intervals.psnr is not None and intervals.psnr[0] == -math.inf


def test_a_batch_gives_the_intervals_of_its_samples() -> None:
    wanted = RNG.random((12, 5)).astype(np.float32)
    computed = wanted + RNG.normal(0, 0.2, wanted.shape).astype(np.float32)
    whole = tally_of(wanted, computed, 12, False, ())[0]
    single = Tally()
    for k in range(12):
        single = single.plus(tally_of(wanted[k : k + 1], computed[k : k + 1], 1, False, ())[0])
    batch, alone = whole.deviation("y").intervals, single.deviation("y").intervals
    assert batch.top1 == alone.top1 and batch.top1 is not None and batch.top1[0] < batch.top1[1]
    assert batch.relative_l2 == pytest.approx(alone.relative_l2)


def test_an_image_has_an_interval_of_its_psnr() -> None:
    wanted = RNG.random((6, 1, 16, 16)).astype(np.float32)
    computed = wanted + (RNG.normal(0, 0.1, (6, 1, 1, 1)) * np.ones_like(wanted)).astype(np.float32)
    deviation = tally_of(wanted, computed, 6, False, ())[0].deviation("y")
    interval = deviation.intervals.psnr
    assert interval is not None and deviation.psnr is not None
    assert interval[0] < deviation.psnr < interval[1]
    assert deviation.intervals.top1 is None


def test_scores_have_the_intervals_of_both_models() -> None:
    scores = RNG.random((12, 5)).astype(np.float32)
    labels = scores.argmax(1)
    other = np.roll(scores, 1, 1)
    other[:6] = scores[:6]
    parts = [score_outputs(labels[k : k + 1], [scores[k : k + 1]], [other[k : k + 1]], [1]) for k in range(12)]
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    before, after = total.intervals()
    assert before == pytest.approx((0.025 ** (1 / 12), 1.0))
    assert after == pytest.approx(tuple(binomtest(6, 12).proportion_ci(method="exact")))


def test_outputs_that_are_equal_have_no_interval_of_their_psnr() -> None:
    intervals = deviation_intervals([SampleSums(0.0, 1.0, 4, 0, 0, 0)] * 4, 1.0, False)
    assert intervals.psnr is None and intervals.relative_l2 == (0.0, 0.0)


@pytest.mark.parametrize("batch", [1, 4, 12])
def test_the_worst_channel_has_the_interval_of_its_samples(batch: int) -> None:
    wanted = RNG.random((12, 3, 4, 4)).astype(np.float32) + 1
    computed = wanted + (RNG.random((12, 3, 1, 1)) * [[[0.01]], [[0.5]], [[0.1]]]).astype(np.float32)
    total = Tally()
    for k in range(0, 12, batch):
        total = total.plus(tally_of(wanted[k : k + batch], computed[k : k + batch], batch, False, (1,))[0])
    channels = total.deviation("y").channels
    assert channels is not None and channels.index == 1
    error = ((computed - wanted)[:, 1].astype(np.float64) ** 2).sum((1, 2))
    power = (wanted[:, 1].astype(np.float64) ** 2).sum((1, 2))
    low, high = mean_interval(error, power) or (0, 0)
    assert channels.interval == pytest.approx((math.sqrt(low), math.sqrt(high)), rel=1e-4)
    assert math.sqrt(low) < channels.relative_l2 < math.sqrt(high)


def test_a_batch_gives_the_scores_of_its_samples() -> None:
    """Scores of a batch count sample by sample."""
    scores = np.random.default_rng(0).random((12, 5)).astype(np.float32)
    labels = scores.argmax(1)
    other = np.where(np.arange(12)[:, None] < 6, scores, np.roll(scores, 1, 1))
    whole = score_outputs(labels, [scores], [other], [1])
    parts = [score_outputs(labels[k : k + 1], [scores[k : k + 1]], [other[k : k + 1]], [1]) for k in range(12)]
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    assert (whole, whole.samples) == (total, total.samples)
    assert whole.intervals() == total.intervals()


# of means over outputs


def test_the_mean_over_outputs_of_a_sweep_has_an_interval_in_all_files() -> None:
    """The means of the ends, which hold however the outputs depend on each other; none where one is not known."""
    y, z = IntervalsRow(relative_l2=(0.1, 0.3), top1=(0.8, 1.0)), IntervalsRow(relative_l2=(0.3, None))
    both = {"y": {"relative_l2": 0.2, "intervals": y}, "z": {"relative_l2": 0.4, "top1": 0.5, "intervals": z}}
    metric = MetricChange(name="top-1", better="higher", before=0.9, after=0.8, after_interval=(0.7, 0.85))
    report = swept([deviating(made(0.5, 0.2), metric=metric, **both)])
    deviation = report.points[0].deviation
    assert deviation is not None
    assert deviation.intervals == IntervalsRow(relative_l2=(pytest.approx(0.2), None), top1=None)
    (line,) = lines(report)
    assert (float(line["relative_l2_low"]), float(line["relative_l2_high"])) == (pytest.approx(0.2), math.inf)
    assert (line["top1_low"], line["metric_after_low"], line["metric_after_high"]) == ("", "0.7", "0.85")
    assert "0.3 (0.2 to ∞)" in printed(report)
