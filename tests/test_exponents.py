"""The search for exponents: candidates between unequal and uniform widths, and which of them is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.data.samples import Dataset, data_from_feeds
from leanonnx.effort import EFFORTS, Deadline, Effort
from leanonnx.numeric.arrays import Floats
from leanonnx.ranking.elimination import EXPONENT_CANDIDATES, Exponents
from leanonnx.recovery.draft import MAX_PAIRED_PARTS, paired_distances
from leanonnx.selection import exponents
from leanonnx.selection.exponents import affordable_samples, clearly_best, search_exponents
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, Selector
from leanonnx.statistics.moments import measure_statistics
from tests.calibrated import dag_of, normal_feeds
from tests.helpers import saved

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


def halved() -> onnx.ModelProto:
    """The network with outputs of half the size."""
    proto = onnx.ModelProto()
    proto.CopyFrom(WIDE.model.proto)
    (weight,) = (one for one in proto.graph.initializer if one.name == "g")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) / 2, "g"))
    return proto


def searched(monkeypatch: pytest.MonkeyPatch, deviations: dict[Exponents, float], effort: Effort) -> Exponents:
    """The exponents that a search takes, for made-up distances (1 for all others) that vary little over the parts."""
    asked: list[Exponents] = []
    noise = np.random.default_rng(0).normal(0, 0.01, (8, 16))

    def recovered(one: Selector, *_: object) -> Exponents:
        asked.append(one.request.exponents)
        return one.request.exponents

    def distances(_: object, models: list[Exponents], __: object) -> Floats:
        means = np.array([deviations.get(one, 1.0) for one in models])
        return np.asarray(means[:, None] + noise[: len(means)])

    monkeypatch.setattr(exponents, "recover_choice", recovered)
    monkeypatch.setattr(exponents, "paired_distances", distances)
    result = search_exponents(selector(), samples(200), effort, Deadline(), 0, lambda *_: None)
    assert len(asked) <= effort.trials
    return result.request.exponents


def test_the_candidate_with_clearly_the_least_deviation_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    default, other, third = EXPONENT_CANDIDATES[:3]
    normal = EFFORTS["normal"]
    assert searched(monkeypatch, {other: 0.5, third: 0.6}, normal) == other
    assert searched(monkeypatch, {other: 0.98}, normal) == other
    assert searched(monkeypatch, {default: 0.2}, normal) == default


def test_a_difference_within_its_standard_error_is_noise() -> None:
    parts = np.random.default_rng(1).normal(0, 0.1, 16)
    shared = np.array([parts, parts - 0.01, parts + 0.01])
    assert clearly_best(shared) == 1
    noisy = np.array([parts, np.roll(parts, 1) - 0.005])
    assert clearly_best(noisy) == 0
    assert clearly_best(np.array([[1.0], [0.5]])) == 0


def test_a_broken_default_loses() -> None:
    assert clearly_best(np.array([[np.inf] * 4, [0.5, 0.4, 0.5, 0.6]])) == 1


def test_distances_are_taken_on_the_same_parts(tmp_path: Path) -> None:
    dag = load_dag(saved(WIDE.model.proto, tmp_path / "model.onnx"))
    same, other = paired_distances(dag, [dag.model.path, halved()], samples(50))
    assert same.shape == other.shape and 1 < len(same) <= MAX_PAIRED_PARTS
    assert not same.any() and (other > 0).all()


def test_candidates_range_from_unequal_to_uniform_widths() -> None:
    contrasts = {one.contrast for one in EXPONENT_CANDIDATES[: EFFORTS["normal"].trials]}
    assert {0.0, 1.0} < contrasts


def test_quick_effort_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert searched(monkeypatch, {EXPONENT_CANDIDATES[1]: 0.1}, EFFORTS["quick"]) == EXPONENT_CANDIDATES[0]


def test_many_samples_are_judged_by_those_that_no_trial_was_fitted_to() -> None:
    few, many = exponents.TrialData.of(samples(200)), exponents.TrialData.of(samples(960))
    assert few.judged.count == few.spared.count < few.fitted.count
    assert many.fitted.count + many.spared.count == exponents.FITTED_TRIAL_SAMPLES
    assert many.judged.count == 960 - exponents.FITTED_TRIAL_SAMPLES


def test_no_trial_begins_that_would_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Selector] = []
    monkeypatch.setattr(exponents, "recover_choice", lambda one, *_: tried.append(one) or WIDE.model.path)
    monkeypatch.setattr(exponents, "paired_distances", lambda *_: np.zeros((1, 4)))
    late = Deadline(0.0, lambda: 1.0)
    one = search_exponents(selector(), samples(200), EFFORTS["normal"], late, 0, lambda *_: None)
    assert one.request.exponents == EXPONENT_CANDIDATES[0] and len(tried) == 1


def test_trials_take_fewer_samples_of_larger_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, normal = selector(), EFFORTS["normal"]
    assert affordable_samples(one, 10_000, normal) == normal.max_samples
    monkeypatch.setattr(exponents, "MAX_TRIAL_MACS", 40 * one.before.macs)
    assert affordable_samples(one, 10_000, normal) == 40
    assert affordable_samples(one, 10, normal) == 10
    assert affordable_samples(one, 10_000, EFFORTS["thorough"]) == 800
