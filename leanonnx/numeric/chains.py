"""Longest multiplicative chains in the channel DAG (Schoonhoven et al. 2020, "LEAN", arXiv 2011.06923).

A chain is a directed path over the edges of a list of blocks; its value is the product of its gains. The functions:

1. *Sweeps*: the best chain from the starts to a channel (``forward``), from a channel to the ends (``backward``),
   through a channel (``best_through``), and one best chain (``best_chain``). Linear in the number of edges.
2. *Edge-disjoint chains* (``extract``): the best chain, then the best one without its kernels, and so on.
3. *Row scaling* (``normalise_rows``), which makes layers of different scale comparable.

All sums are exact. Logarithms are taken to base 2 and rounded to ``STEP``, a power of two, so that a sum of them in
float64 has no rounding error in any order: chains of equal value compare equal, and multiplying a channel's producers
by a power of two and dividing its consumers by it does not change the result (for gains between 2^-16 and 2^16).
Public functions return natural logarithms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Float32s, Floats, Ints

KernelIndex = tuple[int, int, int, int]

OCTAVE_STEP = 2.0**-20
"""Resolution of the logarithms in octaves (a relative 7e-7 of a gain)."""
ZERO_GAIN_OCTAVES = -(2.0**20)
"""Octaves of a zero gain in ``best_chain``: below any product of positive gains."""
MAX_TILE_EDGES = 1 << 17
"""Maximum number of edges in a temporary array."""
EDGES_PER_STEP = 1 << 15
"""Number of edges per step that a walk may take before all bounds are recomputed in a sweep."""
LN2 = log(2)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Edges between channels, with gain ``gains[g, o, i]`` from ``sources[g, i]`` to ``destinations[g, o]``.

    Every edge leads from a smaller to a larger channel id. In a list of blocks all edges into a block's sources are in
    earlier blocks. A dense layer is one group; a depthwise layer, or identities, have one source and one destination
    per group. A channel may occur several times among the sources (parallel edges) or the destinations.
    """

    sources: Ints
    """int[G, I]"""
    destinations: Ints
    """int[G, O]"""
    gains: Float32s
    """float32[G, O, I], finite and >= 0; 0 = no edge."""
    is_counted: bool
    """True: kernels. False: fixed edges, which chains contain but never count or remove."""

    def __post_init__(self) -> None:
        wanted = (len(self.sources), self.destinations.shape[-1], self.sources.shape[-1])
        if self.sources.ndim != 2 or self.destinations.ndim != 2 or self.gains.shape != wanted:
            shapes = [array.shape for array in (self.sources, self.destinations, self.gains)]
            raise ValueError(f"sources, destinations and gains {shapes}, expected [G, I], [G, O], [G, O, I]")


@dataclass(frozen=True)
class Chain:
    """Chain found by ``extract``."""

    value: float
    """Natural logarithm of the product of all gains."""
    channel_ids: tuple[int, ...]
    """Channels in order."""
    kernels: tuple[KernelIndex, ...]
    """(block, g, o, i) of the counted edges in order."""


def best_from_starts(n: int, blocks: Sequence[Block], starts: Ints) -> Floats:
    """Natural log of the best chain from any of ``starts`` [s] to every channel: float64[n].

    At least 0 at the starts, -inf where there is no chain.
    """
    return LN2 * _forward(n, blocks, starts)


def best_to_ends(n: int, blocks: Sequence[Block], ends: Ints) -> Floats:
    """Natural log of the best chain from every channel to any of ``ends`` [e]: float64[n].

    At least 0 at the ends, -inf where there is no chain.
    """
    return LN2 * _backward(n, blocks, ends)


def best_through(n: int, blocks: Sequence[Block], starts: Ints, ends: Ints) -> Floats:
    """Natural log of the best start-to-end chain through every channel: float64[n], -inf where there is none.

    ``starts`` [s] and ``ends`` [e] are channel ids. Descending order of this value is the order of *covering chains*:
    repeatedly extract the best start-to-end chain that contains an uncovered channel, and cover its channels. A channel
    is covered by its own best chain at the latest, and no chain through it is better, so channels are covered in
    descending order of this value.
    """
    return LN2 * (_forward(n, blocks, starts) + _backward(n, blocks, ends))


