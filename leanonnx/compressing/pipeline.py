"""The main job, stage by stage: load → observe → analyse → select → operate → measure → prove → recover → write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanonnx.analysis.cost import Cost, cost_model
from leanonnx.analysis.dag import ChannelDag, analyse
from leanonnx.analysis.naming import ignored_pin, named_nodes, named_pin
from leanonnx.compressing.contest import best_terms
from leanonnx.compressing.minimal import minimise
from leanonnx.compressing.options import Options
from leanonnx.compressing.workshop import Workshop
from leanonnx.data.files import sample_files
from leanonnx.data.samples import Data, batch_size, open_data, runnable
from leanonnx.errors import NotFaster, OptionError
from leanonnx.graph.formats import Kinds, float_kinds
from leanonnx.graph.model import Model, load, overridden
from leanonnx.numeric.labels import Mask
from leanonnx.proof.proof import Proof
from leanonnx.ranking.beliefs import believed
from leanonnx.ranking.criteria import BY_ACTIVATIONS
from leanonnx.ranking.moments import Statistics, measure
from leanonnx.ranking.weigh import check_finite
from leanonnx.recovery.draft import ENOUGH, Recovery
from leanonnx.recovery.unseen import Unseen
from leanonnx.rules.table import DEFAULT, Rules
from leanonnx.runtime.machine import detected
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.targets import Target, known_targets, read_targets
from leanonnx.runtime.timing import Comparison
from leanonnx.selection.latency import by_time, latency_model
from leanonnx.selection.search import SECONDS, Trial, within_budget, within_latency
from leanonnx.selection.selector import LATENCY, Request, Selection, Selector
from leanonnx.selection.widths import PARTS, Alignment
from leanonnx.surgery.plan import Plan, confirm, make_plan, replay
from leanonnx.system.clock import Clock, Progress, quiet
from leanonnx.system.outputs import check_apart, check_writable, publish, temporary_beside, written_size
from leanonnx.version import __version__

QUICK = 3_000_000
"""Kernels up to which what the network holds of its activations is worked out without being asked for."""


@dataclass(frozen=True)
class Result:
    """What came of a compression; ``seconds`` by stage, ``bytes`` before and after.

    ``tidied`` counts what was cleaned up in the graph; ``exact`` says what contributed nothing, where that was asked;
    ``recovery`` what real inputs told, where they were given; ``unseen`` how weights were changed without any.
    """

    dag: ChannelDag
    alive: Mask
    plan: Plan
    before: Cost
    after: Cost
    bytes: tuple[int, int]
    proof: Proof
    latency: Comparison | None
    setting: Setting
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    seconds: Mapping[str, float]
    tidied: Mapping[str, int]
    exact: Mapping[str, Any] | None
    recovery: Recovery | None
    unseen: Unseen | None


@dataclass(frozen=True)
class Page:
    """A text about a result, written at once with it: where, and what it says of the result, its draft and the data."""

    path: Path
    text: Callable[[Result, Path, Data | None], str]


def inspect(
    path: Path,
    shapes: Shapes | None = None,
    rules: Rules = DEFAULT,
    libraries: tuple[Path, ...] = (),
    freeze: bool = False,
) -> ChannelDag:
    """Load a model and build its channel DAG."""
    model = load(path, libraries, freeze)
    return analyse(model, observe(model, shapes or {}), rules)


def compress(
    source: Path,
    target: Path,
    options: Options,
    plan_out: Path | None = None,
    rules: Rules = DEFAULT,
    progress: Progress = quiet,
    page: Page | None = None,
) -> Result:
    """Compress a model file, prove the result and write it, with its plan and a page about it where these are given.

    Raises:
        UserError: bad model, option, plan or output path.
        BudgetUnreachable: the budget cannot be reached (unless ``best_effort``).
        NotFaster: the result was measured to be no faster (unless ``best_effort``).
        ProofFailed: the result is not equal to the masked original; nothing is written.
    """
    clock = Clock(progress)
    options = as_planned(options)
    beside = [path for path in (plan_out, page.path if page else None) if path is not None]
    for path in (target, *beside):
        check_writable(source, path)
    with clock.stage("load"):
        model = load(source, options.libraries, options.freeze)
    samples = sample_files(options.calib) if isinstance(options.calib, Path) else ()
    check_apart(model.files, target, *beside, given=(*samples, *options.libraries))
    with clock.stage("observe"):
        observation = observe(model, options.shapes)
    with clock.stage("analyse"):
        dag = analyse(model, observation, rules)
        check_finite(dag)
    data = None
    if options.calib is not None:
        data = runnable(open_data(options.calib, model, dag.shapes, options.images), model)
    least = None
    if options.exact:
        with clock.stage("select"):
            least = minimise(dag, rules, options.shapes, options.pin, options.ignore)
    with temporary_beside(target) as folder:
        workshop = Workshop(dag, least, options, folder / target.name, clock)
        trial = _found(workshop, data)
        selection = trial.selection
        proof = workshop.proven(selection.alive)
        recovery = workshop.recovered(selection.alive, data) if data is not None else None
        unseen = workshop.unseen(selection.alive) if data is None else None
        plan = make_plan(least.dag if least else dag, selection.alive, options.record(), __version__)
        if least and options.plan:
            confirm(least.dag, plan, options.plan)
        after = replace(selection.after, params=workshop.params) if least else selection.after
        result = Result(
            dag=least.dag if least else dag,
            alive=selection.alive,
            plan=plan,
            before=selection.before,
            after=after,
            bytes=(model.size, written_size(workshop.draft)),
            proof=proof,
            latency=trial.comparison,
            setting=options.setting.resolved,
            warnings=(*_warnings(trial, workshop), *_calibration_warnings(data, recovery)),
            hints=_hints(model),
            seconds=clock.seconds,
            tidied=workshop.tidied,
            exact=least.report() if least else None,
            recovery=recovery,
            unseen=unseen,
        )
        texts = {} if plan_out is None else {plan_out: plan.text()}
        if page is not None:
            with clock.stage("report"):
                texts[page.path] = page.text(result, workshop.draft, data)
        publish(workshop.draft, target, texts)
    return result


def _found(workshop: Workshop, data: Data | None) -> Trial:
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
            trial = workshop.attempt(_replayed(dag, options, options.plan), SECONDS)
        else:
            trial = _searched(workshop, data)
    refused = trial.slower if options.exact else not trial.faster
    if refused and not options.best_effort:
        raise NotFaster(
            f"{_not_faster(trial)}; nothing written; ask for less of the model, or add --best-effort to write it anyway"
        )
    return trial


def _searched(workshop: Workshop, data: Data | None) -> Trial:
    """The keep set that the budget asks for."""
    dag, options = workshop.dag, workshop.options
    target = resolved_target(options, float_kinds(dag.model.proto))
    predicted, request = latency_model(dag, target), _request(dag, options, target)
    chosen = Selector(dag, request, predicted if options.budget.unit == LATENCY else None)
    if data is not None and options.method in BY_ACTIVATIONS:
        request = replace(request, statistics=_statistics(workshop, data))
        chosen = _best(workshop, Selector(dag, request, chosen.price), data)
    elif options.method in BY_ACTIVATIONS and (options.method != "auto" or chosen.before.kernels <= QUICK):
        chosen = Selector(dag, replace(request, statistics=believed(workshop.known)), chosen.price)
    if options.budget.unit == LATENCY:
        return within_latency(chosen, workshop.attempt)
    return within_budget(chosen, predicted, workshop.attempt)


def _best(workshop: Workshop, selector: Selector, data: Data) -> Selector:
    """The selector whose choice can be recovered best."""
    clock, options = workshop.clock, workshop.options
    if not options.recovers or options.budget.fraction >= 1:
        return selector
    with clock.stage("try") as told:
        return best_terms(selector, data, options.seed, told)


def _statistics(workshop: Workshop, data: Data) -> Statistics:
    """Moments of the activations on the data."""
    clock, batch = workshop.clock, batch_size(data)
    with clock.stage("look") as told:
        return measure(workshop.dag, data.feeds(batch), -(-data.count // batch), told)


def as_planned(options: Options) -> Options:
    """The options under which a plan was made; what ``--exact`` has planned is carried out by finding it again."""
    plan = options.plan
    if plan is None:
        return options
    options = replace(options, freeze=options.freeze or plan.freezes)
    if not plan.exact:
        return options
    if options.pin or options.ignore:
        raise OptionError("--pin and --ignore cannot be joined to --plan, which says what is kept")
    pin, ignore = (tuple(str(name) for name in plan.options.get(key, ())) for key in ("pin", "ignore"))
    return replace(options, exact=True, pin=pin, ignore=ignore)


def _replayed(dag: ChannelDag, options: Options, plan: Plan) -> Selection:
    if options.pin or options.ignore:
        raise OptionError("--pin and --ignore cannot be joined to --plan, which says what is kept")
    alive = replay(dag, plan)
    cost = cost_model(dag)
    return Selection(alive, cost(dag.whole), cost(alive), reached=True)


def resolved_target(options: Options, kinds: Kinds) -> Target:
    """The target that was named, or the one of this machine.

    Raises:
        OptionError: there is no such target.
    """
    tables = known_targets() | (read_targets(options.targets) if options.targets else {})
    name = detected(options.setting, kinds) if options.target == "auto" else options.target
    if name not in tables:
        raise OptionError(f"--target {name}: no such target; there are auto, {', '.join(tables)}")
    return tables[name]


def _request(dag: ChannelDag, options: Options, target: Target) -> Request:
    ignored = frozenset(node for name in options.ignore for node in named_nodes(dag.model, name))
    pins = [named_pin(dag, name) for name in options.pin] + [ignored_pin(dag, node) for node in sorted(ignored)]
    return Request(
        options.budget,
        options.method,
        options.chains,
        tuple(pins),
        ignored,
        options.seed,
        options.best_effort,
        _alignment(options, target),
        rate=by_time(dag, target) if options.budget.unit == LATENCY else None,
    )


def _alignment(options: Options, target: Target) -> Alignment:
    """The widths that were asked for, or those that the target runs well; finer ones where accuracy can be had back."""
    parts = 0 if options.calib is None else PARTS
    if options.align is not None:
        return Alignment(options.align, 1, parts)
    return Alignment(target.block, target.multiple, parts)


def _not_faster(trial: Trial) -> str:
    """A measurement in words: how the result compares with the original."""
    found = trial.comparison
    if found is None:
        return ""
    low, high = found.interval
    words = "slower than the original" if high < 1 else "no faster than the original, beyond noise"
    return f"the result is {words}: {found.speedup:.3f} times its speed (95 % interval {low:.3f} to {high:.3f})"


def _hints(model: Model) -> tuple[str, ...]:
    """What else could make the model faster."""
    listed = len(overridden(model.proto))
    if not listed:
        return ()
    return (
        f"{listed} weights are listed as graph inputs, where a caller may override them; this keeps onnxruntime from "
        "its fast kernels. If nobody overrides them, add --freeze",
    )


def _calibration_warnings(data: Data | None, recovery: Recovery | None) -> list[str]:
    """What is to be said of the calibration data and of what they were good for."""
    if data is None or recovery is None:
        return []
    found = []
    if data.count < ENOUGH:
        found.append(f"only {data.count} calibration samples: accuracy grows up to about 1000; give at least {ENOUGH}")
    used = recovery.samples + recovery.held_out
    if recovery.recovered and used < data.count:
        found.append(f"recovery used {used} of the {data.count} samples: more activations would not fit")
    if not recovery.held_out:
        found.append("too few calibration samples to hold any out: the deviation is that on samples used to recover")
    if recovery.recovered and not recovery.kept:
        found.append("recovery did not lower the deviation on held-out samples and was left out")
    if recovery.final.unused:
        found.append(recovery.final.unused)
    return found


def _warnings(trial: Trial, workshop: Workshop) -> tuple[str, ...]:
    found, options, selection = [], workshop.options, trial.selection
    budget = options.budget
    if not trial.faster:
        found.append(_not_faster(trial))
    if workshop.failure:
        found.append(f"latency could not be measured: {workshop.failure}")
    if not selection.reached:
        lowest = trial.fraction
        if budget.unit != LATENCY:
            lowest = getattr(selection.after, budget.unit) / max(getattr(selection.before, budget.unit), 1)
        found.append(
            f"over budget: {lowest:.4f} of the {budget.unit} is the lowest reachable, {budget.fraction:g} was asked for"
            + "".join(f"; {limit}" for limit in selection.limits)
        )
    if workshop.unchanged and (budget.fraction < 1 or options.exact):
        found.append("nothing could be removed: the output equals the input")
    if not workshop.clean:
        found.append("the clean-up of the graph could not be proven and was left out; please report it")
    return tuple(found)
