"""Widths on a grid: of any ranking, any number kept and any budget."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.calibrate.probes import mobile_network, residual_network
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.numeric.channel_ids import Mask
from leanonnx.selection.allocator import WidthAllocator
from leanonnx.selection.exchange import exchange_widths
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, Selector
from leanonnx.selection.widths import Alignment, WidthGrid
from tests.helpers import saved

ALIGNMENTS = st.builds(Alignment, st.integers(1, 20), st.sampled_from((1, 2, 4)))


@st.composite
def grids(draw: st.DrawFn) -> WidthGrid:
    """A grid of layers of any size, the steps as a network has them."""
    alignment = draw(ALIGNMENTS)
    sizes = np.array(draw(st.lists(st.integers(1, 70), min_size=1, max_size=6)))
    layers = np.repeat(np.arange(sizes.size), sizes)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    order = np.lexsort((rng.random(layers.size), layers))
    steps = np.minimum(np.where(alignment.block > sizes, alignment.multiple, alignment.block), sizes)
    return WidthGrid(layers, order, np.cumsum(sizes) - sizes, sizes, steps, alignment)


@st.composite
def kept(draw: st.DrawFn) -> tuple[WidthGrid, Mask, Mask, int]:
    """A grid, two keep sets the first of which lies in the second, and a floor as the search uses them."""
    grid = draw(grids())
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    rank = rng.permutation(grid.order.size)
    few, many = sorted(draw(st.integers(0, grid.order.size)) for _ in range(2))
    floors = [grid.alignment.block >> power for power in range(grid.alignment.block.bit_length())]
    return grid, rank < few, rank < many, draw(st.sampled_from(floors))


THRESHOLDS = st.floats(0.01, 1)


@given(kept(), THRESHOLDS)
def test_widths_lie_on_the_grid(case: tuple[WidthGrid, Mask, Mask, int], threshold: float) -> None:
    grid, keep, _, floor = case
    widths = grid.kept_counts(grid.round_widths(keep, floor, threshold))
    fine = np.minimum(grid.steps, floor)
    step = np.where(widths > grid.steps, grid.steps, fine)
    assert np.all((widths % step == 0) | (widths % grid.steps == 0) | (widths == grid.sizes))
    assert np.all(widths <= grid.sizes)
    assert np.array_equal(widths > 0, grid.kept_counts(keep) > 0)


@given(kept(), THRESHOLDS)
def test_more_kept_is_nowhere_narrower(case: tuple[WidthGrid, Mask, Mask, int], threshold: float) -> None:
    grid, few, many, floor = case
    narrow, wide = (grid.kept_counts(grid.round_widths(keep, floor, threshold)) for keep in (few, many))
    assert np.all(narrow <= wide)


@pytest.mark.parametrize("block", [4, 6, 8, 14, 16])
@pytest.mark.parametrize("size", [3, 16, 31, 40])
def test_every_number_kept_in_one_layer(block: int, size: int) -> None:
    """All of them, on each grid of the search: steps that do not divide the block included."""
    counts = np.arange(size + 1)
    step = min(block if block <= size else 2, size)
    grid = WidthGrid(
        np.zeros(size, int), np.arange(size), np.array([0]), *map(np.array, ([size], [step])), Alignment(block, 2)
    )
    for floor in [block >> power for power in range(block.bit_length())]:
        for threshold in (0.01, 0.5, 1.0):
            widths = [int(grid.round_widths(np.arange(size) < count, floor, threshold).sum()) for count in counts]
            assert widths == sorted(widths)
            assert (widths[0], widths[-1]) == (0, size)
            assert step in widths


@given(kept(), THRESHOLDS, THRESHOLDS)
def test_a_lower_threshold_keeps_more(case: tuple[WidthGrid, Mask, Mask, int], one: float, other: float) -> None:
    grid, keep, _, floor = case
    low, high = sorted((one, other))
    assert np.all(grid.round_widths(keep, floor, low) >= grid.round_widths(keep, floor, high))


@given(kept(), THRESHOLDS)
def test_rounding_moves_a_width_by_less_than_a_step(case: tuple[WidthGrid, Mask, Mask, int], threshold: float) -> None:
    grid, keep, _, floor = case
    before = grid.kept_counts(keep)
    after = grid.kept_counts(grid.round_widths(keep, floor, threshold))
    assert np.all(np.abs(after - before) < grid.steps)


@given(kept(), THRESHOLDS)
def test_the_channels_most_worth_keeping_are_kept(case: tuple[WidthGrid, Mask, Mask, int], threshold: float) -> None:
    grid, keep, _, floor = case
    found = grid.round_widths(keep, floor, threshold)
    for start, size in zip(grid.starts, grid.sizes, strict=True):
        layer = found[grid.order[start : start + size]]
        assert np.array_equal(layer, np.sort(layer)[::-1])


@given(kept())
def test_wider_is_the_next_width(case: tuple[WidthGrid, Mask, Mask, int]) -> None:
    grid, keep, _, floor = case
    widths = grid.kept_counts(grid.round_widths(keep, floor, 0.5))
    wider = grid.widen(widths, floor)
    assert np.all((wider > widths) | (widths == grid.sizes) | (widths == 0))
    assert np.all(wider <= grid.sizes)
    assert np.all(wider[widths == 0] == 0)


# the result of the search

NETWORKS = {"residual": residual_network, "mobile": mobile_network}


@cache
def dag_of(name: str, stem: int, inner: int) -> ChannelDag:
    with tempfile.TemporaryDirectory() as folder:
        return load_dag(saved(NETWORKS[name](stem, inner, 4), Path(folder) / "model.onnx"))


def keeper_of(dag: ChannelDag, alignment: Alignment, seed: int) -> WidthAllocator:
    request = SelectionRequest(
        budget=Budget("macs", 0.5),
        method="random",
        chains="cover",
        pinned=(),
        ignored=frozenset(),
        seed=seed,
        best_effort=True,
        alignment=alignment,
    )
    return Selector(dag, request).allocator


@settings(max_examples=settings.default.max_examples // 3)
@given(
    st.sampled_from(sorted(NETWORKS)),
    st.integers(1, 10),
    st.integers(1, 10),
    st.sampled_from((Alignment(8, 4), Alignment(16, 4), Alignment(4, 1), Alignment(12, 12), Alignment(7, 7))),
    st.sampled_from(("kernels", "macs", "params")),
    st.floats(0.02, 0.98),
    st.integers(0, 9),
)
def test_budgets_hold_at_widths_of_the_grid(
    name: str, stem: int, inner: int, alignment: Alignment, unit: str, fraction: float, seed: int
) -> None:
    dag = dag_of(name, 5 * stem, 7 * inner)
    keeper, cost = keeper_of(dag, alignment, seed), cost_model(dag)
    total = getattr(cost(np.ones(dag.count, bool)), unit)

    def spent(alive: Mask) -> float:
        return float(getattr(cost(alive), unit) / (fraction * total))

    found = keeper.keep_largest(spent)
    assert spent(found) <= 1 or spent(keeper.keep_prefix(0)) > 1
    if spent(keeper.keep_aligned_prefix(0, alignment.block)) <= 1:
        for _, mix in dag.kernel_blocks:
            if mix.taps > 1 or mix.positions > 1:
                check_width(found, mix.sources, alignment)


def check_width(alive: Mask, sources: np.ndarray, alignment: Alignment) -> None:
    """Channels that a convolution reads: a multiple, or as many as there were; of depthwise ones all groups count."""
    width, whole = int(alive[sources].sum()), sources.size
    assert width % alignment.block == 0 or width % alignment.multiple == 0 or width == whole, (width, whole)


@settings(max_examples=settings.default.max_examples // 3)
@given(
    st.sampled_from(sorted(NETWORKS)),
    st.integers(1, 10),
    st.integers(1, 10),
    st.sampled_from((Alignment(16, 4, 16), Alignment(8, 4, 16), Alignment(1, 1, 16))),
    st.floats(0.2, 0.98),
    st.integers(0, 9),
)
def test_layers_trade_widths_for_channels_worth_more(
    name: str, stem: int, inner: int, alignment: Alignment, fraction: float, seed: int
) -> None:
    dag = dag_of(name, 5 * stem, 7 * inner)
    keeper, cost = keeper_of(dag, alignment, seed), cost_model(dag)
    total = cost(np.ones(dag.count, bool)).macs

    def spent(alive: Mask) -> float:
        return float(cost(alive).macs / (fraction * total))

    losses = np.random.default_rng(seed).random(keeper.ranking.order.size) ** 4
    losses[keeper.ranking.order] = np.sort(losses)[::-1]
    trading = WidthAllocator(keeper.weighted, replace(keeper.ranking, losses=losses), (), alignment)
    plain, traded = keeper.keep_largest(spent), trading.keep_largest(spent)
    assert spent(traded) <= 1 or spent(keeper.keep_prefix(0)) > 1

    def worth(alive: Mask) -> float:
        return float(losses[np.unique(trading.groups[alive])].sum())

    assert worth(traded) >= worth(plain) - 1e-9
    if spent(keeper.keep_aligned_prefix(0, alignment.block)) <= 1:
        for _, mix in dag.kernel_blocks:
            if mix.taps > 1 or mix.positions > 1:
                check_width(traded, mix.sources, alignment)


LAYERS = st.lists(st.tuples(st.integers(2, 16), st.floats(0.1, 9)), min_size=1, max_size=5)


@given(LAYERS, st.floats(0.2, 1), st.integers(0, 1 << 32))
def test_an_exchange_keeps_the_more_valuable_within_the_budget(
    layers: list[tuple[int, float]], share: float, seed: int
) -> None:
    grid, prices, rng = grid_of([4 * count for count, _ in layers]), [p for _, p in layers], np.random.default_rng(seed)
    worth = grid.worth(np.concatenate([np.sort(rng.random(size) ** 3)[::-1] for size in grid.sizes]))
    start = np.maximum(grid.sizes * share // 4 * 4, 4).astype(np.int64)
    budget = float(start @ prices) * 1.1
    least = np.full(len(layers), 4)
    found = exchange_widths(grid, start, least, 4, worth, lambda widths: float(widths @ prices) / budget)
    assert found @ prices <= budget
    assert worth(found).sum() >= worth(start).sum()
    assert np.all((found % 4 == 0) & (found >= least) & (found <= grid.sizes))


def test_a_layer_gives_for_one_that_is_worth_more() -> None:
    grid = grid_of([16, 16])
    worth = grid.worth(np.repeat([1.0, 0.01], 16))
    found = exchange_widths(grid, np.array([8, 12]), np.array([4, 4]), 4, worth, lambda w: float(w @ [3, 1]) / 40)
    assert found.tolist() == [12, 4]


def grid_of(sizes: list[int]) -> WidthGrid:
    """A grid of layers with their groups in order, in steps of 4."""
    layers = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes
    return WidthGrid(
        layers, np.arange(layers.size), starts, np.array(sizes), np.full(len(sizes), 4), Alignment(4, 4, 16)
    )


@pytest.mark.parametrize("block", [8, 16])
def test_widths_are_whole_blocks_when_the_budget_is_exhausted(block: int) -> None:
    dag = dag_of("residual", 64, 64)
    cost = cost_model(dag)
    total = cost(np.ones(dag.count, bool)).macs
    found = keeper_of(dag, Alignment(block, 4), 0).keep_largest(lambda alive: cost(alive).macs / (0.5 * total))
    widths = {int(found[mix.sources].sum()) for _, mix in dag.kernel_blocks} - {3}
    assert {width % block for width in widths} == {0}
    assert min(widths) < 64
