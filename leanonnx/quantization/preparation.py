"""Prepare a float model for 8-bit integers: refuse what has none, fold, raise the operator set, name the nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from leanonnx.errors import ModelError
from leanonnx.graph.formats import graphs, value_names
from leanonnx.graph.model import Model, first_line, raise_if_machine_failed
from leanonnx.graph.nodes import STANDARD_DOMAINS, fresh_name, is_quantised, node_title, standard_name
from leanonnx.graph.storage import copy_fields
from leanonnx.graph.tidy import tidy
from leanonnx.graph.view import FREE_INITIALIZERS, GraphView
from leanonnx.numeric.arrays import Array
from leanonnx.quantization.layers import (
    MATRIX_AXES,
    OVERRIDABLE_WEIGHT,
    WEIGHTED_OPERATORS,
    output_axis,
    weighted_layers,
)
from leanonnx.runtime.probes import tensor_values
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.spelling import option

LEAST_OPSET = 13
"""The operator set from which a weight may have a scale for each channel."""
LEAST_IR = 7
"""The IR version that belongs to it."""
MAX_FLOAT_ERROR = 1e-3
"""Largest ‖difference‖ / ‖original‖ of an output of the prepared model, which rounds sums in another order."""
SQUASHING = "Sigmoid"
RESIZE_WITH_MODES = 11
"""The operator set from which Resize says how it maps positions; before it, they are asymmetric."""
BIAS_SLOT = 2
SCALES_SLOT = 2
QUANTISER_SUFFIXES = ("_scale", "_zero_point", "_quantized", "_QuantizeLinear", "_DequantizeLinear")
"""Ends of the names that onnxruntime's quantiser makes from those of tensors."""


@dataclass(frozen=True)
class Prepared:
    """A float model to quantise; ``raised_from``: the operator set that it had, None if it kept it."""

    proto: onnx.ModelProto
    raised_from: int | None


def check_quantisable(model: Model) -> None:
    """Refuse a model that 8-bit integers are not for.

    Raises:
        ModelError: it holds integers already, computes in other floats than float32, a caller may override all its
            weights, or its operator set cannot be raised.
    """
    proto, asked = model.proto, option("int8", True)
    integer = next((node for node in model.as_read.proto.graph.node if is_quantised(node)), None)
    if integer is not None:
        raise ModelError(
            f"{model.path}: {node_title(integer)} holds 8-bit integers already; give the float network that this one "
            f"was made from, or leave out {asked}"
        )
    weights = {node.input[1] for node in proto.graph.node if _reads_weight(node)}
    kinds = {tensor.data_type for tensor in proto.graph.initializer if tensor.name in weights}
    other = kinds - {onnx.TensorProto.FLOAT}
    if other:
        names = ", ".join(sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in other))
        raise ModelError(
            f"{model.path}: its weights are {names}; {asked} starts from float32: export the network in float32, or "
            f"leave out {asked}"
        )
    reasons = {layer.reason for layer in weighted_layers(proto)}
    if reasons == {OVERRIDABLE_WEIGHT}:
        raise ModelError(
            f"{model.path}: all its weights are graph inputs that a caller may override, so that {asked} changes none; "
            f"if nobody does, add {option('freeze', True)}"
        )
    if model.opset < LEAST_OPSET:
        _convert(proto, model.path)


def _reads_weight(node: onnx.NodeProto) -> bool:
    return standard_name(node) in WEIGHTED_OPERATORS and len(node.input) > 1


def prepare(proto: onnx.ModelProto, path: Path, feeds: Sequence[Feed], libraries: tuple[Path, ...] = ()) -> Prepared:
    """Fold normalisations into weights, raise the operator set where needed, and name all nodes.

    Args:
        proto: a float model, which is not changed.
        path: its file, for messages.
        feeds: inputs on which the result is compared with it.
        libraries: hold its custom operators.

    Raises:
        ModelError: its operator set cannot be raised, or the quantiser would take names of its inputs and outputs.
    """
    before = GraphView(proto).opset
    folded = tidy(_with_free_constants(_with_plain_imports(proto)), merge=True).proto
    raised = _convert(folded, path) if before < LEAST_OPSET else _copy(folded)
    if _make_gemms(raised, feeds, libraries):
        raised = _copy(tidy(raised, merge=True).proto)
    raised.ir_version = max(raised.ir_version, LEAST_IR)
    _unshare_biases(raised)
    _rename_lookalikes(raised, path)
    _name_nodes(raised)
    error = _float_error(proto, raised, feeds, libraries)
    if not error <= MAX_FLOAT_ERROR:
        raise ModelError(
            f"{path}: prepared for integers (operator set {before} → {GraphView(raised).opset}, normalisations "
            f"folded), its outputs differ by {error:.2g}; export it with operator set {LEAST_OPSET} or later, or "
            f"leave out {option('int8', True)}"
        )
    return Prepared(raised, before if before < LEAST_OPSET else None)


