"""Many samples at once through a network that may take a fixed number of them.

A batch holds whole inputs of the network, stacked along a new first axis: [batch, *shape of the input].  Outputs come
back in the same way.  How a network takes a batch is found by trying, on real inputs:

1. ``joined``: along its own first axis, where it gives the same as one by one.
2. ``mapped``: by ``torch.vmap``, where the graph has its batch size written into it.
3. ``single``: one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch

from leanonnx.commands.finetune.module import Network
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.parity import to_torch
from leanonnx.runtime.sessions import Feed

Way = Literal["joined", "mapped", "single"]
Batch: TypeAlias = dict[str, Tensor]
SAME = 1e-4
"""Relative difference up to which a batch gives the same as its samples."""


class Batched(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """A network that takes batches in one of the ways."""

    def __init__(self, network: Network, way: Way) -> None:
        super().__init__()
        self.network = network
        self.way = way

    def forward(self, batch: Batch, names: tuple[str, ...]) -> list[Tensor]:
        """Values of the named tensors [batch, *shape]."""
        count = len(next(iter(batch.values())))
        if self.way == "joined":
            joined = {name: value.flatten(0, 1) for name, value in batch.items()}
            return [value.unflatten(0, (count, -1)) for value in self.network(joined, names)]
        if self.way == "mapped":
            return list(torch.vmap(lambda feed: tuple(self.network(feed, names)))(batch))
        each = [self.network({name: value[k] for name, value in batch.items()}, names) for k in range(count)]
        return [torch.stack(values) for values in zip(*each, strict=True)]


def stacked(feeds: Sequence[Feed], device: str = "cpu") -> Batch:
    """Inputs of equal shapes as one batch."""
    names = feeds[0].keys()
    joined = {name: np.stack([feed[name] for feed in feeds]) for name in names}
    return {name: value.to(device) for name, value in to_torch(joined).items()}


def batched(network: Network, feeds: Sequence[Feed], names: tuple[str, ...]) -> Batched:
    """The network with the quickest way that gives what single runs give on these inputs."""
    feeds = [feed for feed in feeds if _shapes(feed) == _shapes(feeds[0])]
    single = Batched(network, "single")
    if len(feeds) < 2:
        return single
    batch = stacked(feeds)
    with torch.no_grad():
        wanted = single(batch, names)
        for way in ("joined", "mapped"):
            tried = Batched(network, way)
            if _agrees(tried, batch, names, wanted):
                return tried
    return single


def _agrees(tried: Batched, batch: Batch, names: tuple[str, ...], wanted: Sequence[Tensor]) -> bool:
    """Whether a way runs at all and gives the same."""
    try:
        found = tried(batch, names)
    except Exception:  # noqa: BLE001 - what a graph with a fixed batch size does to a larger one is of any type
        return False
    return all(_same(a, b) for a, b in zip(wanted, found, strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a != b).float().mean() < SAME)
    return bool((a - b).norm() <= SAME * a.norm() + 1e-12)


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in feed.items()}
