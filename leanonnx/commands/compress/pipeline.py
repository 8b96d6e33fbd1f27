"""The main job, stage by stage: load → observe → analyse → select → operate → measure → prove → recover → write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanonnx.analysis.cost import Cost
from leanonnx.analysis.dag import ChannelDag, analyse
from leanonnx.commands.compress.choosing import choose_candidate
from leanonnx.commands.compress.notes import calibration_warnings, hints, warnings
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.refitting import Refit, check_weights_wanted, refitted, stored_weights, weights_files
from leanonnx.commands.compress.workshop import Workshop
from leanonnx.data.files import sample_files
from leanonnx.data.samples import Data, open_data, runnable
from leanonnx.errors import BudgetUnreachable, OptionError
from leanonnx.graph.model import Model, load
from leanonnx.lossless.minimal import minimise
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.proof import Proof
from leanonnx.ranking.weighting import check_finite
from leanonnx.recovery.data_free_draft import DataFreeRecovery
from leanonnx.recovery.draft import Recovery
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.search import Trial
from leanonnx.surgery.plan import Plan, confirm, make_plan
from leanonnx.system.clock import Clock, Progress, quiet
from leanonnx.system.outputs import check_apart, check_writable, publish, temporary_beside, written_size
from leanonnx.version import __version__


@dataclass(frozen=True)
class CompressResult:
    """What came of a compression; ``seconds`` by stage.

    ``tidied`` counts what was cleaned up in the graph; ``exact`` says what contributed nothing, where that was asked;
    ``recovery`` what real inputs told, where they were given; ``blind`` how weights were changed without any;
    ``restored`` the file that weights were taken from, as a plan recorded; ``folded`` names the weights that the file
    computes from constants and the result stores.
    """

    dag: ChannelDag
    alive: Mask
    plan: Plan
    before: Cost
    after: Cost
    proof: Proof
    latency: TimingComparison | None
    setting: Setting
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    seconds: Mapping[str, float]
    tidied: Mapping[str, int]
    exact: Mapping[str, Any] | None
    recovery: Recovery | None
    blind: DataFreeRecovery | None
    folded: tuple[str, ...] = ()
    restored: Path | None = None


@dataclass(frozen=True)
class Page:
    """A text about a result, written at once with it: where, and what it says of the result, its draft and the data."""

    path: Path
    text: Callable[[CompressResult, Path, Data | None], str]


def inspect(
    path: Path,
    shapes: Shapes | None = None,
    rules: Rules = DEFAULT_RULES,
    libraries: tuple[Path, ...] = (),
    freeze: bool = False,
) -> ChannelDag:
    """Load a model and build its channel DAG."""
    model = load(path, libraries, freeze)
    return analyse(model, observe(model, shapes or {}), rules)


def compress(
    source: Path,
    out: Path,
    options: CompressOptions,
    plan_out: Path | None = None,
    rules: Rules = DEFAULT_RULES,
    progress: Progress = quiet,
    page: Page | None = None,
    plan_weights: Path | None = None,
) -> CompressResult:
    """Compress a model file, prove the result and write it.

    Where these are given, its plan, a page about it, and the weights that were changed are written with it.

    Raises:
        UserError: bad model, option, plan or output path.
        BudgetUnreachable: the budget cannot be reached (unless ``best_effort``).
        NotFaster: the result was measured to be no faster (unless ``best_effort``).
        ProofFailed: the result is not equal to the masked original; nothing is written.
    """
    clock = Clock(progress)
    options = as_planned(options)
    check_weights_wanted(options, plan_weights)
    stored = stored_weights(options)
    beside = [path for path in (plan_out, page.path if page else None, plan_weights) if path is not None]
    for path in (out, *beside):
        check_writable(source, path)
    with clock.stage("load"):
        model = load(source, options.libraries, options.freeze)
    samples = sample_files(options.calib) if isinstance(options.calib, Path) else ()
    check_apart(model.files, out, *beside, given=(*samples, *options.libraries, *weights_files(options)))
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
    with temporary_beside(out) as folder:
        workshop = Workshop(dag, least, _with_fraction(options, model), folder / out.name, clock)
        trial = choose_candidate(workshop, data)
        selection = trial.selection
        proof = workshop.proven(selection.alive, data)
        refit = refitted(workshop, selection.alive, data, stored, plan_weights)
        plan = _plan(workshop, selection.alive, refit)
        if least and options.plan:
            confirm(least.dag, plan, options.plan)
        result = _result(workshop, trial, plan, proof, refit, data)
        others = dict(refit.files)
        if plan_out is not None:
            others[plan_out] = plan.text(plan_out.parent).encode()
        if page is not None:
            with clock.stage("report"):
                others[page.path] = page.text(result, workshop.draft, data).encode()
        publish(workshop.draft, out, others)
    return result


def _result(
    workshop: Workshop, trial: Trial, plan: Plan, proof: Proof, refit: Refit, data: Data | None
) -> CompressResult:
    """Put together what came of the stages."""
    options, least, model = workshop.options, workshop.least, workshop.dag.model
    trial = _as_written(trial, workshop)
    selection = trial.selection
    params = workshop.stored() if least is not None or refit.changed else selection.after.params
    return CompressResult(
        dag=least.dag if least else workshop.dag,
        alive=selection.alive,
        plan=plan,
        before=selection.before,
        after=replace(selection.after, params=params),
        proof=proof,
        latency=trial.comparison,
        setting=options.setting.resolved,
        warnings=(*warnings(trial, workshop), *refit.warnings, *calibration_warnings(data, refit.recovery)),
        hints=hints(model),
        seconds=workshop.clock.seconds,
        tidied=workshop.tidied,
        exact=least.row() if least else None,
        recovery=refit.recovery,
        blind=refit.blind,
        folded=() if workshop.unchanged else workshop.model.folded,
        restored=refit.restored,
    )


def _plan(workshop: Workshop, alive: Mask, refit: Refit) -> Plan:
    dag = workshop.least.dag if workshop.least else workshop.dag
    return make_plan(dag, alive, workshop.options.record(), __version__, refit.recipe)


def _with_fraction(options: CompressOptions, model: Model) -> CompressOptions:
    """The options with a budget of so many bytes as a fraction of those of the model."""
    return replace(options, budget=options.budget.of_total(model.size))


def _as_written(trial: Trial, workshop: Workshop) -> Trial:
    """The keep set with the bytes of the draft.

    Raises:
        BudgetUnreachable: they exceed a budget of bytes, and best effort is not enough.
    """
    options, selection, size = workshop.options, trial.selection, written_size(workshop.draft)
    limit = options.budget.limit(selection.before.bytes)
    over = options.budget.metric.confirm == "written" and size > limit
    if over and selection.reached and not options.best_effort:
        raise BudgetUnreachable(
            f"{limit:.12g} bytes were asked for, but the file has {size}, {size / selection.before.bytes:.4f} of the "
            "original's, with the weights that were changed; nothing written; ask for fewer, or add --best-effort to "
            "write it"
        )
    after = replace(selection.after, bytes=size)
    return replace(trial, selection=replace(selection, after=after, reached=selection.reached and not over))


def as_planned(options: CompressOptions) -> CompressOptions:
    """The options under which a plan was made; what ``--exact`` has planned is carried out by finding it again."""
    plan = options.plan
    if plan is None:
        return options
    if options.pin or options.ignore:
        raise OptionError("--pin and --ignore cannot be joined to --plan, which says what is kept; leave them out")
    options = replace(options, freeze=options.freeze or plan.freezes)
    if not plan.exact:
        return options
    pin, ignore = (tuple(str(name) for name in plan.options.get(key, ())) for key in ("pin", "ignore"))
    return replace(options, exact=True, pin=pin, ignore=ignore)
