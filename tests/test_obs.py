"""Elimination in the manner of the optimal brain surgeon, against regressions on samples done from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from leanonnx.numeric import obs
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.obs import Consumer, best_ridge, eliminate, precision_matrix


@pytest.fixture
def _ridgeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "PRECISION_RIDGE", 1e-13)


def test_shapes_that_do_not_agree_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected \[C\], \[C, C\], \[C, C\]"):
        Consumer(np.arange(3), np.eye(3), np.eye(1))


class Naive:
    """Samples of the channels of a reader, and its weights [O, C]."""

    def __init__(self, rng: np.random.Generator, width: int, units: Sequence[int] | None = None) -> None:
        self.samples = rng.standard_normal((60, width)) @ rng.standard_normal((width, width)) + rng.normal(size=width)
        self.samples = self.samples - self.samples.mean(0)
        self.weights = rng.standard_normal((4, width))
        self.units = np.arange(width) if units is None else np.array(units)

    @property
    def reader(self) -> Consumer:
        covariance = self.samples.T @ self.samples / len(self.samples)
        return Consumer(self.units, self.weights.T @ self.weights, precision_matrix(covariance))

    def loss(self, gone: Sequence[int]) -> float:
        """Mean squared change of the output when the other channels compensate these as well as possible."""
        lost = np.isin(self.units, gone)
        left, right = self.samples[:, ~lost], self.samples[:, lost]
        rest = right - left @ np.linalg.lstsq(left, right, rcond=None)[0] if left.size else right
        return float(np.square(rest @ self.weights[:, lost].T).sum(1).mean())


def judge(readers: Sequence[Naive], count: int) -> None:
    """Check the order in which each removal adds the least loss, recomputed after each, and the added loss."""
    order, costs = eliminate([one.reader for one in readers], count)
    gone: list[int] = []
    total = 0.0
    for found, cost in zip(order, costs, strict=True):
        rest = [unit for unit in range(count) if unit not in gone]
        losses = {unit: sum(one.loss([*gone, unit]) for one in readers) for unit in rest}
        best = min(losses, key=lambda unit: losses[unit])
        assert found == best
        assert cost == pytest.approx(max(losses[best] - total, 0), rel=1e-5, abs=1e-9) or cost >= losses[best] - total
        total = losses[best]
        gone.append(best)


def judge_costs(seed: int) -> None:
    """Check the cost of the first removal, and of all: the total energy, unless costs decrease."""
    one = Naive(np.random.default_rng(seed), 6)
    order, costs = eliminate([one.reader], 6)
    assert costs[0] == pytest.approx(min(one.loss([unit]) for unit in range(6)), rel=1e-5)
    steps = np.diff([0.0, *(one.loss(order[: k + 1].tolist()) for k in range(6))])
    np.testing.assert_allclose(costs, np.maximum.accumulate(steps), rtol=1e-5)


@pytest.mark.usefixtures("_ridgeless")
@pytest.mark.parametrize("seed", range(6))
def test_order_is_that_of_regressions_from_scratch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    judge([Naive(rng, 7)], 7)
    judge([Naive(rng, 6), Naive(rng, 6)], 6)


@pytest.mark.usefixtures("_ridgeless")
@pytest.mark.parametrize("seed", range(6))
def test_costs_are_the_energies_that_others_cannot_predict(seed: int) -> None:
    judge_costs(seed)


@pytest.mark.usefixtures("_ridgeless")
def test_readers_of_some_units_only_and_of_channels_that_stay() -> None:
    rng = np.random.default_rng(8)
    judge([Naive(rng, 5, [3, -1, 0, -1, 2]), Naive(rng, 4, [0, 1, 2, 3])], 4)


def test_units_of_several_channels_cost_the_sum() -> None:
    one = Naive(np.random.default_rng(3), 6, [0, 1, 2, 0, 1, 2])
    reader = one.reader
    each = np.diag(reader.weight) / np.diag(reader.precision)
    order, costs = eliminate([reader], 3)
    sums = each[:3] + each[3:]
    assert order[0] == np.argmin(sums)
    assert costs[0] == pytest.approx(sums.min())


@pytest.mark.parametrize("seed", range(4))
def test_costs_never_decrease_and_every_unit_is_removed_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order, costs = eliminate([Naive(rng, 30).reader, Naive(rng, 30).reader], 33)
    assert sorted(order.tolist()) == list(range(33))
    assert set(order[:3].tolist()) == {30, 31, 32}
    assert (costs[:3] == 0).all()
    assert (np.diff(costs) >= 0).all()


def test_many_units_are_removed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly as well: the loss at half the units differs by little."""
    rng = np.random.default_rng(5)
    one = Naive(rng, 40)
    single = one.loss(eliminate([one.reader], 40)[0][:20].tolist())
    monkeypatch.setattr(obs, "REMOVALS_DIVISOR", 8)
    joint = one.loss(eliminate([one.reader], 40)[0][:20].tolist())
    random = np.median([one.loss(rng.permutation(40)[:20].tolist()) for _ in range(20)])
    assert joint < single + 0.2 * (random - single)