def _convert(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model in operator set ``LEAST_OPSET``.

    Raises:
        ModelError: onnx cannot convert it.
    """
    try:
        converted = version_converter.convert_version(_with_plain_imports(proto), LEAST_OPSET)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises several unrelated types
        raise_if_machine_failed(error)
        raise ModelError(
            f"{path}: its operator set {GraphView(proto).opset} cannot be raised to {LEAST_OPSET}, which "
            f"{option('int8', True)} needs: {first_line(error)}; export it with operator set {LEAST_OPSET} or later"
        ) from error
    result = onnx.ModelProto()
    copy_fields(proto, result, leave={"graph", "opset_import"})
    result.opset_import.extend(converted.opset_import)
    result.graph.CopyFrom(converted.graph)
    if GraphView(proto).opset < RESIZE_WITH_MODES:
        _note_old_positions(result)
    return result


def _note_old_positions(proto: onnx.ModelProto) -> None:
    """Give Resize, in place, the positions that it had before it could be told: onnx's converter leaves them out."""
    view = GraphView(proto)
    for part in graphs(proto.graph):
        for node in part.node:
            if standard_name(node) != "Resize":
                continue
            scales = node.input[SCALES_SLOT]
            shrinks = scales in view.origins and bool(np.any(np.less(view.constant(scales), 1)))
            node.attribute.extend(
                [
                    onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"),
                    onnx.helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"),
                ]
            )


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    return result


def _with_plain_imports(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with one import of each domain, ONNX's own called "": onnxruntime's quantiser takes nothing else."""
    result = _copy(proto)
    versions = {"" if each.domain in STANDARD_DOMAINS else each.domain: each.version for each in proto.opset_import}
    del result.opset_import[:]
    result.opset_import.extend(onnx.helper.make_opsetid(*each) for each in versions.items())
    return result


def _with_free_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose constants are initializers, and no graph inputs where old files had to list them as such."""
    result, outputs = _copy(proto), {value.name for value in proto.graph.output}
    graph, nodes = result.graph, []
    for node in graph.node:
        values = [each.t for each in node.attribute if each.name == "value"]
        if standard_name(node) == "Constant" and values and node.output[0] not in outputs:
            graph.initializer.add().CopyFrom(values[0])
            graph.initializer[-1].name = node.output[0]
        else:
            nodes.append(node)
    if len(nodes) < len(graph.node):
        kept = [_node_copy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    if proto.ir_version < FREE_INITIALIZERS:
        stored = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in stored]
        del graph.input[:]
        graph.input.extend(inputs)
        result.ir_version = FREE_INITIALIZERS
    return result


def _make_gemms(proto: onnx.ModelProto, feeds: Sequence[Feed], libraries: tuple[Path, ...]) -> bool:
    """Make a Gemm of each product of a matrix and a constant to which a constant is added, in place; True if any.

    A Gemm takes the constant as its bias; between a product and a sum, numbers would be rounded to 8 bits.
    """
    view = GraphView(proto)
    products = [
        node
        for node in proto.graph.node
        if standard_name(node) == "MatMul" and _is_matrix(view, node.input[1]) and _is_shifted(view, node.output[0])
    ]
    names = [node.input[0] for node in products]
    ranks = {name: array.ndim for name, array in next(tensor_values(proto, names, feeds[:1], libraries), {}).items()}
    chosen = [node for node in products if ranks.get(node.input[0]) == MATRIX_AXES]
    for node in chosen:
        node.op_type = "Gemm"
        reader = view.nodes[view.consumers[node.output[0]][0]]
        constant = next(name for name in reader.input if name != node.output[0])
        reader.input[:] = [node.output[0], constant]
    return bool(chosen)


def _is_matrix(view: GraphView, name: str) -> bool:
    return name in view.origins and view.constant(name).ndim == MATRIX_AXES


def _is_shifted(view: GraphView, name: str) -> bool:
    """True if the only reader of a tensor adds a constant to it."""
    readers = view.consumers.get(name, [])
    if len(readers) != 1 or readers[0] < 0 or view.input_counts[name] != 1:
        return False
    node = view.nodes[readers[0]]
    return standard_name(node) == "Add" and any(each in view.origins for each in node.input)


def _node_copy(node: onnx.NodeProto) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    return result


def _unshare_biases(proto: onnx.ModelProto) -> None:
    """Give each layer a bias of its own, a number per output: its integers depend on the layer's scales."""
    stored, taken = {tensor.name: tensor for tensor in proto.graph.initializer}, value_names(proto.graph)
    uses = Counter(name for node in proto.graph.node for name in node.input)
    for node in proto.graph.node:
        if standard_name(node) not in WEIGHTED_OPERATORS or len(node.input) <= BIAS_SLOT:
            continue
        name = node.input[BIAS_SLOT]
        weight, bias = stored.get(node.input[1]), stored.get(name)
        if weight is None or bias is None:
            continue
        count = weight.dims[output_axis(node, len(weight.dims))]
        is_row = list(bias.dims) == [count]
        if (uses[name] > 1 or not is_row) and math.prod(bias.dims[:-1]) == 1 and bias.data_type == weight.data_type:
            node.input[BIAS_SLOT] = fresh_name(taken, name)
            row = np.broadcast_to(numpy_helper.to_array(bias).reshape(-1), (count,))
            proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(row), node.input[BIAS_SLOT]))
            uses[name] -= 1


