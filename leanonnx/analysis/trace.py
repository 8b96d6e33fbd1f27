"""One pass over the nodes of a model at one size: ask each node's rule, and collect the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from leanonnx.analysis.constants import Constants, Found, Use
from leanonnx.analysis.zeros import keeps_zero
from leanonnx.graph.model import Model, captured
from leanonnx.graph.nodes import title
from leanonnx.numeric.labels import Labels, uniform
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Pin, Rewrite, Unsupported, Value, pin_all
from leanonnx.rules.table import COUNTED, Rules
from leanonnx.rules.weights import with_whole_weight
from leanonnx.runtime.observation import Observation

MATRIX = 2


@dataclass(frozen=True)
class Answer:
    """The effect of one node, and where the constants that it slices are held."""

    effect: Effect
    held: Found


@dataclass
class Trace:
    """All answers so far at one size of the model's free axes."""

    model: Model
    observation: Observation
    by_position: frozenset[int]
    labels: dict[str, Labels] = field(default_factory=dict)
    effects: dict[int, Effect] = field(default_factory=dict)
    minted: list[tuple[int, int]] = field(default_factory=lambda: [(-1, 1)])
    count: int = 1
    uses: list[Use] = field(default_factory=list)
    rewrites: dict[int, Rewrite] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    starts: list[Labels] = field(default_factory=list)
    zeros: dict[str, bool] = field(default_factory=dict)
    slicing: dict[int, set[int]] = field(default_factory=dict)
    """Nodes that slice a constant behind another node, by that other node."""

    def __post_init__(self) -> None:
        self.constants = Constants(self.model, self.observation)
        for value in self.model.inputs:
            fresh = self.minter(-1)(1)
            self.labels[value.name] = uniform(int(fresh[0]), len(self.observation.shapes[value.name]))
            self.pins.append(Pin(fresh, value.name, f"graph input '{value.name}'", advice.INTERFACE))
            self.starts.append(fresh)

    def minter(self, node: int) -> Callable[[int], Labels]:
        """Mint labels for a node."""

        def mint(n: int) -> Labels:
            fresh = np.arange(self.count, self.count + n)
            self.count += n
            self.minted.append((node, n))
            return fresh

        return mint

    def undo(self, count: int) -> None:
        """Take back the labels minted since there were ``count``."""
        while self.count > count:
            _, n = self.minted.pop()
            self.count -= n

    def ask(self, index: int, node: gs.Node, rules: Rules) -> Answer | None:
        """The answer of a node's rule; None where the node reads nothing that carries channels."""
        inner = [n for n in sorted(captured(self.model.proto.graph.node[index])) if n in self.labels]
        if not inner and not any(tensor.name in self.labels for tensor in node.inputs):
            return None
        call = self.call(index, node)
        before = self.count
        effect = _effect(call, rules, inner, self)
        held = self.constants.uses(index, effect)
        if held is not None:
            return Answer(effect, held)
        self.undo(before)
        reason = f"{call.title} reads a constant that is computed from shapes at run time"
        return Answer(pin_all(call, reason, advice.EXPORT), Found(()))

    def refuse(self, index: int, node: gs.Node, reason: str) -> Answer:
        """Pin what a node reads and puts out."""
        call = self.call(index, node)
        return Answer(refused(call, f"{call.title}: {reason}", advice.EXPORT), Found(()))

    def add(self, index: int, answer: Answer) -> None:
        """Collect the answer of a node."""
        effect = answer.effect
        self.uses += answer.held.uses
        self.rewrites |= dict(answer.held.rewrites)
        self.effects[index] = effect
        self.pins += [replace(pin, advice=self._fitting(pin.advice)) for pin in effect.pins]
        self.starts += effect.starts
        for use in answer.held.uses:
            if use.node != index:
                self.slicing.setdefault(use.node, set()).add(index)
        node = self.model.proto.graph.node[index]
        zero = keeps_zero(node, effect, self.labels, self.zeros, self.constants.fixed)
        for name, labels in zip(self.outputs(index), effect.outputs, strict=False):
            if name and name in self.model.free:
                self.labels[name], self.zeros[name] = labels, zero

    def _fitting(self, text: str) -> str:
        """An advice without what a model with fixed sizes has done already."""
        return advice.FIXED.get(text, text) if self.constants.sized else text

    def read_whole(self) -> list[Pin]:
        """Pins of what is sliced behind a DequantizeLinear whose value another node reads as a whole."""
        found = []
        for index, slicing in self.slicing.items():
            node = self.model.proto.graph.node[index]
            reader = next((r for r in self._last_readers(node.output[0]) if r not in slicing), None)
            if node.op_type == "DequantizeLinear" and reader is not None:
                factors = [factor.reshape(-1) for use in self.uses if use.node == index for factor in use.factors]
                reason = f"{title(self.model.proto.graph.node[reader])} reads all of '{node.output[0]}'"
                what = self._fitting(advice.EXPORT)
                found.append(Pin(np.unique(np.concatenate(factors)), node.output[0], reason, what))
        return found

    def _last_readers(self, name: str) -> list[int]:
        """Nodes that read a value, or the last of a run of nodes that nothing else reads."""
        nodes = self.model.proto.graph.node
        found = [k for k, node in enumerate(nodes) if name in node.input or name in captured(node)]
        return [
            k if k in self.effects or len(more := self._last_readers(nodes[k].output[0])) != 1 else more[0]
            for k in found
        ]

    def outputs(self, index: int) -> list[str]:
        """Names of what a node puts out."""
        return list(self.model.proto.graph.node[index].output)

    def call(self, index: int, node: gs.Node) -> Call:
        """A node as its rule sees it."""
        shapes = self.observation.shapes
        return Call(
            op=node.op,
            domain="" if node.domain in (None, "", "ai.onnx") else node.domain,
            name=node.name or node.outputs[0].name,
            opset=self.model.opset,
            attributes=node.attrs,
            inputs=tuple(self._value(tensor.name) if tensor.name else None for tensor in node.inputs),
            outputs=tuple(tensor.name for tensor in node.outputs),
            output_shapes=tuple(shapes.get(tensor.name) for tensor in node.outputs),
            mint=self.minter(index),
            minted=lambda: self.count,
            by_position=index in self.by_position,
            readers=tuple(self._operators_reading(tensor.name) for tensor in node.outputs),
        )

    def _operators_reading(self, name: str) -> tuple[str, ...]:
        """The operators that read a tensor, "" for the graph itself."""
        nodes = self.model.proto.graph.node
        return tuple("" if k < 0 else nodes[k].op_type for k in self.model.consumers.get(name, []))

    def _value(self, name: str) -> Value:
        model, observation = self.model, self.observation
        if name in model.origins:
            return Value(name, model.shape_of(name), None, lambda: model.constant(name), held=True)
        shape, labels = observation.shapes.get(name), self.labels.get(name)
        quantised, blocked = _quantised(model, name)
        maker = model.producers.get(name)
        node = onnx.NodeProto() if maker is None else model.proto.graph.node[maker]
        return Value(
            name,
            shape,
            labels,
            lambda: observation.values[name],
            held=quantised and not blocked,
            blocked=blocked,
            maker=node.op_type,
            source=observation.shapes.get(node.input[0]) if node.input else None,
            keeps_zero=self.zeros.get(name, True),
        )