def test_precision_of_channels_that_never_change_is_finite() -> None:
    assert np.isfinite(precision_matrix(np.zeros((3, 3)))).all()
    assert np.isfinite(precision_matrix(np.ones((3, 3)))).all()


def test_nothing_to_remove() -> None:
    order, costs = eliminate([], 0)
    assert order.size == costs.size == 0


def factor_covariances(rng: np.random.Generator, fitted: int, width: int = 40) -> tuple[Array, Array, Array]:
    """Covariances over few and over many rows, and the true one, of channels that share five factors."""
    loadings = rng.standard_normal((5, width))
    truth = loadings.T @ loadings + 0.3 * np.eye(width)
    root = np.linalg.cholesky(truth)
    few, many = (rng.standard_normal((count, width)) @ root.T for count in (fitted, 4000))
    return few.T @ few / fitted, many.T @ many / len(many), truth


def test_the_ridge_grows_as_rows_get_few() -> None:
    ridges = [best_ridge(*factor_covariances(np.random.default_rng(0), count)[:2]) for count in (4000, 100, 20)]
    assert ridges == sorted(ridges) and ridges[0] < ridges[-1]


def test_a_ridge_by_held_out_rows_does_not_trust_fewer_rows_than_channels() -> None:
    """The variance that others cannot predict is not underestimated; without the choice it nearly vanishes."""
    few, many, truth = factor_covariances(np.random.default_rng(1), 20)
    true = 1 / np.diag(np.linalg.inv(truth))
    chosen = 1 / np.diag(precision_matrix(few, (few, many)))
    trusting = 1 / np.diag(precision_matrix(few))
    assert np.median(trusting / true) < 0.05
    assert np.median(chosen / true) > 1
    assert (chosen <= 2 * np.diag(few) * (1 + 1e-6)).all()


def test_scaling_channels_scales_their_precision() -> None:
    few, many, _ = factor_covariances(np.random.default_rng(2), 30)
    scale = np.exp(np.random.default_rng(3).normal(size=len(few)))
    square = np.outer(scale, scale)
    scaled = precision_matrix(few * square, (few * square, many * square))
    np.testing.assert_allclose(scaled, precision_matrix(few, (few, many)) / square, rtol=1e-6)


def test_wide_matrices_are_inverted_as_precisely_as_the_ridge_asks_for() -> None:
    rng = np.random.default_rng(4)
    samples = rng.standard_normal((600, 300)) @ rng.standard_normal((300, 300))
    covariance = samples.T @ samples / 600
    precision = precision_matrix(covariance, (covariance, np.diag(np.diag(covariance))))
    ridge = best_ridge(covariance, np.diag(np.diag(covariance)))
    expected = np.linalg.inv(covariance + ridge * np.diag(np.diag(covariance)))
    np.testing.assert_allclose(precision, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_ridge_is_judged_on_some_of_many_channels_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many channels, columns of the inverse are computed for at most twice ``JUDGED_CHANNELS``."""
    widths = []
    inverse_columns = obs._inverse_columns

    def counted(correlation: Array, ridge: float, chosen: Array) -> Array:
        widths.append(len(chosen))
        return inverse_columns(correlation, ridge, chosen)

    monkeypatch.setattr(obs, "_inverse_columns", counted)
    for rows in (20, 100, 4000):
        few, many, _ = factor_covariances(np.random.default_rng(5), rows, 300)
        some = best_ridge(few, many)
        assert max(widths) < 2 * obs.JUDGED_CHANNELS
        with monkeypatch.context() as whole:
            whole.setattr(obs, "JUDGED_CHANNELS", 300)
            assert best_ridge(few, many) == some
        widths.clear()
