"""The model run on channel labels: graph + rules → channel DAG.

Every node's rule is asked once, in topological order; what it answers is joined into one frozen ``ChannelDag``.
Labels are minted in that order, so every edge leads from a smaller label to a larger one.  Label 0 stands for what
lives always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.agreement import alike, united
from leanonnx.analysis.constants import Constants, ConstantUse
from leanonnx.analysis.folding import folded, to_fold
from leanonnx.analysis.runs import OperatorRun, gathered, same_run
from leanonnx.analysis.trace import Trace
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import title
from leanonnx.graph.view import unneeded
from leanonnx.numeric.channel_ids import ChannelIds, Mask, Shape, compact, components, uniform, varied
from leanonnx.rules import advice
from leanonnx.rules.call import Edit, FixedEdges, KeptChannels, KernelBlock, Move, Pin, Reduction, Rewrite, TiePairs
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import Observation

UNLIKE = "what it does to channels depends on a size that the model leaves free"
DRAWS = 3
"""Random keep sets on which edits of several sizes are compared."""
Edge = TypeVar("Edge", KernelBlock, FixedEdges)


@dataclass(frozen=True)
class ChannelDag:
    """Channels (labels 0 … count-1), their ties, and the edges between them.

    ``classes[label]`` is the class of channels that live and die together; ``minted[label]`` the node that put the
    channel out (-1: a graph input).  ``labels`` and ``shapes`` are by tensor name, ``moves`` by output name;
    ``gathers`` names outputs that a Gather always puts out in place of their operator; ``reductions`` are by node,
    ``unruled`` are the nodes of operators without a rule.  ``further`` holds the same channels as they lie at other
    sizes of the model's free axes.
    """

    model: Model
    observation: Observation
    count: int
    groups: NDArray[np.int64]
    producer: NDArray[np.int64]
    channel_ids: dict[str, ChannelIds]
    kernel_blocks: tuple[tuple[int, KernelBlock], ...]
    fixed_edges: tuple[tuple[int, FixedEdges], ...]
    concat_slots: tuple[tuple[int, TiePairs], ...]
    uses: tuple[ConstantUse, ...]
    pins: tuple[Pin, ...]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    rewrites: dict[int, Rewrite]
    moves: dict[str, tuple[str, Move]]
    gathers: frozenset[str]
    reductions: Mapping[int, tuple[Reduction, ...]]
    unruled: frozenset[int] = frozenset()
    further: tuple[ChannelDag, ...] = ()

    @property
    def sizes(self) -> tuple[ChannelDag, ...]:
        """The channels as they lie at all sizes that were looked at, this one first."""
        return (self, *self.further)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor when the model was run."""
        return self.observation.shapes

    @cached_property
    def kernel_blocks_of(self) -> Mapping[int, list[KernelBlock]]:
        """Blocks of kernels by node."""
        return _by_node(self.kernel_blocks)

    @cached_property
    def fixed_edges_of(self) -> Mapping[int, list[FixedEdges]]:
        """Fixed edges by node."""
        return _by_node(self.fixed_edges)

    @cached_property
    def sums(self) -> tuple[tuple[int, Reduction, FixedEdges], ...]:
        """Nodes that add up channels in one, with the fixed edges that lead there."""
        return tuple(
            (node, reduction, link)
            for node, reductions in self.reductions.items()
            for reduction in reductions
            if reduction.destination is not None
            for link in self.fixed_edges_of.get(node, [])
            if np.array_equal(link.sources, np.unique(reduction.channel_ids))
        )

    @property
    def pinned(self) -> Mask:
        """Which classes may not be removed [classes]."""
        return pinned(self.groups, self.pins)

    @property
    def whole(self) -> Mask:
        """The keep set of the original [labels]: everything lives."""
        return np.ones(self.count, bool)


