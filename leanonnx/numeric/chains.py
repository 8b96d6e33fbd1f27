"""Longest multiplicative chains in the channel DAG (Schoonhoven et al. 2020, "LEAN", arXiv 2011.06923).

A chain is a directed path over the edges of a list of blocks; its value is the product of its gains. Three questions:

1. *Sweeps*: the best chain from the starts to a label (``forward``), from a label to the ends (``backward``), through
   a label (``best_through``), and one best chain (``best_chain``). Linear in the number of edges.
2. *Edge-disjoint chains* (``extract``): the best chain, then the best one without its kernels, and so on.
3. *Row scaling* (``normalise_rows``), so that layers of different scale compete fairly.

All sums are exact. Logarithms are taken to base 2 and rounded to ``STEP``, a power of two, so that a sum of them in
float64 has no rounding error, whatever its order: chains of equal value compare equal, and multiplying a channel's
producers by a power of two and dividing its consumers by it changes nothing at all (for gains between 2^-16 and 2^16).
What the public functions return is converted to natural logarithms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float32]
Values = NDArray[np.float64]
Edge = tuple[int, int, int, int]

STEP = 2.0**-20
"""Resolution of the logarithms in octaves (a relative 7e-7 of a gain)."""
TINY = -(2.0**20)
"""Octaves of a zero gain where only the structure is asked for: below any product of positive gains."""
TILE = 1 << 17
"""Edges of one temporary."""
EDGES_PER_STEP = 1 << 15
"""Edges of a sweep for every step that a walk may take before the sweep."""
LN2 = log(2)


@dataclass(frozen=True)
class Block:
    """Edges between channels: ``gains[g, o, i]`` takes ``sources[g, i]`` to ``targets[g, o]``.

    Labels are integers, and every edge goes from a smaller to a larger one. In a list of blocks all edges into a
    block's sources are in earlier blocks. A dense layer is one group; a depthwise one, or identities, are groups of
    one by one. A label may stand several times among the sources (parallel edges) or the targets.
    """

    sources: IntArray
    """int[G, I]"""
    destinations: IntArray
    """int[G, O]"""
    gains: FloatArray
    """float32[G, O, I], finite and >= 0; 0 = no edge."""
    counted: bool
    """True: kernels, which a chain marks. False: fixed edges, walked but neither counted nor removed."""

    def __post_init__(self) -> None:
        wanted = (len(self.sources), self.destinations.shape[-1], self.sources.shape[-1])
        if self.sources.ndim != 2 or self.destinations.ndim != 2 or self.gains.shape != wanted:
            shapes = [array.shape for array in (self.sources, self.destinations, self.gains)]
            raise ValueError(f"sources, targets and gains {shapes}, expected [G, I], [G, O], [G, O, I]")


@dataclass(frozen=True)
class Chain:
    """One chain of ``extract``."""

    value: float
    """Natural logarithm of the product of all gains."""
    channel_ids: tuple[int, ...]
    """The channels in order."""
    kernels: tuple[Edge, ...]
    """(block, g, o, i) of the counted edges in order."""


def forward(n: int, blocks: Sequence[Block], starts: IntArray) -> Values:
    """Natural log of the best chain from any of ``starts`` [s] (0 there at least) to every label: float64[n].

    -inf where there is none.
    """
    return LN2 * _forward(n, blocks, starts)


def backward(n: int, blocks: Sequence[Block], ends: IntArray) -> Values:
    """Natural log of the best chain from every label to any of ``ends`` [e] (0 there at least): float64[n].

    -inf where there is none.
    """
    return LN2 * _backward(n, blocks, ends)


def best_through(n: int, blocks: Sequence[Block], starts: IntArray, ends: IntArray) -> Values:
    """Natural log of the best start-to-end chain through every label: float64[n], -inf where there is none.

    ``starts`` [s] and ``ends`` [e] are labels. This is the order of the *covering chains*. Extract the longest start-
    to-end chain that contains a label not yet covered, cover its labels, repeat: a label is covered at the latest by
    its own best chain, and no chain through it is longer, so labels are covered in descending order of this value, all
    labels of one chain (at the least) together.
    """
    return LN2 * (_forward(n, blocks, starts) + _backward(n, blocks, ends))


def normalise_rows(block: Block) -> Block:
    """The block with the gains into every target divided by their 2-norm; fixed blocks and zero rows as they were."""
    if not block.counted:
        return block
    power = np.einsum("goi,goi->go", block.gains, block.gains, dtype=np.float64)
    norms = np.sqrt(np.bincount(block.destinations.ravel(), weights=power.ravel()))[block.destinations]
    divisor = np.where(norms == 0, 1, norms).astype(np.float32)
    return Block(block.sources, block.destinations, block.gains / divisor[:, :, None], counted=True)


def best_chain(n: int, blocks: Sequence[Block], starts: IntArray, ends: IntArray) -> tuple[int, ...]:
    """Labels of the best start-to-end chain; () if no path exists, zero gains included.

    A zero gain counts as a number below any product of positive ones: of chains that all contain some, one with the
    fewest is best. Ties go to the lowest start, then at every label to its end if it is one, else to the lowest edge
    (block, g, i, o).
    """
    values = _backward(n, blocks, ends, zero=TINY)
    fans, is_end = _fans(n, blocks), _indicator(n, ends)
    channel_id = _highest(values, np.unique(starts))
    channel_ids = [channel_id] if channel_id >= 0 else []
    while channel_ids and not (is_end[channel_id] and values[channel_id] == 0):
        edges = (
            _best_edge(channel_id, b, rows, _rows_out(blocks[b], rows), blocks[b], values)
            for b, rows in fans[channel_id]
        )
        channel_id = max(edges, key=_value).target
        channel_ids.append(channel_id)
    return tuple(channel_ids)


def extract(
    n: int, blocks: Sequence[Block], starts: IntArray, ends: IntArray, mode: Literal["through", "free"]
) -> Iterator[Chain]:
    """Edge-disjoint chains, the longest one first: each one's kernels are removed before the next one is sought.

    Every chain has at least one kernel (an edge of a counted block) of positive gain. Fixed edges stay.

    - ``"through"``: chains from a start to an end, until none is left.
    - ``"free"``: the paper's rule. A chain starts and ends anywhere (``starts`` and ``ends`` are not looked at), so
      that a part with a product below 1 at either side is dropped: ``p[v] = max over edges of max(p[u], 1) * gain``.
      Where all gains are below 1 this is the order of the single kernels. Until no kernel of positive gain is left.

    Ties go to the lowest start, then at every label to an end right there, else to a rest without kernels, else to the
    lowest edge (block, g, i, o).

    Lazy and exact. For every label a bound on the best rest of a chain from there is kept, at first exact; bounds only
    fall, so they stay bounds when kernels are removed. A walk follows the best edge by the bounds of its targets; where
    this comes out lower than the bound of its own label, that one is lowered and the walk takes one step back. A walk
    that arrives has met its bound, which no other chain exceeds; one that wanders for as long as a sweep would take has
    all bounds made exact instead. The logarithms are held once, in float32.
    """
    anywhere = np.arange(n)
    first, last = (anywhere, anywhere) if mode == "free" else (np.unique(starts), np.unique(ends))
    search = _search(n, blocks, last)
    while steps := _walk(search, first):
        yield _remove(search, steps)


class _Step(NamedTuple):
    """The best edge out of a label, and the value (octaves) of the best rest of a chain that begins with it."""

    value: float
    source: int
    target: int
    block: int
    row: int
    column: int


@dataclass(frozen=True)
class _Search:
    """The arrays of one extraction, which it changes in place: ``logs``, ``bounds`` and ``best``.

    ``logs[b]`` float32[G * I, O]: octaves, -inf where there is no edge (any more).
    ``bounds`` float64[n]: at least the best rest with a kernel, from every label to an end.
    ``tails`` float64[n]: the best rest without a kernel (0 at an end); never changes.
    ``best`` float64[n]: the larger one of both.
    ``patience``: steps of a walk after which a sweep over all edges is cheaper; enough for any chain, which
    goes through every block at most once.
    """

    blocks: Sequence[Block]
    logs: list[FloatArray]
    fans: list[list[tuple[int, slice]]]
    is_end: NDArray[np.bool_]
    bounds: Values
    tails: Values
    best: Values
    patience: int


def _search(n: int, blocks: Sequence[Block], ends: IntArray) -> _Search:
    """The search of the whole graph, its bounds exact."""
    tails = _backward(n, [block for block in blocks if not block.counted], ends)
    logs = [_logs_by_source(block) for block in blocks]
    patience = 1 + len(blocks) + sum(block.gains.size for block in blocks) // EDGES_PER_STEP
    search = _Search(blocks, logs, _fans(n, blocks), _indicator(n, ends), np.empty(n), tails, np.empty(n), patience)
    _refresh(search)
    return search


def _refresh(search: _Search) -> None:
    """Makes all bounds exact, in one sweep."""
    search.bounds[:] = -np.inf
    search.best[:] = search.tails
    for block, log2 in zip(reversed(search.blocks), reversed(search.logs), strict=True):
        weights = log2.reshape(*block.sources.shape, -1)
        rest = search.best if block.counted else search.bounds
        for groups, rows in _tiles(weights.shape):
            heads = block.sources[groups, rows]
            values = weights[groups, rows] + rest[block.destinations[groups]][:, None, :]
            np.maximum.at(search.bounds, heads, values.max(axis=2))
            search.best[heads] = np.maximum(search.tails[heads], search.bounds[heads])


def _logs_by_source(block: Block) -> FloatArray:
    """Octaves of the gains, [G * I, O]: the edges out of one source lie side by side."""
    groups, outs, ins = block.gains.shape
    logs = np.empty((groups, ins, outs), np.float32)
    for group, rows in _tiles(block.gains.shape):
        logs[group, :, rows] = _octaves(block.gains[group, rows]).swapaxes(1, 2)
    return logs.reshape(groups * ins, outs)


def _walk(search: _Search, starts: IntArray) -> list[_Step]:
    """The edges of the best chain from any of the starts up to its last kernel; none where no chain is left."""
    steps: list[_Step] = []
    channel_id = _highest(search.bounds, starts)
    for _ in range(search.patience):
        if channel_id < 0:
            return []
        step = _next(search, channel_id)
        if step.value < search.bounds[channel_id]:
            search.bounds[channel_id] = step.value
            search.best[channel_id] = max(step.value, search.tails[channel_id])
            channel_id = steps.pop().source if steps else _highest(search.bounds, starts)
        else:
            steps.append(step)
            channel_id = step.target
            if search.blocks[step.block].counted and search.tails[channel_id] >= search.bounds[channel_id]:
                return steps
    _refresh(search)
    return _walk(search, starts)


def _next(search: _Search, channel_id: int) -> _Step:
    """The best edge out of ``label`` for a chain with at least one kernel from there on."""
    return max(
        (
            _best_edge(channel_id, b, rows, search.logs[b][rows], search.blocks[b], rest)
            for b, rows in search.fans[channel_id]
            for rest in (search.best if search.blocks[b].counted else search.bounds,)
        ),
        key=_value,
    )


def _remove(search: _Search, steps: list[_Step]) -> Chain:
    """The chain of these steps, continued without kernels to its end, its own kernels gone from the logs."""
    channel_ids, kernels = [steps[0].source], []
    for step in steps:
        channel_ids.append(step.target)
        if search.blocks[step.block].counted:
            search.logs[step.block][step.row, step.column] = -np.inf
            group, i = divmod(step.row, search.blocks[step.block].sources.shape[1])
            kernels.append((step.block, group, step.column, i))
    return Chain(LN2 * steps[0].value, (*channel_ids, *_tail(search, channel_ids[-1])), tuple(kernels))


def _tail(search: _Search, channel_id: int) -> Iterator[int]:
    """Labels after ``label`` on its best way to an end without kernels."""
    while not (search.is_end[channel_id] and search.tails[channel_id] == 0):
        fixed = ((b, rows) for b, rows in search.fans[channel_id] if not search.blocks[b].counted)
        edges = (
            _best_edge(channel_id, b, rows, search.logs[b][rows], search.blocks[b], search.tails) for b, rows in fixed
        )
        channel_id = max(edges, key=_value).target
        yield channel_id


def _best_edge(channel_id: int, b: int, rows: slice, logs: FloatArray, block: Block, rest: Values) -> _Step:
    """The best edge out of ``label`` in block ``b``, whose rows [k, O] are ``logs``; the first of equal ones."""
    heads = block.destinations if len(block.destinations) == 1 else block.destinations[_groups(block, rows)]
    values = logs + rest[heads]
    at = int(values.argmax())
    row, column = divmod(at, values.shape[1])
    target = int(heads[row if len(heads) > 1 else 0, column])
    return _Step(float(values[row, column]), channel_id, target, b, rows.start + row, column)


def _rows_out(block: Block, rows: slice) -> FloatArray:
    """Octaves [k, O] of the edges out of these rows, a zero gain counting as TINY."""
    inner = np.arange(rows.start, rows.stop) % block.sources.shape[1]
    return _octaves(block.gains[_groups(block, rows), :, inner], TINY)


def _groups(block: Block, rows: slice) -> IntArray:
    """Group [k] of every row."""
    groups: IntArray = np.arange(rows.start, rows.stop) // block.sources.shape[1]
    return groups


def _value(step: _Step) -> float:
    return step.value


def _fans(n: int, blocks: Sequence[Block]) -> list[list[tuple[int, slice]]]:
    """For every label its rows, position g * I + i among a block's sources, as (block, slice of rows) in order."""
    fans: list[list[tuple[int, slice]]] = [[] for _ in range(n)]
    for b, block in enumerate(blocks):
        channel_ids = block.sources.ravel()
        cuts = np.flatnonzero(np.diff(channel_ids)) + 1
        for begin, end in pairwise((0, *cuts.tolist(), channel_ids.size) if channel_ids.size else ()):
            fans[channel_ids[begin]].append((b, slice(begin, end)))
    return fans


