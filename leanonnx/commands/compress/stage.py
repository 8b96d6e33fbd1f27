"""Stages of a compression and their driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from leanonnx.commands.compress.candidate import Candidate
from leanonnx.commands.compress.cautions import Caution
from leanonnx.errors import Refusal

Stage = Callable[[Candidate], Candidate | Refusal]
"""Returns the candidate with new evidence, or the reason why it is refused."""


def run_stages(stages: Sequence[Stage], candidate: Candidate) -> Candidate | Refusal:
    """Run stages in order, up to the first that refuses."""
    for stage in stages:
        result = stage(candidate)
        if isinstance(result, Refusal):
            return result
        candidate = result
    return candidate


def optional(change: Stage, *checks: Stage, warning: str) -> Stage:
    """A change that is kept only if all checks accept it.

    If one refuses, the candidate stays as it was, with ``warning``.  A change that returns the candidate itself is not
    checked.
    """

    def stage(candidate: Candidate) -> Candidate:
        changed = change(candidate)
        if changed is candidate:
            return candidate
        result = changed if isinstance(changed, Refusal) else run_stages(checks, changed)
        if isinstance(result, Refusal):
            return replace(candidate, warnings=(*candidate.warnings, Caution("weakened", warning)))
        return result

    return stage
