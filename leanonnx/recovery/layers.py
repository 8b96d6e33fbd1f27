"""Layers whose weights can be changed: the storage and layout of their constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag, groups_with_pins
from leanonnx.errors import ModelError
from leanonnx.graph.formats import is_float
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import (
    BIAS,
    BIASED,
    LINEAR,
    attribute,
    is_per_channel,
    name_of,
    standard_name,
)
from leanonnx.graph.positions import Window, window_of
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.operators.integer_forms import INTEGER_FORMS
from leanonnx.operators.table import CONVOLUTIONS
from leanonnx.recovery.integers import QUANTISED_WEIGHT, IntegerWeight, bits_range, stored_integers
from leanonnx.recovery.route import Route, count_reads, route_to
from leanonnx.rules.call import KernelBlock

FIXED = "its weight is shared, and none of its channels can be removed"
"""An operator of the problem, as a blur or a transform in every iteration: not one of the learned layers."""
OTHER_READERS = "its weight is shared with a node that is not fitted"
OTHER_LAYOUT = "its weight is shared with a layer that reads it in another layout"
JOIN_HINT = "join the network with the original and the keep set that it was made from"


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A linear operator in both networks: node ``before`` of the original, node ``after`` of the compressed one.

    ``weight`` and ``bias`` name the stored constants of the compressed network; without a bias, one can be added in
    slot 2 if ``extendable``.  ``output_first``: the weight of a matrix product is stored as [O, I].  ``shape`` is that
    of the weight as the layer reads it, through ``route``; ``window`` is that of a convolution.  ``shared``: other
    layers read the weight in the same layout.  ``integers``: weight and bias are stored as integers, and
    ``operator`` is the float operator that computes the same.
    """

    before: int
    after: int
    block: KernelBlock
    operator: str
    weight: str
    bias: str
    extendable: bool
    output_first: bool
    shape: tuple[int, ...]
    window: Window | None
    route: Route
    shared: bool = False
    integers: IntegerWeight | None = None

    def weight_in(self, model: Model) -> Array:
        """Return the weight, as the layer reads it, from a network that stores it as the compressed one does."""
        stored = self.integers.to_floats(model) if self.integers else model.constant(self.weight)
        return self.route.to_read(stored)

    def bias_in(self, model: Model) -> Floats:
        """Return the stored bias [O] of a layer that has one."""
        if self.integers is not None and self.integers.bias:
            return self.integers.bias_in(model)
        return np.asarray(model.constant(self.bias), np.float64).reshape(-1)

    def scale_places(self, model: Model) -> Ints | None:
        """Index of the scale of each output channel [G, O]; None if a channel has several or the weight has none."""
        if self.integers is None:
            return None
        places = self.to_kernels(self.route.to_read(self.integers.places(model))).astype(np.int64)
        places = places.reshape(*places.shape[:2], -1)
        return places[:, :, 0] if (places == places[:, :, :1]).all() else None

    def data_floats(self, data: Array) -> Array:
        """Convert data that the layer reads, which may be integers, to floats."""
        reads = self.integers.reads if self.integers else None
        return data if reads is None else reads.to_floats(data)

    @property
    def data_slot(self) -> int:
        """Input slot of the data."""
        return 0 if self.block.slot else 1

    @property
    def groups(self) -> int:
        """Number of remaining conv groups."""
        return 1 if self.window is None else self.window.groups

    @property
    def layout(self) -> tuple[object, ...]:
        """Everything that layers with the same weight must have in common to be fitted together."""
        return self.operator, self.output_first, self.shape, self.groups, self.route

    @property
    def can_change_bias(self) -> bool:
        """True if the bias can be changed or added."""
        return bool(self.bias) or self.extendable

    @property
    def bias_axis(self) -> int:
        """Axis of a bias along which the output channels lie."""
        return bias_axis(self.operator, self.block)

    @property
    def has_separate_bias(self) -> bool:
        """True if a separate node adds the bias to the output."""
        return self.operator == "MatMul"

    def to_kernels(self, weight: Array) -> Floats:
        """Convert a stored weight to kernels [G, O, I, taps]."""
        wide = np.asarray(weight, np.float64)
        if self.window is None:
            wide = wide.reshape(wide.shape[-2:])
            return (wide if self.output_first else wide.T)[None, :, :, None]
        if self.operator == "ConvTranspose":
            return wide.reshape(self.groups, wide.shape[0] // self.groups, wide.shape[1], -1).swapaxes(1, 2)
        return wide.reshape(self.groups, wide.shape[0] // self.groups, wide.shape[1], -1)

    def to_stored(self, kernels: Floats) -> Floats:
        """Convert kernels [G, O, I, taps] to the stored weight."""
        if self.window is None:
            return (kernels[0, :, :, 0] if self.output_first else kernels[0, :, :, 0].T).reshape(self.shape)
        if self.operator == "ConvTranspose":
            kernels = kernels.swapaxes(1, 2)
        return kernels.reshape(self.shape)


def linear_layers(dag: ChannelDag, alive: Mask, compressed: Model) -> tuple[list[LinearLayer], dict[str, str]]:
    """Return the layers of a compressed network that can be refitted, in order, and the reasons for others, by name.

    Raises:
        ModelError: the network does not result from the original and the keep set.
    """
    _check_interface(dag, alive, compressed)
    producers = dag.model.producers
    fixed = groups_with_pins(dag.groups, dag.pins)[dag.groups]
    blocks = {node: block for node, block in dag.kernel_blocks if block.input_channel_ids is not None}
    result: list[LinearLayer] = []
    refused: dict[str, str] = {}
    for after, node in enumerate(compressed.proto.graph.node):
        before = producers.get(node.output[0], -1)
        if before not in blocks or node.op_type != dag.model.proto.graph.node[before].op_type:
            continue
        made = _layer(alive, fixed, compressed, before, after, blocks[before])
        if isinstance(made, LinearLayer) and made.integers is not None:
            made = _with_bits(dag.model, compressed, made, made.integers)
        if isinstance(made, LinearLayer):
            _check_widths(alive, compressed, made)
            result.append(made)
        else:
            refused[name_of(node)] = made
    return _joinable(compressed, result, refused), refused


def _joinable(compressed: Model, layers: list[LinearLayer], refused: dict[str, str]) -> list[LinearLayer]:
    """The layers that can be fitted, alone or with all others that read the same weight; ``refused`` gets the rest."""
    uses = uses_by_weight(layers)
    reasons = {}
    for weight, sharing in uses.items():
        if len({layer.layout for layer in sharing}) > 1:
            reasons[weight] = OTHER_LAYOUT
        elif count_reads(compressed, weight) != len(sharing):
            reasons[weight] = OTHER_READERS
        elif sharing[0].has_separate_bias and not _own_biases(compressed, sharing):
            uses[weight] = [replace(layer, bias="") for layer in sharing]
    for layer in layers:
        if layer.weight in reasons and layer.shared:
            refused[name_of(compressed.proto.graph.node[layer.after])] = reasons[layer.weight]
    by_node = {layer.after: layer for sharing in uses.values() for layer in sharing}
    return [by_node.get(one.after, one) for one in layers if not (one.shared and one.weight in reasons)]


def _own_biases(compressed: Model, sharing: Sequence[LinearLayer]) -> bool:
    """True if each layer has a bias, and only these layers read their biases."""
    counts = Counter(layer.bias for layer in sharing)
    return all(bias and count_reads(compressed, bias) == count for bias, count in counts.items())


def uses_by_weight(layers: Iterable[LinearLayer]) -> dict[str, list[LinearLayer]]:
    """The layers that share each weight."""
    uses: dict[str, list[LinearLayer]] = {}
    for layer in layers:
        if layer.shared:
            uses.setdefault(layer.weight, []).append(layer)
    return uses


def _check_interface(dag: ChannelDag, alive: Mask, compressed: Model) -> None:
    """Reject a keep set of another network, and a network with other inputs or outputs."""
    if alive.shape != (dag.count,):
        raise ModelError(
            f"{dag.model.path}: the keep set has {alive.size} channels, but the original has {dag.count}; {JOIN_HINT}"
        )
    for kind, before, after in other_interface(dag.model, compressed):
        raise ModelError(
            f"{dag.model.path}: the compressed network has the {kind} {after}, but the original has {before}; "
            f"{JOIN_HINT}"
        )


def other_interface(model: Model, other: Model) -> Iterator[tuple[str, str, str]]:
    """The sides on which two networks have other names, "inputs" or "outputs", with the names of each."""
    for kind, own, others in (
        ("inputs", model.inputs, other.inputs),
        ("outputs", model.proto.graph.output, other.proto.graph.output),
    ):
        names, rivals = ([value.name for value in side] for side in (own, others))
        if names != rivals:
            yield kind, ", ".join(names), ", ".join(rivals)


def _check_widths(alive: Mask, compressed: Model, layer: LinearLayer) -> None:
    """Reject a layer whose numbers of input and output channels differ from the keep set."""
    sources, targets = (alive[channel_ids].sum(1) for channel_ids in (layer.block.sources, layer.block.destinations))
    stored = layer.to_kernels(layer.weight_in(compressed)).shape
    left = [(int(out), int(read)) for out, read in zip(targets, sources, strict=True) if out]
    if left != [stored[1:3]] * stored[0]:
        node = compressed.proto.graph.node[layer.after]
        widths = " and ".join(f"{sum(pair[k] for pair in left)}" for k in (1, 0))
        raise ModelError(
            f"node '{name_of(node)}' ({node.op_type}): in the compressed network it reads {stored[0] * stored[2]} "
            f"channels and outputs {stored[0] * stored[1]}, but by the keep set it has {widths}; {JOIN_HINT}"
        )


def _layer(
    alive: Mask, fixed: Mask, compressed: Model, before: int, after: int, block: KernelBlock
) -> LinearLayer | str:
    """Return the layer, or the reason why it cannot be refitted; ``fixed`` channels can never be removed."""
    node = compressed.proto.graph.node[after]
    operator = standard_name(node)
    if operator not in LINEAR and operator not in INTEGER_FORMS:
        return f"{node.op_type} is not a plain linear operator"
    stored = stored_integers(compressed, node, block.slot)
    if isinstance(stored, str):
        return stored
    integers, route = stored or (None, route_to(compressed, node.input[block.slot]))
    if route is None:
        return "its weight is computed"
    operator = INTEGER_FORMS[operator].operator if operator in INTEGER_FORMS else operator
    weight = route.holder
    array = route.to_read(compressed.constant(weight))
    if integers is None and not is_float(array):
        return QUANTISED_WEIGHT
    shared = count_reads(compressed, weight) != 1
    if shared and fixed[block.sources].all() and fixed[block.destinations].all():
        return FIXED
    if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        return "it scales its product"
    window = window_of(node, array.shape[2:]) if operator in CONVOLUTIONS else None
    size = int(alive[block.destinations].sum())
    bias = integers.bias if integers and (integers.bias or integers.reads) else None
    if bias is None:
        bias = _bias(compressed, node, operator, block, size, shared)
    if bias is None or (integers and integers.bias and compressed.constant(bias).size != size):
        return "its bias is shared or computed"
    extendable = not bias and operator in BIASED and integers is None
    turned = bool(attribute(node, "transB", 0)) if block.slot else not attribute(node, "transA", 0)
    return LinearLayer(
        before=before,
        after=after,
        block=block,
        operator=operator,
        weight=weight,
        bias=bias,
        extendable=extendable,
        output_first=turned,
        shape=array.shape,
        window=window,
        route=route,
        shared=shared,
        integers=integers,
    )


def _with_bits(original: Model, compressed: Model, layer: LinearLayer, integers: IntegerWeight) -> LinearLayer | str:
    """The layer with the range of its integers in the original; the reason if it cannot be fitted."""
    if layer.scale_places(compressed) is None:
        return QUANTISED_WEIGHT
    first = stored_integers(original, original.proto.graph.node[layer.before], layer.block.slot)
    model, weight = (original, first[0]) if isinstance(first, tuple) else (compressed, integers)
    lowest, highest = bits_range(model, weight)
    return replace(layer, integers=replace(integers, lowest=lowest, highest=highest))


def _bias(
    compressed: Model, node: onnx.NodeProto, operator: str, block: KernelBlock, size: int, shared: bool
) -> str | None:
    """Name of the stored bias; "" if there is none, None if it may not be changed.

    A separate node's bias has to be the layer's own, or may be shared if its weight is.
    """
    name = node.input[BIAS] if len(node.input) > BIAS else ""
    if operator == "MatMul":
        name = _addition_constant(compressed, node.output[0])
        if not name:
            return ""
    if not name:
        return ""
    route = route_to(compressed, name)
    if route is None or not route.is_direct:
        return None
    holder = route.holder
    array = compressed.constant(holder)
    plain = is_float(array) and array.size == size and is_per_channel(array, size, bias_axis(operator, block))
    if operator == "MatMul" and not (plain and (shared or count_reads(compressed, holder) == 1)):
        return ""
    return holder if plain else None


def bias_axis(operator: str, block: KernelBlock) -> int:
    """Axis of a bias along which the output channels lie."""
    return -1 if operator in CONVOLUTIONS else block.output_axis


def _addition_constant(compressed: Model, output: str) -> str:
    """Name of the constant that the only consumer of a tensor adds to it; "" if there is none."""
    consumers = compressed.consumers.get(output, [])
    if len(consumers) != 1 or consumers == [-1]:
        return ""
    node = compressed.proto.graph.node[consumers[0]]
    others = [name for name in node.input if name != output]
    if node.op_type != "Add" or len(others) != 1 or route_to(compressed, others[0]) is None:
        return ""
    return others[0]
