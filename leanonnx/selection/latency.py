"""Time of one run of a keep set, predicted layer by layer from the cost table of the hardware.

Convolutions cost their multiply-adds in whole blocks of channels (outside the fast kernels: those of their own channels
alone, at a lower rate); every node costs the elements that it writes, and its start.  The sum predicts proportions:
budgets are met by measuring, see ``search``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from leanonnx.analysis.cost import Rate
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.product_costs import Product, products
from leanonnx.hardware.costs import KernelSize, convolution_ms, product_ms
from leanonnx.hardware.targets import Hardware
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.rules.call import KernelBlock
from leanonnx.runtime.profiling import NodeTime
from leanonnx.selection.measured import NO_CORRECTIONS, Corrections, measured_corrections

BLOCKED = names_with(Trait.NCHWC_KERNELS)
"""Operators that run in kernels on blocks of channels; all others are priced as matrix products."""


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Predicts ms of one run for any keep set.

    Attributes:
        target: the cost table.
        blocks: node, its operator, and a kernel block of it.
        outputs: node, channels of an output of it, and elements of that.
        products: multiply-adds without kernels.
        corrections: what a profile of the network corrects.
    """

    target: Hardware
    blocks: tuple[tuple[int, str, KernelBlock], ...]
    outputs: tuple[tuple[int, ChannelIds, int], ...]
    products: tuple[Product, ...] = ()
    corrections: Corrections = NO_CORRECTIONS

    def __call__(self, alive: Mask) -> float:
        """Predicted ms of one run of a keep set [channels]."""
        factors, fixed = self.corrections.factors, self.corrections.fixed
        parts = list(self.node_times(alive))
        left = {node for node, ms in parts if ms}
        total = sum(factors.get(node, 1.0) * ms for node, ms in parts)
        return float(total + sum(ms for node, ms in fixed.items() if node in left))

    def node_times(self, alive: Mask) -> Iterator[tuple[int, float]]:
        """Parts of the ms of one run of a keep set by the table, with their nodes."""
        for node, operator, mix in self.blocks:
            yield node, _block_ms(self.target, operator, mix, alive)
        for product in self.products:
            yield product.node, product_ms(self.target, product.remaining(alive))
        for node, channel_ids, size in self.outputs:
            share = float(alive[channel_ids].mean())
            yield node, size * share * self.target.element * 1e-6 + (self.target.node * 1e-3 if share else 0.0)


def latency_model(dag: ChannelDag, target: Hardware, profile: Sequence[NodeTime] = ()) -> LatencyModel:
    """The latency model of a channel DAG on a target, corrected by a profile of the network if there is one."""
    nodes, producers = dag.model.proto.graph.node, dag.model.producers
    outputs = []
    for name, channel_ids in dag.channel_ids.items():
        if name in dag.shapes and name in producers:
            size = int(np.prod(dag.shapes[name], dtype=np.int64))
            outputs.append((producers[name], channel_ids.reshape(-1), size))
    blocks = tuple((node, nodes[node].op_type, mix) for node, mix in dag.kernel_blocks)
    model = LatencyModel(target=target, blocks=blocks, outputs=tuple(outputs), products=products(dag)[0])
    return replace(model, corrections=measured_corrections(dag, model.node_times(dag.all_alive), profile))


def latency_rate(dag: ChannelDag, target: Hardware) -> Rate:
    """Predicted ms of one kernel of each node while none is removed, by the table alone."""
    nodes, whole = dag.model.proto.graph.node, dag.all_alive

    def rate(node: int, mix: KernelBlock) -> float:
        kernels = max(mix.destinations.size * int(mix.sources.shape[1]), 1)
        return _block_ms(target, nodes[node].op_type, mix, whole) / kernels

    return rate


def _block_ms(target: Hardware, operator: str, mix: KernelBlock, alive: Mask) -> float:
    """Predicted ms of one kernel block."""
    rows, columns = alive[mix.destinations].sum(1), alive[mix.sources].sum(1)
    groups = int(((rows > 0) & (columns > 0)).sum())
    if not groups:
        return 0.0
    size = KernelSize(
        groups=groups,
        wide=int(rows.max()),
        deep=int(columns.max()),
        taps=mix.taps,
        positions=mix.positions,
    )
    return convolution_ms(target, size) if operator in BLOCKED else product_ms(target, size.multiply_adds)
