"""The search for exponents: candidates between unequal and uniform widths, and which of them is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leanonnx.data.samples import Dataset, data_from_feeds
from leanonnx.effort import EFFORTS, Deadline, Effort
from leanonnx.ranking.elimination import EXPONENT_CANDIDATES, Exponents
from leanonnx.selection import exponents
from leanonnx.selection.exponents import affordable_samples, search_exponents
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, Selector
from leanonnx.statistics.moments import measure_statistics
from tests.calibrated import dag_of, normal_feeds

WIDE = dag_of(
    "(float[N,3,8,8] x) => (float[N,4] y)",
    "float[24,3,3,3] a, float[24] b, float[24,24,3,3] c, float[24] d, float[24,24,3,3] e, float[24] f, float[24,4] g",
    "h = Conv (x, a, b) r = Relu (h) m = Conv (r, c, d) s = Relu (m) n = Conv (s, e, f) t = Relu (n) "
    "p = GlobalAveragePool (t) q = Flatten (p) y = Gemm (q, g)",
)


def selector(contrast: float = 1.0) -> Selector:
    statistics = measure_statistics(WIDE, normal_feeds(WIDE, 20, batch=4), 20)
    request = SelectionRequest(budget=Budget.of_option("macs", 0.4), statistics=statistics)
    return Selector(WIDE, replace(request, exponents=Exponents(contrast=contrast)))


def widths(one: Selector) -> list[float]:
    """Kept share of the channels of each convolution."""
    alive = one.within(0.4)
    return [float(alive[WIDE.channel_ids[name].reshape(-1)].mean()) for name in "hmn"]


def test_without_contrast_every_layer_keeps_the_same_share() -> None:
    shares = widths(selector(0.0))
    assert max(shares) - min(shares) < 0.05


def test_less_contrast_is_less_spread() -> None:
    spreads = [float(np.std(widths(selector(contrast)))) for contrast in (1.0, 0.5, 0.0)]
    assert spreads == sorted(spreads, reverse=True) and spreads[0] > spreads[-1]


def samples(count: int) -> Dataset:
    return data_from_feeds("samples", WIDE.model, WIDE.shapes, normal_feeds(WIDE, count))


def searched(monkeypatch: pytest.MonkeyPatch, deviations: dict[Exponents, float], effort: Effort) -> Exponents:
    """The exponents that a search takes, for made-up deviations (1 for all others)."""
    asked = []

    def deviation(one: Selector, *_: object) -> float:
        asked.append(one.request.exponents)
        return deviations.get(one.request.exponents, 1.0)

    monkeypatch.setattr(exponents, "_deviation", deviation)
    result = search_exponents(selector(), samples(200), effort, Deadline(), 0, lambda *_: None)
    assert len(asked) <= effort.trials
    return result.request.exponents


def test_the_candidate_with_clearly_the_least_deviation_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    default, other, third = EXPONENT_CANDIDATES[:3]
    normal = EFFORTS["normal"]
    assert searched(monkeypatch, {other: 0.5, third: 0.6}, normal) == other
    assert searched(monkeypatch, {other: 0.99}, normal) == default
    assert searched(monkeypatch, {default: 0.2}, normal) == default


def test_candidates_range_from_unequal_to_uniform_widths() -> None:
    contrasts = {one.contrast for one in EXPONENT_CANDIDATES[: EFFORTS["normal"].trials]}
    assert {0.0, 1.0} < contrasts


def test_quick_effort_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert searched(monkeypatch, {EXPONENT_CANDIDATES[1]: 0.1}, EFFORTS["quick"]) == EXPONENT_CANDIDATES[0]


def test_no_trial_begins_that_would_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exponents, "_deviation", lambda one, *_: 1.0 - one.request.exponents.saved / 2)
    late = Deadline(0.0, lambda: 1.0)
    one = search_exponents(selector(), samples(200), EFFORTS["normal"], late, 0, lambda *_: None)
    assert one.request.exponents == EXPONENT_CANDIDATES[0]


def test_trials_take_fewer_samples_of_larger_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, normal = selector(), EFFORTS["normal"]
    assert affordable_samples(one, 10_000, normal) == exponents.MAX_TRIAL_SAMPLES
    monkeypatch.setattr(exponents, "MAX_TRIAL_MACS", 40 * one.before.macs)
    assert affordable_samples(one, 10_000, normal) == 40
    assert affordable_samples(one, 10, normal) == 10
    assert affordable_samples(one, 10_000, EFFORTS["thorough"]) == exponents.MAX_TRIAL_SAMPLES
