"""Replace branches of a network by affine stand-ins, and build the reference that such a network is compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.analysis.branches import Branch
from leanonnx.graph.formats import value_names
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import fresh_name
from leanonnx.graph.rebuild import with_nodes
from leanonnx.graph.view import unused_outputs
from leanonnx.numeric.arrays import Array

MATRIX = 2
"""Axes of a weight that mixes channels."""


@dataclass(frozen=True)
class StandIn:
    """The arrays of a stand-in z = W x + b; None leaves out a factor of one, or a bias of zero.

    ``weight``: a matrix [C_out, C_in] or one factor for each channel [C]; for a branch beside a convolution, the new
    weight of that convolution, which then includes its batch normalisation (None: both stay as they are).
    ``bias``: [C_out].
    """

    weight: Array | None = None
    bias: Array | None = None


def shorten(model: Model, replaced: Mapping[Branch, StandIn]) -> onnx.ModelProto:
    """The model without some branches, each replaced by its stand-in.

    A stand-in outputs the joined tensor under its name, and its last node has the name of the join; a convolution
    beside the branch keeps its own.  All other nodes and tensors are as before.

    Args:
        model: the model that the branches were found in.
        replaced: branches to remove, none within another and no two at one join, with their stand-ins.

    Raises:
        ValueError: branches overlap, or the arrays of a stand-in do not fit.
    """
    edit = _Edit(model)
    source = model.proto.graph.node
    _check_disjoint(replaced)
    changed: dict[int, list[onnx.NodeProto]] = {k: [] for branch in replaced for k in (branch.join, *branch.nodes)}
    for branch, standin in replaced.items():
        if branch.kind == "shortcut":
            changed |= edit.refit_shortcut(branch, standin)
        else:
            changed[branch.join] = edit.affine(branch, standin)
    nodes = [node for index, original in enumerate(source) for node in changed.get(index, [original])]
    dead = unused_outputs(nodes, model.proto.graph)
    nodes = [node for node in nodes if not dead.issuperset(name for name in node.output if name)]
    return with_nodes(model.proto, nodes, edit.added)


def graft(model: Model, replaced: Mapping[Branch, StandIn]) -> onnx.ModelProto:
    """The model with stand-ins beside the branches: the reference of the proof.

    No node is removed; the joined tensors get new names, which nothing reads.  The stand-ins that take over their names
    are computed in another way than those of ``shorten``: by matrix products over all positions.

    Raises:
        ValueError: branches overlap, or the arrays of a stand-in do not fit.
    """
    edit = _Edit(model)
    _check_disjoint(replaced)
    by_join = {branch.join: (branch, standin) for branch, standin in replaced.items()}
    nodes: list[onnx.NodeProto] = []
    for index, original in enumerate(model.proto.graph.node):
        if index not in by_join:
            nodes.append(original)
            continue
        branch, standin = by_join[index]
        join = _copy(original)
        join.output[0] = edit.name(branch.output)
        other = edit.convolve if branch.kind == "shortcut" else edit.multiply
        nodes += [join, *other(branch, standin)]
    return with_nodes(model.proto, nodes, edit.added)


class _Edit:
    """Names and constants added to a model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = value_names(model.proto.graph)
        self.added: list[onnx.TensorProto] = []

    def name(self, stem: str) -> str:
        """A new name."""
        return fresh_name(self.names, stem)

    def constant(self, array: Array, branch: Branch, part: str) -> str:
        """Add a constant of the type of a branch; returns its name."""
        name = self.name(f"{branch.output}_{part}")
        values = np.asarray(array).astype(onnx.helper.tensor_dtype_to_np_dtype(branch.element_type))
        self.added.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def affine(self, branch: Branch, standin: StandIn) -> list[onnx.NodeProto]:
        """A 1×1 convolution, or a factor and a bias for each channel."""
        _check_affine(branch, standin)
        join = self.model.proto.graph.node[branch.join]
        weight, bias = standin.weight, standin.bias
        spatial = [1] * (branch.rank - 2)
        if weight is not None and weight.ndim == MATRIX:
            inputs = [branch.stream, self.constant(weight.reshape(*weight.shape, *spatial), branch, "weight")]
            inputs += [] if bias is None else [self.constant(bias, branch, "bias")]
            return [_stand_in_for(join, "Conv", inputs, branch.output)]
        steps = [("Mul", weight, "scale"), ("Add", bias, "bias")]
        operands = [
            (op, self.constant(a.reshape(1, -1, *spatial), branch, part)) for op, a, part in steps if a is not None
        ]
        if not operands:
            return [_stand_in_for(join, "Identity", [branch.stream], branch.output)]
        outputs = [*(self.name(branch.output) for _ in operands[1:]), branch.output]
        inputs = [branch.stream, *outputs[:-1]]
        nodes = [
            _stand_in_for(join, op, [x, constant], y)
            for (op, constant), x, y in zip(operands, inputs, outputs, strict=True)
        ]
        for node in nodes[:-1]:
            node.name = node.output[0]
        return nodes

    def refit_shortcut(self, branch: Branch, standin: StandIn) -> dict[int, list[onnx.NodeProto]]:
        """The convolution beside a branch, which outputs the joined tensor, by node index."""
        source = self.model.proto.graph.node
        self._check_kernels(branch, standin)
        if standin.weight is None:
            last = _copy(source[branch.shortcut[-1]])
            last.output[0] = branch.output
            return {branch.shortcut[-1]: [last]}
        conv = _copy(source[branch.shortcut[0]])
        conv.input[:] = [conv.input[0], self.constant(standin.weight, branch, "weight")]
        conv.input.extend([] if standin.bias is None else [self.constant(standin.bias, branch, "bias")])
        conv.output[0] = branch.output
        return {branch.shortcut[-1]: []} | {branch.shortcut[0]: [conv]}

    def _check_kernels(self, branch: Branch, standin: StandIn) -> None:
        """Reject weights of another shape than those of the convolution beside a branch."""
        shape = self.model.shape_of(self.model.proto.graph.node[branch.shortcut[0]].input[1])
        if standin.weight is None:
            _check_fits(standin.bias is None, "a bias without a weight")
        else:
            _check_fits(standin.weight.shape == shape, f"a weight that is not {shape}")
            _check_fits(standin.bias is None or standin.bias.shape == shape[:1], f"a bias that is not {shape[:1]}")

    def multiply(self, branch: Branch, standin: StandIn) -> list[onnx.NodeProto]:
        """The stand-in as a matrix product with all positions in one axis."""
        _check_affine(branch, standin)
        weight = np.ones(branch.channels) if standin.weight is None else standin.weight
        bias = np.zeros(branch.channels) if standin.bias is None else standin.bias
        matrix = weight if weight.ndim == MATRIX else np.diag(weight)
        stem, make = branch.output, onnx.helper.make_node
        shape, flat, product, total = (self.name(stem) for _ in range(4))
        rows = self.name(f"{stem}_rows")
        self.added.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), rows))
        return [
            make("Shape", [branch.stream], [shape], name=shape),
            make("Reshape", [branch.stream, rows], [flat], name=flat),
            make("MatMul", [self.constant(matrix, branch, "matrix"), flat], [product], name=product),
            make("Add", [product, self.constant(bias[:, None], branch, "offset")], [total], name=total),
            make("Reshape", [total, shape], [stem], name=self.name(stem)),
        ]

    def convolve(self, branch: Branch, standin: StandIn) -> list[onnx.NodeProto]:
        """The convolution beside a branch with its bias added separately, or its present output."""
        source = self.model.proto.graph.node
        self._check_kernels(branch, standin)
        kept = source[branch.shortcut[-1]].output[0]
        make = onnx.helper.make_node
        if standin.weight is None:
            return [make("Identity", [kept], [branch.output], name=self.name(branch.output))]
        conv = _copy(source[branch.shortcut[0]])
        conv.input[:] = [conv.input[0], self.constant(standin.weight, branch, "kernels")]
        conv.output[0] = conv.name = self.name(branch.output)
        offset = np.zeros(standin.weight.shape[0]) if standin.bias is None else standin.bias
        offset = offset.reshape(-1, *[1] * (branch.rank - 2))
        added = make("Add", [self.constant(offset, branch, "offset"), conv.output[0]], [branch.output])
        added.name = self.name(branch.output)
        return [conv, added]


def _stand_in_for(join: onnx.NodeProto, operator: str, inputs: list[str], output: str) -> onnx.NodeProto:
    """A node with the name and the doc string of a join."""
    return onnx.NodeProto(
        op_type=operator, input=inputs, output=[output], name=join.name or None, doc_string=join.doc_string or None
    )


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _check_disjoint(branches: Collection[Branch]) -> None:
    """Reject branches within others, and two at one join."""
    nodes = [node for branch in branches for node in (branch.join, *branch.nodes)]
    if len(nodes) != len(set(nodes)):
        raise ValueError("the branches overlap")


def _check_affine(branch: Branch, standin: StandIn) -> None:
    """Reject arrays of other sizes than the channels of a branch."""
    weight, bias, size = standin.weight, standin.bias, branch.channels
    _check_fits(weight is None or weight.shape in ((size, size), (size,)), f"a weight that is not for {size} channels")
    _check_fits(bias is None or bias.shape == (size,), f"a bias that is not for {size} channels")


def _check_fits(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"the stand-in has {what}")
