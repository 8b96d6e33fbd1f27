"""The channel DAG of a small network: channels kept and removed, its strongest kernels, and its best chain."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.chains import Block, best_chain
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.weighting import weighted

MOST = 1000
"""Channels that are drawn."""
EDGES = 1600
"""Edges that are drawn, about: the strongest into each channel where there are more."""
WIDTH, HEIGHT = 1000, 400
"""Units of the picture."""
MARGIN = 14
ARC = 0.25
"""How far a curve that passes columns by bends, as a share of its length."""
SPREAD = 22
"""Units between two channels of a layer, at most."""
OUTPUTS = 3
"""Outputs whose best chain is drawn."""


@dataclass(frozen=True)
class Edges:
    """Edges by the labels of their ends, with their gains; ``alive``: both ends are left."""

    sources: Ints
    targets: Ints
    gains: NDArray[np.float64]
    alive: Mask


@dataclass(frozen=True)
class Places:
    """Where each channel lies [labels], the distance of two columns, and the size of a dot in pixels."""

    x: Ints
    y: Ints
    step: float
    dot: float

    def line(self, u: int, v: int, lives: bool = True) -> str:
        """A curve from one channel to another; one that passes columns by bends up, or down where it is removed."""
        x, ends, width = self.x[u], (int(self.y[u]), int(self.y[v])), self.x[v] - self.x[u]
        bend = round(ARC * width) * (-1 if lives else 1) if width > 1.5 * self.step else 0
        first, second = (min(max(end + bend, -MARGIN), HEIGHT + MARGIN) if bend else end for end in ends)
        return f"M{x} {ends[0]}C{x + width // 2} {first} {x + width // 2} {second} {self.x[v]} {ends[1]}"

    def dots(self, channel_ids: Ints) -> str:
        """Lines of length 0, which round ends make dots."""
        return "".join(f"M{self.x[k]} {self.y[k]}h0" for k in channel_ids.tolist())


@dataclass(frozen=True)
class Chains:
    """The picture as SVG paths of ``WIDTH`` × ``HEIGHT`` units; ``dot`` is the size of a channel in pixels.

    ``best`` are the best chains, each as a path, its ``stops``, and how many channels it has and how many are left.
    ``thinned``: only the strongest edges are drawn; ``passing``: some edge passes a layer by.
    """

    kept: str
    removed: str
    living: str
    dead: str
    best: tuple[tuple[str, str, int, int], ...]
    channels: tuple[int, int]
    edges: tuple[int, int]
    dot: float
    thinned: bool
    passing: bool
    width: int = WIDTH
    height: int = HEIGHT


def chains(dag: ChannelDag, alive: Mask) -> Chains | int | None:
    """The picture; the number of channels where these are too many to draw, None where there are no edges."""
    owner = _channels(dag)
    if np.unique(owner).size > MOST:
        return int(np.unique(owner).size)
    blocks = weighted(dag)
    edges = _edges(blocks, owner, alive)
    if not edges.sources.size:
        return None
    channel_ids = np.unique(np.r_[edges.sources, edges.targets])
    places = _places(dag, edges, channel_ids)
    drawn = _strongest(edges)
    ends = zip(drawn.sources.tolist(), drawn.targets.tolist(), drawn.alive.tolist(), strict=True)
    lines = [places.line(*each) for each in ends]
    living = alive[channel_ids]
    return Chains(
        kept="".join(line for line, lives in zip(lines, drawn.alive, strict=True) if lives),
        removed="".join(line for line, lives in zip(lines, drawn.alive, strict=True) if not lives),
        living=places.dots(channel_ids[living]),
        dead=places.dots(channel_ids[~living]),
        best=tuple(_best(dag, blocks, owner, alive, places)),
        channels=(channel_ids.size, int(living.sum())),
        edges=(edges.alive.size, int(edges.alive.sum())),
        dot=places.dot,
        thinned=drawn.sources.size < edges.sources.size,
        passing=bool((places.x[drawn.targets] - places.x[drawn.sources] > 1.5 * places.step).any()),
    )


def _channels(dag: ChannelDag) -> Ints:
    """The channel that each label stands for [labels]: a Concat's reader for what it reads, others for themselves."""
    owner = np.arange(dag.count)
    for _, (channels, readers) in dag.concat_slots:
        owner[readers] = owner[channels]
    return owner


