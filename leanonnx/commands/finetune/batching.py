"""Run batches through a network whose own batch size may be fixed.

A batch holds whole inputs of the network, stacked along a new first axis: [batch, *shape of the input]; outputs are
stacked likewise.  The mode of a network is chosen by running real inputs:

1. ``joined``: along its own first axis, if this gives the same results as single runs.
2. ``mapped``: by ``torch.vmap``, if the batch size is fixed in the graph.
3. ``single``: one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch

from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.parity import to_tensors
from leanonnx.runtime.sessions import Feed

BatchMode = Literal["joined", "mapped", "single"]
Batch: TypeAlias = dict[str, Tensor]
BATCH_MODE_TOLERANCE = 1e-4
"""Largest relative difference between the results of a batch and those of its samples."""


class BatchedNetwork(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """A network that takes batches in one of the modes."""

    def __init__(self, network: TorchNetwork, mode: BatchMode) -> None:
        super().__init__()
        self.network = network
        self.mode = mode

    def forward(self, batch: Batch, names: tuple[str, ...]) -> list[Tensor]:
        """Values of the named tensors [batch, *shape]."""
        count = len(next(iter(batch.values())))
        if self.mode == "joined":
            joined = {name: value.flatten(0, 1) for name, value in batch.items()}
            return [value.unflatten(0, (count, -1)) for value in self.network(joined, names)]
        if self.mode == "mapped":
            return list(torch.vmap(lambda feed: tuple(self.network(feed, names)))(batch))
        each = [self.network({name: value[k] for name, value in batch.items()}, names) for k in range(count)]
        return [torch.stack(values) for values in zip(*each, strict=True)]


def stack_feeds(feeds: Sequence[Feed], device: str = "cpu") -> Batch:
    """Stack inputs of equal shapes into a batch."""
    names = feeds[0].keys()
    joined = {name: np.stack([feed[name] for feed in feeds]) for name in names}
    return {name: value.to(device) for name, value in to_tensors(joined).items()}


def batched_network(network: TorchNetwork, feeds: Sequence[Feed], names: tuple[str, ...]) -> BatchedNetwork:
    """The network in the fastest mode that gives the same results as single runs on these inputs."""
    feeds = [feed for feed in feeds if _shapes(feed) == _shapes(feeds[0])]
    single = BatchedNetwork(network, "single")
    if len(feeds) < 2:
        return single
    batch = stack_feeds(feeds)
    with torch.no_grad():
        wanted = single(batch, names)
        for mode in ("joined", "mapped"):
            tried = BatchedNetwork(network, mode)
            if _agrees(tried, batch, names, wanted):
                return tried
    return single


def _agrees(tried: BatchedNetwork, batch: Batch, names: tuple[str, ...], wanted: Sequence[Tensor]) -> bool:
    """Return True if a mode runs and gives the wanted results."""
    try:
        outputs = tried(batch, names)
    except Exception:  # noqa: BLE001 - a graph with a fixed batch size may raise anything on a larger batch
        return False
    return all(_same(a, b) for a, b in zip(wanted, outputs, strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a != b).float().mean() < BATCH_MODE_TOLERANCE)
    return bool((a - b).norm() <= BATCH_MODE_TOLERANCE * a.norm() + 1e-12)


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in feed.items()}
