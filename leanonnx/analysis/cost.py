"""Costs of a keep set: kernels, multiply-adds, parameters and bytes of the network after surgery."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.analysis.constants import ConstantUse
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.file_size import FileSize, array_bits, constant_bits, file_size, weight_holder
from leanonnx.analysis.product_costs import Product, products
from leanonnx.graph.formats import graphs
from leanonnx.graph.model import Model
from leanonnx.numeric.channel_ids import ChannelIds, Mask, varied_axes
from leanonnx.rules.call import KernelBlock

SHAPES_AND_TEXTS = ("int64", "bool", "object")
"""Element types of constants that are no weights."""
Rate = Callable[[int, KernelBlock], float]
"""Cost of one kernel of a node, in the unit of a budget."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Kernels, multiply-adds (of one run at the observed input sizes), parameters (numbers), and bytes of the file."""

    kernels: int
    macs: int
    params: int
    bytes: int


@dataclass(frozen=True)
class _SlicedUse:
    """A consumer of a constant of ``size`` elements, sliced by factors on different axes, or by an element mask."""

    size: int
    factors: tuple[ChannelIds, ...]
    apart: bool

    def is_whole(self, alive: Mask) -> bool:
        """True if nothing is removed."""
        return all(bool(alive[factor].all()) for factor in self.factors)

    def remaining(self, alive: Mask) -> int:
        """Number of elements whose channels are all kept."""
        if self.apart:
            share = self.size
            for factor in self.factors:
                share = share * int(np.count_nonzero(alive[factor])) // factor.size
            return share
        mask: NDArray[np.bool_] = alive[self.factors[0]]
        for factor in self.factors[1:]:
            mask = mask & alive[factor]
        return self.size * int(mask.sum()) // mask.size


def _sliced_use(size: int, factors: tuple[ChannelIds, ...]) -> _SlicedUse:
    axes = [axis for factor in factors for axis in varied_axes(factor)]
    return _SlicedUse(size, factors, apart=len(axes) == len(set(axes)))


@dataclass(frozen=True)
class _Constant:
    """A constant and the ways in which its consumers slice it; ``whole``: one of them does not slice it at all.

    ``copied``: once it is sliced, each of them has a copy of its own.

    ``computed``: the graph computes it, and surgery stores it only once it is sliced.  ``is_param``: its elements count
    as parameters; ``bits`` of one element.
    """

    size: int
    uses: tuple[_SlicedUse, ...]
    whole: bool
    copied: bool
    computed: bool
    is_param: bool
    bits: int

    def remaining(self, alive: Mask) -> int:
        """Number of elements that are stored: consumers that need different slices get clones."""
        if self.computed:
            cut = [use for use in self.uses if not use.is_whole(alive)]
            return sum(use.remaining(alive) for use in cut)
        if len(self.uses) == 1 and not self.whole:
            return self.uses[0].remaining(alive)
        if self.copied:
            cut = [use for use in self.uses if not use.is_whole(alive)]
            whole = self.whole or len(cut) < len(self.uses)
            return sum(use.remaining(alive) for use in cut) + self.size * whole
        slices = {b"": self.size} if self.whole else {}
        for use in self.uses:
            masks = [alive[factor] for factor in use.factors]
            key = b"" if all(mask.all() for mask in masks) else b"|".join(mask.tobytes() for mask in masks)
            slices[key] = use.remaining(alive)
        return sum(slices.values())


@dataclass(frozen=True)
class CostModel:
    """Counts the cost of any keep set; layers that are ignored add to nothing but the bytes of the file.

    ``unfolded``: number of parameters that the file, which is kept as it is where nothing is removed, has more than the
    network whose computed weights are stored.
    """

    kernel_blocks: tuple[KernelBlock, ...]
    constants: tuple[_Constant, ...]
    unsliced: int
    file: FileSize
    products: tuple[Product, ...] = ()
    unfolded: int = 0

    def __call__(self, alive: Mask) -> Cost:
        """Cost of a keep set [channels]."""
        kernels = macs = 0
        for mix in self.kernel_blocks:
            count = int((alive[mix.destinations].sum(1) * alive[mix.sources].sum(1)).sum())
            kernels += count * mix.is_counted
            macs += count * mix.taps * mix.positions
        macs += sum(product.remaining(alive) for product in self.products)
        params, size = self.unsliced, self.file.frame
        for constant in self.constants:
            count = constant.remaining(alive)
            params += count * constant.is_param
            size += self.file.data_bytes(constant.bits, count)
        whole = bool(alive.all())
        return Cost(
            kernels=kernels,
            macs=macs,
            params=params + self.unfolded * whole,
            bytes=self.file.original if whole else size,
        )


