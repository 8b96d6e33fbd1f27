"""A compression job and its candidate: a model file with the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.cautions import Caution
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.data.samples import Dataset
from leanonnx.effort import EFFORTS, Deadline, Effort
from leanonnx.evaluation.judgement import Judgement
from leanonnx.evaluation.tolerances import ToleranceCurve
from leanonnx.graph.tidy import TidyResult
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.proof import Proof
from leanonnx.proof.runtimes import RuntimeComparison
from leanonnx.quantization.result import Quantisation
from leanonnx.recovery.data_free_draft import DataFreeRecovery
from leanonnx.recovery.draft import Recovery
from leanonnx.recovery.weights import StoredWeights
from leanonnx.reporting.rows import RemovedBranch
from leanonnx.rules.table import Rules
from leanonnx.selection.search import Trial
from leanonnx.selection.selector import Selection, Selector
from leanonnx.statistics.propagation import PropagatedMoments
from leanonnx.surgery.branch_rows import BranchRow
from leanonnx.surgery.recipe import Recipe
from leanonnx.system.clock import Clock


class Removal(Protocol):
    """Channels to remove from a model."""

    @property
    def dag(self) -> ChannelDag:
        """The channel DAG that the keep mask refers to."""

    @property
    def selection(self) -> Selection:
        """The keep mask and its cost."""

    @property
    def is_lossless(self) -> bool:
        """True if the outputs have to equal those of the original, otherwise of the masked original."""

    def prune(self) -> TidyResult:
        """Remove the channels."""

    def tidy(self, proto: onnx.ModelProto) -> TidyResult:
        """Clean up the pruned model."""

    def reasons(self) -> Mapping[str, Any] | None:
        """The reason why the channels contribute nothing; None if a budget chose them."""


@dataclass(frozen=True, kw_only=True)
class CompressJob:
    """A compression to carry out: the original, the options and what they refer to.

    Attributes:
        dag: the channel DAG of the network to prune: the original, or the original without some branches.
        options: what was asked for.
        rules: the rules of the operators.
        folder: holds the files of candidates, each named ``name`` in a folder of its own.
        name: file name of the model to be written, after which its external data are named.
        clock: times the stages.
        known: moments of the original's activations, propagated when first needed.
        data: real inputs, to choose and to recover by.
        judging: other real inputs, to judge by whether tolerances are met.
        stored: weights that come with the plan, if they are to be used.
        plan_weights: where to write changed weights, for the plan.
        deadline: when selection by data and recovery have to be done.
        predicts: True to choose by predicted costs alone, which nothing confirms.
        shortened_from: the channel DAG of the original, if branches were removed from it.
        removed_branches: these branches, as far as they were chosen.
        branch_rows: all of them, for the plan.
        stand_ins: constants that took their places.
        selectors: those made so far, by network and unit; jobs made from this one share them.
    """

    dag: ChannelDag
    options: CompressOptions
    rules: Rules
    folder: Path
    name: str
    clock: Clock
    known: PropagatedMoments
    data: Dataset | None = None
    judging: Dataset | None = None
    stored: StoredWeights | None = None
    plan_weights: Path | None = None
    deadline: Deadline = field(default_factory=Deadline)
    predicts: bool = False
    shortened_from: ChannelDag | None = None
    removed_branches: tuple[RemovedBranch, ...] = ()
    branch_rows: tuple[BranchRow, ...] = ()
    stand_ins: frozenset[str] = frozenset()
    selectors: dict[tuple[int, str], Selector] = field(default_factory=dict, repr=False, compare=False)

    @property
    def original(self) -> ChannelDag:
        """The channel DAG of the original."""
        return self.shortened_from or self.dag

    @property
    def effort(self) -> Effort:
        """The work that calibration may take."""
        return EFFORTS[self.options.effort]

    def new_file(self, stage: str) -> Path:
        """The path for the file of a stage."""
        folder = self.folder / stage
        folder.mkdir(exist_ok=True)
        return folder / self.name


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Changes of the remaining weights.

    Attributes:
        evidence: how recovery changed them; None if it did not run.
        recipe: what the plan records; None if they are the original's.
        restored: the file that they were taken from, as a plan recorded.
        files: what to write with the result, by path.
    """

    evidence: Recovery | DataFreeRecovery | None = None
    recipe: Recipe | None = None
    restored: Path | None = None
    files: Mapping[Path, bytes] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        """True if recovery changed weights."""
        return self.evidence is not None and self.evidence.kept

    @property
    def recovery(self) -> Recovery | None:
        """The recovery from data."""
        return self.evidence if isinstance(self.evidence, Recovery) else None

    @property
    def data_free(self) -> DataFreeRecovery | None:
        """The recovery without data."""
        return self.evidence if isinstance(self.evidence, DataFreeRecovery) else None


@dataclass(frozen=True)
class Candidate:
    """A model file with the evidence for it.

    Attributes:
        job: the compression that it is a result of.
        path: the file.
        removal: the channels that it lacks, with their cost.
        tidied: numbers of clean-ups of the graph, by kind.
        proof: its comparison with the original, before weights were changed.
        refit: changes of its weights.
        judgement: the judgement on its outputs; None if there is no evidence for one.
        curve: what was seen on the way to the tolerances; None without any.
        quantisation: how it was put into integers, or why not; None if that was not asked for.
        trial: its timing, or why there is none; None before it was timed.
        runtimes: its comparisons between runtimes, if these were asked for.
        warnings: what stages declined or want to be known.
    """

    job: CompressJob
    path: Path
    removal: Removal
    tidied: Mapping[str, int] = field(default_factory=dict)
    proof: Proof | None = None
    refit: Refit = field(default_factory=Refit)
    judgement: Judgement | None = None
    curve: ToleranceCurve | None = None
    quantisation: Quantisation | None = None
    trial: Trial | None = None
    runtimes: tuple[RuntimeComparison, ...] = ()
    warnings: tuple[Caution, ...] = ()

    @property
    def alive(self) -> Mask:
        """The keep mask [channels]."""
        return self.removal.selection.alive

    @property
    def is_whole(self) -> bool:
        """True if no channel and no branch was removed."""
        return bool(self.alive.all()) and self.job.shortened_from is None

    @property
    def is_original(self) -> bool:
        """True if nothing was removed, cleaned up or repaired."""
        model = self.job.dag.model
        return self.is_whole and not (self.tidied or model.frozen or model.repaired or self.is_quantised)

    @property
    def is_quantised(self) -> bool:
        """True if it computes in integers that stand for floats."""
        return self.quantisation is not None and self.quantisation.is_kept
