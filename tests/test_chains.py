"""Chains against the enumeration of all paths of small graphs."""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from math import isclose, log
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanonnx.numeric import chains
from leanonnx.numeric.chains import (
    Block,
    Chain,
    best_chain,
    best_from_starts,
    best_through,
    best_to_ends,
    extract_chains,
    normalise_rows,
)


class Link(NamedTuple):
    """One edge; ``place`` orders equal ones, ``octaves`` is an integer where the gain is a power of two."""

    source: int
    target: int
    place: tuple[int, int, int, int]
    octaves: float
    counted: bool


class Graph(NamedTuple):
    n: int
    blocks: list[Block]
    starts: np.ndarray
    ends: np.ndarray


Path = tuple[int, tuple[Link, ...]]


def links(blocks: Sequence[Block], zero: float | None = None) -> list[Link]:
    """All edges one by one; those of zero gain have ``zero`` octaves, or are left out."""
    found = []
    for b, block in enumerate(blocks):
        for (g, o, i), gain in np.ndenumerate(block.gains):
            octaves = float(np.log2(np.float64(gain))) if gain > 0 else zero
            if octaves is not None:
                ends = int(block.sources[g, i]), int(block.destinations[g, o])
                found.append(Link(*ends, (b, g, i, o), octaves, block.is_counted))
    return found


def paths(edges: Sequence[Link], starts: Sequence[int], ends: Sequence[int]) -> Iterator[Path]:
    """Every path from a start to an end, that of no edge included, as (start, edges)."""
    for start in sorted({int(start) for start in starts}):
        stack: list[tuple[int, tuple[Link, ...]]] = [(start, ())]
        while stack:
            channel_id, path = stack.pop()
            if channel_id in set(map(int, ends)):
                yield start, path
            stack += [(edge.target, (*path, edge)) for edge in edges if edge.source == channel_id]


def octaves(path: Path) -> float:
    return sum(edge.octaves for edge in path[1])


def channel_ids(path: Path) -> tuple[int, ...]:
    return (path[0], *(edge.target for edge in path[1]))


def first_of_the_best(found: list[Path], *, kernels: bool) -> Path:
    """The documented tie rule: stop if possible, else (``kernels``) a rest without kernels, else the lowest edge."""
    top = max(map(octaves, found))
    tied = [path for path in found if octaves(path) == top]
    tied = [path for path in tied if path[0] == min(path[0] for path in tied)]
    depth = 0
    while True:
        done = not kernels or any(edge.counted for edge in tied[0][1][:depth])
        if done and any(len(path[1]) == depth for path in tied):
            return next(path for path in tied if len(path[1]) == depth)
        plain = [path for path in tied if not any(edge.counted for edge in path[1][depth:])]
        tied = plain if kernels and done and plain else [path for path in tied if len(path[1]) > depth]
        lowest = min(path[1][depth].place for path in tied)
        tied = [path for path in tied if path[1][depth].place == lowest]
        depth += 1


def extract_by_enumeration(graph: Graph, mode: str) -> Iterator[Chain]:
    edges = links(graph.blocks)
    starts, ends = (range(graph.n), range(graph.n)) if mode == "free" else (graph.starts, graph.ends)
    while found := [path for path in paths(edges, starts, ends) if any(edge.counted for edge in path[1])]:
        best = first_of_the_best(found, kernels=True)
        used = [edge for edge in best[1] if edge.counted]
        edges = [edge for edge in edges if edge not in used]
        kernels = tuple((b, g, o, i) for b, g, i, o in (edge.place for edge in used))
        yield Chain(octaves(best) * log(2), channel_ids(best), kernels)


def assert_same(found: Sequence[Chain], expected: Sequence[Chain]) -> None:
    assert [(chain.channel_ids, chain.kernels) for chain in found] == [
        (chain.channel_ids, chain.kernels) for chain in expected
    ]
    assert all(isclose(a.value, b.value, abs_tol=1e-5) for a, b in zip(found, expected, strict=True))


