"""Clean up a model: remove no-ops, branches that add nothing and nodes that nothing reads; merge linear layers.

The interface does not change: names, types and sizes of inputs and outputs, overridable initializers, metadata.
Nodes that are not concerned stay the same byte for byte.  A tensor keeps its name if it is a graph output, if a
subgraph or an annotation names it, or if the caller says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.merge import MergedConstants, absorbed_before, absorbed_behind, addends, merge_constants
from leanonnx.graph.nodes import attribute, captured_names, fresh_name, standard_name
from leanonnx.graph.noops import COMMUTATIVE, TidyContext, Types, known_operand, replacement_of
from leanonnx.graph.storage import copy_fields
from leanonnx.graph.view import FREE_INITIALIZERS, GraphView, default_initializers, unused_outputs
from leanonnx.numeric.arrays import Array

EDITED_FIELDS = {"node", "initializer", "input", "value_info", "quantization_annotation"}
"""Fields of a graph that the clean-up may shorten."""
NO_UNIFORM_TENSORS: Mapping[str, Array] = MappingProxyType({})


@dataclass(frozen=True)
class TidyResult:
    """A cleaned model, and the number of changes by kind.

    'no-op': a node that outputs its input; 'branch': a computed operand that changes nothing; 'constant': a computed
    operand that is known, and was stored in its place; 'merged': a node that was multiplied into the weights before or
    behind it; 'unread': a node that nothing reads.
    """

    proto: onnx.ModelProto
    done: Mapping[str, int]


def tidy(
    proto: onnx.ModelProto,
    uniform: Mapping[str, Array] = NO_UNIFORM_TENSORS,
    keep: Collection[str] = (),
    merge: bool = False,
) -> TidyResult:
    """Clean a model until nothing is left to do; return the model itself if nothing is.

    Args:
        proto: the model, which is not changed.
        uniform: computed tensors that are known whatever the inputs, as arrays that broadcast to them.
        keep: tensors that must be there afterwards, beside the graph outputs.
        merge: also merge adjacent linear layers, which changes weights (in the last places only).

    Raises:
        RuntimeError: the interface has changed, which is a bug.
    """
    work = _Tidying(proto, uniform, frozenset(keep))
    while work.bypass() or work.settle() or work.compose() or work.drop() or (merge and work.merge()):
        pass
    if not work.done:
        return TidyResult(proto, {})
    result = work.result()
    _check(proto, result, keep)
    return TidyResult(result, dict(sorted(work.done.items())))


def _check(before: onnx.ModelProto, after: onnx.ModelProto, keep: Collection[str]) -> None:
    """Raise an error if the interface has changed, or if a tensor is missing that something names."""
    if _interface(before) != _interface(after):
        raise RuntimeError("the clean-up has changed inputs, outputs or metadata of the model")
    graph = after.graph
    named = {v.name for v in graph.output} | {note.tensor_name for note in graph.quantization_annotation} | {*keep}
    named = named.union(*(captured_names(node) for node in graph.node))
    lost = (named & _available(before.graph)) - _available(graph)
    if lost:
        raise RuntimeError(f"the clean-up has lost the tensors {', '.join(sorted(lost))}")


def _interface(proto: onnx.ModelProto) -> bytes:
    """The interface of a model: all that a caller can see but the values that it computes."""
    face = onnx.ModelProto()
    copy_fields(proto, face, leave={"graph"})
    copy_fields(proto.graph, face.graph, leave=EDITED_FIELDS)
    fixed = {t.name for t in proto.graph.initializer} - default_initializers(proto)
    face.graph.input.extend(v for v in proto.graph.input if v.name not in fixed)
    return face.SerializeToString(deterministic=True)


def _available(graph: onnx.GraphProto) -> set[str]:
    """Names of all tensors of a graph."""
    given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    return given.union({t.values.name for t in graph.sparse_initializer}, *(node.output for node in graph.node))


class _Tidying:
    """The present nodes, the constants that have changed, and the number of changes."""

    def __init__(self, proto: onnx.ModelProto, uniform: Mapping[str, Array], keep: frozenset[str]) -> None:
        self.proto, self.uniform, self.keep = proto, uniform, keep
        self.types = Types(proto)
        self.nodes = list(proto.graph.node)
        self.constants: dict[str, Array] = {}
        self.done: Counter[str] = Counter()
        graph = proto.graph
        annotated = {note.tensor_name for note in graph.quantization_annotation}
        self.fixed_names = {v.name for v in graph.output} | keep | annotated
        for node in self.nodes:
            self.fixed_names |= captured_names(node)
        self.vital = keep | ({v.name for v in graph.input} - {t.name for t in graph.initializer})
        self.given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        self.given |= {t.values.name for t in graph.sparse_initializer}
        self.names = self.fixed_names | self.given | {n for node in self.nodes for n in [*node.input, *node.output]}

    def context(self) -> TidyContext:
        """The present graph as rules see it."""
        return TidyContext(
            view=GraphView(self.proto, tuple(self.nodes)),
            types=self.types,
            uniform=self.uniform,
            changed=self.constants,
            vital=self.vital,
        )

    def bypass(self) -> bool:
        """Remove nodes that output their input; False if there are none.

        1. No value can replace the output, or other outputs are needed: the node stays.
        2. The output may vanish: its consumers read the source.
        3. The output has to stay, but the source may be renamed: it takes the name of the output.
        4. Neither: the node stays.
        """
        context = self.context()
        alias: dict[str, str] = {}
        left: list[onnx.NodeProto] = []
        for original in self.nodes:
            node = _rewire(original, alias)
            source = _resolve(replacement_of(context, node), alias)
            spoken_for = any(context.view.input_counts[n] or n in self.fixed_names for n in node.output[1:] if n)
            if source is None or spoken_for:
                left.append(node)  # 1
            elif node.output[0] not in self.fixed_names:  # 2
                alias[node.output[0]] = source
                self._note(context, node, source)
            elif self._can_be_renamed(context, source):  # 3
                renamed = {source: node.output[0]}
                left = [_rewire(other, renamed, outputs=True) for other in left]
                alias[source] = node.output[0]
                self._note(context, node, source)
            else:
                left.append(node)  # 4
        self.nodes = left
        return bool(alias)

    def _note(self, context: TidyContext, node: onnx.NodeProto, source: str) -> None:
        beside = [name for name in node.input if name != source and source in node.input]
        branch = any(name in context.view.producers and context.constant(name) is None for name in beside)
        self.done["branch" if branch else "no-op"] += 1

    def _can_be_renamed(self, context: TidyContext, name: str) -> bool:
        """True if a tensor may take the name of one that has to stay."""
        return name in context.view.producers and name not in self.fixed_names and context.constant(name) is None

    def settle(self) -> bool:
        """Store computed operands that are known as constants; False if there are none."""
        context = self.context()
        for index, node in enumerate(self.nodes):
            slot = known_operand(context, node)
            if slot is None:
                continue
            array = context.uniform[node.input[slot]]
            stored = fresh_name(self.names, f"{node.input[slot]}_constant")
            self.constants[stored] = array.astype(onnx.helper.tensor_dtype_to_np_dtype(context.kind(node.input[slot])))
            settled = onnx.NodeProto()
            settled.CopyFrom(node)
            settled.input[slot] = stored
            if node.op_type in COMMUTATIVE:
                settled.input[:] = [node.input[1 - slot], stored]
            self.nodes[index] = settled
            self.done["constant"] += 1
            return True
        return False

    def compose(self) -> bool:
        """Make one Transpose of two in a row; False if there are none."""
        context = self.context()
        for index, node in enumerate(self.nodes):
            first = context.view.producer(node.input[0]) if standard_name(node) == "Transpose" else None
            if first is None or standard_name(first) != "Transpose" or context.view.input_counts[node.input[0]] > 1:
                continue
            orders = [attribute(n, "perm") for n in (first, node)]
            if all(orders) and node.input[0] not in self.fixed_names:
                joined = onnx.NodeProto()
                joined.CopyFrom(node)
                joined.input[0] = first.input[0]
                next(a for a in joined.attribute if a.name == "perm").ints[:] = [orders[0][k] for k in orders[1]]
                self.nodes[index] = joined
                self.done["no-op"] += 1
                return True
        return False

    def drop(self) -> bool:
        """Remove nodes that nothing reads; False if there are none."""
        graph = onnx.GraphProto(output=[*self.proto.graph.output, *(onnx.ValueInfoProto(name=n) for n in self.keep)])
        dead = unused_outputs(self.nodes, graph)
        left = [node for node in self.nodes if not dead.issuperset(n for n in node.output if n)]
        gone = len(self.nodes) - len(left)
        if gone:
            self.done["unread"] += gone
        self.nodes = left
        return gone > 0

    def merge(self) -> bool:
        """Merge adjacent linear layers; False if there are none."""
        context = self.context()
        own = {t.name for t in self.proto.graph.initializer} - default_initializers(self.proto) - self.fixed_names

        def only_reader(name: str) -> onnx.NodeProto | None:
            """The producer of a tensor that one node reads."""
            single = context.view.input_counts[name] == 1 and name not in self.fixed_names
            return context.view.producer(name) if single else None

        for index, node in enumerate(self.nodes):
            first = only_reader(node.input[0]) if node.input else None
            if first is None:
                continue
            constants = merge_constants(context, first, node, own)
            if constants is not None:
                self._replace_pair(constants, first, index)
                return True
            for absorber in addends(first, only_reader):
                constants = absorbed_before(context, absorber, node, own)
                if constants is not None:
                    self._replace(absorber, self._with_constants(absorber, constants))
                    renamed = {node.input[0]: node.output[0]}
                    self._replace(first, _rewire(first, renamed, outputs=True))
                    del self.nodes[index]
                    self.done["merged"] += 1
                    return True
            constants = absorbed_behind(context, first, node, own)
            if constants is not None:
                second = self._with_constants(node, constants)
                second.input[0] = first.input[0]
                self.nodes[index] = second
                self.nodes = [other for other in self.nodes if other is not first]
                self.done["merged"] += 1
                return True
        return False

    def _replace(self, node: onnx.NodeProto, other: onnx.NodeProto) -> None:
        self.nodes = [other if each is node else each for each in self.nodes]

    def _with_constants(self, node: onnx.NodeProto, constants: MergedConstants) -> onnx.NodeProto:
        """A copy of a node that reads new constants."""
        result = onnx.NodeProto()
        result.CopyFrom(node)
        for slot, array in constants.by_slot.items():
            result.input.extend([""] * (slot + 1 - len(result.input)))
            if slot in constants.fresh:
                result.input[slot] = fresh_name(self.names, f"{result.output[0]}_bias")
            self.constants[result.input[slot]] = array
        return result

    def _replace_pair(self, constants: MergedConstants, first: onnx.NodeProto, second: int) -> None:
        source = onnx.NodeProto()
        source.CopyFrom(first)
        source.output[0] = self.nodes[second].output[0]
        self.nodes[second] = self._with_constants(source, constants)
        self.nodes = [other for other in self.nodes if other is not first]
        self.done["merged"] += 1

    def result(self) -> onnx.ModelProto:
        """The cleaned model, without constants and records of tensors that only removed nodes used."""
        source = self.proto.graph
        before, after = (
            {n for node in nodes for n in [*node.input, *node.output, *captured_names(node)]}
            for nodes in (source.node, self.nodes)
        )
        outputs = {v.name for v in source.output}
        gone = before - after - outputs - default_initializers(self.proto)
        gone -= self.given - {t.name for t in source.initializer}
        result = onnx.ModelProto()
        copy_fields(self.proto, result, leave={"graph"})
        copy_fields(source, result.graph, leave=EDITED_FIELDS)
        result.graph.node.extend(self.nodes)
        result.graph.input.extend(v for v in source.input if v.name not in gone)
        result.graph.value_info.extend(v for v in source.value_info if v.name not in gone)
        result.graph.quantization_annotation.extend(
            note for note in source.quantization_annotation if note.tensor_name not in gone
        )
        for tensor in source.initializer:
            if tensor.name not in gone:
                changed = self.constants.pop(tensor.name, None)
                result.graph.initializer.append(tensor if changed is None else _tensor(changed, tensor))
        for name, array in sorted(self.constants.items()):
            if name in after:
                result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
                if self.proto.ir_version < FREE_INITIALIZERS:
                    added = result.graph.initializer[-1]
                    result.graph.input.append(
                        onnx.helper.make_tensor_value_info(name, added.data_type, list(added.dims))
                    )
        return result


def _resolve(name: str | None, alias: Mapping[str, str]) -> str | None:
    """The present replacement of a name."""
    while name is not None and name in alias:
        name = alias[name]
    return name


def _rewire(node: onnx.NodeProto, alias: Mapping[str, str], outputs: bool = False) -> onnx.NodeProto:
    """The node with renamed inputs; the node itself if none of them is renamed."""
    if alias.keys().isdisjoint([*node.input, *(node.output if outputs else ())]):
        return node
    result = onnx.NodeProto()
    result.CopyFrom(node)
    result.input[:] = [_resolve(name, alias) or "" for name in node.input]
    if outputs:
        result.output[:] = [alias.get(name, name) for name in node.output]
    return result


def _tensor(array: Array, like: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor with the name and the doc string of another."""
    result = numpy_helper.from_array(np.ascontiguousarray(array), like.name)
    result.doc_string = like.doc_string
    return result