def _quantised(model: Model, name: str) -> tuple[bool, bool]:
    """Whether a value is a constant of the file behind a DequantizeLinear, and whether that works in blocks."""
    producer = model.producers.get(name)
    node = None if producer is None else model.proto.graph.node[producer]
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in model.origins:
        return False, False
    return True, any(a.name == "block_size" and a.i for a in node.attribute)


def _effect(call: Call, rules: Rules, inner: list[str], trace: Trace) -> Effect:
    """The rule's answer, or pins with the reason."""
    rule = rules.get((call.domain, call.op))
    before = trace.count
    if inner or any(isinstance(value, gs.Graph) for value in call.attributes.values()):
        reason = f"the subgraphs of {call.title} read "
        extra = tuple(Pin(np.unique(trace.labels[n]), n, f"{reason}'{n}'", advice.INLINE) for n in inner)
        effect = pin_all(call, f"{call.title} runs a subgraph", advice.INLINE)
        return replace(effect, pins=effect.pins + extra)
    if rule is None:
        where = f" of domain '{call.domain}'" if call.domain else ""
        return refused(call, f"{call.title}{where} is an operator without a rule", _missing(call))
    try:
        return rule(call)
    except Unsupported as reason:
        trace.undo(before)
        return refused(call, f"{call.title}: {reason}", reason.advice)
    except Exception as error:
        error.add_note(f"in the rule of {call.title}")
        raise


def refused(call: Call, reason: str, advice: str) -> Effect:
    """Pins with a reason; the kernels of a weight count, though none of them can go."""
    effect = pin_all(call, reason, advice)
    slot = COUNTED.get((call.domain, call.op))
    weight = call.value(slot) if slot is not None and call.has(slot) else None
    if slot is None or weight is None or not (weight.held or weight.blocked) or len(call.shape(slot)) < MATRIX:
        return effect
    return with_whole_weight(call, effect, slot)


def _missing(call: Call) -> str:
    return advice.LAYOUT if call.domain == "com.microsoft.nchwc" else advice.RULE
