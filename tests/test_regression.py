"""Ridge regressions from sums and from rows, against numpy's least squares on augmented rows."""

from __future__ import annotations

import numpy as np
import pytest

from leanonnx.numeric import regression
from leanonnx.numeric.regression import Fit, MomentSums, SampleRows, best_fit
from tests.calibrated import Array

Kind = type[MomentSums] | type[SampleRows]


class Case:
    """Rows of ``groups`` groups, with a prior [G, O, K]."""

    def __init__(self, seed: int, rows: int = 40, groups: int = 1, width: int = 6, out: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.features = rng.standard_normal((groups, width, rows)) + 2
        true = rng.standard_normal((groups, out, width))
        self.targets = true @ self.features + 5 + 0.5 * rng.standard_normal((groups, out, rows))
        self.prior = true + rng.standard_normal(true.shape)
        self.bias = rng.standard_normal((groups, out))

    def taken(self, kind: Kind, pieces: int = 3, part: slice = slice(None)) -> MomentSums | SampleRows:
        found = kind(self.features[..., 0] + 0.5, self.targets[..., 0] - 0.5)
        sides = (np.array_split(side[..., part], pieces, axis=2) for side in (self.features, self.targets))
        for p, t in zip(*sides, strict=True):
            found.add(p, t)
        return found

    def naive(self, beta: float, fixed: Array | None) -> tuple[Array, Array]:
        """Least squares with rows for the ridge and, where it is free, a column of ones for the bias."""
        weights, biases = np.empty_like(self.prior), np.empty_like(self.bias)
        for g, wide in enumerate(self.features):
            p, width = wide.T, len(wide)
            centre = p.mean(0) if fixed is None else 0
            ridge = np.sqrt(beta * np.square(p - centre).mean() * len(p)) * np.eye(width)
            ones = np.ones((len(p), 1)) if fixed is None else np.zeros((len(p), 0))
            left = np.block([[p, ones], [ridge, np.zeros((width, ones.shape[1]))]])
            right = self.targets[g].T - (0 if fixed is None else fixed[g])
            found = np.linalg.lstsq(left, np.vstack([right, ridge @ self.prior[g].T]), rcond=None)[0]
            weights[g] = found[:width].T
            biases[g] = found[width] if fixed is None else fixed[g]
        return weights, biases

    def error(self, weights: Array, bias: Array, part: slice = slice(None)) -> float:
        made = weights @ self.features[..., part] + bias[:, :, None]
        return float(np.square(self.targets[..., part] - made).sum((0, 1)).mean())


BETAS = (1e-4, 1e-2, 1.0, 100.0)


def judge(kind: Kind, case: Case, fixed: Array | None) -> None:
    """Weights and bias for every strength are those of the naive least squares."""
    solved = list(case.taken(kind).solve(case.prior, fixed, BETAS))
    assert len(solved) == len(BETAS)
    for beta, (weights, bias) in zip(BETAS, solved, strict=True):
        for found, wanted in zip((weights, bias), case.naive(beta, fixed), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(40, 6), (5, 12), (2, 3)])
@pytest.mark.parametrize("kind", [MomentSums, SampleRows])
def test_one_group(kind: Kind, rows: int, width: int, free: bool) -> None:
    case = Case(1, rows, width=width)
    judge(kind, case, None if free else case.bias)


@pytest.mark.parametrize("free", [True, False])
def test_several_groups(free: bool) -> None:
    case = Case(2, groups=3, width=4)
    case.features *= np.array([1.0, 0.1, 5.0])[:, None, None]
    judge(MomentSums, case, None if free else case.bias)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("kind", [MomentSums, SampleRows])
def test_a_factorisation_for_each_strength(kind: Kind, free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "NARROW_WIDTH", 4)
    case = Case(14, width=9)
    judge(kind, case, None if free else case.bias)


def test_each_group_takes_the_strength_that_serves_it() -> None:
    """One group has few noisy features of use, the other follows its features exactly."""
    case = Case(15, rows=60, groups=2, width=8)
    noise = np.random.default_rng(0).standard_normal(case.targets[0].shape)
    case.targets[0] = case.prior[0] @ case.features[0] + 5 * noise
    train, held = (case.taken(MomentSums, part=part) for part in (slice(0, 20), slice(20, None)))
    assert isinstance(train, MomentSums) and isinstance(held, MomentSums)
    start = Fit(case.prior, case.bias, held.errors(case.prior, case.bias))
    nothing = MomentSums(case.features[..., 0], case.targets[..., 0])
    found = best_fit(train, nothing, held, [start], free_bias=True)
    each = np.array([held.errors(*fit) for fit in train.solve(case.prior, None, regression.BETAS)])
    np.testing.assert_allclose(found.errors, each.min(0), rtol=regression.EQUAL_ERRORS)
    assert each.argmin(0)[0] > each.argmin(0)[1]


