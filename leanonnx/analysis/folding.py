"""Fold weights that the graph computes from constants alone.

A cast, transposed, reshaped or dequantised weight is sliced where the file stores it (``constants``), and keeps its
form.  Any other (weight norm, sums of kernels, blockwise quantised weights) is stored under the name of the computed
tensor, in the type in which it is read; nodes that computed it are removed if nothing else reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.analysis.constants import Constants, ConstantUse
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured_names
from leanonnx.graph.storage import copy_fields
from leanonnx.graph.view import FREE_INITIALIZERS, unused_outputs
from leanonnx.numeric.arrays import Array
from leanonnx.rules.call import KernelBlock


def values_to_fold(
    constants: Constants, uses: Iterable[ConstantUse], blocks: Iterable[tuple[int, KernelBlock]]
) -> dict[str, Array]:
    """Values of computed constants that channel-mixing nodes use as weights, by name.

    These are the ones that cannot be traced to a stored tensor, and those that other nodes read as a whole.
    """
    model, nodes = constants.model, constants.model.proto.graph.node
    weights = [(node, block.slot) for node, block in blocks if block.input_channel_ids is not None]
    mixing = {node for node, _ in weights}
    wanted = {
        use.constant
        for use in uses
        if use.computed is not None and (use.input_channel_ids is not None or use.node in mixing)
    }
    wanted |= set(constants.partly_sliced({(node, nodes[node].input[slot]) for node, slot in weights}))
    outputs = {value.name for value in model.proto.graph.output}
    return {name: constants.observation.values[name] for name in wanted - outputs}


def fold_values(model: Model, values: Mapping[str, Array]) -> Model:
    """Store these values in place of the nodes that compute them."""
    source = model.proto.graph
    idle = unused_outputs(source.node, source)
    kept = [node for node in source.node if values.keys().isdisjoint(node.output)]
    spare = unused_outputs(kept, source) - idle
    nodes = [node for node in kept if not spare.issuperset(node.output)]
    read = {name for node in nodes for name in [*node.input, *captured_names(node)]} | {v.name for v in source.output}
    left = {name for node in source.node for name in [*node.input, *captured_names(node)]} - read
    gone = {name for node in source.node for name in node.output} - {name for node in nodes for name in node.output}
    proto = onnx.ModelProto()
    copy_fields(model.proto, proto, leave={"graph"})
    copy_fields(source, proto.graph, leave={"node", "initializer", "input", "value_info"})
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(tensor for tensor in source.initializer if tensor.name not in left)
    stored = {tensor.name for tensor in source.initializer}
    proto.graph.input.extend(v for v in source.input if v.name not in left & stored)
    proto.graph.value_info.extend(value for value in source.value_info if value.name not in gone)
    for name, value in sorted(values.items()):
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        proto.graph.initializer.append(tensor)
        if proto.ir_version < FREE_INITIALIZERS:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return replace(model, proto=proto, original=model.original or model, folded=(*model.folded, *sorted(values)))