def random_graph(seed: int, *, powers: bool, layers: int) -> Graph:
    """A few small layers: dense, grouped, diagonal, additions and parallel edges out of one channel id."""
    rng = np.random.default_rng(seed)
    starts = np.arange(rng.integers(1, 3))
    n, blocks = len(starts), []

    def gains(*shape: int) -> np.ndarray:
        drawn = 2.0 ** rng.integers(-2, 3, shape) if powers else rng.lognormal(size=shape)
        return (drawn * (rng.random(shape) > 0.15)).astype(np.float32)

    for _ in range(layers):
        kind = rng.choice(["dense", "grouped", "diagonal", "add"])
        groups = {"dense": 1, "grouped": 2}.get(kind, int(rng.integers(1, 4)))
        ins, outs = (int(rng.integers(1, 4)), int(rng.integers(1, 3))) if kind in {"dense", "grouped"} else (1, 1)
        targets = np.arange(n, n + groups * outs).reshape(groups, outs)
        for _ in range(2 if kind == "add" else 1):
            counted = kind != "add" and bool(rng.random() < 0.8)
            weights = np.ones((groups, 1, 1), np.float32) if kind == "add" else gains(groups, outs, ins)
            blocks.append(
                Block(
                    sources=rng.integers(0, n, (groups, ins)), destinations=targets, gains=weights, is_counted=counted
                )
            )
        n += targets.size
    return Graph(n, blocks, starts, np.unique(rng.integers(n // 2, n, 2)))


def graphs(*, powers: bool, layers: int = 4) -> st.SearchStrategy[Graph]:
    """Powers of two make ties, which are exact in the oracle as well; lognormal gains make none."""
    return st.integers(0, 2**32 - 1).map(lambda seed: random_graph(seed, powers=powers, layers=layers))


checked = settings(deadline=None, max_examples=150)


@checked
@given(graphs(powers=False), st.sampled_from([1, 5, 1 << 17]))
def test_sweeps_find_the_best_of_all_paths(graph: Graph, tile: int) -> None:
    n, blocks, starts, ends = graph
    ahead, behind, through = (np.full(n, -np.inf) for _ in range(3))
    for path in paths(links(blocks), starts, range(n)):
        ahead[channel_ids(path)[-1]] = max(ahead[channel_ids(path)[-1]], octaves(path))
    for path in paths(links(blocks), range(n), ends):
        behind[path[0]] = max(behind[path[0]], octaves(path))
    for path in paths(links(blocks), starts, ends):
        through[list(channel_ids(path))] = np.maximum(through[list(channel_ids(path))], octaves(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "MAX_TILE_EDGES", tile)
        for found, octave in (
            (best_from_starts(n, blocks, starts), ahead),
            (best_to_ends(n, blocks, ends), behind),
            (best_through(n, blocks, starts, ends), through),
        ):
            np.testing.assert_allclose(found, octave * log(2), atol=1e-5)


@checked
@given(graphs(powers=True))
def test_best_chain_is_the_best_path_and_zero_gains_are_a_last_resort(graph: Graph) -> None:
    n, blocks, starts, ends = graph
    found = list(paths(links(blocks, zero=chains.ZERO_GAIN_OCTAVES), starts, ends))
    expected = channel_ids(first_of_the_best(found, kernels=False)) if found else ()
    assert best_chain(n, blocks, starts, ends) == expected


@checked
@given(graphs(powers=True), st.sampled_from(["through", "free"]), st.sampled_from([1, 1 << 15]))
def test_extraction_with_ties_is_that_of_the_enumeration(graph: Graph, mode: str, edges_per_step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "EDGES_PER_STEP", edges_per_step)
        found = list(extract_chains(*graph, mode))  # type: ignore[arg-type]
    assert_same(found, list(extract_by_enumeration(graph, mode)))


@checked
@given(graphs(powers=False), st.sampled_from(["through", "free"]))
def test_extraction_without_ties_is_that_of_the_enumeration(graph: Graph, mode: str) -> None:
    assert_same(list(extract_chains(*graph, mode)), list(extract_by_enumeration(graph, mode)))  # type: ignore[arg-type]


@checked
@given(graphs(powers=False, layers=12), st.sampled_from(["through", "free"]))
def test_chains_are_connected_disjoint_descending_and_complete(graph: Graph, mode: str) -> None:
    """Properties that hold on graphs too large to enumerate."""
    found = list(extract_chains(*graph, mode))  # type: ignore[arg-type]
    edges = {edge.place: edge for edge in links(graph.blocks)}
    kernels = [kernel for chain in found for kernel in chain.kernels]
    assert len(kernels) == len(set(kernels))
    assert all(before.value >= after.value for before, after in pairwise(found))
    for chain in found:
        steps = set(pairwise(chain.channel_ids))
        used = [edges[b, g, i, o] for b, g, o, i in chain.kernels]
        assert used
        assert {(edge.source, edge.target) for edge in used} <= steps
        if mode == "through":
            assert chain.channel_ids[0] in graph.starts
            assert chain.channel_ids[-1] in graph.ends
    if mode == "free":
        assert {(b, g, i, o) for b, g, o, i in kernels} == {edge.place for edge in edges.values() if edge.counted}


def rescaled(graph: Graph, channel_id: int, factor: float) -> list[Block]:
    """Every gain into the channel id times ``factor``, every gain out of it divided by ``factor``."""
    return [
        Block(
            sources=block.sources,
            destinations=block.destinations,
            gains=block.gains
            * np.where(block.destinations == channel_id, factor, 1)[:, :, None].astype(np.float32)
            / np.where(block.sources == channel_id, factor, 1)[:, None, :].astype(np.float32),
            is_counted=block.is_counted,
        )
        for block in graph.blocks
    ]


@checked
@given(graphs(powers=False, layers=8), graphs(powers=True, layers=8), st.integers(-6, 6), st.data())
def test_through_chains_do_not_see_a_rescaled_channel(
    generic: Graph, tied: Graph, exponent: int, data: st.DataObject
) -> None:
    for graph in (generic, tied):
        inner = sorted(set(range(graph.n)) - set(graph.starts.tolist()) - set(graph.ends.tolist()))
        if inner:
            blocks = rescaled(graph, data.draw(st.sampled_from(inner)), 2.0**exponent)
            assert list(extract_chains(graph.n, blocks, graph.starts, graph.ends, "through")) == list(
                extract_chains(*graph, "through")
            )
            np.testing.assert_array_equal(
                best_through(graph.n, blocks, graph.starts, graph.ends)[graph.starts],
                best_through(*graph)[graph.starts],
            )


def line(*gains: float, counted: Sequence[bool] | None = None) -> Graph:
    """One channel per layer."""
    flags = counted or [True] * len(gains)
    blocks = [
        Block(
            sources=np.array([[channel_id]]),
            destinations=np.array([[channel_id + 1]]),
            gains=np.full((1, 1, 1), gain, np.float32),
            is_counted=flag,
        )
        for channel_id, (gain, flag) in enumerate(zip(gains, flags, strict=True))
    ]
    return Graph(len(gains) + 1, blocks, np.array([0]), np.array([len(gains)]))


def test_free_chains_do_see_a_rescaled_channel() -> None:
    graph = line(2, 2)
    moved = Graph(3, rescaled(graph, 1, 4.0), graph.starts, graph.ends)
    assert [chain.channel_ids for chain in extract_chains(*graph, "free")] == [(0, 1, 2)]
    assert [chain.channel_ids for chain in extract_chains(*moved, "free")] == [(0, 1), (1, 2)]
    assert [chain.channel_ids for chain in extract_chains(*moved, "through")] == [(0, 1, 2)]


def test_free_chains_of_weak_kernels_are_single_kernels_in_order() -> None:
    graph = line(0.25, 0.75, 0.5)
    assert [chain.channel_ids for chain in extract_chains(*graph, "free")] == [(1, 2), (2, 3), (0, 1)]


def test_fixed_edges_lengthen_chains_and_never_make_one() -> None:
    graph = line(3, 0.5, 1, 5, counted=[False, True, False, False])
    assert [chain.channel_ids for chain in extract_chains(*graph, "free")] == [(0, 1, 2, 3, 4)]
    assert list(extract_chains(*line(3, 5, counted=[False, False]), "free")) == []
    assert list(extract_chains(*line(3, 5, counted=[False, False]), "through")) == []
    plain = line(0.5, 2, 1, counted=[False, True, False])
    assert [chain.channel_ids for chain in extract_chains(*plain, "free")] == [(1, 2)]
    assert [chain.channel_ids for chain in extract_chains(*plain, "through")] == [(0, 1, 2, 3)]


def test_chains_longer_than_the_range_of_float32() -> None:
    for gain in (1e-3, 1e3):
        (chain,) = extract_chains(*line(*[gain] * 200), "through")
        assert isclose(chain.value, 200 * log(gain), rel_tol=1e-6)
        assert len(chain.kernels) == 200


def test_equal_chains_are_equal_in_any_order_of_summation() -> None:
    """All channels of one chain have the same value through them, bit by bit."""
    gains = np.random.default_rng(0).lognormal(size=120).astype(np.float32)
    graph = line(*gains.tolist())
    through = best_through(*graph)
    assert len(set(through.tolist())) == 1
    assert isclose(through[0], float(np.log(gains.astype(np.float64)).sum()), abs_tol=1e-4)


def test_best_chain_without_gain_and_without_path() -> None:
    assert best_chain(*line(0, 2, 0)) == (0, 1, 2, 3)
    graph = line(1, 1)
    assert best_chain(3, graph.blocks[:1], graph.starts, graph.ends) == ()
    assert best_chain(3, [], np.array([1]), np.array([1])) == (1,)
    assert best_chain(3, [], np.array([], np.int64), np.array([1])) == ()
    assert list(extract_chains(3, [], np.array([1]), np.array([1]), "through")) == []


def test_inputs_are_left_alone_and_chains_come_lazily_in_the_same_order() -> None:
    graph = random_graph(3, powers=False, layers=12)
    before = [block.gains.copy() for block in graph.blocks]
    whole = list(extract_chains(*graph, "free"))
    assert list(islice(extract_chains(*graph, "free"), 3)) == whole[:3]
    shuffled = graph._replace(starts=graph.starts[::-1], ends=np.repeat(graph.ends, 2)[::-1])
    assert list(extract_chains(*shuffled, "through")) == list(extract_chains(*graph, "through"))
    assert all(np.array_equal(block.gains, old) for block, old in zip(graph.blocks, before, strict=True))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_rows_are_normalised_over_all_edges_into_a_target(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(5, 8, (3, 2))
    gains = (rng.lognormal(size=(3, 2, 4)) * (rng.random((3, 2, 1)) > 0.2)).astype(np.float32)
    scaled = normalise_rows(
        Block(sources=rng.integers(0, 5, (3, 4)), destinations=targets, gains=gains, is_counted=True)
    )
    for target in set(targets.ravel().tolist()):
        row, old = scaled.gains[targets == target], gains[targets == target]
        np.testing.assert_allclose(row, old / (np.sqrt((old**2).sum()) or 1), rtol=1e-5)
    fixed = Block(sources=targets - 5, destinations=targets, gains=np.full((3, 2, 2), 7, np.float32), is_counted=False)
    assert normalise_rows(fixed) is fixed


def without_parallel_edges(n: int, blocks: Sequence[Block]) -> list[list[tuple[int, slice]]]:
    fans = chains_fans(n, blocks)
    return [[(b, slice(rows.start, rows.start + 1)) for b, rows in fan] for fan in fans]


def last_of_equals(values: np.ndarray, which: np.ndarray) -> int:
    return chains_highest(values, which[::-1])


def without_removal(search: chains._Search, steps: list[chains._Step]) -> Chain:
    before = [log2.copy() for log2 in search.logs]
    chain = chains_remove(search, steps)
    search.logs[:] = before
    return chain


chains_fans, chains_highest, chains_remove = chains._fans, chains._highest, chains._remove
MUTANTS = {"_fans": without_parallel_edges, "_highest": last_of_equals, "_remove": without_removal}


@pytest.mark.parametrize("name", MUTANTS)
def test_oracle_kills_mutants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel edges dropped, ties to the highest start, kernels not removed: each changes the sequence."""
    blocks = [
        Block(
            sources=np.array([[0, 0], [1, 1]]),
            destinations=np.array([[2], [3]]),
            gains=np.ones((2, 1, 2), np.float32),
            is_counted=True,
        ),
        Block(
            sources=np.array([[2, 3]]),
            destinations=np.array([[4, 5]]),
            gains=np.full((1, 2, 2), 2, np.float32),
            is_counted=True,
        ),
    ]
    graph = Graph(6, blocks, np.array([0, 1]), np.array([4, 5]))
    expected = list(extract_by_enumeration(graph, "through"))
    assert len(expected) == 4
    assert_same(list(extract_chains(*graph, "through")), expected)
    monkeypatch.setattr(chains, name, MUTANTS[name])
    assert list(islice(extract_chains(*graph, "through"), 8)) != expected


@pytest.mark.parametrize("gains", [(2, 3), (1, 3, 2), (1, 2, 1)])
def test_gains_of_another_shape_are_an_error(gains: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[G, I\], \[G, O\], \[G, O, I\]"):
        Block(
            sources=np.zeros((1, 3), int),
            destinations=np.zeros((1, 2), int),
            gains=np.ones(gains, np.float32),
            is_counted=True,
        )