def cost_model(dag: ChannelDag, ignored: Collection[int] = ()) -> CostModel:
    """The cost model of a channel DAG; layers in ``ignored`` (node indices) are not counted."""
    uses: dict[str, dict[tuple[int, int], ConstantUse]] = {}
    for use in dag.constant_uses:
        uses.setdefault(use.constant, {})[use.node, use.slot] = use
    sizes = _param_counts(dag.model)
    unsliced = count_params(dag.model) - sum(sizes.get(name, 0) for name in uses)
    return CostModel(
        kernel_blocks=tuple(mix for node, mix in dag.kernel_blocks if node not in ignored),
        constants=tuple(_constant(dag, name, uses[name], sizes, ignored) for name in sorted(uses)),
        unsliced=unsliced,
        file=file_size(dag.model, uses),
        products=tuple(product for product in products(dag)[0] if product.node not in ignored),
        unfolded=count_params(dag.model.as_read) - count_params(dag.model),
    )


@dataclass(frozen=True)
class CopiedConstants:
    """Number of constants that surgery copies for each of their readers, and the bytes that this takes."""

    count: int
    bytes: int


def copied_constants(dag: ChannelDag, alive: Mask) -> CopiedConstants | None:
    """The constants that surgery copies under a keep set [channels]; None if it does not copy any."""
    if not dag.copies_constants:
        return None
    places: dict[str, set[tuple[int, int]]] = {}
    for use in dag.constant_uses:
        if not all(alive[factor].all() for factor in use.factors):
            places.setdefault(use.constant, set()).add((use.node, use.slot))
    shared = replace(dag, copies_constants=False, other_sizes=())
    more = cost_model(dag)(alive).bytes - cost_model(shared)(alive).bytes
    return CopiedConstants(sum(len(readers) > 1 for readers in places.values()), more)


def kernel_rate(node: int, mix: KernelBlock) -> float:
    """Kernels."""
    return float(mix.is_counted)


def mac_rate(node: int, mix: KernelBlock) -> float:
    """Multiply-adds of a kernel."""
    return float(mix.taps * mix.positions)


def param_rate(dag: ChannelDag) -> Rate:
    """Numbers that the kernels of a block store; those of a weight that several blocks share are divided among them."""
    held = {(node, mix.slot): weight_holder(dag, node, mix.slot) for node, mix in dag.kernel_blocks}
    counts = Counter(held.values())

    def rate(node: int, mix: KernelBlock) -> float:
        return mix.taps / (1 if dag.copies_constants else counts[held[node, mix.slot]])

    return rate


def count_params(model: Model) -> int:
    """Number of elements that a model stores as weights: without shapes and indices."""
    inner = sum(math.prod(t.dims) for t in _inner_tensors(model.proto) if _is_weight(t.data_type))
    return sum(_param_counts(model).values()) + inner


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Constants of subgraphs, and the values of sparse ones."""
    for depth, graph in enumerate(graphs(proto.graph)):
        yield from (sparse.values for sparse in graph.sparse_initializer)
        constants = [a for node in graph.node if node.op_type == "Constant" for a in node.attribute]
        yield from (a.sparse_tensor.values for a in constants if a.name == "sparse_value")
        if depth:
            yield from (*graph.initializer, *(a.t for a in constants if a.name == "value"))


def _is_weight(kind: int) -> bool:
    """True if numbers of an element type are weights, not shapes, indices or texts."""
    return onnx.helper.tensor_dtype_to_np_dtype(kind).name not in SHAPES_AND_TEXTS


def _constant(
    dag: ChannelDag,
    name: str,
    uses: Mapping[tuple[int, int], ConstantUse],
    sizes: Mapping[str, int],
    ignored: Collection[int],
) -> _Constant:
    """A constant that is sliced; one that ignored layers alone read is no parameter."""
    value = next(iter(uses.values())).computed
    size = math.prod(dag.model.shape_of(name)) if value is None else value.size
    return _Constant(
        size=size,
        uses=tuple(_sliced_use(size, use.factors) for use in uses.values()),
        whole=len(uses) < dag.model.use_counts.get(name, 0),
        copied=dag.copies_constants,
        computed=value is not None,
        is_param=(value is not None or name in sizes) and not all(node in ignored for node, _ in uses),
        bits=constant_bits(dag.model, name) if value is None else array_bits(value.dtype),
    )


def _param_counts(model: Model) -> dict[str, int]:
    """Number of elements of each constant that holds weights."""
    counts = {}
    for name in model.holders:
        kind, size = model.view.constant_kind(name)
        if kind not in SHAPES_AND_TEXTS:
            counts[name] = size
    return counts
