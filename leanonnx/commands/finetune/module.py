"""An ONNX graph as a torch module that runs it node by node.

Values keep their names in the graph, so any tensor can be requested.  Values that depend only on constants are computed
once.  Floats are float32: a model in half precision is trained as its float32 stand-in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from leanonnx.commands.finetune.operators.call import Operator, Operators, Tensor, TorchCall, uncovered_node
from leanonnx.commands.finetune.operators.table import TORCH_OPERATORS
from leanonnx.errors import LeanOnnxError
from leanonnx.graph.formats import REPLACED_TYPES, convert_to_float32, float_types
from leanonnx.graph.model import Model, first_line
from leanonnx.graph.nodes import STANDARD_DOMAINS, captured_names, holder_array, is_quantised

_Values = dict[str, Tensor]
TensorFeed = Mapping[str, Tensor]
IF_BRANCHES = ("then_branch", "else_branch")
QUANTISED_REASON = "the network computes in integers (finetune the float network, then quantise it)"


@dataclass(frozen=True, kw_only=True)
class ProgramStep:
    """One node with its torch function and attributes; an If has its branches instead."""

    node: onnx.NodeProto
    operator: Operator | None
    attributes: Mapping[str, Any]
    branches: Mapping[str, GraphProgram] = field(default_factory=dict)

    @property
    def reads(self) -> set[str]:
        """Names of the values that the node reads."""
        return ({*self.node.input} | captured_names(self.node)) - {""}


@dataclass(frozen=True)
class GraphProgram:
    """A graph ready to run: nodes, constants and outputs."""

    steps: tuple[ProgramStep, ...]
    constants: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class TorchNetwork(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """A model's graph, with the named constants as parameters.

    Raises:
        ModelError: an operator, or the form in which a node uses it, is not covered.
    """

    def __init__(self, model: Model, parameters: Sequence[str], operators: Operators = TORCH_OPERATORS) -> None:
        super().__init__()
        proto = convert_to_float32(model.proto, float_types(model.proto) & REPLACED_TYPES)
        self.opset = model.opset
        self.names = tuple(parameters)
        program = _compile_graph(proto.graph, operators)
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(program.constants[name]) for name in self.names])
        self.outputs = program.outputs
        self.fixed: _Values = {name: value for name, value in program.constants.items() if name not in set(self.names)}
        self.steps = self._fold_constants(program.steps)
        self.steps_by_outputs: dict[tuple[str, ...], tuple[tuple[ProgramStep, tuple[str, ...]], ...]] = {}

    def place(self, device: str) -> TorchNetwork:
        """Move the module to a device; integers stay on the CPU, where shapes are computed."""
        self.to(device)
        self.fixed = {n: v.to(device) if v.is_floating_point() else v for n, v in self.fixed.items()}
        return self

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters by name."""
        pairs = zip(self.names, self.weights, strict=True)
        return {name: weight.detach().cpu().numpy().copy() for name, weight in pairs}

    def restore(self, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set the parameters by name."""
        with torch.no_grad():
            for name, weight in zip(self.names, self.weights, strict=True):
                weight.copy_(torch.from_numpy(np.asarray(values[name], np.float32)))

    def forward(self, feed: TensorFeed, names: tuple[str, ...] | None = None) -> list[Tensor]:
        """Values of the named tensors, by default of the graph outputs."""
        names = self.outputs if names is None else names
        values: _Values = dict(self.fixed)
        values |= dict(zip(self.names, self.weights, strict=True))
        values |= feed
        for step, unused in self._steps_for(names):
            self._run(step, values)
            for name in unused:
                values.pop(name, None)
        return [values[name] for name in names]

    def _steps_for(self, names: tuple[str, ...]) -> tuple[tuple[ProgramStep, tuple[str, ...]], ...]:
        """The steps that compute some values, each with the values that no read_later step reads."""
        if names not in self.steps_by_outputs:
            wanted, read_later, steps = set(names), set(names), []
            for step in reversed(self.steps):
                if wanted.isdisjoint(step.node.output):
                    continue
                wanted |= step.reads
                steps.append((step, tuple(sorted(({*step.reads, *step.node.output} - {""}) - read_later))))
                read_later |= step.reads
            self.steps_by_outputs[names] = tuple(reversed(steps))
        return self.steps_by_outputs[names]

    def _fold_constants(self, steps: Iterable[ProgramStep]) -> tuple[ProgramStep, ...]:
        """Compute the values that depend only on fixed constants; return the remaining steps."""
        remaining = []
        with torch.no_grad():
            for step in steps:
                if step.reads <= set(self.fixed) and not step.branches:
                    self._run(step, self.fixed)
                else:
                    remaining.append(step)
        return tuple(remaining)

    def _run(self, step: ProgramStep, values: _Values) -> None:
        """Run one node and store its outputs."""
        if step.branches:
            outputs: Sequence[Tensor | None] = self._run_branch(step, values)
        else:
            outputs = self._call(step, values)
        for name, value in zip(step.node.output, outputs, strict=False):
            if name and value is not None:
                values[name] = value

    def _call(self, step: ProgramStep, values: _Values) -> Sequence[Tensor | None]:
        assert step.operator is not None
        inputs = _on_device_of_inputs(tuple(values[name] if name else None for name in step.node.input))
        try:
            outputs = step.operator(
                TorchCall(node=step.node, opset=self.opset, attributes=step.attributes, inputs=inputs)
            )
        except (LeanOnnxError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise uncovered_node(step.node, f"torch says {first_line(error)}") from error
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _run_branch(self, step: ProgramStep, values: _Values) -> list[Tensor]:
        """Run the branch of an If that its condition selects."""
        condition = bool(values[step.node.input[0]].reshape(-1)[0])
        program = step.branches[IF_BRANCHES[not condition]]
        inner = {**values, **program.constants}
        for child in program.steps:
            self._run(child, inner)
        return [inner[name] for name in program.outputs]


def _on_device_of_inputs(inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Move float inputs computed from shapes from the CPU to the device of the other inputs."""
    device = next((value.device for value in inputs if value is not None and value.device.type != "cpu"), None)
    if device is None:
        return inputs
    return tuple(v if v is None or not v.is_floating_point() else v.to(device) for v in inputs)


def _compile_graph(graph: onnx.GraphProto, operators: Operators) -> GraphProgram:
    """Compile a graph and its branches; all operators are looked up before anything runs."""
    constants = {tensor.name: _tensor(tensor, None) for tensor in graph.initializer}
    steps = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _tensor(node, node)
        else:
            steps.append(_compile_node(node, operators))
    return GraphProgram(tuple(steps), constants, tuple(value.name for value in graph.output))


def _compile_node(node: onnx.NodeProto, operators: Operators) -> ProgramStep:
    key = ("" if node.domain in STANDARD_DOMAINS else node.domain, node.op_type)
    if key == ("", "If"):
        graphs = {a.name: _compile_graph(a.g, operators) for a in node.attribute if a.name in IF_BRANCHES}
        return ProgramStep(node=node, operator=None, attributes={}, branches=graphs)
    if key not in operators:
        raise uncovered_node(node, QUANTISED_REASON if is_quantised(node) else "the operator is not covered")
    return ProgramStep(
        node=node, operator=operators[key], attributes={a.name: _attribute_value(a) for a in node.attribute}
    )


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    """Decode an attribute: text as a string, a tensor as an array."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(value))
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode() for text in value]
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


def _tensor(holder: onnx.TensorProto | onnx.NodeProto, node: onnx.NodeProto | None) -> Tensor:
    """A constant as a tensor with its own memory."""
    try:
        return torch.from_numpy(np.array(holder_array(holder), order="C"))
    except TypeError as error:
        name = holder.name if node is None else node.output[0]
        owner = node or onnx.NodeProto(name=name, op_type="Constant")
        raise uncovered_node(owner, f"torch has no such numbers: {first_line(error)}") from error