def normalise_rows(block: Block) -> Block:
    """Divide the gains into each destination by their 2-norm; fixed edges and zero rows do not change."""
    if not block.is_counted:
        return block
    power = np.einsum("goi,goi->go", block.gains, block.gains, dtype=np.float64)
    norms = np.sqrt(np.bincount(block.destinations.ravel(), weights=power.ravel()))[block.destinations]
    divisor = np.where(norms == 0, 1, norms).astype(np.float32)
    return Block(
        sources=block.sources, destinations=block.destinations, gains=block.gains / divisor[:, :, None], is_counted=True
    )


def best_chain(n: int, blocks: Sequence[Block], starts: Ints, ends: Ints) -> tuple[int, ...]:
    """Channels of the best start-to-end chain, which may contain zero gains; () if there is no path.

    A zero gain counts as a number below any product of positive gains: of chains with zero gains, one with the fewest
    is best. Of equal chains the one with the lowest start is returned; at each channel an end comes first, then the
    lowest edge (block, g, i, o).
    """
    values = _backward(n, blocks, ends, zero=ZERO_GAIN_OCTAVES)
    fans, is_end = _fans(n, blocks), _indicator(n, ends)
    channel_id = _highest(values, np.unique(starts))
    channel_ids = [channel_id] if channel_id >= 0 else []
    while channel_ids and not (is_end[channel_id] and values[channel_id] == 0):
        edges = (
            _best_edge(channel_id, b, rows, _rows_out(blocks[b], rows), blocks[b], values)
            for b, rows in fans[channel_id]
        )
        channel_id = max(edges, key=_value).destination
        channel_ids.append(channel_id)
    return tuple(channel_ids)


def extract_chains(
    n: int, blocks: Sequence[Block], starts: Ints, ends: Ints, mode: Literal["through", "free"]
) -> Iterator[Chain]:
    """Yield edge-disjoint chains, the best one first; the kernels of each are removed before the next is searched.

    Every chain has at least one kernel (an edge of a counted block) of positive gain. Fixed edges are not removed.

    - ``"through"``: chains from a start to an end, until none is left.
    - ``"free"``: the paper's rule. A chain starts and ends at any channel (``starts`` and ``ends`` are ignored), so
      that a part with a product below 1 at either side is dropped: ``p[v] = max over edges of max(p[u], 1) * gain``.
      If all gains are below 1, this is the order of the single kernels. Until no kernel of positive gain is left.

    Of equal chains the one with the lowest start comes first; at each channel an end comes first, then a remainder
    without kernels, then the lowest edge (block, g, i, o).

    Lazy and exact. Each channel has an upper bound on the best remainder of a chain from there, exact at first;
    removing kernels only lowers the exact values, so the bounds remain valid. A walk follows the best edge by the
    bounds of its destinations; if this edge is worse than the bound of the current channel, that bound is lowered and
    the walk takes one step back. A walk that reaches an end has the value of its bound, which no other chain exceeds.
    After as many steps as a sweep costs, all bounds are recomputed instead. Logarithms are stored once, in float32.
    """
    anywhere = np.arange(n)
    first, last = (anywhere, anywhere) if mode == "free" else (np.unique(starts), np.unique(ends))
    search = _search(n, blocks, last)
    while steps := _walk(search, first):
        yield _remove(search, steps)