def test_a_group_without_signal_keeps_its_prior() -> None:
    """Beside loud groups: rounding errors of a dead channel are no signal."""
    case = Case(16, rows=400, groups=3, width=4)
    case.features[1] = 7 + 1e-13 * np.random.default_rng(0).standard_normal(case.features[1].shape)
    for weights, _ in case.taken(MomentSums).solve(case.prior, None, BETAS):
        np.testing.assert_allclose(weights[1], case.prior[1], atol=1e-3)


def test_of_equally_good_strengths_the_strongest_is_taken() -> None:
    case = Case(17, rows=4000, width=3)
    train, held = (case.taken(MomentSums, part=part) for part in (slice(0, 3000), slice(3000, None)))
    assert isinstance(train, MomentSums) and isinstance(held, MomentSums)
    prior, bias = case.naive(1e-9, None)
    start = Fit(prior, bias + 1, held.errors(prior, bias + 1))
    nothing = MomentSums(case.features[..., 0], case.targets[..., 0])
    found = best_fit(train, nothing, held, [start], free_bias=True)
    strongest = list(train.solve(prior, None, regression.BETAS))[-1]
    np.testing.assert_array_equal(found.weights, strongest[0])


@pytest.mark.parametrize("free", [True, False])
def test_many_features(free: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solved separately for each strength, in single precision."""
    case = Case(3, rows=200, width=8)
    monkeypatch.setattr(regression, "LARGE_WIDTH", 4)
    solved = list(case.taken(MomentSums).solve(case.prior, None if free else case.bias, BETAS))
    for beta, (weights, _) in zip(BETAS, solved, strict=True):
        np.testing.assert_allclose(weights, case.naive(beta, None if free else case.bias)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [MomentSums, SampleRows])
def test_error_is_that_of_the_rows(kind: Kind) -> None:
    case = Case(4)
    assert case.taken(kind).errors(case.prior, case.bias).sum() == pytest.approx(case.error(case.prior, case.bias))


def test_sums_that_are_worked_off_often_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(5, groups=2)
    whole = case.taken(MomentSums, 1)
    monkeypatch.setattr(regression, "BUFFERED_NUMBERS", 1)
    pieces = case.taken(MomentSums, 9)
    assert pieces.rows == whole.rows == 40
    assert pieces.errors(case.prior, case.bias) == pytest.approx(whole.errors(case.prior, case.bias))


@pytest.mark.parametrize("kind", [MomentSums, SampleRows])
def test_merged_rows_are_rows_taken_together(kind: Kind) -> None:
    case = Case(6)
    first, second = case.taken(kind, part=slice(0, 15)), case.taken(kind, part=slice(15, None))
    if (isinstance(second, MomentSums) and isinstance(first, MomentSums)) or (
        isinstance(second, SampleRows) and isinstance(first, SampleRows)
    ):
        first.merge(second)
    for found, wanted in zip(next(first.solve(case.prior, None, [0.1])), case.naive(0.1, None), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert first.rows == 40


@pytest.mark.parametrize("kind", [MomentSums, SampleRows])
def test_the_fit_with_the_least_held_out_error_is_chosen(kind: Kind) -> None:
    case = Case(7, rows=60)
    train, held = case.taken(kind, part=slice(0, 45)), case.taken(kind, part=slice(45, None))
    start = Fit(case.prior, case.bias, held.errors(case.prior, case.bias))
    found = best_fit(train, kind(case.features[..., 0], case.targets[..., 0]), held, [start], free_bias=True)
    shown = Case(7, rows=60)
    shown.features, shown.targets = case.features[..., :45], case.targets[..., :45]
    errors = [case.error(*shown.naive(beta, None), slice(45, None)) for beta in regression.BETAS]
    assert found.error == pytest.approx(min(errors), rel=regression.EQUAL_ERRORS)
    assert found.error == pytest.approx(case.error(found.weights, found.bias, slice(45, None)))
    assert found.error < start.error


def judge_unchanged() -> None:
    """Check that rows unrelated to the held-out ones change nothing, nor mirrored ones, nor both together."""
    case, other = Case(8), Case(9, rows=8)
    wild = Case(10, rows=8)
    held = case.taken(MomentSums)
    assert isinstance(held, MomentSums)
    train, mirror = other.taken(MomentSums), wild.taken(MomentSums)
    assert isinstance(train, MomentSums) and isinstance(mirror, MomentSums)
    weights, bias = case.naive(1e-9, None)
    start = Fit(weights, bias, held.errors(weights, bias))
    assert best_fit(train, mirror, held, [start], free_bias=True) is start


def test_a_start_stays_unless_another_is_better_on_held_out_rows() -> None:
    judge_unchanged()


def test_mirrored_rows_are_used_only_where_they_help() -> None:
    case = Case(11, rows=200)
    few, many = slice(0, 8), slice(8, 100)
    held = case.taken(MomentSums, part=slice(100, None))
    assert isinstance(held, MomentSums)

    def fit(mirror: MomentSums | SampleRows) -> Fit:
        train = case.taken(MomentSums, part=few)
        assert isinstance(train, MomentSums) and isinstance(mirror, MomentSums)
        start = Fit(case.prior, case.bias, held.errors(case.prior, case.bias))
        return best_fit(train, mirror, held, [start], free_bias=True)

    nothing = MomentSums(case.features[..., 0] + 0.5, case.targets[..., 0] - 0.5)
    assert fit(case.taken(MomentSums, part=many)).error < fit(nothing).error
    turned = Case(11, rows=200)
    turned.targets = -turned.targets
    spoilt = fit(turned.taken(MomentSums, part=many))
    np.testing.assert_array_equal(spoilt.weights, fit(nothing).weights)


def test_a_bias_that_cannot_be_changed_stays() -> None:
    case = Case(12)
    train, held = case.taken(MomentSums), case.taken(MomentSums)
    assert isinstance(train, MomentSums) and isinstance(held, MomentSums)
    start = Fit(case.prior, case.bias, held.errors(case.prior, case.bias))
    found = best_fit(train, MomentSums(case.features[..., 0], case.targets[..., 0]), held, [start], free_bias=False)
    assert found is not start
    np.testing.assert_array_equal(found.bias, case.bias)


@pytest.mark.parametrize("kind", [MomentSums, SampleRows])
def test_features_that_never_change_leave_the_prior(kind: Kind) -> None:
    case = Case(13)
    case.features[:] = 4.0
    weights, bias = next(case.taken(kind).solve(case.prior, None, [1e-3]))
    np.testing.assert_allclose(weights, case.prior, atol=1e-3)
    made = weights @ case.features + bias[:, :, None]
    np.testing.assert_allclose(made.mean(2), case.targets.mean(2), atol=1e-6)


def test_a_positive_system_serves_several_ridges_in_the_memory_of_its_matrix() -> None:
    rng = np.random.default_rng(0)
    root, right = rng.standard_normal((600, 600)), rng.standard_normal((600, 3))
    matrix = np.asfortranarray(root @ root.T)
    system = regression._PositiveSystem(matrix.copy(order="F"))
    for ridge in (1.0, 100.0, 10.0):
        expected = np.linalg.solve(matrix + ridge * np.eye(600), right)
        np.testing.assert_allclose(system.solve(ridge, right), expected, rtol=1e-7, atol=1e-9)
    assert not np.isfinite(system.solve(-1e9, right)).any()
    np.testing.assert_array_equal(np.triu(system.matrix, 1), np.triu(matrix, 1))


def test_rows_of_a_dual_regression_are_kept_in_parts_and_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts give the same regression as one."""
    rng = np.random.default_rng(1)
    features, targets = rng.standard_normal((1, 40, 30)) + 3, rng.standard_normal((1, 2, 30))

    def fits(least: int) -> list[Array]:
        monkeypatch.setattr(regression, "MIN_PART_ROWS", least)
        monkeypatch.setattr(regression, "BUFFERED_NUMBERS", least)
        first, second = (SampleRows(features[:, :, 0], targets[:, :, 0]) for _ in range(2))
        for k in range(30):
            (first if k % 2 else second).add(features[:, :, k : k + 1], targets[:, :, k : k + 1])
        first.merge(second)
        assert first.rows == 30 and second.rows == 0
        solved = list(first.solve(np.zeros((1, 2, 40)), None, (0.1, 1.0)))
        return [one for pair in solved for one in pair] + [first.errors(*solved[0])]

    for one, other in zip(fits(4), fits(1000), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