def _by_node(pairs: Iterable[tuple[int, Edge]]) -> Mapping[int, list[Edge]]:
    found: dict[int, list[Edge]] = {}
    for node, edge in pairs:
        found.setdefault(node, []).append(edge)
    return found


def pinned(groups: NDArray[np.int64], pins: Iterable[Pin]) -> Mask:
    """Which classes [classes] hold a pinned label, or label 0; ``classes`` is the class of each label [labels]."""
    found = np.zeros(int(groups.max()) + 1, bool)
    found[groups[0]] = True
    for pin in pins:
        found[groups[pin.channel_ids]] = True
    return found


def analyse(model: Model, observation: Observation, rules: Rules = DEFAULT_RULES) -> ChannelDag:
    """Build the channel DAG of a model; weights that it computes from constants are folded, see ``folding``.

    Where the ties of whole groups leave a grouped operator no choice at all (channel shuffles spread them), it is
    asked again with ties by position, and the DAG with more classes is taken.  Where axes of the inputs are free, the
    model is looked at in several sizes: ties are those of all of them, and what follows from the size of one run alone
    is pinned.

    Args:
        model: a loaded model.
        observation: shapes and constants as one run of the model showed them.
        rules: (domain, operator) → rule; operators without a rule pin what they touch.
    """
    dag = _steadied(model, observation, rules, frozenset())
    values = to_fold(Constants(model, observation), dag.uses, dag.kernel_blocks)
    if values:
        return analyse(folded(model, values), observation, rules)
    stuck = frozenset(node for node, mix in dag.kernel_blocks if _is_stuck(mix, dag.groups))
    if not stuck:
        return dag
    other = _steadied(model, observation, rules, stuck)
    return max(dag, other, key=lambda found: int(found.groups.max()))


def _steadied(model: Model, observation: Observation, rules: Rules, by_position: frozenset[int]) -> ChannelDag:
    """The channel DAG whose edits are the same functions of the kept channels at all sizes."""
    unlike: frozenset[int] = frozenset()
    while True:
        dag = _analysed(model, observation, rules, by_position, unlike)
        more = _unlike_edits(dag) - unlike
        if not more:
            return dag
        unlike |= more


def _is_stuck(mix: KernelBlock, groups: NDArray[np.int64]) -> bool:
    """Whether all groups of an operator, each of several channels, live and die together."""
    conv_groups, width = mix.destinations.shape
    return conv_groups > 1 and width > 1 and np.unique(groups[mix.destinations]).size == 1


def joint_edit(dag: ChannelDag, node: int, alive: Mask) -> Edit | None:
    """The edit of a node for a keep set [labels]; None where it differs with sizes that the model leaves free.

    An error in a rule's own code names the node.
    """
    inputs = dag.model.proto.graph.node[node].input
    try:
        edits = [at.rewrites[node](KeptChannels(alive)) for at in dag.sizes]
    except Exception as error:
        error.add_note(f"while {title(dag.model.proto.graph.node[node])} was fitted to the channels that are kept")
        raise
    return united(edits, lambda slot: slot < len(inputs) and inputs[slot] in dag.model.origins)


def _unlike_edits(dag: ChannelDag) -> frozenset[int]:
    """Nodes whose edits are not the same function of the kept channels at all sizes, as random keep sets show."""
    if not dag.further:
        return frozenset()
    rng = np.random.default_rng(0)
    drawn = [_random_keep_set(dag, rng) for _ in range(DRAWS)]
    return frozenset(
        node
        for node in dag.rewrites
        if any(node not in at.rewrites for at in dag.further)
        or any(joint_edit(dag, node, alive) is None for alive in drawn)
    )


def _random_keep_set(dag: ChannelDag, rng: np.random.Generator) -> Mask:
    """Labels that live [labels] when about half of the classes do."""
    keep = (rng.random(int(dag.groups.max()) + 1) < 1 / 2) | dag.pinned
    for _, (channels, readers) in dag.concat_slots:
        keep[dag.groups[readers[~keep[dag.groups[channels]]]]] = False
    return keep[dag.groups]


