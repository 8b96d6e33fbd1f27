"""Weights as integers: scales by search, and rounding whose errors the remaining weights make up for."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from leanonnx.numeric import rounding
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.rounding import (
    LARGEST_INTEGERS,
    channel_scales,
    round_compensated,
    round_nearest,
    rounding_errors,
)

SHAPES = [(1, 8, 9), (1, 5, 150), (12, 1, 9), (3, 4, 20)]


def problem(seed: int, groups: int, outputs: int, columns: int, rows: int = 0) -> tuple[Array, Array, Array]:
    """Kernels, second moments of correlated patches with a mean, and scales of the largest weights."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, columns, columns)) * np.exp(-2 * np.arange(columns) / columns)
    patches = rng.standard_normal((groups, rows or 4 * columns, columns)) @ mixing.swapaxes(1, 2) + rng.random(columns)
    weights = rng.standard_normal((groups, outputs, columns))
    moment = patches.swapaxes(1, 2) @ patches / patches.shape[1]
    return weights, moment, channel_scales(weights, factors=(1.0,))


def total(weights: Array, integers: Array, scales: Array, moment: Array) -> float:
    return float(rounding_errors(weights, integers, scales, moment).sum())


@pytest.mark.parametrize("order", ["diagonal", "natural"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 7])
def test_errors_are_much_smaller_than_of_the_nearest_integers(order, shape, bits):
    ratios = []
    for seed in range(5):
        weights, moment, _ = problem(seed, *shape)
        scales = channel_scales(weights, bits)
        new = round_compensated(weights, moment, scales, bits, order=order)
        assert new.dtype == np.int8
        assert np.abs(new.astype(int)).max() <= LARGEST_INTEGERS[bits]
        nearest = round_nearest(weights, scales, bits)
        ratios.append(total(weights, new, scales, moment) / total(weights, nearest, scales, moment))
        before, after = (rounding_errors(weights, each, scales, moment) for each in (nearest, new))
        assert (after <= before).all()
    assert np.mean(ratios) < 0.75


@pytest.mark.parametrize("seed", range(20))
def test_no_output_is_worse_even_where_the_order_and_the_damping_are_bad(seed):
    weights, moment, scales = problem(seed, 2, 6, 12, rows=5)
    new = round_compensated(weights, moment, scales, order="natural", damping=1e-9, sweeps=0)
    errors = rounding_errors(weights, new, scales, moment)
    assert (errors <= rounding_errors(weights, round_nearest(weights, scales), scales, moment)).all()


def test_small_problems_are_solved_almost_as_well_as_by_trying_all_integers():
    ours = best = 0.0
    for seed in range(10):
        weights, moment, scales = problem(seed, 1, 1, 4)
        lowest = np.floor(weights / scales[:, :, None])
        choices = [lowest + np.array(step) for step in product((-1, 0, 1, 2), repeat=4)]
        kept = [each for each in choices if np.abs(each).max() <= 127]
        best += min(total(weights, each, scales, moment) for each in kept)
        ours += total(weights, round_compensated(weights, moment, scales, damping=0.0), scales, moment)
    assert best <= ours < 1.5 * best


def test_it_is_the_rounding_of_gptq():
    """Without sweeps and clipping: the error of each column goes to the later ones by the factor of the inverse."""
    weights, moment, scales = problem(1, 1, 6, 30)
    scales = scales * 1.5
    inverse = np.linalg.inv(moment[0] + 0.01 * np.diag(moment[0]).mean() * np.eye(30))
    factor = np.linalg.cholesky(inverse).T
    rest, expected = weights[0] / scales[0][:, None], np.empty((6, 30))
    for column in range(30):
        expected[:, column] = np.rint(rest[:, column])
        error = (rest[:, column] - expected[:, column]) / factor[column, column]
        rest[:, column:] -= error[:, None] * factor[column, column:]
    new = round_compensated(weights, moment, scales, order="natural", sweeps=0)[0]
    better = rounding_errors(weights, expected[None], scales, moment) < rounding_errors(
        weights, round_nearest(weights, scales), scales, moment
    )
    assert better.sum() >= 4
    assert np.array_equal(new[better[0]], expected[better[0]])


@pytest.mark.parametrize("bits", [8, 7])
def test_weights_on_the_grid_stay(bits):
    rng = np.random.default_rng(0)
    limit = LARGEST_INTEGERS[bits]
    wanted = rng.integers(-limit, limit + 1, (2, 5, 18))
    wanted[:, :, 0] = limit
    _, moment, _ = problem(0, 2, 5, 18)
    for scale in (0.25, 0.0137):
        weights = (wanted * np.float32(scale)).astype(np.float32)
        scales = channel_scales(weights, bits)
        assert np.array_equal(round_compensated(weights, moment, scales, bits), wanted)


def test_outputs_do_not_depend_on_each_other():
    weights, moment, scales = problem(3, 2, 7, 20)
    whole = round_compensated(weights, moment, scales)
    rows = np.array([4, 0, 6])
    assert np.array_equal(round_compensated(weights[:, rows], moment, scales[:, rows]), whole[:, rows])


