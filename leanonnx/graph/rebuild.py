"""Rebuild a model around another list of nodes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from leanonnx.graph.nodes import captured_names
from leanonnx.graph.storage import copy_fields
from leanonnx.graph.view import FREE_INITIALIZERS, default_initializers

REBUILT_FIELDS = {"node", "initializer", "input", "value_info", "quantization_annotation"}


def with_nodes(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], added: Sequence[onnx.TensorProto]
) -> onnx.ModelProto:
    """The model with other nodes and with constants added.

    Constants, declared types and annotations go if they belong to tensors that only the former nodes had.  The
    interface stays: also initializers that a caller may override.
    """
    source = proto.graph
    before, after = (
        {name for node in each for name in [*node.input, *node.output, *captured_names(node)]}
        for each in (source.node, nodes)
    )
    stored = {tensor.name for tensor in source.initializer}
    fed = {value.name for value in source.input} - stored
    gone = before - after - {value.name for value in source.output} - default_initializers(proto) - fed
    result = onnx.ModelProto()
    copy_fields(proto, result, leave={"graph"})
    copy_fields(source, result.graph, leave=REBUILT_FIELDS)
    graph = result.graph
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name not in gone)
    graph.initializer.extend(added)
    for field in ("input", "value_info"):
        getattr(graph, field).extend(value for value in getattr(source, field) if value.name not in gone)
    if proto.ir_version < FREE_INITIALIZERS:
        for tensor in added:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    notes = source.quantization_annotation
    graph.quantization_annotation.extend(note for note in notes if note.tensor_name not in gone)
    return result
