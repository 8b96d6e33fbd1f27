"""Ranges of activations against brute force on the samples themselves."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.ranges import Histogram, IntegerGrid, range_by, squared_error

GRIDS = [
    IntegerGrid(signed=signed, bits=bits, symmetric=symmetric)
    for signed, bits, symmetric in product((True, False), (8, 7), (True, False))
    if signed or not symmetric
]


def named(grid: IntegerGrid) -> str:
    return f"{'int' if grid.signed else 'uint'}{grid.bits}{'-symmetric' if grid.symmetric else ''}"


def samples(kind: str, seed: int = 0, count: int = 40_000) -> Array:
    rng = np.random.default_rng(seed)
    draw = {
        "normal": lambda: rng.standard_normal(count) + 0.4,
        "relu": lambda: np.maximum(rng.standard_normal(count), 0),
        "tails": lambda: rng.standard_t(3, count),
        "negative": lambda: -rng.gamma(2, size=count),
        "outlier": lambda: np.append(rng.standard_normal(count), 60.0),
    }[kind]
    return draw().astype(np.float32)


KINDS = ["normal", "relu", "tails", "negative", "outlier"]


def histogram(values: Array) -> Histogram:
    result = Histogram()
    result.add(values)
    return result


def loss(values: Array, grid: IntegerGrid, low: float, high: float) -> float:
    return float(np.square(values - grid.round_trip(values, low, high)).mean())


def test_bounds_of_the_grids():
    bounds = {named(grid): (grid.lowest, grid.highest) for grid in GRIDS}
    assert bounds == {
        "int8-symmetric": (-127, 127),
        "int8": (-128, 127),
        "int7-symmetric": (-64, 64),
        "int7": (-64, 63),
        "uint8": (0, 255),
        "uint7": (0, 127),
    }


@pytest.mark.parametrize("grid", GRIDS, ids=named)
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.7), (0, 5), (-5, 0), (0, 0), (1, 3), (-3, -1), (0, 1e-44)])
def test_zero_and_the_ends_are_represented(grid, low, high):
    scale, zero_point = grid.parameters(low, high)
    assert scale == np.float32(scale) > 0
    assert grid.lowest <= zero_point <= grid.highest
    assert zero_point == 0 or not grid.symmetric
    ends = np.array([min(low, 0), 0, max(high, 0)])
    trip = grid.round_trip(ends, low, high)
    assert trip[1] == 0
    assert np.abs(trip - ends).max() <= scale * 0.501


@pytest.mark.parametrize("wrong", [{"bits": 4, "signed": True}, {"signed": False, "symmetric": True}])
def test_other_grids_are_errors(wrong):
    with pytest.raises(ValueError, match="expected 8 or 7 bits"):
        IntegerGrid(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_their_order_do_not_matter(kind):
    values = samples(kind) * np.float32(3e3)
    whole = histogram(values)
    rng = np.random.default_rng(1)
    for order in (np.arange(values.size), np.abs(values).argsort(), rng.permutation(values.size)):
        parts = Histogram()
        for batch in np.array_split(values[order], 23):
            parts.add(batch.reshape(1, -1))
        assert np.array_equal(parts.counts, whole.counts)
        assert (parts.zeros, parts.low, parts.high, parts.width) == (whole.zeros, whole.low, whole.high, whole.width)


def test_bins_hold_what_lies_in_them():
    values = samples("tails")
    counts = histogram(values)
    edges = (np.arange(counts.counts.size + 1) - counts.counts.size // 2) * counts.width
    assert np.array_equal(np.histogram(values, edges)[0], counts.counts)
    assert counts.total == values.size
    assert np.abs(values).max() <= edges[-1] < 2 * np.abs(values).max()


def test_what_is_not_finite_does_not_count():
    values = np.array([0, 1, np.nan, np.inf, -np.inf, -2], np.float32)
    counts = histogram(values)
    assert (counts.total, counts.zeros, counts.low, counts.high) == (3, 1, -2, 1)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("grid", GRIDS, ids=named)
def test_without_numbers_or_with_zeros_alone_the_range_is_empty(method, grid):
    assert range_by(method, Histogram(), grid) == (0, 0)
    assert range_by(method, histogram(np.zeros((2, 3))), grid) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_extremes(kind):
    values = samples(kind)
    low, high = min(values.min(), 0), max(values.max(), 0)
    assert range_by("minmax", histogram(values), IntegerGrid(signed=False)) == (low, high)
    far = max(-low, high)
    assert range_by("minmax", histogram(values), IntegerGrid(signed=True, symmetric=True)) == (-far, far)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.9, 0.99, 0.9999, 1.0])
def test_percentiles(kind, share):
    values = samples(kind)
    counts = histogram(values)
    low, high = range_by("percentile", counts, IntegerGrid(signed=False), share)
    assert (values > high).mean() <= 1 - share + 1e-12
    assert (values < low).mean() <= 1 - share + 1e-12
    if high > 0:
        assert (values >= high - counts.width).mean() > 1 - share
    if low < 0:
        assert (values <= low + counts.width).mean() > 1 - share


@pytest.mark.parametrize("grid", GRIDS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_the_least_squared_error_is_that_of_trying_all_ranges(grid, kind):
    values = samples(kind, count=4_000)
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    shares = np.geomspace(1, 0.02, 45)
    if grid.symmetric:
        tried = [(-end, end) for end in shares * max(-low, high)]
    else:
        tried = [(a, b) for a, b in product(shares * low if low else [0], shares * high if high else [0])]
    best = min(loss(values, grid, *ends) for ends in tried)
    ours = range_by("mse", histogram(values), grid)
    assert loss(values, grid, *ours) <= 1.03 * best
    assert loss(values, grid, *ours) <= 1.001 * loss(values, grid, low, high)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_by_the_bins_is_that_of_the_samples(kind):
    values, grid = samples(kind), IntegerGrid(signed=True)
    counts = histogram(values)
    for method in ("percentile", "mse"):
        ends = range_by(method, counts, grid)
        assert squared_error(counts, grid, ends) == pytest.approx(loss(values, grid, *ends), rel=0.03)


def test_methods_differ_where_there_is_an_outlier():
    counts, grid = histogram(samples("outlier")), IntegerGrid(signed=True)
    ends = {method: range_by(method, counts, grid)[1] for method in ("minmax", "percentile", "mse")}
    assert ends["minmax"] == 60
    assert ends["percentile"] < 5
    assert ends["percentile"] < ends["mse"] < 60


def test_an_unknown_method_is_an_error():
    with pytest.raises(ValueError, match="expected 'minmax', 'percentile' or 'mse'"):
        range_by("entropy", Histogram(), IntegerGrid(signed=True))
