"""Build the channel DAG of a model: graph + rules → ``ChannelDag``.

The rule of every node is called once, in topological order, and the effects are joined into one frozen ``ChannelDag``.
Channel ids are minted in that order, so every edge leads from a smaller id to a larger one.  Id 0 is always kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.agreement import answers_agree, common_edit
from leanonnx.analysis.constants import Constants, ConstantUse
from leanonnx.analysis.folding import fold_values, values_to_fold
from leanonnx.analysis.runs import OperatorRun, common_run, trace_run
from leanonnx.analysis.teacher import RecoveryTeacher
from leanonnx.analysis.ties import layout_ties, shared_ties
from leanonnx.analysis.trace import Trace
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import node_title
from leanonnx.graph.view import unused_outputs
from leanonnx.numeric.channel_ids import ChannelIds, Mask, Shape, tied_groups
from leanonnx.rules import advice
from leanonnx.rules.call import Edit, FixedEdges, KeptChannels, KernelBlock, Move, Pin, Reduction, Rewrite, TiePairs
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import Observation

SIZE_DEPENDENT = "its effect on channels depends on a free size"
KEEP_SET_DRAWS = 3
"""Number of random keep sets on which edits of several sizes are compared."""
EdgeKind = TypeVar("EdgeKind", KernelBlock, FixedEdges)


@dataclass(frozen=True)
class ChannelDag:
    """Channels (ids 0 … count-1), their groups, and the edges between them.

    ``groups`` [channels]: group of each channel; the channels of a group are kept or removed together.
    ``producer`` [channels]: node that outputs the channel (-1: a graph input).
    ``channel_ids`` and ``shapes``: by tensor; ``moves``: (moved tensor, movement) by output.
    ``kernel_blocks``, ``fixed_edges``, ``concat_slots``: pairs (node, …); ``reductions``, ``rewrites``: by node.
    ``gathered_outputs``: outputs that a Gather must produce in place of their operator.
    ``starts`` and ``ends``: channels at which chains start and end; ``nodes_without_rule``: their operator has none.
    ``other_sizes``: the same channels at other sizes of free axes; ``copies_constants``: surgery copies what it slices.
    ``teacher``: the network that recovery fits to; None stands for the model itself.
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
    constant_uses: tuple[ConstantUse, ...]
    pins: tuple[Pin, ...]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    rewrites: dict[int, Rewrite]
    moves: dict[str, tuple[str, Move]]
    gathered_outputs: frozenset[str]
    reductions: Mapping[int, tuple[Reduction, ...]]
    nodes_without_rule: frozenset[int] = frozenset()
    other_sizes: tuple[ChannelDag, ...] = ()
    copies_constants: bool = False
    teacher: RecoveryTeacher | None = None

    @property
    def taught_by(self) -> Model:
        """The network whose outputs the result is to reproduce."""
        return self.teacher.model if self.teacher else self.model

    def is_taught(self, name: str) -> bool:
        """True if a tensor of the model has a counterpart in the network that recovery fits to."""
        return self.teacher is None or name in self.teacher.shared

    def is_unlike(self, name: str) -> bool:
        """True if that network does not compute a tensor as the model does."""
        return self.teacher is not None and name in self.teacher.unlike

    @property
    def all_sizes(self) -> tuple[ChannelDag, ...]:
        """DAGs at all observed sizes, this one first."""
        return (self, *self.other_sizes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Observed shape of each tensor."""
        return self.observation.shapes

    @cached_property
    def kernel_blocks_of(self) -> Mapping[int, list[KernelBlock]]:
        """Kernel blocks by node."""
        return _by_node(self.kernel_blocks)

    @cached_property
    def fixed_edges_of(self) -> Mapping[int, list[FixedEdges]]:
        """Fixed edges by node."""
        return _by_node(self.fixed_edges)

    @cached_property
    def channel_sums(self) -> tuple[tuple[int, Reduction, FixedEdges], ...]:
        """Reductions that sum channels into one, with their node and the fixed edges to that channel."""
        return tuple(
            (node, reduction, edges)
            for node, reductions in self.reductions.items()
            for reduction in reductions
            if reduction.destination is not None
            for edges in self.fixed_edges_of.get(node, [])
            if np.array_equal(edges.sources, np.unique(reduction.channel_ids))
        )

    @property
    def pinned_groups(self) -> Mask:
        """Mask [groups] of groups that must not be removed."""
        return groups_with_pins(self.groups, self.pins)

    @property
    def all_alive(self) -> Mask:
        """Keep mask [channels] of the original: all True."""
        return np.ones(self.count, bool)


def _by_node(pairs: Iterable[tuple[int, EdgeKind]]) -> Mapping[int, list[EdgeKind]]:
    edges: dict[int, list[EdgeKind]] = {}
    for node, edge in pairs:
        edges.setdefault(node, []).append(edge)
    return edges


def groups_with_pins(groups: NDArray[np.int64], pins: Iterable[Pin]) -> Mask:
    """Mask [groups] of groups that hold a pinned channel, or channel 0; ``groups`` [channels] as in ``ChannelDag``."""
    mask = np.zeros(int(groups.max()) + 1, bool)
    mask[groups[0]] = True
    for pin in pins:
        mask[groups[pin.channel_ids]] = True
    return mask


def build_channel_dag(model: Model, observation: Observation, rules: Rules = DEFAULT_RULES) -> ChannelDag:
    """Build the channel DAG of a model; weights that it computes from constants are folded (see ``folding``).

    If ties of whole conv groups leave only one group of channels (channel shuffles spread the ties), the operator's
    rule is called again with ties by position, and the DAG with more groups is returned.  If axes of the inputs are
    free, the model is analysed at several sizes: the ties of all sizes apply, and channels whose effects differ
    between sizes are pinned.

    Args:
        model: a loaded model.
        observation: shapes and values of constants from a run of the model.
        rules: (domain, operator) → rule; an operator without a rule pins its inputs and outputs.
    """
    dag = _analyse_until_stable(model, observation, rules, frozenset())
    values = values_to_fold(Constants(model, observation), dag.constant_uses, dag.kernel_blocks)
    if values:
        return build_channel_dag(fold_values(model, values), observation, rules)
    stuck = frozenset(node for node, block in dag.kernel_blocks if _is_stuck(block, dag.groups))
    if not stuck:
        return dag
    other = _analyse_until_stable(model, observation, rules, stuck)
    return max(dag, other, key=lambda each: int(each.groups.max()))


def _analyse_until_stable(
    model: Model, observation: Observation, rules: Rules, by_position: frozenset[int]
) -> ChannelDag:
    """Channel DAG whose edits are the same functions of the kept channels at all sizes."""
    unlike: frozenset[int] = frozenset()
    while True:
        dag = _analyse_once(model, observation, rules, by_position, unlike)
        more = _unlike_edits(dag) - unlike
        if not more:
            return dag
        unlike |= more


def _is_stuck(block: KernelBlock, groups: NDArray[np.int64]) -> bool:
    """Return True if all conv groups of an operator, each of several channels, are in one group of channels."""
    conv_groups, width = block.destinations.shape
    return conv_groups > 1 and width > 1 and np.unique(groups[block.destinations]).size == 1


def joint_edit(dag: ChannelDag, node: int, alive: Mask) -> Edit | None:
    """Edit of a node for a keep mask ``alive`` [channels]; None if it differs between free sizes.

    An exception raised by the rule gets a note with the node.
    """
    inputs = dag.model.proto.graph.node[node].input
    try:
        edits = [at.rewrites[node](KeptChannels(alive)) for at in dag.all_sizes]
    except Exception as error:
        error.add_note(f"while {node_title(dag.model.proto.graph.node[node])} was edited for the kept channels")
        raise
    return common_edit(edits, lambda slot: slot < len(inputs) and inputs[slot] in dag.model.origins)


def _unlike_edits(dag: ChannelDag) -> frozenset[int]:
    """Nodes whose edits differ between sizes on some of ``DRAWS`` random keep sets."""
    if not dag.other_sizes:
        return frozenset()
    rng = np.random.default_rng(0)
    drawn = [_random_keep_set(dag, rng) for _ in range(KEEP_SET_DRAWS)]
    return frozenset(
        node
        for node in dag.rewrites
        if any(node not in at.rewrites for at in dag.other_sizes)
        or any(joint_edit(dag, node, alive) is None for alive in drawn)
    )


def _random_keep_set(dag: ChannelDag, rng: np.random.Generator) -> Mask:
    """Keep mask [channels] of a random half of the groups, with pinned groups kept."""
    keep = (rng.random(int(dag.groups.max()) + 1) < 1 / 2) | dag.pinned_groups
    for _, (channels, slots) in dag.concat_slots:
        keep[dag.groups[slots[~keep[dag.groups[channels]]]]] = False
    return keep[dag.groups]


def _analyse_once(
    model: Model, observation: Observation, rules: Rules, by_position: frozenset[int], unlike: frozenset[int]
) -> ChannelDag:
    """Trace the model at all sizes in parallel.

    Grouped operators in ``by_position`` tie positions instead of whole groups; inputs and outputs of the nodes in
    ``unlike`` are pinned.
    """
    traces = [Trace(model, seen, by_position) for seen in (observation, *observation.further_runs)]
    spare = unused_outputs(model.proto.graph.node, model.proto.graph)
    for index, node in enumerate(model.proto.graph.node):
        if not spare.issuperset(name for name in node.output if name):
            _visit(traces, index, rules, index in unlike)
    for trace in traces:
        for value in model.proto.graph.output:
            if value.name in trace.channel_ids:
                channel_ids = np.unique(trace.channel_ids[value.name])
                trace.pins.append(
                    Pin(
                        channel_ids=channel_ids,
                        tensor=value.name,
                        reason=f"graph output '{value.name}'",
                        advice=advice.FIXED_INTERFACE,
                    )
                )
    return _join(traces)


def _visit(traces: Sequence[Trace], index: int, rules: Rules, refuse: bool) -> None:
    """Call a node's rule at every size; pin the node's inputs and outputs if the effects disagree.

    The same tensors hold channels at all sizes, so that a node has an answer at all of them or at none.
    """
    before = traces[0].count
    answers = [answer for trace in traces if (answer := trace.call_rule(index, rules)) is not None]
    if not answers:
        return
    if refuse or len({trace.count for trace in traces}) > 1 or not answers_agree(answers):
        for trace in traces:
            trace.discard_ids(before)
        answers = [trace.pin_node(index, SIZE_DEPENDENT) for trace in traces]
    for trace, answer in zip(traces, answers, strict=True):
        trace.add_answer(index, answer)


def _join(traces: Sequence[Trace]) -> ChannelDag:
    """Join the effects of all sizes, with the ties that shared weights and layouts on several axes require."""
    ties = [pair for trace in traces for effect in trace.effects.values() for pair in effect.ties]
    ties += shared_ties(traces[0].constant_uses)
    for trace in traces:
        trace.pins += trace.pins_of_whole_reads()
    pins = list({(pin.tensor, pin.reason, pin.channel_ids.tobytes()): pin for t in traces for pin in t.pins}.values())
    known = _known_groups(traces[0].count, ties, pins)
    moves = [_moves(trace) for trace in traces]
    runs = partial(_same_run, traces, moves)
    ties += [
        pair for trace, moved in zip(traces, moves, strict=True) for pair in layout_ties(trace, moved, known, runs)
    ]
    groups = tied_groups(traces[0].count, ties)
    dags = [_build_dag(trace, groups, tuple(pins), moved) for trace, moved in zip(traces, moves, strict=True)]
    return replace(dags[0], other_sizes=tuple(dags[1:]))


def _build_dag(
    trace: Trace, groups: NDArray[np.int64], pins: tuple[Pin, ...], moves: dict[str, tuple[str, Move]]
) -> ChannelDag:
    """Channel DAG at one size."""
    effects = trace.effects
    starts = np.unique(np.concatenate(trace.starts)) if trace.starts else np.zeros(0, np.int64)
    outputs = [trace.channel_ids[v.name] for v in trace.model.proto.graph.output if v.name in trace.channel_ids]
    ends = np.unique(np.concatenate([o.reshape(-1) for o in outputs])) if outputs else np.zeros(0, np.int64)
    return ChannelDag(
        model=trace.model,
        observation=trace.observation,
        count=trace.count,
        groups=groups,
        producer=np.repeat(*(np.asarray(column) for column in zip(*trace.mint_log, strict=True))),
        channel_ids=trace.channel_ids,
        kernel_blocks=tuple((k, block) for k, effect in effects.items() for block in effect.kernel_blocks),
        fixed_edges=tuple((k, edges) for k, effect in effects.items() for edges in effect.fixed_edges),
        concat_slots=tuple((k, pair) for k, effect in effects.items() for pair in effect.concat_slots),
        constant_uses=tuple(trace.constant_uses),
        pins=pins,
        starts=starts,
        ends=ends,
        rewrites=trace.rewrites | {k: effect.rewrite for k, effect in effects.items() if effect.rewrite is not None},
        moves=moves,
        gathered_outputs=frozenset(
            n for k, effect in effects.items() if effect.needs_gather for n in trace.output_names(k)
        ),
        nodes_without_rule=frozenset(trace.nodes_without_rule),
        reductions={k: effect.reductions for k, effect in effects.items() if effect.reductions},
    )


def _moves(trace: Trace) -> dict[str, tuple[str, Move]]:
    """For each output of a movement operator: the moved tensor and the movement."""
    return {
        output: (trace.model.proto.graph.node[index].input[0], move)
        for index, effect in trace.effects.items()
        for output, move in zip(trace.output_names(index), effect.moves, strict=False)
        if output in trace.channel_ids
    }


def _same_run(traces: Sequence[Trace], moves: Sequence[dict[str, tuple[str, Move]]], name: str) -> OperatorRun:
    """Run of movements that ends in a tensor; without indices if it differs between sizes."""
    operator_runs = [
        trace_run(name, m, t.channel_ids, t.observation.shapes) for t, m in zip(traces, moves, strict=True)
    ]
    return common_run(operator_runs)


def _known_groups(count: int, ties: list[TiePairs], pins: Sequence[Pin]) -> NDArray[np.int64]:
    """Groups [channels] under the ties so far, with all pinned groups merged into one."""
    groups = tied_groups(count, ties)
    return np.where(groups_with_pins(groups, pins)[groups], groups[0], groups)