def _analysed(
    model: Model, observation: Observation, rules: Rules, by_position: frozenset[int], unlike: frozenset[int]
) -> ChannelDag:
    """One pass over the model at all sizes side by side.

    Grouped operators named in ``by_position`` lose positions, not groups; what the nodes in ``unlike`` touch is pinned.
    """
    traces = [Trace(model, seen, by_position) for seen in (observation, *observation.further)]
    spare = unneeded(model.proto.graph.node, model.proto.graph)
    for index, node in enumerate(model.proto.graph.node):
        if not spare.issuperset(name for name in node.output if name):
            _visit(traces, index, rules, index in unlike)
    for trace in traces:
        for value in model.proto.graph.output:
            if value.name in trace.channel_ids:
                channel_ids = np.unique(trace.channel_ids[value.name])
                trace.pins.append(Pin(channel_ids, value.name, f"graph output '{value.name}'", advice.INTERFACE))
    return _joined(traces)


def _visit(traces: Sequence[Trace], index: int, rules: Rules, refuse: bool) -> None:
    """Ask a node's rule at every size; pin what the node touches where the answers differ."""
    before = traces[0].count
    answers = [trace.ask(index, rules) for trace in traces]
    if answers[0] is None:
        return
    if refuse or len({trace.count for trace in traces}) > 1 or not alike(answers):
        for trace in traces:
            trace.undo(before)
        answers = [trace.refuse(index, UNLIKE) for trace in traces]
    for trace, answer in zip(traces, answers, strict=True):
        if answer is not None:
            trace.add(index, answer)


def _joined(traces: Sequence[Trace]) -> ChannelDag:
    """Join the answers of all sizes; tie what shared weights and non-rectangular layouts require."""
    ties = [pair for trace in traces for effect in trace.effects.values() for pair in effect.ties]
    ties += _shared_ties(traces[0].uses)
    for trace in traces:
        trace.pins += trace.read_whole()
    pins = list({(pin.tensor, pin.reason, pin.channel_ids.tobytes()): pin for t in traces for pin in t.pins}.values())
    known = _known_classes(traces[0].count, ties, pins)
    moves = [_moves(trace) for trace in traces]
    runs = partial(_same_run, traces, moves)
    ties += [
        pair for trace, moved in zip(traces, moves, strict=True) for pair in _layout_ties(trace, moved, known, runs)
    ]
    groups = components(traces[0].count, ties)
    dags = [_dag(trace, groups, tuple(pins), moved) for trace, moved in zip(traces, moves, strict=True)]
    return replace(dags[0], further=tuple(dags[1:]))


def _dag(
    trace: Trace, groups: NDArray[np.int64], pins: tuple[Pin, ...], moves: dict[str, tuple[str, Move]]
) -> ChannelDag:
    """The channel DAG as one size shows it."""
    effects = trace.effects
    starts = np.unique(np.concatenate(trace.starts)) if trace.starts else np.zeros(0, np.int64)
    outputs = [trace.channel_ids[v.name] for v in trace.model.proto.graph.output if v.name in trace.channel_ids]
    ends = np.unique(np.concatenate([o.reshape(-1) for o in outputs])) if outputs else np.zeros(0, np.int64)
    return ChannelDag(
        model=trace.model,
        observation=trace.observation,
        count=trace.count,
        groups=groups,
        producer=np.repeat(*(np.asarray(column) for column in zip(*trace.minted, strict=True))),
        channel_ids=trace.channel_ids,
        kernel_blocks=tuple((k, mix) for k, effect in effects.items() for mix in effect.kernel_blocks),
        fixed_edges=tuple((k, link) for k, effect in effects.items() for link in effect.fixed_edges),
        concat_slots=tuple((k, pair) for k, effect in effects.items() for pair in effect.concat_slots),
        uses=tuple(trace.uses),
        pins=pins,
        starts=starts,
        ends=ends,
        rewrites=trace.rewrites | {k: effect.rewrite for k, effect in effects.items() if effect.rewrite is not None},
        moves=moves,
        gathers=frozenset(n for k, effect in effects.items() if effect.gathers for n in trace.outputs(k)),
        unruled=frozenset(trace.unruled),
        reductions={k: effect.reductions for k, effect in effects.items() if effect.reductions},
    )


