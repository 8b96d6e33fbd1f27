"""Trace a model at one size: call the rule of each node and collect the effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from leanonnx.analysis.constants import Constants, ConstantUse, ConstantUses
from leanonnx.analysis.zeros import preserves_zeros
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import STANDARD_DOMAINS, captured_names, name_of, node_title, subgraphs
from leanonnx.numeric.channel_ids import ChannelIds, uniform_ids
from leanonnx.operators.table import CONVOLUTIONS
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Pin, Rewrite, Unsupported, Value, pin_all
from leanonnx.rules.table import COUNTED_WEIGHT_SLOTS, Rules
from leanonnx.rules.weights import add_unprunable_weight
from leanonnx.runtime.observation import Observation


@dataclass(frozen=True)
class Answer:
    """Effect of one node, and the uses of the constants that it slices."""

    effect: Effect
    constant_uses: ConstantUses


@dataclass
class Trace:
    """Effects of the nodes so far, at one size of the model's free axes."""

    model: Model
    observation: Observation
    by_position: frozenset[int]
    channel_ids: dict[str, ChannelIds] = field(default_factory=dict)
    effects: dict[int, Effect] = field(default_factory=dict)
    mint_log: list[tuple[int, int]] = field(default_factory=lambda: [(-1, 1)])
    count: int = 1
    constant_uses: list[ConstantUse] = field(default_factory=list)
    rewrites: dict[int, Rewrite] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    starts: list[ChannelIds] = field(default_factory=list)
    zeros: dict[str, bool] = field(default_factory=dict)
    nodes_without_rule: set[int] = field(default_factory=set)
    sliced_behind: dict[int, set[int]] = field(default_factory=dict)
    """For each node behind which other nodes slice a constant: those other nodes."""

    def __post_init__(self) -> None:
        self.constants = Constants(self.model, self.observation)
        for value in self.model.inputs:
            fresh = self.minter(-1)(1)
            self.channel_ids[value.name] = uniform_ids(int(fresh[0]), len(self.observation.shapes[value.name]))
            self.pins.append(
                Pin(
                    channel_ids=fresh,
                    tensor=value.name,
                    reason=f"graph input '{value.name}'",
                    advice=advice.FIXED_INTERFACE,
                )
            )
            self.starts.append(fresh)

    def minter(self, node: int) -> Callable[[int], ChannelIds]:
        """Function that mints channel ids for a node."""

        def mint(n: int) -> ChannelIds:
            fresh = np.arange(self.count, self.count + n)
            self.count += n
            self.mint_log.append((node, n))
            return fresh

        return mint

    def discard_ids(self, count: int) -> None:
        """Discard the channel ids minted since there were ``count``."""
        while self.count > count:
            _, n = self.mint_log.pop()
            self.count -= n

    def call_rule(self, index: int, rules: Rules) -> Answer | None:
        """Answer of a node's rule; None if no input of the node holds channels."""
        node = self.model.proto.graph.node[index]
        inner = [n for n in sorted(captured_names(node)) if n in self.channel_ids]
        fed = bool(inner) or any(name in self.channel_ids for name in node.input)
        call = self.make_call(index, self.model.view.attributes(index) if fed else {})
        if (call.domain, call.op) not in rules:
            self.nodes_without_rule.add(index)
        if not fed:
            return self._answer_without_channels(call)
        before = self.count
        effect = _effect(call, rules, self) if not any(subgraphs(node)) else _opaque(call, inner, self)
        uses = self.constants.uses(index, effect)
        if uses is not None:
            return Answer(effect, uses)
        self.discard_ids(before)
        return Answer(pin_with_kernels(call, *self._refusal(call, effect)), ConstantUses(()))

    def _answer_without_channels(self, call: Call) -> Answer | None:
        """Answer of a node that reads only random numbers or sizes: the kernels of its weight; None without any."""
        if self.constants.static.issuperset(name for name in call.outputs if name):
            return None
        effect = _with_kernels(call, Effect(()))
        return Answer(effect, ConstantUses(())) if effect.kernel_blocks else None

    def _refusal(self, call: Call, effect: Effect) -> tuple[str, str]:
        """Reason why a constant cannot be sliced, and advice for the user."""
        names = [call.value(cut.slot).name for cut in effect.slices]
        name = next((n for n in names if n in self.model.overridable and n not in self.model.origins), None)
        if name is not None:
            return f"{call.title} computes '{name}' from an initializer that a caller may override", advice.freeze()
        return f"{call.title} reads a constant that is computed from shapes at run time", advice.EXPORT_AGAIN

    def pin_node(self, index: int, reason: str) -> Answer:
        """Pin the inputs and outputs of a node."""
        call = self.make_call(index, {})
        return Answer(pin_with_kernels(call, f"{call.title}: {reason}", advice.EXPORT_AGAIN), ConstantUses(()))

    def add_answer(self, index: int, answer: Answer) -> None:
        """Add the answer of a node."""
        effect = answer.effect
        self.constant_uses += answer.constant_uses.uses
        self.rewrites |= dict(answer.constant_uses.rewrites)
        self.effects[index] = effect
        self.pins += [replace(pin, advice=self._adapt_advice(pin.advice)) for pin in effect.pins]
        self.starts += effect.starts
        for use in answer.constant_uses.uses:
            if use.node != index:
                self.sliced_behind.setdefault(use.node, set()).add(index)
        node = self.model.proto.graph.node[index]
        zero = preserves_zeros(node, effect, self.channel_ids, self.zeros, self.constants.fixed_value)
        for name, channel_ids in zip(self.output_names(index), effect.outputs, strict=False):
            if name and name in self.model.free:
                self.channel_ids[name], self.zeros[name] = channel_ids, zero

    def _adapt_advice(self, text: str) -> str:
        """Advice without the hint to fix sizes if all of them are fixed."""
        return advice.for_fixed_sizes(text) if self.constants.has_fixed_sizes else text

    def pins_of_whole_reads(self) -> list[Pin]:
        """Pins of constants sliced behind a DequantizeLinear whose output another node reads as a whole."""
        pins = []
        for index, slicing in self.sliced_behind.items():
            node = self.model.proto.graph.node[index]
            consumer = next((r for r in self._last_consumers(node.output[0]) if r not in slicing), None)
            if node.op_type == "DequantizeLinear" and consumer is not None:
                factors = [
                    factor.reshape(-1) for use in self.constant_uses if use.node == index for factor in use.factors
                ]
                whole = "the graph's interface" if consumer < 0 else node_title(self.model.proto.graph.node[consumer])
                reason, what = f"{whole} reads all of '{node.output[0]}'", self._adapt_advice(advice.EXPORT_AGAIN)
                pins.append(
                    Pin(
                        channel_ids=np.unique(np.concatenate(factors)),
                        tensor=node.output[0],
                        reason=reason,
                        advice=what,
                    )
                )
        return pins

    def _last_consumers(self, name: str) -> list[int]:
        """Nodes that read a value (-1: a graph output), or the last node of a run without other consumers."""
        consumers = []
        for k in self.model.consumers.get(name, []):
            more = [] if k < 0 or k in self.effects else self._last_consumers(self.output_names(k)[0])
            consumers.append(more[0] if len(more) == 1 else k)
        return consumers

    def output_names(self, index: int) -> list[str]:
        """Names of the outputs of a node."""
        return list(self.model.proto.graph.node[index].output)

    def make_call(self, index: int, attributes: Mapping[str, Any]) -> Call:
        """Call of a node for its rule."""
        node, shapes = self.model.proto.graph.node[index], self.observation.shapes
        return Call(
            op=node.op_type,
            domain="" if node.domain in STANDARD_DOMAINS else node.domain,
            name=name_of(node),
            opset=self.model.opset,
            attributes=attributes,
            inputs=tuple(self._value(name) if name else None for name in node.input),
            outputs=tuple(node.output),
            output_shapes=tuple(shapes.get(name) for name in node.output),
            mint=self.minter(index),
            channel_count=lambda: self.count,
            tie_by_position=index in self.by_position,
            consumers=tuple(self._consumer_ops(name) for name in node.output),
        )

    def _consumer_ops(self, name: str) -> tuple[str, ...]:
        """Operators that read a tensor ("" for a graph output)."""
        nodes = self.model.proto.graph.node
        return tuple("" if k < 0 else nodes[k].op_type for k in self.model.consumers.get(name, []))

    def _value(self, name: str) -> Value:
        model, observation = self.model, self.observation
        if name in model.origins:
            return Value(
                name=name,
                shape=model.shape_of(name),
                channel_ids=None,
                read=lambda: model.constant(name),
                is_static=True,
            )
        shape, channel_ids = observation.shapes.get(name), self.channel_ids.get(name)
        producer = model.producers.get(name)
        node = onnx.NodeProto() if producer is None else model.proto.graph.node[producer]
        return Value(
            name=name,
            shape=shape,
            channel_ids=channel_ids,
            read=lambda: observation.values[name],
            is_static=name in self.constants.static,
            producer_op=node.op_type,
            producer_input_shape=observation.shapes.get(node.input[0]) if node.input else None,
            preserves_zeros=self.zeros.get(name, True),
        )