def _forward(n: int, blocks: Sequence[Block], starts: IntArray) -> Values:
    """Octaves of the best chain from any start to every label: float64[n]."""
    best = np.where(_indicator(n, starts), 0.0, -np.inf)
    for block in blocks:
        for groups, rows in _tiles(block.gains.shape):
            values = _octaves(block.gains[groups, rows]) + best[block.sources[groups]][:, None, :]
            np.maximum.at(best, block.destinations[groups, rows], values.max(axis=2))
    return best


def _backward(n: int, blocks: Sequence[Block], ends: IntArray, zero: float = -np.inf) -> Values:
    """Octaves of the best chain from every label to any end, a zero gain counting as ``zero``: float64[n]."""
    best = np.where(_indicator(n, ends), 0.0, -np.inf)
    for block in reversed(blocks):
        for groups, rows in _tiles(block.gains.shape):
            values = _octaves(block.gains[groups, rows], zero) + best[block.destinations[groups, rows]][:, :, None]
            np.maximum.at(best, block.sources[groups], values.max(axis=1))
    return best


def _octaves(gains: FloatArray, zero: float = -np.inf) -> FloatArray:
    """log2 of the gains, in float32, rounded to ``STEP``; ``zero`` for gain 0. Powers of two only shift it."""
    mantissa, exponent = np.frexp(gains)
    with np.errstate(divide="ignore"):
        logs = np.log2(mantissa)
    logs /= STEP
    np.rint(logs, out=logs)
    logs *= STEP
    np.add(logs, exponent, out=logs, casting="same_kind")
    return logs if zero == -np.inf else np.where(gains == 0, np.float32(zero), logs)


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Slices of the first two of three axes, so that every tile has at most ``TILE`` elements, or one row."""
    groups, rows, columns = shape
    width = max(1, columns)
    tall = min(max(1, TILE // width), max(1, rows))
    deep = max(1, TILE // (width * tall)) if tall == rows else 1
    for group in range(0, groups, deep) if rows and columns else ():
        for row in range(0, rows, tall):
            yield slice(group, group + deep), slice(row, row + tall)


def _indicator(n: int, channel_ids: IntArray) -> NDArray[np.bool_]:
    """bool[n], True at the labels."""
    result = np.zeros(n, np.bool_)
    result[np.asarray(channel_ids, np.int64)] = True
    return result


def _highest(values: Values, channel_ids: IntArray) -> int:
    """The first of the labels with the highest value, -1 if all are -inf."""
    if not len(channel_ids):
        return -1
    channel_id = int(values.argmax() if len(channel_ids) == len(values) else channel_ids[values[channel_ids].argmax()])
    return channel_id if values[channel_id] > -np.inf else -1
