"""Stages that remove channels from the graph and clean it up."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from leanonnx.analysis.constant_channels import constant_channels
from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.candidate import Candidate
from leanonnx.graph.storage import write_model
from leanonnx.graph.tidy import TidyResult, tidy
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.decisions import behind_decisions
from leanonnx.selection.selector import Selection
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import plan_patch

UNPROVEN_TIDYING = "the clean-up of the graph could not be proven and was left out; please report it"


@dataclass(frozen=True)
class BudgetRemoval:
    """The channels that a budget or a plan removes."""

    dag: ChannelDag
    selection: Selection

    @property
    def is_lossless(self) -> bool:
        """Always False."""
        return False

    def prune(self) -> TidyResult:
        """Remove the channels."""
        return TidyResult(pruned_model(self.dag, self.selection.alive), {})

    def tidy(self, proto: onnx.ModelProto) -> TidyResult:
        """Clean up the pruned model; one that lost nothing stays as it is."""
        alive = self.selection.alive
        if alive.all():
            return TidyResult(proto, {})
        uniform = constant_channels(self.dag, alive).constant_tensors(self.dag, alive, alive)
        return tidy(proto, uniform, behind_decisions(self.dag.model))

    def reasons(self) -> Mapping[str, Any] | None:
        """Always None."""
        return None


def pruned_model(dag: ChannelDag, alive: Mask) -> onnx.ModelProto:
    """The model without the channels that are not alive [channels]; as it was read if none is removed or fitted."""
    whole = alive.all() and dag.teacher is None
    return dag.model.as_read.proto if whole else apply_patch(dag.model, plan_patch(dag, alive))


def prune_channels(candidate: Candidate) -> Candidate:
    """Write the model without the removed channels; a byte-identical copy of the file if nothing changes."""
    job = candidate.job
    with job.clock.stage("operate"):
        pruned = candidate.removal.prune()
        result = replace(candidate, path=job.new_file("pruned"), tidied=pruned.done)
        if result.is_original and job.dag.teacher is None and not job.dag.model.external_files:
            shutil.copyfile(job.dag.model.path, result.path)
        else:
            write_model(pruned.proto, result.path, external=bool(job.dag.model.external_files))
    return result


@contextmanager
def written_draft(original: Candidate, selection: Selection) -> Iterator[Candidate]:
    """The candidate of a keep mask, pruned and tidied, in files that are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="draft-", dir=original.job.folder) as folder:
        job = replace(original.job, folder=Path(folder))
        yield tidy_graph(prune_channels(replace(original, job=job, removal=BudgetRemoval(job.dag, selection))))


def tidy_graph(candidate: Candidate) -> Candidate:
    """Clean up the graph; the candidate itself if nothing is left to do."""
    job = candidate.job
    with job.clock.stage("operate"):
        tidied = candidate.removal.tidy(onnx.load(candidate.path))
        if not tidied.done:
            return candidate
        path = job.new_file("tidied")
        write_model(tidied.proto, path, external=bool(job.dag.model.external_files))
    counts = Counter(candidate.tidied) + Counter(tidied.done)
    return replace(candidate, path=path, tidied=dict(sorted(counts.items())))
