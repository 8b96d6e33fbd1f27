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
from leanonnx.ranking.weighting import weighted_blocks

MAX_DRAWN_CHANNELS = 1000
MAX_DRAWN_EDGES = 1600
"""Edges that are drawn, about: the strongest into each channel where there are more."""
PICTURE_WIDTH, PICTURE_HEIGHT = 1000, 400
"""Units of the picture."""
PICTURE_MARGIN = 14
BEND = 0.25
"""Height of the arc of an edge that passes columns, as a share of its length."""
MAX_CHANNEL_GAP = 22
"""Units between two channels of a layer."""
MAX_BEST_CHAINS = 3
"""Outputs whose best chain is drawn."""


@dataclass(frozen=True, kw_only=True)
class DrawnEdges:
    """Edges by the channel ids of their ends, with their gains; ``alive``: both ends are kept."""

    sources: Ints
    destinations: Ints
    gains: NDArray[np.float64]
    alive: Mask


@dataclass(frozen=True, kw_only=True)
class ChannelPositions:
    """Position of each channel [channels], the distance of two columns, and the size of a dot in pixels."""

    x: Ints
    y: Ints
    step: float
    dot: float

    def curve(self, u: int, v: int, kept: bool = True) -> str:
        """The path from one channel to another; one that passes columns bends up, or down where it is removed."""
        x, ends, width = self.x[u], (int(self.y[u]), int(self.y[v])), self.x[v] - self.x[u]
        bend = round(BEND * width) * (-1 if kept else 1) if width > 1.5 * self.step else 0
        first, second = (_within(end + bend) if bend else end for end in ends)
        return f"M{x} {ends[0]}C{x + width // 2} {first} {x + width // 2} {second} {self.x[v]} {ends[1]}"

    def dots(self, channel_ids: Ints) -> str:
        """Lines of length 0, which have round ends and so are dots."""
        return "".join(f"M{self.x[k]} {self.y[k]}h0" for k in channel_ids.tolist())


@dataclass(frozen=True)
class ChainPicture:
    """The picture as SVG paths of ``width`` × ``height`` units; ``dot`` is the size of a channel in pixels.

    ``best`` are the best chains, each as a path, its dots, and the numbers of its channels and of the kept ones.
    ``channels`` and ``edges`` are numbers before and after.  ``thinned``: only the strongest edges are drawn;
    ``passing``: some edge passes a layer.
    """

    kept_edges: str
    removed_edges: str
    kept_channels: str
    removed_channels: str
    best: tuple[tuple[str, str, int, int], ...]
    channels: tuple[int, int]
    edges: tuple[int, int]
    dot: float
    thinned: bool
    passing: bool
    width: int = PICTURE_WIDTH
    height: int = PICTURE_HEIGHT


def chain_picture(dag: ChannelDag, alive: Mask) -> ChainPicture | int | None:
    """The picture; the number of channels where these are too many to draw, None where there are no edges."""
    owner = _channels(dag)
    if np.unique(owner).size > MAX_DRAWN_CHANNELS:
        return int(np.unique(owner).size)
    blocks = weighted_blocks(dag)
    edges = _edges(blocks, owner, alive)
    if not edges.sources.size:
        return None
    channel_ids = np.unique(np.r_[edges.sources, edges.destinations])
    positions = _positions(dag, edges, channel_ids)
    drawn = _strongest(edges)
    ends = zip(drawn.sources.tolist(), drawn.destinations.tolist(), drawn.alive.tolist(), strict=True)
    curves = [(positions.curve(u, v, is_kept), is_kept) for u, v, is_kept in ends]
    kept = alive[channel_ids]
    return ChainPicture(
        kept_edges="".join(curve for curve, is_kept in curves if is_kept),
        removed_edges="".join(curve for curve, is_kept in curves if not is_kept),
        kept_channels=positions.dots(channel_ids[kept]),
        removed_channels=positions.dots(channel_ids[~kept]),
        best=tuple(_best_chains(dag, blocks, owner, alive, positions)),
        channels=(channel_ids.size, int(kept.sum())),
        edges=(edges.alive.size, int(edges.alive.sum())),
        dot=positions.dot,
        thinned=drawn.sources.size < edges.sources.size,
        passing=bool((positions.x[drawn.destinations] - positions.x[drawn.sources] > 1.5 * positions.step).any()),
    )


def _channels(dag: ChannelDag) -> Ints:
    """The channel that each id stands for [channels]: a concat slot for the one it reads, others for themselves."""
    owner = np.arange(dag.count)
    for _, (channels, slots) in dag.concat_slots:
        owner[slots] = owner[channels]
    return owner


