"""One pass over the nodes of a model at one size: ask each node's rule, and collect the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from leanonnx.analysis.constants import Constants, ConstantUse, ConstantUses
from leanonnx.analysis.zeros import keeps_zero
from leanonnx.graph.model import Model, captured
from leanonnx.graph.nodes import title
from leanonnx.numeric.channel_ids import ChannelIds, uniform
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Pin, Rewrite, Unsupported, Value, pin_all
from leanonnx.rules.table import COUNTED, Rules
from leanonnx.rules.weights import with_whole_weight
from leanonnx.runtime.observation import Observation


@dataclass(frozen=True)
class Answer:
    """The effect of one node, and where the constants that it slices are held."""

    effect: Effect
    held: ConstantUses


@dataclass
class Trace:
    """All answers so far at one size of the model's free axes."""

    model: Model
    observation: Observation
    by_position: frozenset[int]
    channel_ids: dict[str, ChannelIds] = field(default_factory=dict)
    effects: dict[int, Effect] = field(default_factory=dict)
    minted: list[tuple[int, int]] = field(default_factory=lambda: [(-1, 1)])
    count: int = 1
    uses: list[ConstantUse] = field(default_factory=list)
    rewrites: dict[int, Rewrite] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    starts: list[ChannelIds] = field(default_factory=list)
    zeros: dict[str, bool] = field(default_factory=dict)
    unruled: set[int] = field(default_factory=set)
    slicing: dict[int, set[int]] = field(default_factory=dict)
    """Nodes that slice a constant behind another node, by that other node."""

    def __post_init__(self) -> None:
        self.constants = Constants(self.model, self.observation)
        for value in self.model.inputs:
            fresh = self.minter(-1)(1)
            self.channel_ids[value.name] = uniform(int(fresh[0]), len(self.observation.shapes[value.name]))
            self.pins.append(Pin(fresh, value.name, f"graph input '{value.name}'", advice.INTERFACE))
            self.starts.append(fresh)

    def minter(self, node: int) -> Callable[[int], ChannelIds]:
        """Mint labels for a node."""

        def mint(n: int) -> ChannelIds:
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
        inner = [n for n in sorted(captured(self.model.proto.graph.node[index])) if n in self.channel_ids]
        call = self.call(index, node)
        if (call.domain, call.op) not in rules:
            self.unruled.add(index)
        if not inner and not any(tensor.name in self.channel_ids for tensor in node.inputs):
            return self._unfed(call)
        before = self.count
        effect = _effect(call, rules, inner, self)
        held = self.constants.uses(index, effect)
        if held is not None:
            return Answer(effect, held)
        self.undo(before)
        return Answer(refused(call, *self._uncut(call, effect)), ConstantUses(()))

    def _unfed(self, call: Call) -> Answer | None:
        """The answer of a node that reads nothing but noise or sizes: the kernels of its weight; None without any."""
        if self.constants.static.issuperset(name for name in call.outputs if name):
            return None
        effect = _with_kernels(call, Effect(()))
        return Answer(effect, ConstantUses(())) if effect.kernel_blocks else None

    def _uncut(self, call: Call, effect: Effect) -> tuple[str, str]:
        """Why a constant that is to be sliced cannot be, and what a user can do about it."""
        names = [call.value(cut.slot).name for cut in effect.slices]
        held = next((n for n in names if n in self.model.overridable and n not in self.model.origins), None)
        if held is not None:
            return f"{call.title} computes '{held}' from an initializer that a caller may override", advice.freeze()
        return f"{call.title} reads a constant that is computed from shapes at run time", advice.EXPORT

    def refuse(self, index: int, node: gs.Node, reason: str) -> Answer:
        """Pin what a node reads and puts out."""
        call = self.call(index, node)
        return Answer(refused(call, f"{call.title}: {reason}", advice.EXPORT), ConstantUses(()))

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
        zero = keeps_zero(node, effect, self.channel_ids, self.zeros, self.constants.fixed)
        for name, channel_ids in zip(self.outputs(index), effect.outputs, strict=False):
            if name and name in self.model.free:
                self.channel_ids[name], self.zeros[name] = channel_ids, zero

    def _fitting(self, text: str) -> str:
        """An advice without what a model with fixed sizes has done already."""
        return advice.for_fixed_sizes(text) if self.constants.sized else text

    def read_whole(self) -> list[Pin]:
        """Pins of what is sliced behind a DequantizeLinear whose value another node reads as a whole."""
        found = []
        for index, slicing in self.slicing.items():
            node = self.model.proto.graph.node[index]
            reader = next((r for r in self._last_readers(node.output[0]) if r not in slicing), None)
            if node.op_type == "DequantizeLinear" and reader is not None:
                factors = [factor.reshape(-1) for use in self.uses if use.node == index for factor in use.factors]
                whole = "the graph's interface" if reader < 0 else title(self.model.proto.graph.node[reader])
                reason, what = f"{whole} reads all of '{node.output[0]}'", self._fitting(advice.EXPORT)
                found.append(Pin(np.unique(np.concatenate(factors)), node.output[0], reason, what))
        return found

    def _last_readers(self, name: str) -> list[int]:
        """Nodes that read a value (-1: the graph itself), or the last of a run of nodes that nothing else reads."""
        found = []
        for k in self.model.consumers.get(name, []):
            more = [] if k < 0 or k in self.effects else self._last_readers(self.outputs(k)[0])
            found.append(more[0] if len(more) == 1 else k)
        return found

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
            consumers=tuple(self._operators_reading(tensor.name) for tensor in node.outputs),
        )

    def _operators_reading(self, name: str) -> tuple[str, ...]:
        """The operators that read a tensor, "" for the graph itself."""
        nodes = self.model.proto.graph.node
        return tuple("" if k < 0 else nodes[k].op_type for k in self.model.consumers.get(name, []))

    def _value(self, name: str) -> Value:
        model, observation = self.model, self.observation
        if name in model.origins:
            return Value(name, model.shape_of(name), None, lambda: model.constant(name), held=True)
        shape, channel_ids = observation.shapes.get(name), self.channel_ids.get(name)
        maker = model.producers.get(name)
        node = onnx.NodeProto() if maker is None else model.proto.graph.node[maker]
        return Value(
            name,
            shape,
            channel_ids,
            lambda: observation.values[name],
            held=name in self.constants.static,
            maker=node.op_type,
            source=observation.shapes.get(node.input[0]) if node.input else None,
            keeps_zero=self.zeros.get(name, True),
        )


def _effect(call: Call, rules: Rules, inner: list[str], trace: Trace) -> Effect:
    """The rule's answer, or pins with the reason."""
    rule = rules.get((call.domain, call.op))
    before = trace.count
    if inner or any(isinstance(value, gs.Graph) for value in call.attributes.values()):
        reason = f"the subgraphs of {call.title} read "
        extra = tuple(Pin(np.unique(trace.channel_ids[n]), n, f"{reason}'{n}'", advice.INLINE) for n in inner)
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
    return _with_kernels(call, pin_all(call, reason, advice))


def _with_kernels(call: Call, effect: Effect) -> Effect:
    """The effect with the kernels of a weight that stays whole, on whatever side of a product it is."""
    right = COUNTED.get((call.domain, call.op))
    if right is None:
        return effect
    slots = [right] if "Conv" in call.op else [right, 0]
    held = next((slot for slot in slots if call.has(slot) and call.value(slot).held), None)
    if held is None or (not call.shape(held)):
        return effect
    return with_whole_weight(call, effect, held)


def _missing(call: Call) -> str:
    return advice.LAYOUT if call.domain == "com.microsoft.nchwc" else advice.write_rule()