def _edges(blocks: list[Block], owner: Ints, alive: Mask) -> Edges:
    """All edges between different channels; of parallel ones the strongest, which is left if any of them is."""
    parts = []
    for block in blocks:
        g, o, i = np.nonzero(block.gains > 0)
        u, v = block.sources[g, i], block.destinations[g, o]
        parts.append((owner[u], owner[v], block.gains[g, o, i].astype(np.float64), alive[u] & alive[v]))
    columns = zip(*parts, strict=True) if parts else ([np.zeros(0, np.int64)],) * 4
    u, v, gains, lives = (np.concatenate(list(column)) for column in columns)
    ends, first = np.unique(np.stack([u, v]), axis=1, return_inverse=True)
    strongest, left = np.zeros(ends.shape[1]), np.zeros(ends.shape[1], bool)
    np.maximum.at(strongest, first.reshape(-1), gains)
    np.logical_or.at(left, first.reshape(-1), lives.astype(bool))
    real = ends[0] != ends[1]
    return Edges(ends[0][real], ends[1][real], strongest[real], left[real])


def _places(dag: ChannelDag, edges: Edges, channel_ids: Ints) -> Places:
    """Depth from left to right, layers as columns."""
    depth: Ints = np.zeros(dag.count, np.int64)
    for target in np.unique(edges.targets):  # labels are minted in topological order
        depth[target] = 1 + depth[edges.sources[edges.targets == target]].max()
    for node in np.unique(dag.producer[channel_ids]):
        members = channel_ids[dag.producer[channel_ids] == node]
        depth[members] = depth[members].max()
    x, y = np.zeros(dag.count, np.int64), np.zeros(dag.count, np.int64)
    columns = np.unique(depth[channel_ids])
    step = (WIDTH - 2 * MARGIN) / max(columns.size - 1, 1)
    tallest = max(int((depth[channel_ids] == column).sum()) for column in columns)
    gap = min(SPREAD, (HEIGHT - 2 * MARGIN) / max(tallest - 1, 1))
    for k, column in enumerate(columns):
        members = channel_ids[depth[channel_ids] == column]
        x[members] = round(MARGIN + k * step)
        y[members] = np.round(HEIGHT / 2 + gap * (np.arange(members.size) - (members.size - 1) / 2))
    return Places(x, y, step, float(np.clip(0.7 * gap, 2.5, 8)))


def _strongest(edges: Edges) -> Edges:
    """As many of the strongest edges into each channel as can be drawn."""
    order = np.lexsort((-edges.gains, edges.targets))
    targets = edges.targets[order]
    first = np.r_[True, targets[1:] != targets[:-1]]
    rank = np.arange(order.size) - np.flatnonzero(first)[np.cumsum(first) - 1]
    fits = [most for most in (64, 32, 16, 8, 4, 3, 2) if (rank < most).sum() <= EDGES]
    chosen = order if order.size <= EDGES else order[rank < (fits[0] if fits else 1)]
    return Edges(edges.sources[chosen], edges.targets[chosen], edges.gains[chosen], edges.alive[chosen])


def _best(
    dag: ChannelDag, blocks: list[Block], owner: Ints, alive: Mask, places: Places
) -> list[tuple[str, str, int, int]]:
    """The best chain from any input to each of the first outputs."""
    found = []
    for value in dag.model.proto.graph.output[:OUTPUTS]:
        if value.name not in dag.channel_ids:
            continue
        chain = best_chain(dag.count, blocks, dag.starts, np.unique(dag.channel_ids[value.name]))
        channel_ids = np.array(list(dict.fromkeys(owner[list(chain)].tolist())), np.int64)
        if channel_ids.size > 1:
            line = "".join(places.line(u, v) for u, v in pairwise(channel_ids.tolist()))
            found.append((line, places.dots(channel_ids), channel_ids.size, int(alive[channel_ids].sum())))
    return found
