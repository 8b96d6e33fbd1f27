"""The stage that compresses without branches and with all of them, where measuring decides which is nearer.

Under a budget of time, branches are chosen by predicted times.  What they really save is known only once the budget has
been met by measuring: then the network with all its branches is pruned to the same budget, and the nearer one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leanonnx.commands.compress.branch_removal import remove_branches
from leanonnx.commands.compress.candidate import Candidate
from leanonnx.commands.compress.cautions import Caution
from leanonnx.commands.compress.stage import Stage, run_stages
from leanonnx.errors import BudgetUnreachable, Refusal
from leanonnx.formatting import integer_text
from leanonnx.recovery.draft import paired_distances, split_within_memory
from leanonnx.runtime.sessions import RunFailed

BRANCHES_KEPT = "all branches were kept: the result without {} is farther from the original, {:.3g} against {:.3g}"


def nearer_of_both(making: Sequence[Stage]) -> Stage:
    """A stage that removes branches if the result is nearer to the original than with all of them.

    Args:
        making: the stages from the network whose channels are to be chosen to a candidate with recovered weights.
    """

    def stage(original: Candidate) -> Candidate | Refusal:
        job, shortened = original.job, remove_branches(original)
        without = _attempt(making, shortened)
        if shortened is original or job.options.plan is not None:
            return without
        if job.deadline.has_passed and not isinstance(without, Refusal):
            return without
        folder = job.folder / "with-branches"
        folder.mkdir(exist_ok=True)
        whole = _attempt(making, replace(original, job=replace(job, folder=folder)))
        if isinstance(without, Refusal):
            return whole
        return without if isinstance(whole, Refusal) else _nearer(whole, without)

    return stage


def _attempt(making: Sequence[Stage], candidate: Candidate) -> Candidate | Refusal:
    """The result of stages, or why there is none."""
    try:
        return run_stages(making, candidate)
    except BudgetUnreachable as refusal:
        return refusal


def _nearer(whole: Candidate, without: Candidate) -> Candidate:
    """The candidate without branches, or that with all of them, whichever is nearer on held-out samples."""
    job = whole.job
    assert job.data is not None  # branches are removed with data alone
    fitted, held = split_within_memory(job.dag, job.data, job.effort)
    try:
        rows = paired_distances(job.dag, [whole.path, without.path], held or fitted)
    except RunFailed:
        return without
    distance, shortened_distance = (float(row.mean()) for row in rows)
    if shortened_distance < distance:
        return without
    count = len(without.job.removed_branches)
    removed = "a branch" if count == 1 else f"{integer_text(count)} branches"
    note = BRANCHES_KEPT.format(removed, shortened_distance, distance)
    return replace(whole, warnings=(*whole.warnings, Caution("advice", note)))
