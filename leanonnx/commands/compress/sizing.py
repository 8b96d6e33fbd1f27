"""Confirm a budget of bytes on the file as it will be written."""

from __future__ import annotations

from dataclasses import replace

from leanonnx.commands.compress.candidate import Candidate
from leanonnx.commands.compress.pruning import BudgetRemoval
from leanonnx.errors import BudgetUnreachable
from leanonnx.spelling import option
from leanonnx.system.outputs import written_size


def confirm_size(candidate: Candidate) -> Candidate | BudgetUnreachable:
    """Refuse a file that exceeds a budget of bytes; with ``best_effort`` its selection counts as over budget.

    Refitted weights may have added biases to the file that was selected.
    """
    options, selection = candidate.job.options, candidate.removal.selection
    size, original = written_size(candidate.path), selection.before.bytes
    limit = options.budget.limit(original)
    if options.budget.metric.confirm != "written" or not selection.reached or size <= limit:
        return candidate
    if not options.best_effort:
        return BudgetUnreachable(
            f"{limit:.12g} bytes were asked for, but with refitted weights the file has {size}, {size / original:.4f} "
            f"of the original's; nothing written; ask for more, or add {option('best_effort', True)} to write it"
        )
    after = replace(selection.after, bytes=size)
    return replace(candidate, removal=BudgetRemoval(candidate.job.dag, replace(selection, after=after, reached=False)))