def _opaque(call: Call, inner: list[str], trace: Trace) -> Effect:
    """Effect of a node with subgraphs: pins on everything that the node and its subgraphs read."""
    reason = f"the subgraphs of {call.title} read "
    extra = tuple(
        Pin(
            channel_ids=np.unique(trace.channel_ids[n]),
            tensor=n,
            reason=f"{reason}'{n}'",
            advice=advice.AVOID_CONTROL_FLOW,
        )
        for n in inner
    )
    effect = pin_all(call, f"{call.title} runs a subgraph", advice.AVOID_CONTROL_FLOW)
    return replace(effect, pins=effect.pins + extra)


def _effect(call: Call, rules: Rules, trace: Trace) -> Effect:
    """Effect of the rule, or pins with a reason if it cannot be applied."""
    rule = rules.get((call.domain, call.op))
    before = trace.count
    if rule is None:
        where = f" of domain '{call.domain}'" if call.domain else ""
        return pin_with_kernels(call, f"{call.title}{where} is an operator without a rule", _missing_rule_advice(call))
    try:
        return _pin_unmentioned(call, rule(call))
    except Unsupported as reason:
        trace.discard_ids(before)
        return pin_with_kernels(call, f"{call.title}: {reason}", reason.advice)
    except Exception as error:
        error.add_note(f"in the rule of {call.title}")
        raise