def _edges(blocks: list[Block], owner: Ints, alive: Mask) -> DrawnEdges:
    """All edges between different channels; of parallel ones the strongest, which is kept if any of them is."""
    parts = []
    for block in blocks:
        g, o, i = np.nonzero(block.gains > 0)
        u, v = block.sources[g, i], block.destinations[g, o]
        parts.append((owner[u], owner[v], block.gains[g, o, i].astype(np.float64), alive[u] & alive[v]))
    columns = zip(*parts, strict=True) if parts else ([np.zeros(0, np.int64)],) * 4
    u, v, gains, kept = (np.concatenate(list(column)) for column in columns)
    ends, first = np.unique(np.stack([u, v]), axis=1, return_inverse=True)
    strongest, any_kept = np.zeros(ends.shape[1]), np.zeros(ends.shape[1], bool)
    np.maximum.at(strongest, first.reshape(-1), gains)
    np.logical_or.at(any_kept, first.reshape(-1), kept.astype(bool))
    real = ends[0] != ends[1]
    return DrawnEdges(sources=ends[0][real], destinations=ends[1][real], gains=strongest[real], alive=any_kept[real])


def _positions(dag: ChannelDag, edges: DrawnEdges, channel_ids: Ints) -> ChannelPositions:
    """Depth from left to right, layers as columns."""
    depth: Ints = np.zeros(dag.count, np.int64)
    for channel in np.unique(edges.destinations):  # ids are assigned in topological order
        depth[channel] = 1 + depth[edges.sources[edges.destinations == channel]].max()
    for node in np.unique(dag.producer[channel_ids]):
        members = channel_ids[dag.producer[channel_ids] == node]
        depth[members] = depth[members].max()
    x, y = np.zeros(dag.count, np.int64), np.zeros(dag.count, np.int64)
    columns = np.unique(depth[channel_ids])
    step = (PICTURE_WIDTH - 2 * PICTURE_MARGIN) / max(columns.size - 1, 1)
    tallest = max(int((depth[channel_ids] == column).sum()) for column in columns)
    gap = min(MAX_CHANNEL_GAP, (PICTURE_HEIGHT - 2 * PICTURE_MARGIN) / max(tallest - 1, 1))
    for k, column in enumerate(columns):
        members = channel_ids[depth[channel_ids] == column]
        x[members] = round(PICTURE_MARGIN + k * step)
        y[members] = np.round(PICTURE_HEIGHT / 2 + gap * (np.arange(members.size) - (members.size - 1) / 2))
    return ChannelPositions(x=x, y=y, step=step, dot=float(np.clip(0.7 * gap, 2.5, 8)))


def _within(y: int) -> int:
    """A height within the picture and its margin."""
    return min(max(y, -PICTURE_MARGIN), PICTURE_HEIGHT + PICTURE_MARGIN)


def _strongest(edges: DrawnEdges) -> DrawnEdges:
    """As many of the strongest edges into each channel as can be drawn."""
    order = np.lexsort((-edges.gains, edges.destinations))
    destinations = edges.destinations[order]
    first = np.r_[True, destinations[1:] != destinations[:-1]]
    rank = np.arange(order.size) - np.flatnonzero(first)[np.cumsum(first) - 1]
    fits = [most for most in (64, 32, 16, 8, 4, 3, 2) if (rank < most).sum() <= MAX_DRAWN_EDGES]
    chosen = order if order.size <= MAX_DRAWN_EDGES else order[rank < (fits[0] if fits else 1)]
    return DrawnEdges(
        sources=edges.sources[chosen],
        destinations=edges.destinations[chosen],
        gains=edges.gains[chosen],
        alive=edges.alive[chosen],
    )


def _best_chains(
    dag: ChannelDag, blocks: list[Block], owner: Ints, alive: Mask, positions: ChannelPositions
) -> list[tuple[str, str, int, int]]:
    """The best chain from any input to each of the first outputs."""
    chains = []
    for value in dag.model.proto.graph.output[:MAX_BEST_CHAINS]:
        if value.name not in dag.channel_ids:
            continue
        chain = best_chain(dag.count, blocks, dag.starts, np.unique(dag.channel_ids[value.name]))
        channel_ids = np.array(list(dict.fromkeys(owner[list(chain)].tolist())), np.int64)
        if channel_ids.size > 1:
            line = "".join(positions.curve(u, v) for u, v in pairwise(channel_ids.tolist()))
            chains.append((line, positions.dots(channel_ids), channel_ids.size, int(alive[channel_ids].sum())))
    return chains