def _moves(trace: Trace) -> dict[str, tuple[str, Move]]:
    """For each tensor that a movement puts out: the tensor that was moved, and how."""
    return {
        output: (trace.model.proto.graph.node[index].input[0], move)
        for index, effect in trace.effects.items()
        for output, move in zip(trace.outputs(index), effect.moves, strict=False)
        if output in trace.channel_ids
    }


def _same_run(traces: Sequence[Trace], moves: Sequence[dict[str, tuple[str, Move]]], name: str) -> OperatorRun:
    """The run of movements that made a tensor; one that differs from size to size has no indices."""
    found = [gathered(name, m, t.channel_ids, t.observation.shapes) for t, m in zip(traces, moves, strict=True)]
    return same_run(found)


def _shared_ties(uses: list[ConstantUse]) -> list[TiePairs]:
    """A weight that several mixing operators share is pruned once: its labels are tied over all uses.

    So are those of any constant that several consumers read through one DequantizeLinear.
    """
    first: dict[str, ConstantUse] = {}
    there: dict[tuple[int, int], ConstantUse] = {}
    ties: list[TiePairs] = []
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


def _same_slices(one: ConstantUse, other: ConstantUse) -> list[TiePairs]:
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


def _spread_pair(one: ChannelIds, other: ChannelIds) -> TiePairs:
    shape = np.broadcast_shapes(one.shape, other.shape)
    return np.broadcast_to(one, shape), np.broadcast_to(other, shape)


def _known_classes(count: int, ties: list[TiePairs], pins: Sequence[Pin]) -> NDArray[np.int64]:
    """Classes under the ties so far; whatever is pinned lives, and counts as one class."""
    groups = components(count, ties)
    return np.where(pinned(groups, pins)[groups], groups[0], groups)


def _layout_ties(
    trace: Trace, moves: dict[str, tuple[str, Move]], groups: NDArray[np.int64], run_of: Callable[[str], OperatorRun]
) -> list[TiePairs]:
    """Ties that keep the kept positions of a tensor with channels on several axes a product of index sets.

    Not needed where other ties do so already, nor inside a run of movements that one Gather can replace.
    """
    spread = {
        name: compact(groups[channel_ids])
        for name, channel_ids in trace.channel_ids.items()
        if len(varied(channel_ids)) > 1
    }
    several = {name for name, channel_ids in spread.items() if len(varied(channel_ids)) > 1}
    tied: set[str] = set()
    for index in trace.effects:
        node = trace.model.proto.graph.node[index]
        outputs = [name for name in node.output if name in trace.channel_ids]
        if not outputs or not all(name in moves for name in outputs):
            tied |= several & {*node.input, *outputs}
    for name in list(tied):
        while name in moves:
            name = moves[name][0]
            tied |= several & {name}
    for name in moves:
        if name not in several and moves[name][0] in several:
            run = run_of(name)
            tied |= set() if run.indices is not None else several & set(run.inside)
    return [pair for name in sorted(tied) for pair in _slices_tied(trace.channel_ids[name], varied(spread[name])[0])]


def _slices_tied(channel_ids: ChannelIds, axis: int) -> list[TiePairs]:
    """Tie all labels that share an index of an axis."""
    rows = np.moveaxis(channel_ids, axis, 0).reshape(channel_ids.shape[axis], -1)
    return [(np.broadcast_to(rows[:, :1], rows[:, 1:].shape), rows[:, 1:])]
