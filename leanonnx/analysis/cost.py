"""What a keep set costs: kernels, multiply-adds and parameters of the network after surgery."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.analysis.constants import ConstantUse
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.product_costs import Product, products
from leanonnx.graph.formats import graphs
from leanonnx.graph.model import Model
from leanonnx.numeric.channel_ids import ChannelIds, Mask, varied
from leanonnx.rules.call import KernelBlock

SHAPES_AND_TEXTS = ("int64", "bool", "object")
UNITS = ("kernels", "macs", "params")
Rate = Callable[[int, KernelBlock], float]
"""What one kernel of a node costs, in the unit of a budget."""


@dataclass(frozen=True)
class Cost:
    """Kernels, multiply-adds (of one run at the observed input sizes) and parameters (numbers)."""

    kernels: int
    macs: int
    params: int


@dataclass(frozen=True)
class _Sliced:
    """How one reader slices a constant of ``size`` elements: by factors on different axes, or by a mask of elements."""

    size: int
    factors: tuple[ChannelIds, ...]
    apart: bool

    def surviving(self, alive: Mask) -> int:
        """Elements whose labels all live."""
        if self.apart:
            share = self.size
            for factor in self.factors:
                share = share * int(np.count_nonzero(alive[factor])) // factor.size
            return share
        mask: NDArray[np.bool_] = alive[self.factors[0]]
        for factor in self.factors[1:]:
            mask = mask & alive[factor]
        return self.size * int(mask.sum()) // mask.size


def _sliced(size: int, factors: tuple[ChannelIds, ...]) -> _Sliced:
    axes = [axis for factor in factors for axis in varied(factor)]
    return _Sliced(size, factors, apart=len(axes) == len(set(axes)))


@dataclass(frozen=True)
class _Constant:
    """A constant and the ways in which its readers slice it; ``whole`` if one of them does not slice it at all.

    ``computed``: the graph computes it, and surgery stores it only once it is sliced.
    """

    size: int
    uses: tuple[_Sliced, ...]
    whole: bool
    computed: bool

    def surviving(self, alive: Mask) -> int:
        """Elements that are stored: readers that need other slices than each other get clones."""
        if self.computed:
            cut = [use for use in self.uses if not all(alive[factor].all() for factor in use.factors)]
            return sum(use.surviving(alive) for use in cut)
        if len(self.uses) == 1 and not self.whole:
            return self.uses[0].surviving(alive)
        stored = {b"": self.size} if self.whole else {}
        for use in self.uses:
            masks = [alive[factor] for factor in use.factors]
            key = b"" if all(mask.all() for mask in masks) else b"|".join(mask.tobytes() for mask in masks)
            stored[key] = use.surviving(alive)
        return sum(stored.values())


@dataclass(frozen=True)
class CostModel:
    """Counts the cost of any keep set; layers that are ignored are in none of its parts.

    ``unfolded``: so many parameters more has the file, which is kept as it is where everything lives, than the network
    whose computed weights are stored.
    """

    mixes: tuple[KernelBlock, ...]
    constants: tuple[_Constant, ...]
    unsliced: int
    products: tuple[Product, ...] = ()
    unfolded: int = 0

    def __call__(self, alive: Mask) -> Cost:
        """Cost when just these labels live [labels]."""
        kernels = macs = 0
        for mix in self.mixes:
            count = int((alive[mix.destinations].sum(1) * alive[mix.sources].sum(1)).sum())
            kernels += count * mix.counted
            macs += count * mix.taps * mix.positions
        macs += sum(product.surviving(alive) for product in self.products)
        params = self.unsliced + sum(constant.surviving(alive) for constant in self.constants)
        return Cost(kernels, macs, params + self.unfolded * bool(alive.all()))


def cost_model(dag: ChannelDag, ignored: Collection[int] = ()) -> CostModel:
    """The cost model of a channel DAG; layers in ``ignored`` (node indices) are not counted."""
    uses: dict[str, dict[tuple[int, int], ConstantUse]] = {}
    for use in dag.uses:
        uses.setdefault(use.constant, {})[use.node, use.slot] = use
    sizes = _sizes(dag.model)
    counted = [name for name, places in sorted(uses.items()) if not all(node in ignored for node, _ in places)]
    return CostModel(
        mixes=tuple(mix for node, mix in dag.kernel_blocks if node not in ignored),
        constants=tuple(_constant(dag, name, list(uses[name].values()), sizes.get(name, 0)) for name in counted),
        unsliced=stored(dag.model) - sum(sizes.get(name, 0) for name in uses),
        products=tuple(product for product in products(dag)[0] if product.node not in ignored),
        unfolded=stored(dag.model.as_read) - stored(dag.model),
    )


def by_kernels(node: int, mix: KernelBlock) -> float:
    """Kernels."""
    return float(mix.counted)


def by_macs(node: int, mix: KernelBlock) -> float:
    """Multiply-adds of a kernel."""
    return float(mix.taps * mix.positions)


def by_params(node: int, mix: KernelBlock) -> float:
    """Numbers that a kernel stores."""
    return float(mix.taps)


RATES: Mapping[str, Rate] = {"kernels": by_kernels, "macs": by_macs, "params": by_params}


def stored(model: Model) -> int:
    """Numbers that a model stores, but for shapes and indices."""
    return sum(_sizes(model).values()) + sum(math.prod(t.dims) for t in _apart(model.proto) if _is_weight(t.data_type))


def _apart(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Constants of subgraphs, and the values of sparse ones."""
    for depth, graph in enumerate(graphs(proto.graph)):
        yield from (sparse.values for sparse in graph.sparse_initializer)
        constants = [a for node in graph.node if node.op_type == "Constant" for a in node.attribute]
        yield from (a.sparse_tensor.values for a in constants if a.name == "sparse_value")
        if depth:
            yield from (*graph.initializer, *(a.t for a in constants if a.name == "value"))


def _is_weight(kind: int) -> bool:
    """Whether numbers of an element type are weights, not shapes, indices or texts."""
    return onnx.helper.tensor_dtype_to_np_dtype(kind).name not in SHAPES_AND_TEXTS


def _constant(dag: ChannelDag, name: str, uses: list[ConstantUse], size: int) -> _Constant:
    value = uses[0].computed
    whole = len(uses) < dag.model.use_counts.get(name, 0)
    size = size if value is None else value.size
    return _Constant(size, tuple(_sliced(size, use.factors) for use in uses), whole, computed=value is not None)


def _sizes(model: Model) -> dict[str, int]:
    """Number of elements of each constant that holds numbers other than shapes and indices."""
    found = {}
    for name in model.holders:
        kind, size = model.view.constant_kind(name)
        if kind not in SHAPES_AND_TEXTS:
            found[name] = size
    return found