def _rename_lookalikes(proto: onnx.ModelProto, path: Path) -> None:
    """Rename tensors, in place, that are called as onnxruntime's quantiser calls what it makes of others.

    Raises:
        ModelError: both are inputs or outputs of the graph.
    """
    names = value_names(proto.graph)
    fixed, taken = {value.name for value in [*proto.graph.input, *proto.graph.output]}, set(names)
    renamed: dict[str, str] = {}
    for name in sorted(names):
        stems = {name[: name.rfind(end)] for end in QUANTISER_SUFFIXES if end in name} & names
        for stem in sorted(stems):
            old = name if name not in fixed else stem
            if old in fixed:
                raise ModelError(
                    f"{path}: '{name}' is a name that onnxruntime's quantiser makes of '{stem}'; rename one of "
                    f"them, or leave out {option('int8', True)}"
                )
            if old not in renamed:
                renamed[old] = fresh_name(taken, old)
    for part in graphs(proto.graph) if renamed else ():
        for tensor in part.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        for value in part.value_info:
            value.name = renamed.get(value.name, value.name)
        for node in part.node:
            node.input[:] = [renamed.get(each, each) for each in node.input]
            node.output[:] = [renamed.get(each, each) for each in node.output]


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Give nodes names of their own, by which onnxruntime's quantiser knows them."""
    counts = Counter(node.name for node in proto.graph.node)
    taken = set(counts)
    for node in proto.graph.node:
        if not node.name or counts[node.name] > 1:
            stem = node.output[0]
            node.name = fresh_name(taken, stem) if stem in taken else stem
            taken.add(node.name)


def _float_error(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Sequence[Feed], libraries: tuple[Path, ...]
) -> float:
    """Largest ‖difference‖ / ‖original‖ of the outputs of two models; infinite where the second cannot run.

    Outputs of Sigmoid are compared before it: far below zero, it gives a few units of the last place.
    """
    wanted = _values_to_compare(before, feeds, libraries)
    try:
        computed = _values_to_compare(after, feeds, libraries)
    except RunFailed:
        return float("inf")
    pairs = [pair for sides in zip(wanted, computed, strict=True) for pair in zip(*sides, strict=True)]
    return max((relative_difference(*pair) for pair in pairs), default=0.0)


def _values_to_compare(proto: onnx.ModelProto, feeds: Sequence[Feed], libraries: tuple[Path, ...]) -> list[list[Array]]:
    """Outputs for each feed, or what goes into the Sigmoid that makes them."""
    squashed = {node.output[0]: node.input[0] for node in proto.graph.node if standard_name(node) == SQUASHING}
    names = [squashed.get(output.name, output.name) for output in proto.graph.output]
    found = tensor_values(proto, names, feeds, libraries)
    return [[values[name] for name in names] for values in found]


def relative_difference(wanted: Array, computed: Array) -> float:
    """‖difference‖ / ‖wanted‖ of two arrays, numbers that are not finite in the same places left out."""
    if wanted.shape != computed.shape:
        return float("inf")
    if wanted.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(wanted, computed) else float("inf")
    first, second = (np.asarray(side, np.float64) for side in (wanted, computed))
    same = ~np.isfinite(first) & ((first == second) | (np.isnan(first) & np.isnan(second)))
    difference = np.where(same, 0.0, first - second)
    scale = float(np.linalg.norm(np.where(np.isfinite(first), first, 0.0)))
    error = float(np.linalg.norm(difference))
    return 0.0 if error == 0 else error / scale if scale else float("inf")
