"""Compress a model: load → observe → analyse, then the stages of ``stages`` → write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from leanonnx.analysis.cost import CopiedConstants, Cost, copied_constants, cost_model, count_params
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.commands.compress.alternatives import nearer_of_both
from leanonnx.commands.compress.branch_removal import remove_branches
from leanonnx.commands.compress.candidate import Candidate, CompressJob
from leanonnx.commands.compress.choosing import choose_channels, choose_lossless
from leanonnx.commands.compress.judges import open_samples
from leanonnx.commands.compress.judging import headline_text, judge_result
from leanonnx.commands.compress.notes import hints, result_warnings
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.proving import prove_equal, prove_twice
from leanonnx.commands.compress.pruning import UNPROVEN_TIDYING, BudgetRemoval, prune_channels, tidy_graph
from leanonnx.commands.compress.quantising import check_int8, quantise
from leanonnx.commands.compress.refitting import check_weights_wanted, recover_weights, stored_weights, weights_files
from leanonnx.commands.compress.sizing import confirm_size
from leanonnx.commands.compress.stage import Stage, optional, run_stages
from leanonnx.commands.compress.timing import time_candidate
from leanonnx.commands.compress.tolerance import recover_and_compare, within_tolerances
from leanonnx.data.files import sample_files
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT, Dataset, ImageFormat
from leanonnx.effort import Deadline
from leanonnx.errors import OptionError, Refusal
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.judgement import Judgement
from leanonnx.evaluation.tolerances import ToleranceCurve
from leanonnx.graph.model import load
from leanonnx.numeric.channel_ids import Mask
from leanonnx.numeric.products import computed_by
from leanonnx.proof.proof import Proof
from leanonnx.proof.runtimes import RuntimeComparison
from leanonnx.quantization.result import Quantisation
from leanonnx.ranking.weighting import check_finite
from leanonnx.recovery.data_free_draft import DataFreeRecovery
from leanonnx.recovery.draft import Recovery
from leanonnx.recovery.matching import find_teacher
from leanonnx.reporting.rows import RemovedBranch
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.search import Trial
from leanonnx.selection.selector import Selection
from leanonnx.spelling import option, option_list
from leanonnx.statistics.propagation import PropagatedMoments
from leanonnx.surgery.plan import Plan, check_same_plan, make_plan
from leanonnx.system.blas import single_blas_thread
from leanonnx.system.clock import Clock, Progress, ignore_progress
from leanonnx.system.gpu import product_on
from leanonnx.system.memory import reuse_of_blocks
from leanonnx.system.outputs import check_no_overwrites, check_writable, publish, temporary_folder_beside, written_size
from leanonnx.version import __version__


def stages(options: CompressOptions) -> tuple[Stage, ...]:
    """The stages that lead from the original to the model that is written."""
    choose = choose_lossless if options.exact else choose_channels
    branches: tuple[Stage, ...] = () if options.exact else (remove_branches,)
    making = (prune_channels, optional(tidy_graph, prove_equal, warning=UNPROVEN_TIDYING), prove_equal)
    making_and_recovery: tuple[Stage, ...] = (*branches, choose, *making, recover_weights)
    if branches and options.budget.metric.measured:
        making_and_recovery = (nearer_of_both((choose, *making, recover_weights)),)
    if options.tolerances.limits:
        making_and_recovery = (
            (*branches, choose, *making, recover_and_compare) if options.points else (within_tolerances(making),)
        )
    if options.int8:
        making_and_recovery = (*making_and_recovery, quantise)
    return (*making_and_recovery, judge_result, confirm_size, prove_twice, time_candidate)


@dataclass(frozen=True)
class CompressResult:
    """The result of a compression.

    Attributes:
        dag, alive: the channel DAG and its keep mask [channels].
        plan: the kept indices of every constant.
        before, after: costs of the original and of the result.
        proof: the comparison of the pruned model with the masked original, with the original itself if ``exact``.
        latency, setting: timing against the original (None if not measured), and how it was run.
        replaced: what the budget alone had chosen, if measuring replaced it by a leaner selection.
        quantisation: how the result was put into 8-bit integers, or why not; None if that was not asked for.
        judgement: the judgement on its outputs; None if there is no evidence for one.
        curve: what was seen on the way to the tolerances; None without any.
        headline: the warning that the result is ruined, the first of the warnings; None if it is not.
        warnings, hints: texts for the user.
        seconds: duration of each stage.
        tidied: numbers of clean-ups of the graph, by kind.
        exact: the channels that contributed nothing, by reason; None if a budget chose them.
        recovery: recovery from data and its deviation; None without data.
        data_free: recovery without data; None if there was none.
        branches: branches that were removed.
        copied: constants that surgery copied for each of their readers; None if it was not asked to.
        folded: weights that the file computes from constants and the result stores.
        restored: file that weights were taken from, as a plan recorded.
        images: the format of photographs in the data.
        runtimes: comparisons of the result between runtimes, if these were asked for.
    """

    dag: ChannelDag
    alive: Mask
    plan: Plan
    before: Cost
    after: Cost
    proof: Proof
    latency: TimingComparison | None
    setting: Setting
    judgement: Judgement | None
    curve: ToleranceCurve | None
    headline: str | None
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    seconds: Mapping[str, float]
    tidied: Mapping[str, int]
    exact: Mapping[str, Any] | None
    recovery: Recovery | None
    data_free: DataFreeRecovery | None
    branches: tuple[RemovedBranch, ...] = ()
    copied: CopiedConstants | None = None
    folded: tuple[str, ...] = ()
    restored: Path | None = None
    replaced: Trial | None = None
    quantisation: Quantisation | None = None
    images: ImageFormat = DEFAULT_IMAGE_FORMAT
    runtimes: tuple[RuntimeComparison, ...] = ()

    @property
    def deviation(self) -> Fidelity | None:
        """Deviation of the model that is written from the original on real inputs; None without any."""
        if self.quantisation is not None and self.quantisation.is_kept:
            return self.quantisation.after
        return None if self.recovery is None else self.recovery.final


@dataclass(frozen=True)
class Page:
    """A text about a result, written with it; ``text`` makes it from the result, its file and the data."""

    path: Path
    text: Callable[[CompressResult, Path, Dataset | None], str]


def load_dag(
    path: Path,
    shapes: Shapes | None = None,
    rules: Rules = DEFAULT_RULES,
    libraries: tuple[Path, ...] = (),
    freeze: bool = False,
) -> ChannelDag:
    """Load a model and build its channel DAG."""
    model = load(path, libraries, freeze)
    return build_channel_dag(model, observe(model, shapes or {}), rules)


def compress_file(
    source: Path,
    out: Path,
    options: CompressOptions,
    plan_out: Path | None = None,
    rules: Rules = DEFAULT_RULES,
    progress: Progress = ignore_progress,
    page: Page | None = None,
    plan_weights: Path | None = None,
) -> CompressResult:
    """Compress a model file, prove the result and write it.

    If given, its plan, a page about it, and the changed weights are written with it.

    Raises:
        UserError: bad model, option, plan or output path.
        BudgetUnreachable: the budget cannot be reached (unless ``best_effort``).
        NotFaster: the result was not measured to be faster (unless ``best_effort``).
        CouldNotTell: the machine was too busy to tell that (unless ``best_effort``).
        ProofFailed: the result is not equal to the masked original; nothing is written.
    """
    clock = Clock(progress)
    options = as_planned(options)
    products = nullcontext() if options.device == "cpu" else computed_by(product_on(options.device))
    check_weights_wanted(options, plan_weights)
    weights = stored_weights(options)
    beside = [path for path in (plan_out, page.path if page else None, plan_weights) if path is not None]
    for path in (out, *beside):
        check_writable(source, path)
    with clock.stage("load"):
        model = load(source, options.libraries, options.freeze)
    options = replace(options, budget=options.budget.of_total(model.size))
    check_int8(options, model)
    samples = sample_files(options.calib) if isinstance(options.calib, Path) else ()
    teachers = () if options.teacher is None else (options.teacher,)
    given = (*samples, *teachers, *options.libraries, *weights_files(options))
    check_no_overwrites(model.files, out, *beside, given=given)
    with clock.stage("observe"):
        observation = observe(model, options.shapes)
    with clock.stage("analyse"):
        dag = replace(build_channel_dag(model, observation, rules), copies_constants=options.unshare)
        check_finite(dag)
    data, judging = open_samples(options, dag)
    if options.teacher is not None:
        with clock.stage("observe"):
            teacher = load_dag(options.teacher, options.shapes, rules, options.libraries)
            dag = replace(dag, teacher=find_teacher(dag, teacher))
    with temporary_folder_beside(out) as folder:
        known = PropagatedMoments(dag)
        job = CompressJob(
            dag=dag,
            options=options,
            rules=rules,
            folder=folder,
            name=out.name,
            clock=clock,
            known=known,
            data=data,
            judging=judging,
            stored=weights,
            plan_weights=plan_weights,
            deadline=Deadline.after(options.minutes),
        )
        with products, single_blas_thread(), reuse_of_blocks() if data else nullcontext():
            candidate = run_stages(stages(options), _original(job))
        if isinstance(candidate, Refusal):
            raise candidate
        return _write(candidate, out, plan_out, page)


def _original(job: CompressJob) -> Candidate:
    """The original as a candidate."""
    cost = cost_model(job.dag)(job.dag.all_alive)
    whole = Selection(alive=job.dag.all_alive, before=cost, after=cost, reached=True)
    return Candidate(job, job.dag.model.path, BudgetRemoval(job.dag, whole))


def _write(candidate: Candidate, out: Path, plan_out: Path | None, page: Page | None) -> CompressResult:
    """Write a candidate that passed all stages, its plan and a page about it."""
    job, removal, refit = candidate.job, candidate.removal, candidate.refit
    record = job.options.record()
    plan = make_plan(removal.dag, candidate.alive, record, __version__, refit.recipe, job.branch_rows)
    if job.options.exact and job.options.plan:
        check_same_plan(removal.dag, plan, job.options.plan)
    result = _result(candidate, plan)
    others = dict(refit.files)
    if plan_out is not None:
        others[plan_out] = plan.text(plan_out.parent).encode()
    if page is not None:
        with job.clock.stage("report"):
            others[page.path] = page.text(result, candidate.path, job.data).encode()
    publish(candidate.path, out, others)
    return result


def _result(candidate: Candidate, plan: Plan) -> CompressResult:
    """The result with all evidence for it."""
    job, removal, refit = candidate.job, candidate.removal, candidate.refit
    assert candidate.proof is not None and candidate.trial is not None  # every list of stages proves and times
    selection, model, headline = removal.selection, job.dag.model, headline_text(candidate)
    warnings = result_warnings(candidate, candidate.trial)
    return CompressResult(
        dag=removal.dag,
        alive=candidate.alive,
        plan=plan,
        before=selection.before,
        after=replace(selection.after, params=_parameters(candidate), bytes=written_size(candidate.path)),
        proof=candidate.proof,
        latency=candidate.trial.comparison,
        setting=job.options.setting.with_thread_count,
        judgement=candidate.judgement,
        curve=candidate.curve,
        headline=headline,
        warnings=warnings if headline is None else (headline, *warnings),
        hints=hints(model),
        seconds=job.clock.seconds,
        tidied=candidate.tidied,
        exact=removal.reasons(),
        recovery=refit.recovery,
        data_free=refit.data_free,
        branches=job.removed_branches,
        copied=copied_constants(removal.dag, candidate.alive),
        folded=() if candidate.is_original else removal.dag.model.folded,
        restored=refit.restored,
        replaced=candidate.trial.instead_of,
        quantisation=candidate.quantisation,
        images=job.options.images,
        runtimes=candidate.runtimes,
    )


def _parameters(candidate: Candidate) -> int:
    """Number of parameters that the file stores."""
    model = candidate.job.dag.model
    if candidate.is_original and not candidate.refit.is_kept:
        return count_params(model.as_read)
    return count_params(replace(model, proto=onnx.load(candidate.path, load_external_data=False)))


def as_planned(options: CompressOptions) -> CompressOptions:
    """The options under which a plan was made; a plan of ``--exact`` is carried out by computing it again."""
    plan = options.plan
    if plan is None:
        return options
    if options.pin or options.ignore:
        raise OptionError(
            f"{option_list('pin', 'ignore')} cannot be joined to {option('plan')}, which says what is kept; "
            "leave them out"
        )
    int8 = options.int8 or (bool(plan.options.get("int8")) and options.calib is not None)
    freeze, unshare = options.freeze or plan.freezes_weights, options.unshare or plan.copies_weights
    options = replace(options, freeze=freeze, unshare=unshare, int8=int8)
    if not plan.exact:
        return options
    pin, ignore = (tuple(str(name) for name in plan.options.get(key, ())) for key in ("pin", "ignore"))
    return replace(options, exact=True, pin=pin, ignore=ignore)
