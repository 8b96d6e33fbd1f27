"""Costs of a branch and of its stand-in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from leanonnx.analysis.branches import Branch
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.product_costs import products
from leanonnx.numeric.channel_ids import Mask


@dataclass(frozen=True, kw_only=True)
class BranchCost:
    """Multiply-adds and nodes of a branch without its join, and multiply-adds of a full matrix in its place."""

    macs: int
    nodes: int
    standin_macs: int


def branch_costs(dag: ChannelDag, branches: Iterable[Branch], alive: Mask | None = None) -> tuple[BranchCost, ...]:
    """The cost of each branch; with a keep mask [channels], at these widths.

    Args:
        dag: the channel DAG of the model that the branches were found in.
        branches: some of its branches.
        alive: the keep mask; None stands for all channels.
    """
    kept = dag.all_alive if alive is None else alive
    macs = node_macs(dag, kept)
    return tuple(
        BranchCost(
            macs=sum(macs[node] for node in branch.nodes),
            nodes=len(branch.nodes),
            standin_macs=_standin_macs(dag, branch, kept),
        )
        for branch in branches
    )


def node_macs(dag: ChannelDag, alive: Mask) -> Counter[int]:
    """Multiply-adds of each node under a keep mask [channels]."""
    macs: Counter[int] = Counter()
    for node, mix in dag.kernel_blocks:
        count = int((alive[mix.destinations].sum(1) * alive[mix.sources].sum(1)).sum())
        macs[node] += count * mix.taps * mix.positions
    for product in products(dag)[0]:
        macs[product.node] += product.remaining(alive)
    return macs


def _standin_macs(dag: ChannelDag, branch: Branch, alive: Mask) -> int:
    """Multiply-adds of a matrix [C, C] at each position; none for a factor, or for a convolution that stays."""
    if branch.kind != "linear":
        return 0
    sizes = dag.shapes[branch.output]
    count = _width(dag, branch.output, alive) * _width(dag, branch.stream, alive)
    return sizes[0] * math.prod(sizes[2:]) * count


def _width(dag: ChannelDag, name: str, alive: Mask) -> int:
    """Number of kept channels of a tensor with channels on axis 1."""
    channel_ids = dag.channel_ids.get(name)
    size = dag.shapes[name][1]
    if channel_ids is None:
        return size
    kept = alive[channel_ids]
    return size * int(kept.sum()) // kept.size
