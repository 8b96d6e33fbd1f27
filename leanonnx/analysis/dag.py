"""The model run on channel labels: graph + rules → channel DAG.

Every node's rule is asked once, in topological order; what it answers is joined into one frozen ``ChannelDag``.
Labels are minted in that order, so every edge leads from a smaller label to a larger one.  Label 0 stands for what
lives always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from leanonnx.analysis.constants import Constants, Found, Use
from leanonnx.analysis.runs import gathered
from leanonnx.graph.model import Model, captured, unneeded
from leanonnx.numeric.labels import Labels, Mask, Shape, compact, components, uniform, varied
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Link, Mix, Move, Pairs, Pin, Rewrite, Unsupported, Value, pin_all
from leanonnx.rules.table import COUNTED, DEFAULT, Rules
from leanonnx.rules.weights import with_whole_weight
from leanonnx.runtime.observation import Observation

MATRIX = 2
Edge = TypeVar("Edge", Mix, Link)


@dataclass(frozen=True)
class ChannelDag:
    """Channels (labels 0 … count-1), their ties, and the edges between them.

    ``classes[label]`` is the class of channels that live and die together; ``minted[label]`` the node that put the
    channel out (-1: a graph input).  ``labels`` and ``shapes`` are by tensor name, ``moves`` by output name;
    ``gathers`` names outputs that a Gather always puts out in place of their operator.
    """

    model: Model
    observation: Observation
    count: int
    classes: NDArray[np.int64]
    minted: NDArray[np.int64]
    labels: dict[str, Labels]
    mixes: tuple[tuple[int, Mix], ...]
    links: tuple[tuple[int, Link], ...]
    implied: tuple[tuple[int, Pairs], ...]
    uses: tuple[Use, ...]
    pins: tuple[Pin, ...]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    rewrites: dict[int, Rewrite]
    moves: dict[str, tuple[str, Move]]
    gathers: frozenset[str]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor when the model was run."""
        return self.observation.shapes

    @cached_property
    def mixes_of(self) -> Mapping[int, list[Mix]]:
        """Blocks of kernels by node."""
        return _by_node(self.mixes)

    @cached_property
    def links_of(self) -> Mapping[int, list[Link]]:
        """Fixed edges by node."""
        return _by_node(self.links)

    @property
    def pinned(self) -> Mask:
        """Which classes may not be removed [classes]."""
        return pinned(self.classes, self.pins)

    @property
    def whole(self) -> Mask:
        """The keep set of the original [labels]: everything lives."""
        return np.ones(self.count, bool)


def _by_node(pairs: Iterable[tuple[int, Edge]]) -> Mapping[int, list[Edge]]:
    found: dict[int, list[Edge]] = {}
    for node, edge in pairs:
        found.setdefault(node, []).append(edge)
    return found


def pinned(classes: NDArray[np.int64], pins: Iterable[Pin]) -> Mask:
    """Which classes [classes] hold a pinned label, or label 0; ``classes`` is the class of each label [labels]."""
    found = np.zeros(int(classes.max()) + 1, bool)
    found[classes[0]] = True
    for pin in pins:
        found[classes[pin.labels]] = True
    return found


@dataclass
class _Trace:
    """What has been gathered while the nodes are visited."""

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

    def minter(self, node: int) -> Callable[[int], Labels]:
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


def analyse(model: Model, observation: Observation, rules: Rules = DEFAULT) -> ChannelDag:
    """Build the channel DAG of a model.

    Where the ties of whole groups leave a grouped operator no choice at all (channel shuffles spread them), it is
    asked again with ties by position, and the DAG with more classes is taken.

    Args:
        model: a loaded model.
        observation: shapes and constants as one run of the model showed them.
        rules: (domain, operator) → rule; operators without a rule pin what they touch.
    """
    dag = _analysed(model, observation, rules, frozenset())
    stuck = frozenset(node for node, mix in dag.mixes if _is_stuck(mix, dag.classes))
    if not stuck:
        return dag
    other = _analysed(model, observation, rules, stuck)
    return max(dag, other, key=lambda found: int(found.classes.max()))


def _is_stuck(mix: Mix, classes: NDArray[np.int64]) -> bool:
    """Whether all groups of an operator, each of several channels, live and die together."""
    groups, width = mix.targets.shape
    return groups > 1 and width > 1 and np.unique(classes[mix.targets]).size == 1


