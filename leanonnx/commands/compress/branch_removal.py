"""The stage that removes whole branches, each replaced by an affine stand-in, before channels are chosen.

1. The branches are priced beside the channels, by loss for each unit of the budget (``selection.branch_steps``).
2. The most promising are tried: the network without them is pruned to the same budget, recovered, and compared with the
   best so far on samples that nothing was fitted to.  Branches go only if that is clearly better, or no worse and
   clearly faster.
3. After each removal the remaining branches are priced anew.

The network without the branches takes the place of the original from here on; the original becomes its teacher.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from time import monotonic

import numpy as np

from leanonnx.analysis.branch_costs import branch_costs
from leanonnx.analysis.branches import Branch, compatible, find_branches
from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.analysis.teacher import RecoveryTeacher, unlike_tensors
from leanonnx.commands.compress.candidate import Candidate, CompressJob
from leanonnx.commands.compress.choosing import keep_selector, selector_for, selector_of
from leanonnx.commands.compress.proving import prove_shortened
from leanonnx.commands.compress.pruning import BudgetRemoval
from leanonnx.data.samples import Dataset
from leanonnx.errors import ModelError, OptionError, PlanError
from leanonnx.graph.formats import Source
from leanonnx.graph.model import check_model
from leanonnx.graph.nodes import QUANTISED
from leanonnx.graph.storage import write_model
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.criteria import BY_ACTIVATIONS
from leanonnx.recovery.draft import calibration_batch, paired_distances
from leanonnx.recovery.standins import FittedStandIn, fit_stand_ins
from leanonnx.reporting.rows import RemovedBranch
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import RunFailed
from leanonnx.selection.branch_steps import BranchStep, branch_steps
from leanonnx.selection.exponents import MIN_TRIAL_SAMPLES, TrialData, affordable_samples, clearly_best, recover_choice
from leanonnx.selection.metrics import LATENCY, METRICS
from leanonnx.selection.selector import Selection, Selector
from leanonnx.spelling import option
from leanonnx.statistics.moments import HELD_OUT_RUN_STRIDE
from leanonnx.surgery.branch_rows import branch_rows, plain_stand_ins
from leanonnx.surgery.plan import Plan
from leanonnx.surgery.shortening import StandIn, shorten
from leanonnx.system.clock import StageProgress

TIMED_WORK = 10
"""Factor of the work that trials may take for a budget of time, in which branches save most."""
FASTER_SHARE = 0.9
"""Share of the predicted time below which a network that is no worse takes the place of another."""


@dataclass(frozen=True)
class _State:
    """A network with its selector and keep mask, recovered for a trial."""

    candidate: Candidate
    selector: Selector
    alive: Mask
    network: Source


def remove_branches(original: Candidate) -> Candidate:
    """Remove the branches that a plan names, or those by which the result gets better.

    Raises:
        PlanError: the plan removes branches that the model does not have, or nothing tells their stand-ins.
    """
    job = original.job
    if job.options.plan is not None:
        with job.clock.stage("select"):
            return _repeat_plan(original, job.options.plan)
    if job.options.budget.fraction >= 1 or job.data is None or not may_remove_branches(job):
        return original
    selector = selector_for(job)
    work = job.effort.branch_work * (TIMED_WORK if job.options.budget.metric.measured else 1)
    count = affordable_samples(selector, job.data.count, job.effort, work)
    if count < MIN_TRIAL_SAMPLES or job.deadline.has_passed:
        return original
    with job.clock.stage("blocks") as on_progress:
        return _Search(original, selector, job.data.subsample(count), on_progress).run()


def may_remove_branches(job: CompressJob) -> bool:
    """True if removing branches is wanted, and there are branches, data and an effort for it."""
    options = job.options
    wanted = options.blocks == "auto" and options.recovers and options.method in BY_ACTIVATIONS
    if not wanted or job.data is None or not job.effort.branch_trials:
        return False
    return bool(_branches(job.dag))


def _branches(dag: ChannelDag) -> tuple[Branch, ...]:
    """The branches whose removal may be tried: a stand-in in floats would slow a quantised network down."""
    nodes = dag.model.proto.graph.node
    branches = find_branches(dag.model, dag.shapes)
    return tuple(one for one in branches if not any(nodes[node].op_type in QUANTISED for node in one.nodes))


class _Search:
    """Greedy removal of branches."""

    def __init__(self, original: Candidate, selector: Selector, data: Dataset, on_progress: StageProgress) -> None:
        self.original, self.selector, self.data = original, selector, data
        self.trial = TrialData.of(data)
        self.on_progress = on_progress
        self.trials = 0
        self.seconds = 0.0

    def run(self) -> Candidate:
        """The candidate without the branches whose removal was worth it; the original if none was.

        As long as all goes well, twice as many branches are tried at once each time; after a failure half as many.
        """
        best: _State | None = None
        candidate, selector, width = self.original, self.selector, 1
        refused: set[str] = set()
        alive = selector.within(selector.request.budget.fraction)
        steps = self._price(candidate, selector, alive)
        while True:
            steps = [step for step in steps if step[0].branch.output not in refused]
            if not steps or not self._may_try():
                return candidate
            best = best or self._recover(candidate, selector, alive)
            if best is None:
                return candidate
            fits = dict(steps)
            apart = compatible([step.branch for step in fits])
            chosen = [step for step in fits if step.branch in apart][:width]
            rival = self._without(candidate, {step.branch: fits[step] for step in chosen})
            if rival is not None and self._is_better(best, rival):
                best, candidate, selector, width = rival, rival.candidate, rival.selector, 2 * len(chosen)
                keep_selector(candidate.job, selector)
                steps = self._price(candidate, selector, rival.alive)
            elif len(chosen) > 1:
                width = len(chosen) // 2
            else:
                refused.add(chosen[0].branch.output)

    def _may_try(self) -> bool:
        job = self.original.job
        return self.trials < job.effort.branch_trials and job.deadline.left() > 2 * self.seconds

    def _price(self, candidate: Candidate, selector: Selector, alive: Mask) -> list[tuple[BranchStep, FittedStandIn]]:
        """The promising steps that remove one more branch, with its stand-in, the most promising first."""
        dag = candidate.job.dag
        try:
            fits = _fits(dag, _branches(dag), self.data)
        except RunFailed:
            return []
        steps = branch_steps(selector, fits, alive)
        return [(step, fits[step.branch]) for step in steps if step.gain > 0]

    def _recover(self, candidate: Candidate, selector: Selector, alive: Mask) -> _State | None:
        began, job = monotonic(), self.original.job
        network = recover_choice(selector, alive, self.trial, job.effort, job.options.seed)
        self.seconds = max(self.seconds, monotonic() - began)
        return None if network is None else _State(candidate, selector, alive, network)

    def _without(self, candidate: Candidate, fits: Mapping[Branch, FittedStandIn]) -> _State | None:
        """The candidate without some more branches, pruned to the same budget and recovered; None if it cannot be."""
        ends = ", ".join(branch.output for branch in fits)
        self.on_progress(self.trials / self.original.job.effort.branch_trials, f"branches at {ends}")
        self.trials += 1
        shortened = _shorten(candidate, {branch: fit.stand_in for branch, fit in fits.items()})
        if shortened is None:
            return None
        costs = branch_costs(candidate.job.dag, fits)
        rows = tuple(
            RemovedBranch(
                tensor=branch.output,
                kind=branch.kind,
                nodes=cost.nodes,
                macs=cost.macs - cost.standin_macs,
                unexplained=float(fit.unexplained.mean()),
            )
            for (branch, fit), cost in zip(fits.items(), costs, strict=True)
        )
        job = replace(shortened.job, removed_branches=(*candidate.job.removed_branches, *rows))
        shortened = replace(shortened, job=job)
        try:
            selector = selector_of(shortened.job, self.selector)
        except OptionError:
            return None
        alive = selector.within(selector.request.budget.fraction)
        if not selector.selection(alive).reached:
            return None
        return self._recover(shortened, selector, alive)

    def _is_better(self, best: _State, rival: _State) -> bool:
        """True if a rival is clearly nearer to the original, or no farther and clearly faster."""
        dag = self.original.job.dag
        try:
            distances = paired_distances(dag, [best.network, rival.network], self.trial.judged)
        except RunFailed:
            return False
        if clearly_best(distances) == 1:
            return True
        times = [METRICS[LATENCY].price(state.selector.inputs)(state.alive) for state in (best, rival)]
        return float(np.diff(distances.mean(1))[0]) <= 0 and times[1] < FASTER_SHARE * times[0]


def _fits(dag: ChannelDag, branches: tuple[Branch, ...], data: Dataset) -> dict[Branch, FittedStandIn]:
    """The stand-ins of branches, fitted to data."""
    batch = data.fixed_batch or max(1, min(calibration_batch(dag, data), data.count // HELD_OUT_RUN_STRIDE))
    return fit_stand_ins(dag, branches, data.feeds(batch), -(-data.count // batch))


def _shorten(candidate: Candidate, replaced: Mapping[Branch, StandIn]) -> Candidate | None:
    """The whole network without some more branches, proven; None if the proof fails or it cannot be run."""
    job = candidate.job
    dag, options, model = job.dag, job.options, job.dag.model
    proto = shorten(model, replaced)
    with tempfile.TemporaryDirectory(prefix="shortened-", dir=job.folder) as folder:
        file = Path(folder) / job.name
        write_model(proto, file, external=bool(model.external_files))
        try:
            check_model(file)
            written = replace(model, path=file, proto=proto, original=None)
            made = build_channel_dag(written, observe(written, options.shapes), job.rules)
            proof = prove_shortened(made, model, replaced, options.seed, job.data)
        except (ModelError, RunFailed, ValueError):
            return None
    if not proof.passed:
        return None
    shorter = replace(written, path=model.path)
    teacher = _teacher(dag, made)
    made = replace(made, model=shorter, copies_constants=dag.copies_constants, teacher=teacher)
    step = 1 + max((row["step"] for row in job.branch_rows), default=0)
    stand_ins = {name for name in shorter.holders if name not in model.holders}
    job = replace(
        job,
        dag=made,
        shortened_from=job.original,
        branch_rows=(*job.branch_rows, *branch_rows(replaced, step)),
        stand_ins=job.stand_ins | stand_ins,
    )
    before, after = (cost_model(each)(each.all_alive) for each in (job.original, made))
    whole = Selection(alive=made.all_alive, before=before, after=after, reached=True)
    return replace(candidate, job=job, removal=BudgetRemoval(made, whole))


def _teacher(dag: ChannelDag, shortened: ChannelDag) -> RecoveryTeacher:
    """The teacher of a network that lacks a branch: that of the one with the branch, or that one itself."""
    names = frozenset(shortened.channel_ids)
    if dag.teacher is None:
        unlike = unlike_tensors(shortened.model, dag.model)
        return RecoveryTeacher(model=dag.model, shared=names & dag.channel_ids.keys(), unlike=unlike)
    return replace(
        dag.teacher, shared=names & dag.teacher.shared, unlike=unlike_tensors(shortened.model, dag.teacher.model)
    )


def _repeat_plan(original: Candidate, plan: Plan) -> Candidate:
    """The candidate without the branches that a plan removes, in its order."""
    candidate = original
    for _, rows in groupby(plan.removed_branches, key=lambda row: row["step"]):
        job = candidate.job
        if job.data is None and job.stored is None:
            raise PlanError(
                f"{plan.origin}: removes branches, whose stand-ins are fitted to data; add {option('calib')}, or make "
                f"the plan again with {option('plan_weights')}"
            )
        known = find_branches(job.dag.model, job.dag.shapes)
        plain = plain_stand_ins(job.dag.model, known, [*rows], plan.origin)
        fits = {} if job.data is None else _fits(job.dag, tuple(plain), job.data)
        shortened = _shorten(candidate, plain | {branch: fit.stand_in for branch, fit in fits.items()})
        if shortened is None:
            ends = ", ".join(f"'{branch.operand}'" for branch in plain)
            raise PlanError(
                f"{plan.origin}: the branches {ends} cannot be removed from this model; make the plan again with "
                f"{option('plan_out')}"
            )
        candidate = shortened
    return candidate