def test_the_order_of_columns_and_groups_does_not_matter():
    weights, moment, scales = problem(4, 3, 5, 70)
    whole = round_compensated(weights, moment, scales)
    columns = np.random.default_rng(0).permutation(70)
    moved = round_compensated(weights[:, :, columns], moment[:, columns][:, :, columns], scales)
    assert np.array_equal(moved, whole[:, :, columns])
    assert np.array_equal(round_compensated(weights[::-1], moment[::-1], scales[::-1]), whole[::-1])


def test_the_unit_of_the_inputs_and_of_the_weights_does_not_matter():
    weights, moment, scales = problem(5, 1, 5, 20)
    whole = round_compensated(weights, moment, scales)
    assert np.array_equal(round_compensated(weights * 4, moment / 64, scales * 4), whole)


def test_without_correlation_the_nearest_integers_are_best():
    weights, _, scales = problem(6, 2, 5, 20)
    moment = np.stack([np.diag(np.arange(20.0))] * 2)
    assert np.array_equal(round_compensated(weights, moment, scales), round_nearest(weights, scales))


def test_columns_that_are_never_read_are_rounded_to_the_nearest():
    weights, moment, scales = problem(7, 1, 5, 20)
    moment[:, 3], moment[:, :, 3] = 0, 0
    nearest = round_nearest(weights, scales)
    assert np.array_equal(round_compensated(weights, moment, scales)[:, :, 3], nearest[:, :, 3])
    assert np.array_equal(round_compensated(weights, 0 * moment, scales), nearest)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_change_nothing(block, monkeypatch):
    weights, moment, scales = problem(8, 1, 5, 150)
    whole = round_compensated(weights, moment, scales)
    monkeypatch.setattr(rounding, "COLUMNS_PER_BLOCK", block)
    assert np.array_equal(round_compensated(weights, moment, scales), whole)


def test_a_moment_that_rounding_made_indefinite_is_damped_more():
    weights, moment, scales = problem(9, 1, 5, 30, rows=10)
    moment = moment - 0.05 * np.diag(moment[0]).mean() * np.eye(30)
    assert np.linalg.eigvalsh(moment[0])[0] < 0
    new = round_compensated(weights, moment, scales, damping=1e-6)
    assert np.abs(new * scales[:, :, None] - weights).max() < 1


def test_clipping_errors_are_made_up_for_too():
    weights, moment, scales = problem(10, 1, 5, 20)
    tight = scales / 4
    new = round_compensated(weights, moment, tight)
    assert np.abs(new.astype(int)).max() == 127
    assert total(weights, new, tight, moment) < 0.8 * total(weights, round_nearest(weights, tight), tight, moment)


@pytest.mark.parametrize("bits", [8, 7])
def test_scales_are_the_best_of_those_tried(bits):
    weights, moment, _ = problem(11, 2, 6, 12)
    weights[0, 0, 0] = 9
    importance = np.diagonal(moment, axis1=1, axis2=2)
    factors = tuple(np.linspace(1, 0.4, 50))
    scales = channel_scales(weights, bits, importance, factors)
    limit = LARGEST_INTEGERS[bits]
    for group, output in np.ndindex(2, 6):
        row = weights[group, output]
        tried = [np.float32(np.abs(row).max() * factor / limit) for factor in factors]
        errors = [
            (importance[group] * (row - step * np.clip(np.rint(row / step), -limit, limit)) ** 2).sum()
            for step in tried
        ]
        assert scales[group, output] == tried[int(np.argmin(errors))]


def test_a_weight_that_no_input_reaches_does_not_set_the_scale():
    weights = np.array([[[100.0, *np.linspace(-1, 1, 30)]]])
    importance = np.array([[0.0, *np.ones(30)]])
    factors = tuple(np.geomspace(1, 0.005, 100))
    assert channel_scales(weights, 8, importance, factors) < 0.02 * channel_scales(weights, 8, None, factors)


def test_channels_of_zeros_have_the_scale_one():
    weights = np.zeros((1, 2, 3))
    weights[0, 1] = 1e-42
    scales = channel_scales(weights, importance=np.zeros((1, 3)))
    assert scales[0, 0] == 1
    assert 0 < scales[0, 1] < 1e-30
    assert np.array_equal(round_compensated(weights, np.eye(3)[None], scales), np.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, m, s: (w[0], m, s), r"expected \[G, O, K\]"),
        (lambda w, m, s: (w, m[:, 1:], s), r"expected \[G, O, K\]"),
        (lambda w, m, s: (w, m, s[:, 1:]), r"expected \[G, O, K\]"),
        (lambda w, m, s: (w, m, -s), "positive"),
        (lambda w, m, s: (w * np.nan, m, s), "finite"),
    ],
)
def test_bad_arguments_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        round_compensated(*wrong(*problem(0, 1, 4, 6)))
