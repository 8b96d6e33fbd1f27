"""An ONNX graph as a torch module that runs it node by node.

Values keep the names of the graph, so any tensor in it can be asked for.  What depends on constants alone is computed
once.  Everything is float32: a model in half precision is trained as its float32 stand-in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from leanonnx.commands.finetune.operators.call import Call, Operator, Operators, Tensor, refusal
from leanonnx.commands.finetune.operators.table import OPERATORS
from leanonnx.errors import LeanOnnxError
from leanonnx.graph.formats import OTHERS, float_kinds, in_float32
from leanonnx.graph.model import Model, first_line
from leanonnx.graph.nodes import STANDARD, captured, holder_array, is_quantised

Values = dict[str, Tensor]
Feed = Mapping[str, Tensor]
BRANCHES = ("then_branch", "else_branch")
QUANTISED = "the network computes in integers (finetune the float network, then quantise it)"


@dataclass(frozen=True)
class ProgramStep:
    """One node: its torch function and attributes; an If has its branches instead."""

    node: onnx.NodeProto
    operator: Operator | None
    attributes: Mapping[str, Any]
    branches: Mapping[str, GraphProgram] = field(default_factory=dict)

    @property
    def reads(self) -> set[str]:
        """Values that it needs."""
        return ({*self.node.input} | captured(self.node)) - {""}


@dataclass(frozen=True)
class GraphProgram:
    """A graph ready to be run: its nodes, constants and outputs."""

    steps: tuple[ProgramStep, ...]
    constants: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class Network(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """A model's graph with the named constants as parameters.

    Raises:
        ModelError: a node's operator, or the way it is used, is not covered.
    """

    def __init__(self, model: Model, trained: Sequence[str], operators: Operators = OPERATORS) -> None:
        super().__init__()
        proto = in_float32(model.proto, float_kinds(model.proto) & OTHERS)
        self.opset = model.opset
        self.names = tuple(trained)
        plan = _planned(proto.graph, operators)
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(plan.constants[name]) for name in self.names])
        self.outputs = plan.outputs
        self.fixed: Values = {name: value for name, value in plan.constants.items() if name not in set(self.names)}
        self.steps = self._folded(plan.steps)
        self.chosen: dict[tuple[str, ...], tuple[tuple[ProgramStep, tuple[str, ...]], ...]] = {}

    def place(self, device: str) -> Network:
        """Move it to a device; integers stay on the CPU, where shapes are computed."""
        self.to(device)
        self.fixed = {n: v.to(device) if v.is_floating_point() else v for n, v in self.fixed.items()}
        return self

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters by name."""
        found = zip(self.names, self.weights, strict=True)
        return {name: weight.detach().cpu().numpy().copy() for name, weight in found}

    def restore(self, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set the parameters by name."""
        with torch.no_grad():
            for name, weight in zip(self.names, self.weights, strict=True):
                weight.copy_(torch.from_numpy(np.asarray(values[name], np.float32)))

    def forward(self, feed: Feed, names: tuple[str, ...] | None = None) -> list[Tensor]:
        """Values of the named tensors, by default of the graph outputs."""
        names = self.outputs if names is None else names
        values: Values = dict(self.fixed)
        values |= dict(zip(self.names, self.weights, strict=True))
        values |= feed
        for step, spent in self._needed(names):
            self._run(step, values)
            for name in spent:
                values.pop(name, None)
        return [values[name] for name in names]

    def _needed(self, names: tuple[str, ...]) -> tuple[tuple[ProgramStep, tuple[str, ...]], ...]:
        """The steps that lead to some values, each with what nobody reads after it."""
        if names not in self.chosen:
            wanted, later, found = set(names), set(names), []
            for step in reversed(self.steps):
                if wanted.isdisjoint(step.node.output):
                    continue
                wanted |= step.reads
                found.append((step, tuple(sorted(({*step.reads, *step.node.output} - {""}) - later))))
                later |= step.reads
            self.chosen[names] = tuple(reversed(found))
        return self.chosen[names]

    def _folded(self, steps: Iterable[ProgramStep]) -> tuple[ProgramStep, ...]:
        """Compute what depends on fixed constants alone; gives the steps that are left."""
        left = []
        with torch.no_grad():
            for step in steps:
                if step.reads <= set(self.fixed) and not step.branches:
                    self._run(step, self.fixed)
                else:
                    left.append(step)
        return tuple(left)

    def _run(self, step: ProgramStep, values: Values) -> None:
        """Run one node and note what it puts out."""
        if step.branches:
            found: Sequence[Tensor | None] = self._branch(step, values)
        else:
            found = self._called(step, values)
        for name, value in zip(step.node.output, found, strict=False):
            if name and value is not None:
                values[name] = value

    def _called(self, step: ProgramStep, values: Values) -> Sequence[Tensor | None]:
        assert step.operator is not None
        inputs = _near(tuple(values[name] if name else None for name in step.node.input))
        try:
            found = step.operator(Call(step.node, self.opset, step.attributes, inputs))
        except (LeanOnnxError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise refusal(step.node, f"torch says {first_line(error)}") from error
        return found if isinstance(found, tuple) else (found,)

    def _branch(self, step: ProgramStep, values: Values) -> list[Tensor]:
        """The branch of an If that its condition chooses."""
        condition = bool(values[step.node.input[0]].reshape(-1)[0])
        plan = step.branches[BRANCHES[not condition]]
        inner = {**values, **plan.constants}
        for child in plan.steps:
            self._run(child, inner)
        return [inner[name] for name in plan.outputs]


def _near(inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Inputs of a node: floats that were made from shapes, on the CPU, are moved to where its other inputs are."""
    device = next((value.device for value in inputs if value is not None and value.device.type != "cpu"), None)
    if device is None:
        return inputs
    return tuple(v if v is None or not v.is_floating_point() else v.to(device) for v in inputs)


def _planned(graph: onnx.GraphProto, operators: Operators) -> GraphProgram:
    """A graph and its branches; every operator is looked up before anything runs."""
    constants = {tensor.name: _tensor(tensor, None) for tensor in graph.initializer}
    steps = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _tensor(node, node)
        else:
            steps.append(_step(node, operators))
    return GraphProgram(tuple(steps), constants, tuple(value.name for value in graph.output))


def _step(node: onnx.NodeProto, operators: Operators) -> ProgramStep:
    key = ("" if node.domain in STANDARD else node.domain, node.op_type)
    if key == ("", "If"):
        graphs = {a.name: _planned(a.g, operators) for a in node.attribute if a.name in BRANCHES}
        return ProgramStep(node, None, {}, graphs)
    if key not in operators:
        raise refusal(node, QUANTISED if is_quantised(node) else "the operator is not covered")
    return ProgramStep(node, operators[key], {a.name: _value(a) for a in node.attribute})


def _value(attribute: onnx.AttributeProto) -> Any:
    """An attribute's value: text as a string, a tensor as an array."""
    found = onnx.helper.get_attribute_value(attribute)
    if isinstance(found, bytes):
        return found.decode()
    if isinstance(found, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(found))
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode() for text in found]
    return list(found) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else found


def _tensor(holder: onnx.TensorProto | onnx.NodeProto, node: onnx.NodeProto | None) -> Tensor:
    """A constant as a tensor of its own memory."""
    try:
        return torch.from_numpy(np.array(holder_array(holder), order="C"))
    except TypeError as error:
        name = holder.name if node is None else node.output[0]
        owner = node or onnx.NodeProto(name=name, op_type="Constant")
        raise refusal(owner, f"torch has no such numbers: {first_line(error)}") from error
