"""What a keep set costs: kernels, multiply-adds and parameters of the network after surgery."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis import ChannelDag
from leanonnx.constants import Use
from leanonnx.labels import Labels, Mask, varied
from leanonnx.model import Model
from leanonnx.rules.call import Mix

UNITS = ("kernels", "macs", "params")


@dataclass(frozen=True)
class Cost:
    """Kernels, multiply-adds (of one run at the observed input sizes) and parameters (numbers)."""

    kernels: int
    macs: int
    params: int


@dataclass(frozen=True)
class CostModel:
    """Counts the cost of any keep set; layers in ``ignored`` (node indices) are not counted."""

    mixes: tuple[Mix, ...]
    constants: tuple[tuple[int, tuple[Labels, ...]], ...]
    unsliced: int

    def __call__(self, alive: Mask) -> Cost:
        """Cost when just these labels live [labels]."""
        kernels = macs = 0
        for mix in self.mixes:
            count = int((alive[mix.targets].sum(1) * alive[mix.sources].sum(1)).sum())
            kernels += count
            macs += count * mix.taps * mix.positions
        params = sum(_surviving(size, factors, alive) for size, factors in self.constants)
        return Cost(kernels, macs, self.unsliced + params)


def cost_model(dag: ChannelDag, ignored: Collection[int] = ()) -> CostModel:
    """The cost model of a channel DAG."""
    first: dict[str, Use] = {}
    for use in dag.uses:
        if use.node not in ignored:
            first.setdefault(use.constant, use)
    sizes = _sizes(dag.model)
    constants = tuple((sizes.get(name, 0), use.factors) for name, use in sorted(first.items()))
    skipped = {use.constant for use in dag.uses if use.node in ignored}
    unsliced = sum(n for name, n in sizes.items() if name not in first and name not in skipped)
    return CostModel(tuple(mix for node, mix in dag.mixes if node not in ignored), constants, unsliced)


def _sizes(model: Model) -> dict[str, int]:
    """Number of elements of each constant that holds numbers other than shapes and indices."""
    found = {}
    for name in model.holders:
        kind, size = model.constant_kind(name)
        if kind not in ("int64", "bool", "object"):
            found[name] = size
    return found


def _surviving(size: int, factors: tuple[Labels, ...], alive: Mask) -> int:
    """Elements of a constant whose labels all live."""
    axes = [varied(f) for f in factors]
    flat = [axis for group in axes for axis in group]
    if len(flat) == len(set(flat)):  # the factors slice different axes
        share = size
        for factor in factors:
            share = share * int(alive[factor].sum()) // factor.size
        return share
    mask: NDArray[np.bool_] = alive[factors[0]]
    for factor in factors[1:]:
        mask = mask & alive[factor]
    return size * int(mask.sum()) // mask.size