def _analysed(model: Model, observation: Observation, rules: Rules, by_position: frozenset[int]) -> ChannelDag:
    """One pass over the model; grouped operators named in ``by_position`` lose positions, not groups."""
    trace = _Trace(model, observation, by_position)
    for value in model.inputs:
        fresh = trace.minter(-1)(1)
        rank = len(observation.shapes[value.name])
        trace.labels[value.name] = uniform(int(fresh[0]), rank)
        trace.pins.append(Pin(fresh, value.name, f"graph input '{value.name}'", advice.INTERFACE))
        trace.starts.append(fresh)
    constants = Constants(model, observation)
    spare = unneeded(model.proto.graph.node, model.proto.graph)
    for index, node in enumerate(model.graph.nodes):
        if not spare.issuperset(tensor.name for tensor in node.outputs if tensor.name):
            _visit(trace, index, node, rules, constants)
    for value in model.proto.graph.output:
        if value.name in trace.labels:
            labels = np.unique(trace.labels[value.name])
            trace.pins.append(Pin(labels, value.name, f"graph output '{value.name}'", advice.INTERFACE))
    return _joined(trace)


def _visit(trace: _Trace, index: int, node: gs.Node, rules: Rules, constants: Constants) -> None:
    inner = [n for n in sorted(captured(trace.model.proto.graph.node[index])) if n in trace.labels]
    if not inner and not any(t.name in trace.labels for t in node.inputs):
        return
    call = _call(trace, index, node)
    before = trace.count
    effect = _ask(call, rules, inner, trace)
    held = constants.uses(index, effect)
    if held is None:
        trace.undo(before)
        effect, held = (
            pin_all(call, f"{call.title} reads a constant that is computed from shapes at run time", advice.EXPORT),
            Found(()),
        )
    trace.uses += held.uses
    trace.rewrites |= dict(held.rewrites)
    trace.effects[index] = effect
    trace.pins += effect.pins
    trace.starts += effect.starts
    for name, labels in zip(call.outputs, effect.outputs, strict=False):
        if name and name in trace.model.free:
            trace.labels[name] = labels


def _call(trace: _Trace, index: int, node: gs.Node) -> Call:
    shapes = trace.observation.shapes
    return Call(
        op=node.op,
        domain="" if node.domain in (None, "", "ai.onnx") else node.domain,
        name=node.name or node.outputs[0].name,
        opset=trace.model.opset,
        attributes=node.attrs,
        inputs=tuple(_value(trace, tensor.name) if tensor.name else None for tensor in node.inputs),
        outputs=tuple(tensor.name for tensor in node.outputs),
        output_shapes=tuple(shapes.get(tensor.name) for tensor in node.outputs),
        mint=trace.minter(index),
        minted=lambda: trace.count,
        by_position=index in trace.by_position,
    )


def _value(trace: _Trace, name: str) -> Value:
    model, observation = trace.model, trace.observation
    if name in model.origins:
        return Value(name, model.shape_of(name), None, lambda: model.constant(name), held=True)
    shape, labels = observation.shapes.get(name), trace.labels.get(name)
    quantised, blocked = _quantised(model, name)
    held = quantised and not blocked
    return Value(name, shape, labels, lambda: observation.values[name], held=held, blocked=blocked)


def _quantised(model: Model, name: str) -> tuple[bool, bool]:
    """Whether a value is a constant of the file behind a DequantizeLinear, and whether that works in blocks."""
    producer = model.producers.get(name)
    node = None if producer is None else model.proto.graph.node[producer]
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in model.origins:
        return False, False
    return True, any(a.name == "block_size" and a.i for a in node.attribute)


def _ask(call: Call, rules: Rules, inner: list[str], trace: _Trace) -> Effect:
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
        return _refused(call, f"{call.title}{where} is an operator without a rule", _missing(call))
    try:
        return rule(call)
    except Unsupported as reason:
        trace.undo(before)
        return _refused(call, f"{call.title}: {reason}", reason.advice)
    except Exception as error:
        error.add_note(f"in the rule of {call.title}")
        raise


def _refused(call: Call, reason: str, advice: str) -> Effect:
    """Pins with a reason; the kernels of a weight count, though none of them can go."""
    effect = pin_all(call, reason, advice)
    slot = COUNTED.get((call.domain, call.op))
    weight = call.value(slot) if slot is not None and call.has(slot) else None
    if slot is None or weight is None or not (weight.held or weight.blocked) or len(call.shape(slot)) < MATRIX:
        return effect
    return with_whole_weight(call, effect, slot)


def _missing(call: Call) -> str:
    return advice.LAYOUT if call.domain == "com.microsoft.nchwc" else advice.RULE