def _pin_unmentioned(call: Call, effect: Effect) -> Effect:
    """Pin the computed inputs beside the first that an effect does not mention: indices, sizes, switches.

    No edge leads on from their channels, which would be removed as useless although the node depends on them.
    """
    beside = call.computed_side_inputs()
    if not beside:
        return effect
    parts = [*effect.outputs, *(side for pair in (*effect.ties, *effect.concat_slots) for side in pair)]
    parts += [edges.sources for edges in effect.fixed_edges] + [block.sources for block in effect.kernel_blocks]
    parts += [each.channel_ids for each in effect.reductions] + [pin.channel_ids for pin in effect.pins]
    mentioned = np.concatenate([np.zeros(0, np.int64), *(part.ravel() for part in parts)])
    pins = [
        Pin(
            channel_ids=side,
            tensor=name,
            reason=f"{call.title} takes its indices or sizes from it",
            advice=advice.MAKE_CONSTANT,
        )
        for name, side in beside.items()
        if not np.isin(side, mentioned).any()
    ]
    return replace(effect, pins=(*effect.pins, *pins)) if pins else effect


def pin_with_kernels(call: Call, reason: str, advice: str) -> Effect:
    """Effect that pins a node with a reason; the kernels of its weight are counted, but cannot be pruned."""
    return _with_kernels(call, pin_all(call, reason, advice))


def _with_kernels(call: Call, effect: Effect) -> Effect:
    """Add the kernels of a weight that cannot be pruned, on either side of a product, to an effect."""
    right = COUNTED_WEIGHT_SLOTS.get((call.domain, call.op))
    if right is None:
        return effect
    slots = [right] if call.op in CONVOLUTIONS else [right, 0]
    weight = next((slot for slot in slots if call.has_input(slot) and call.value(slot).is_static), None)
    if weight is None or (not call.shape(weight)):
        return effect
    return add_unprunable_weight(call, effect, weight)


def _missing_rule_advice(call: Call) -> str:
    return advice.SAVE_BEFORE_LAYOUT if call.domain == "com.microsoft.nchwc" else advice.write_rule()
