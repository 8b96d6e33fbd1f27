"""A read-only view of a graph: who outputs and who reads each value, which values are constants, decoded attributes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from leanonnx.graph.nodes import RANDOM_OPS, SHAPE_OPS, STANDARD_DOMAINS, captured_names, holder_array

Holder = onnx.TensorProto | onnx.NodeProto
"""What holds a constant: an initializer, or a Constant node."""
FREE_INITIALIZERS = 4
"""The IR version from which initializers need not be listed as graph inputs; a caller may override those that are."""
GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class GraphView:
    """Relations between the nodes and the values of a model's main graph, each computed when it is first read.

    The model must not change in the meantime; ``replacement_nodes`` are nodes that stand in place of its own.
    """

    proto: onnx.ModelProto
    replacement_nodes: Sequence[onnx.NodeProto] | None = None

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes of the graph."""
        return self.proto.graph.node if self.replacement_nodes is None else self.replacement_nodes

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((o.version for o in self.proto.opset_import if o.domain in STANDARD_DOMAINS), default=1)

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs that a caller has to feed (initializers listed as inputs left out)."""
        fixed = {t.name for t in self.proto.graph.initializer}
        return [value for value in self.proto.graph.input if value.name not in fixed]

    @cached_property
    def holders(self) -> dict[str, Holder]:
        """The initializer or the Constant node that holds each constant."""
        holders: dict[str, Holder] = {t.name: t for t in self.proto.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name != "sparse_value":
                holders[node.output[0]] = node
        return holders

    @cached_property
    def origins(self) -> dict[str, str]:
        """The name of the holder for each constant, read directly or through Identity."""
        origins = {name: name for name in self.holders}
        for node in self.nodes:
            if node.op_type == "Identity" and node.input[0] in origins:
                origins[node.output[0]] = origins[node.input[0]]
        return origins

    @cached_property
    def producers(self) -> dict[str, int]:
        """Index of the node that outputs each value."""
        return {name: k for k, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[int]]:
        """Indices of the nodes that read each value, themselves or in a subgraph; -1 stands for the caller."""
        consumers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in {*node.input, *captured_names(node)}:
                consumers.setdefault(name, []).append(index)
        for value in self.proto.graph.output:
            consumers.setdefault(value.name, []).append(-1)
        return consumers

    @cached_property
    def input_counts(self) -> Counter[str]:
        """Number of node inputs that read each value."""
        return Counter(name for node in self.nodes for name in node.input)

    @cached_property
    def use_counts(self) -> dict[str, int]:
        """Number of node inputs, subgraphs and graph outputs that read each value.

        Constants are counted under the name of their holder, also where they are read through Identity.
        """
        counts = Counter(self.origins.get(value.name, value.name) for value in self.proto.graph.output)
        for node in self.nodes:
            if node.op_type != "Identity" or node.output[0] not in self.origins:
                counts.update(self.origins.get(name, name) for name in [*node.input, *captured_names(node)])
        return dict(counts)

    @cached_property
    def overridable(self) -> frozenset[str]:
        """Initializers whose value a caller may replace, and all values computed from them."""
        names = set(default_initializers(self.proto))
        for node in self.nodes if names else ():
            if not names.isdisjoint([*node.input, *captured_names(node)]):
                names.update(node.output)
        return frozenset(names - {""})

    @cached_property
    def free(self) -> frozenset[str]:
        """Values that depend on the data of a graph input, not merely on its shape."""
        names = {value.name for value in self.inputs}
        for node in self.nodes:
            reads = {*node.input, *captured_names(node)}
            if (reads & names and node.op_type not in SHAPE_OPS) or node.op_type in RANDOM_OPS:
                names.update(node.output)
        return frozenset(names - {""})

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that outputs a value; None if it is a graph input or an initializer."""
        return self.nodes[self.producers[name]] if name in self.producers else None

    def constant(self, name: str) -> NDArray[np.generic]:
        """The value of a constant."""
        return holder_array(self.holders[self.origins[name]])

    def constant_kind(self, name: str) -> tuple[str, int]:
        """Numpy type name and number of elements of a constant, without reading an initializer's data."""
        holder = self.holders[self.origins[name]]
        if isinstance(holder, onnx.TensorProto):
            kind = onnx.helper.tensor_dtype_to_np_dtype(holder.data_type)
        else:
            kind = holder_array(holder).dtype
        return kind.name, math.prod(self.shape_of(name))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a constant, without reading an initializer's data."""
        holder = self.holders[self.origins[name]]
        return tuple(holder.dims) if isinstance(holder, onnx.TensorProto) else holder_array(holder).shape

    def attributes(self, index: int) -> Mapping[str, Any]:
        """Attributes of a node but its subgraphs, decoded by onnx-graphsurgeon.

        Texts are strings, sequences are lists, tensors are ``gs.Constant``: the types that rules are written for.
        """
        if index not in self._decoded_attributes:
            node = self.nodes[index]
            shell = onnx.ModelProto(opset_import=self.proto.opset_import)
            alone = shell.graph.node.add(op_type=node.op_type, domain=node.domain)
            alone.attribute.extend(a for a in node.attribute if a.type not in GRAPHS)
            with gs.logger.G_LOGGER.suppress():  # it logs to stdout
                self._decoded_attributes[index] = gs.import_onnx(shell).nodes[0].attrs
        return self._decoded_attributes[index]

    @cached_property
    def _decoded_attributes(self) -> dict[int, Mapping[str, Any]]:
        """Attributes decoded so far, by node."""
        return {}


def default_initializers(proto: onnx.ModelProto) -> frozenset[str]:
    """Initializers listed as graph inputs where that is not obligatory: their values are mere defaults."""
    if proto.ir_version < FREE_INITIALIZERS:
        return frozenset()
    return frozenset({v.name for v in proto.graph.input} & {t.name for t in proto.graph.initializer})


def unused_outputs(nodes: Iterable[onnx.NodeProto], graph: onnx.GraphProto) -> frozenset[str]:
    """Outputs of nodes from which no path leads to a graph output."""
    needed = {value.name for value in graph.output}
    spare: set[str] = set()
    for node in reversed(list(nodes)):
        if needed.isdisjoint(node.output):
            spare.update(node.output)
        else:
            needed.update([*node.input, *captured_names(node)])
    return frozenset(spare - needed - {""})
