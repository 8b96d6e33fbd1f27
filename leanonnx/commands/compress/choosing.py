"""The keep set to be written: what a budget, a plan or ``--exact`` asks for, measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.naming import ignored_pin, named_nodes, named_pin
from leanonnx.commands.compress.notes import not_faster
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.workshop import Workshop
from leanonnx.data.samples import Data, batch_size
from leanonnx.errors import NotFaster, OptionError
from leanonnx.graph.formats import Kinds, float_kinds
from leanonnx.hardware.targets import Hardware, known_targets, read_targets
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.criteria import BY_ACTIVATIONS
from leanonnx.runtime.machine import detected
from leanonnx.selection.exponents import search_exponents
from leanonnx.selection.latency import latency_model
from leanonnx.selection.search import SECONDS, Trial, within_budget, within_latency
from leanonnx.selection.selector import Selection, SelectionRequest, Selector
from leanonnx.selection.widths import PARTS, Alignment
from leanonnx.statistics.moments import Statistics, measure
from leanonnx.statistics.propagation import propagate_statistics
from leanonnx.surgery.plan import Plan, replay
from leanonnx.system.outputs import written_size

QUICK = 3_000_000
"""Kernels up to which what the network holds of its activations is worked out without being asked for."""


def choose_candidate(workshop: Workshop, data: Data | None) -> Trial:
    """The keep set to be written, measured.

    Raises:
        BudgetUnreachable: no keep set fits the budget.
        NotFaster: none is faster than the original.
    """
    dag, options = workshop.dag, workshop.options
    with workshop.clock.stage("select"):
        if workshop.least is not None:
            trial = workshop.attempt(workshop.least.selection(dag), SECONDS)
        elif options.plan is not None:
            trial = workshop.attempt(_replayed(dag, options.plan), SECONDS)
        else:
            trial = _searched(workshop, data)
    refused = trial.slower if options.exact else not trial.faster
    if refused and not options.best_effort:
        raise NotFaster(
            f"{not_faster(trial)}; nothing written; ask for less of the model, or add --best-effort to write it anyway"
        )
    return trial


def _searched(workshop: Workshop, data: Data | None) -> Trial:
    """The keep set that the budget asks for."""
    dag, options = workshop.dag, workshop.options
    target = resolved_target(options, float_kinds(dag.model.proto))
    predicted, request = latency_model(dag, target), _request(dag, options, target)
    chosen = Selector(dag, request)
    if data is not None and options.method in BY_ACTIVATIONS:
        request = replace(request, statistics=_statistics(workshop, data))
        chosen = _best(workshop, Selector(dag, request, chosen.price), data)
    elif options.method in BY_ACTIVATIONS and (options.method != "auto" or chosen.before.kernels <= QUICK):
        chosen = Selector(dag, replace(request, statistics=propagate_statistics(workshop.known)), chosen.price)
    if options.budget.metric.measured:
        return within_latency(chosen, workshop.attempt)
    write = partial(_write, workshop) if options.budget.metric.confirm == "written" else None
    return within_budget(chosen, predicted, workshop.attempt, write)


def _write(workshop: Workshop, alive: Mask) -> int:
    """Write a keep set; returns the bytes of the file."""
    workshop.write(alive)
    return written_size(workshop.draft)


def _best(workshop: Workshop, selector: Selector, data: Data) -> Selector:
    """The selector whose choice can be recovered best."""
    clock, options = workshop.clock, workshop.options
    if not options.recovers or options.budget.fraction >= 1:
        return selector
    with clock.stage("try") as told:
        return search_exponents(selector, data, options.seed, told)


def _statistics(workshop: Workshop, data: Data) -> Statistics:
    """Moments of the activations on the data."""
    clock, batch = workshop.clock, batch_size(data)
    with clock.stage("look") as told:
        return measure(workshop.dag, data.feeds(batch), -(-data.count // batch), told)


def _replayed(dag: ChannelDag, plan: Plan) -> Selection:
    alive = replay(dag, plan)
    cost = cost_model(dag)
    return Selection(alive, cost(dag.whole), cost(alive), reached=True)


def resolved_target(options: CompressOptions, kinds: Kinds) -> Hardware:
    """The target that was named, or the one of this machine.

    Raises:
        OptionError: there is no such target.
    """
    tables = known_targets() | (read_targets(options.targets) if options.targets else {})
    name = detected(options.setting, kinds) if options.target == "auto" else options.target
    if name not in tables:
        raise OptionError(f"--target {name}: no such target; there are auto, {', '.join(tables)}")
    return tables[name]


def _request(dag: ChannelDag, options: CompressOptions, target: Hardware) -> SelectionRequest:
    ignored = frozenset(node for name in options.ignore for node in named_nodes(dag.model, name))
    pins = [named_pin(dag, name) for name in options.pin] + [ignored_pin(dag, node) for node in sorted(ignored)]
    return SelectionRequest(
        options.budget,
        options.method,
        options.chains,
        tuple(pins),
        ignored,
        options.seed,
        options.best_effort,
        _alignment(options, target),
        hardware=target,
        refits=options.recovers,
    )


def _alignment(options: CompressOptions, target: Hardware) -> Alignment:
    """The widths that were asked for, or those that the target runs well; finer ones where accuracy can be had back."""
    parts = 0 if options.calib is None else PARTS
    if options.align is not None:
        return Alignment(options.align, 1, parts)
    return Alignment(target.block, target.multiple, parts)
