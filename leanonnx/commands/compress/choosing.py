"""First stages: choose the channels that a budget, a plan or ``--exact`` asks for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.naming import pin_outputs, resolve_nodes, resolve_pin
from leanonnx.commands.compress.candidate import Candidate, CompressJob
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.pruning import BudgetRemoval, written_draft
from leanonnx.commands.compress.timing import profile_original, time_draft
from leanonnx.data.samples import Dataset
from leanonnx.errors import OptionError
from leanonnx.graph.formats import ElementTypes, float_types
from leanonnx.hardware.targets import Hardware, builtin_hardware, read_hardware
from leanonnx.lossless.minimal import minimise
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.criteria import BY_ACTIVATIONS
from leanonnx.recovery.draft import calibration_batch
from leanonnx.runtime.machine import detect_hardware
from leanonnx.selection.exponents import search_exponents
from leanonnx.selection.metrics import LATENCY, METRICS
from leanonnx.selection.search import Trial, within_budget, within_latency
from leanonnx.selection.selector import Selection, SelectionRequest, Selector
from leanonnx.selection.widths import MIN_PARTS, Alignment
from leanonnx.spelling import option
from leanonnx.statistics.moments import HELD_OUT_RUN_STRIDE, Statistics, measure_statistics
from leanonnx.statistics.propagation import propagate_statistics
from leanonnx.surgery.plan import Plan, replay_plan
from leanonnx.system.outputs import written_size

QUICK_KERNELS = 3_000_000
"""Largest number of kernels for which ``auto`` propagates the statistics that the network contains."""


def choose_lossless(candidate: Candidate) -> Candidate:
    """Choose the channels that contribute nothing to the outputs."""
    job = candidate.job
    options = job.options
    with job.clock.stage("select"):
        removal = minimise(job.dag, job.rules, options.shapes, options.pin, options.ignore)
    return replace(candidate, removal=removal)


def choose_channels(candidate: Candidate) -> Candidate:
    """Choose the channels that the plan or the budget removes.

    Raises:
        BudgetUnreachable: no keep mask fits the budget.
    """
    job = candidate.job
    with job.clock.stage("select"):
        if job.options.plan is not None:
            return replace(candidate, removal=BudgetRemoval(job.dag, _planned_selection(job, job.options.plan)))
        trial = _search(candidate)
    return replace(candidate, removal=BudgetRemoval(job.dag, trial.selection), trial=trial)


def _search(original: Candidate) -> Trial:
    """Search for the keep mask of the budget; a job that only predicts takes the first, without confirming it."""
    job = original.job
    options, selector = job.options, selector_for(job)
    if job.predicts:
        return Trial(selector.select(), None)
    attempt = partial(time_draft, original, count(1))
    if options.budget.metric.measured:
        return within_latency(selector, attempt)
    write = partial(_draft_size, original) if options.budget.metric.confirm == "written" else None
    return within_budget(selector, METRICS[LATENCY].price(selector.inputs), attempt, write)


def selector_for(job: CompressJob) -> Selector:
    """The selector of a job's network and budget; statistics and ranking are made once for all budgets in its unit."""
    key = id(job.dag), job.options.budget.unit
    if key not in job.selectors:
        job.selectors[key] = _new_selector(job)
    return job.selectors[key].with_budget(job.options.budget)


def _new_selector(job: CompressJob) -> Selector:
    """The selector of a job, with the exponents that suit its budget."""
    dag, options, data = job.dag, job.options, job.data
    timed = options.budget.metric.measured and options.budget.fraction < 1
    request = _request(dag, options, resolved_target(options, float_types(dag.model.proto)))
    request = replace(request, profile=profile_original(job) if timed else ())
    selector = Selector(dag, request)
    if data is not None and options.method in BY_ACTIVATIONS:
        request = replace(request, statistics=_statistics(job, data))
        return _best_exponents(job, Selector(dag, request, selector.price), data)
    if options.method in BY_ACTIVATIONS and (options.method != "auto" or selector.before.kernels <= QUICK_KERNELS):
        return Selector(dag, replace(request, statistics=propagate_statistics(job.known)), selector.price)
    return selector