def _joined(trace: _Trace) -> ChannelDag:
    """Join the effects; tie what shared weights and non-rectangular layouts require."""
    effects = trace.effects
    moves = {
        output: (trace.model.graph.nodes[index].inputs[0].name, move)
        for index, effect in effects.items()
        for output, move in zip(_outputs(trace, index), effect.moves, strict=False)
        if output in trace.labels
    }
    ties = [pair for effect in effects.values() for pair in effect.ties]
    ties += _shared_ties(trace.uses)
    ties += _layout_ties(trace, moves, _known_classes(trace, ties))
    starts = np.unique(np.concatenate(trace.starts)) if trace.starts else np.zeros(0, np.int64)
    outputs = [trace.labels[v.name] for v in trace.model.proto.graph.output if v.name in trace.labels]
    ends = np.unique(np.concatenate([o.reshape(-1) for o in outputs])) if outputs else np.zeros(0, np.int64)
    return ChannelDag(
        model=trace.model,
        observation=trace.observation,
        count=trace.count,
        classes=components(trace.count, ties),
        minted=np.repeat(*(np.asarray(column) for column in zip(*trace.minted, strict=True))),
        labels=trace.labels,
        mixes=tuple((k, mix) for k, effect in effects.items() for mix in effect.mixes),
        links=tuple((k, link) for k, effect in effects.items() for link in effect.links),
        implied=tuple((k, pair) for k, effect in effects.items() for pair in effect.implied),
        uses=tuple(trace.uses),
        pins=tuple(trace.pins),
        starts=starts,
        ends=ends,
        rewrites=trace.rewrites | {k: effect.rewrite for k, effect in effects.items() if effect.rewrite is not None},
        moves=moves,
        gathers=frozenset(n for k, effect in effects.items() if effect.gathers for n in _outputs(trace, k)),
    )


def _outputs(trace: _Trace, index: int) -> list[str]:
    return list(trace.model.proto.graph.node[index].output)


def _shared_ties(uses: list[Use]) -> list[Pairs]:
    """A weight that several mixing operators share is pruned once: its labels are tied over all uses.

    So are those of any constant that several consumers read through one DequantizeLinear.
    """
    first: dict[str, Use] = {}
    there: dict[tuple[int, int], Use] = {}
    ties: list[Pairs] = []
    for use in uses:
        same = there.setdefault((use.node, use.slot), use)
        ties += _same_slices(same, use) if same is not use else []
        if use.inward is None:
            continue
        known = first.setdefault(use.constant, use)
        if [f.shape for f in known.factors] != [f.shape for f in use.factors]:
            ties += _same_slices(known, use)
        elif known is not use:
            ties += list(zip(known.factors, use.factors, strict=True))
    return ties


def _same_slices(one: Use, other: Use) -> list[Pairs]:
    """Ties under which two uses slice one constant alike; what only one of them slices stays whole."""
    rank = max(factor.ndim for factor in (*one.factors, *other.factors))
    mine, theirs = ([f.reshape((1,) * (rank - f.ndim) + f.shape) for f in use.factors] for use in (one, other))
    always = uniform(0, rank)
    ties = [(factor, always) for factor in (*mine, *theirs) if not varied(factor)]
    for axis in range(rank):
        first, second = ([f for f in factors if axis in varied(f)] for factors in (mine, theirs))
        ties += [_spread_pair(f, second[0] if second else always) for f in first]
        ties += [_spread_pair(f, first[0] if first else always) for f in second]
    return ties


def _spread_pair(one: Labels, other: Labels) -> Pairs:
    shape = np.broadcast_shapes(one.shape, other.shape)
    return np.broadcast_to(one, shape), np.broadcast_to(other, shape)


def _known_classes(trace: _Trace, ties: list[Pairs]) -> NDArray[np.int64]:
    """Classes under the ties so far; whatever is pinned lives, and counts as one class."""
    classes = components(trace.count, ties)
    return np.where(pinned(classes, trace.pins)[classes], classes[0], classes)


def _layout_ties(trace: _Trace, moves: dict[str, tuple[str, Move]], classes: NDArray[np.int64]) -> list[Pairs]:
    """Ties that keep the kept positions of a tensor with channels on several axes a product of index sets.

    Not needed where other ties do so already, nor inside a run of movements that one Gather can replace.
    """
    spread = {name: compact(classes[labels]) for name, labels in trace.labels.items() if len(varied(labels)) > 1}
    several = {name for name, labels in spread.items() if len(varied(labels)) > 1}
    tied: set[str] = set()
    for index in trace.effects:
        node = trace.model.proto.graph.node[index]
        outputs = [name for name in node.output if name in trace.labels]
        if not all(name in moves for name in outputs):
            tied |= several & {*node.input, *outputs}
    for name in list(tied):
        while name in moves:
            name = moves[name][0]
            tied |= several & {name}
    for name in moves:
        if name not in several and moves[name][0] in several:
            run = gathered(name, moves, trace.labels, trace.observation.shapes)
            tied |= set() if run.indices is not None else several & set(run.inside)
    return [pair for name in sorted(tied) for pair in _slices_tied(trace.labels[name], varied(spread[name])[0])]


def _slices_tied(labels: Labels, axis: int) -> list[Pairs]:
    """Tie all labels that share an index of an axis."""
    rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    return [(np.broadcast_to(rows[:, :1], rows[:, 1:].shape), rows[:, 1:])]