class _Step(NamedTuple):
    """Best edge out of a channel, and the value (octaves) of the best remainder of a chain that begins with it."""

    value: float
    source: int
    destination: int
    block: int
    row: int
    column: int


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Arrays of one extraction, which changes ``logs``, ``bounds`` and ``best`` in place.

    ``logs[b]`` float32[G * I, O]: octaves, -inf for absent and removed edges.
    ``bounds`` float64[n]: upper bound of the best remainder with a kernel, from each channel to an end.
    ``tails`` float64[n]: the best remainder without a kernel (0 at an end); constant.
    ``best`` float64[n]: the maximum of both.
    ``patience``: steps of a walk after which a sweep over all edges is cheaper; enough for any chain, which passes each
    block at most once.
    """

    blocks: Sequence[Block]
    logs: list[Float32s]
    fans: list[list[tuple[int, slice]]]
    is_end: NDArray[np.bool_]
    bounds: Floats
    tails: Floats
    best: Floats
    patience: int


def _search(n: int, blocks: Sequence[Block], ends: Ints) -> _Search:
    """Search of the whole graph, with exact bounds."""
    tails = _backward(n, [block for block in blocks if not block.is_counted], ends)
    logs = [_logs_by_source(block) for block in blocks]
    patience = 1 + len(blocks) + sum(block.gains.size for block in blocks) // EDGES_PER_STEP
    search = _Search(
        blocks=blocks,
        logs=logs,
        fans=_fans(n, blocks),
        is_end=_indicator(n, ends),
        bounds=np.empty(n),
        tails=tails,
        best=np.empty(n),
        patience=patience,
    )
    _refresh(search)
    return search


def _refresh(search: _Search) -> None:
    """Recompute all bounds exactly, in one sweep."""
    search.bounds[:] = -np.inf
    search.best[:] = search.tails
    for block, log2 in zip(reversed(search.blocks), reversed(search.logs), strict=True):
        weights = log2.reshape(*block.sources.shape, -1)
        rest = search.best if block.is_counted else search.bounds
        for groups, rows in _tiles(weights.shape):
            heads = block.sources[groups, rows]
            values = weights[groups, rows] + rest[block.destinations[groups]][:, None, :]
            np.maximum.at(search.bounds, heads, values.max(axis=2))
            search.best[heads] = np.maximum(search.tails[heads], search.bounds[heads])


def _logs_by_source(block: Block) -> Float32s:
    """Octaves of the gains, [G * I, O], with the edges out of each source in one row."""
    groups, outs, ins = block.gains.shape
    logs = np.empty((groups, ins, outs), np.float32)
    for group, rows in _tiles(block.gains.shape):
        logs[group, :, rows] = _octaves(block.gains[group, rows]).swapaxes(1, 2)
    return logs.reshape(groups * ins, outs)


def _walk(search: _Search, starts: Ints) -> list[_Step]:
    """Edges of the best chain from any of the starts up to its last kernel; [] if no chain is left."""
    steps: list[_Step] = []
    channel_id = _highest(search.bounds, starts)
    for _ in range(search.patience):
        if channel_id < 0:
            return []
        step = _next_step(search, channel_id)
        if step.value < search.bounds[channel_id]:
            search.bounds[channel_id] = step.value
            search.best[channel_id] = max(step.value, search.tails[channel_id])
            channel_id = steps.pop().source if steps else _highest(search.bounds, starts)
        else:
            steps.append(step)
            channel_id = step.destination
            if search.blocks[step.block].is_counted and search.tails[channel_id] >= search.bounds[channel_id]:
                return steps
    _refresh(search)
    return _walk(search, starts)


def _next_step(search: _Search, channel_id: int) -> _Step:
    """Best edge out of a channel for a chain with at least one kernel from there on."""
    return max(
        (
            _best_edge(channel_id, b, rows, search.logs[b][rows], search.blocks[b], rest)
            for b, rows in search.fans[channel_id]
            for rest in (search.best if search.blocks[b].is_counted else search.bounds,)
        ),
        key=_value,
    )


def _remove(search: _Search, steps: list[_Step]) -> Chain:
    """Remove the kernels of these steps from the logs; returns their chain, continued without kernels to an end."""
    channel_ids, kernels = [steps[0].source], []
    for step in steps:
        channel_ids.append(step.destination)
        if search.blocks[step.block].is_counted:
            search.logs[step.block][step.row, step.column] = -np.inf
            group, i = divmod(step.row, search.blocks[step.block].sources.shape[1])
            kernels.append((step.block, group, step.column, i))
    return Chain(LN2 * steps[0].value, (*channel_ids, *_tail(search, channel_ids[-1])), tuple(kernels))


def _tail(search: _Search, channel_id: int) -> Iterator[int]:
    """Channels after ``channel_id`` on its best path to an end without kernels."""
    while not (search.is_end[channel_id] and search.tails[channel_id] == 0):
        fixed = ((b, rows) for b, rows in search.fans[channel_id] if not search.blocks[b].is_counted)
        edges = (
            _best_edge(channel_id, b, rows, search.logs[b][rows], search.blocks[b], search.tails) for b, rows in fixed
        )
        channel_id = max(edges, key=_value).destination
        yield channel_id


def _best_edge(channel_id: int, b: int, rows: slice, logs: Float32s, block: Block, rest: Floats) -> _Step:
    """Best edge out of a channel in block ``b``, with ``logs`` [k, O] of its rows; the first of equal ones."""
    heads = block.destinations if len(block.destinations) == 1 else block.destinations[_groups(block, rows)]
    values = logs + rest[heads]
    at = int(values.argmax())
    row, column = divmod(at, values.shape[1])
    destination = int(heads[row if len(heads) > 1 else 0, column])
    return _Step(float(values[row, column]), channel_id, destination, b, rows.start + row, column)


def _rows_out(block: Block, rows: slice) -> Float32s:
    """Octaves [k, O] of the edges out of these rows; a zero gain counts as ``TINY``."""
    inner = np.arange(rows.start, rows.stop) % block.sources.shape[1]
    return _octaves(block.gains[_groups(block, rows), :, inner], ZERO_GAIN_OCTAVES)


def _groups(block: Block, rows: slice) -> Ints:
    """Group [k] of each row."""
    groups: Ints = np.arange(rows.start, rows.stop) // block.sources.shape[1]
    return groups


def _value(step: _Step) -> float:
    return step.value


def _fans(n: int, blocks: Sequence[Block]) -> list[list[tuple[int, slice]]]:
    """For each channel its rows (positions g * I + i among a block's sources), as (block, slice of rows), in order."""
    fans: list[list[tuple[int, slice]]] = [[] for _ in range(n)]
    for b, block in enumerate(blocks):
        channel_ids = block.sources.ravel()
        cuts = np.flatnonzero(np.diff(channel_ids)) + 1
        for begin, end in pairwise((0, *cuts.tolist(), channel_ids.size) if channel_ids.size else ()):
            fans[channel_ids[begin]].append((b, slice(begin, end)))
    return fans


def _forward(n: int, blocks: Sequence[Block], starts: Ints) -> Floats:
    """Octaves of the best chain from any start to every channel: float64[n]."""
    best = np.where(_indicator(n, starts), 0.0, -np.inf)
    for block in blocks:
        for groups, rows in _tiles(block.gains.shape):
            values = _octaves(block.gains[groups, rows]) + best[block.sources[groups]][:, None, :]
            np.maximum.at(best, block.destinations[groups, rows], values.max(axis=2))
    return best


def _backward(n: int, blocks: Sequence[Block], ends: Ints, zero: float = -np.inf) -> Floats:
    """Octaves of the best chain from every channel to any end; a zero gain counts as ``zero``: float64[n]."""
    best = np.where(_indicator(n, ends), 0.0, -np.inf)
    for block in reversed(blocks):
        for groups, rows in _tiles(block.gains.shape):
            values = _octaves(block.gains[groups, rows], zero) + best[block.destinations[groups, rows]][:, :, None]
            np.maximum.at(best, block.sources[groups], values.max(axis=1))
    return best


def _octaves(gains: Float32s, zero: float = -np.inf) -> Float32s:
    """log2 of the gains in float32, rounded to ``STEP``; ``zero`` for gain 0. A factor of 2^k adds exactly k."""
    mantissa, exponent = np.frexp(gains)
    with np.errstate(divide="ignore"):
        logs = np.log2(mantissa)
    logs /= OCTAVE_STEP
    np.rint(logs, out=logs)
    logs *= OCTAVE_STEP
    np.add(logs, exponent, out=logs, casting="same_kind")
    return logs if zero == -np.inf else np.where(gains == 0, np.float32(zero), logs)


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Slices of the first two of three axes, in tiles of at most ``TILE`` elements, or one row."""
    groups, rows, columns = shape
    width = max(1, columns)
    tall = min(max(1, MAX_TILE_EDGES // width), max(1, rows))
    deep = max(1, MAX_TILE_EDGES // (width * tall)) if tall == rows else 1
    for group in range(0, groups, deep) if rows and columns else ():
        for row in range(0, rows, tall):
            yield slice(group, group + deep), slice(row, row + tall)


def _indicator(n: int, channel_ids: Ints) -> NDArray[np.bool_]:
    """bool[n], True at these channels."""
    result = np.zeros(n, np.bool_)
    result[np.asarray(channel_ids, np.int64)] = True
    return result


def _highest(values: Floats, channel_ids: Ints) -> int:
    """First of these channels with the highest value; -1 if all values are -inf."""
    if not len(channel_ids):
        return -1
    channel_id = int(values.argmax() if len(channel_ids) == len(values) else channel_ids[values[channel_ids].argmax()])
    return channel_id if values[channel_id] > -np.inf else -1