def selector_of(job: CompressJob, whole: Selector) -> Selector:
    """The selector of a job's network, which lacks branches of the network of another selector.

    Raises:
        OptionError: a channel that is to be kept went with a branch.
    """
    request = _request(job.dag, job.options, resolved_target(job.options, float_types(job.dag.model.proto)))
    profile = tuple(time for time in whole.request.profile if time.tensor and not job.dag.is_unlike(time.tensor))
    request = replace(request, exponents=whole.request.exponents, profile=profile)
    if job.data is not None:
        request = replace(request, statistics=_statistics(job, job.data))
    return Selector(job.dag, request, whole=whole)


def keep_selector(job: CompressJob, selector: Selector) -> None:
    """Let ``selector_for`` return the selector of a job's network."""
    job.selectors[id(job.dag), job.options.budget.unit] = selector


def _draft_size(original: Candidate, alive: Mask) -> int:
    """Bytes of the file of a keep mask, pruned and tidied."""
    job = original.job
    cost = cost_model(job.dag)
    selection = Selection(alive=alive, before=cost(job.dag.all_alive), after=cost(alive), reached=True)
    with written_draft(original, selection) as draft:
        return written_size(draft.path)


def _best_exponents(job: CompressJob, selector: Selector, data: Dataset) -> Selector:
    """The selector whose choice recovers best."""
    options = job.options
    if not options.recovers or options.budget.fraction >= 1:
        return selector
    with job.clock.stage("try") as on_progress:
        return search_exponents(selector, data, job.effort, job.deadline, options.seed, on_progress)


def _statistics(job: CompressJob, data: Dataset) -> Statistics:
    """Moments of the activations on the data."""
    data = data.subsample(max(job.effort.max_samples, data.fixed_batch or 1))
    batch = data.fixed_batch or max(1, min(calibration_batch(job.dag, data), data.count // HELD_OUT_RUN_STRIDE))
    with job.clock.stage("look") as on_progress:
        return measure_statistics(job.dag, data.feeds(batch), -(-data.count // batch), on_progress)


def _planned_selection(job: CompressJob, plan: Plan) -> Selection:
    alive, whole = replay_plan(job.dag, plan, bool(job.branch_rows)), job.original
    return Selection(
        alive=alive, before=cost_model(whole)(whole.all_alive), after=cost_model(job.dag)(alive), reached=True
    )


def resolved_target(options: CompressOptions, kinds: ElementTypes) -> Hardware:
    """The hardware that ``--target`` names, or that of this machine.

    Raises:
        OptionError: there is no such target.
    """
    tables = builtin_hardware() | (read_hardware(options.targets) if options.targets else {})
    name = detect_hardware(options.setting, kinds) if options.target == "auto" else options.target
    if name not in tables:
        raise OptionError(f"{option('target', name)}: no such target; there are auto, {', '.join(tables)}")
    return tables[name]


def _request(dag: ChannelDag, options: CompressOptions, target: Hardware) -> SelectionRequest:
    ignored = frozenset(node for name in options.ignore for node in resolve_nodes(dag.model, name))
    pins = [resolve_pin(dag, name) for name in options.pin] + [pin_outputs(dag, node) for node in sorted(ignored)]
    return SelectionRequest(
        budget=options.budget,
        method=options.method,
        chains=options.chains,
        pinned=tuple(pins),
        ignored=ignored,
        seed=options.seed,
        best_effort=options.best_effort,
        alignment=_alignment(options, target),
        hardware=target,
        refits=options.recovers,
    )


def _alignment(options: CompressOptions, target: Hardware) -> Alignment:
    """The requested widths, or those that the hardware runs fast; finer ones if weights can be refitted."""
    parts = 0 if options.calib is None else MIN_PARTS
    if options.align is not None:
        return Alignment(options.align, 1, parts)
    return Alignment(target.block, target.multiple, parts)
