"""Drafts of the result: written, measured against the original, proven."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from leanonnx.analysis.constant_channels import constant_channels
from leanonnx.analysis.cost import stored
from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.data.samples import Data
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.graph.model import Model, check
from leanonnx.graph.storage import write_model
from leanonnx.graph.tidy import Tidied, tidy
from leanonnx.inputs.random import KINDS, counted, inputs_for, sized_inputs
from leanonnx.lossless.minimal import Minimum
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.compare import ComparedChannels
from leanonnx.proof.decisions import behind_decisions
from leanonnx.proof.proof import RANDOM, VACUOUS, Proof, prove
from leanonnx.recovery.data_free_draft import DataFreeRecovery, data_free_draft
from leanonnx.recovery.draft import Recovery, recovered_draft
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import measured
from leanonnx.selection.search import TRIES, Trial
from leanonnx.selection.selector import Selection
from leanonnx.statistics.propagation import PropagatedMoments
from leanonnx.surgery.operate import apply
from leanonnx.surgery.patch import masking_patch, plan_patch
from leanonnx.system.clock import Clock

SAMPLES = 3
"""Real inputs that are compared on, where there are some."""


class Workshop:
    """Writes keep sets of one model to one file, measures and proves them.

    ``dag`` is the original, ``known`` what is known of it; ``least``, where only what contributes nothing is to go, the
    network without that.  ``tidied`` counts what was cleaned up in what was written last.  ``failure`` says why nothing
    could be measured, ``clean`` that the graph was cleaned up.
    """

    def __init__(
        self, dag: ChannelDag, least: Minimum | None, options: CompressOptions, draft: Path, clock: Clock
    ) -> None:
        self.dag, self.least, self.options, self.draft, self.clock = dag, least, options, draft, clock
        self.known = PropagatedMoments(dag)
        self.tidied: Mapping[str, int] = {}
        self.written: Mask | None = None
        self.failure = ""
        self.clean = True
        self.attempts = 0

    def write(self, alive: Mask) -> None:
        """Write the network of a keep set; a byte-identical copy of the file where nothing goes."""
        if self.written is None or not np.array_equal(self.written, alive):
            self._write(alive)

    def _write(self, alive: Mask) -> None:
        model = self.dag.model
        external = bool(model.external_files)
        with self.clock.stage("operate"):
            made = self.least.carried_out(self.clean) if self.least else operated(self.dag, alive, self.clean)
            self.tidied, self.written = made.done, alive
            if self.unchanged and not external:
                shutil.copyfile(model.path, self.draft)
            else:
                write_model(made.proto, self.draft, external=external)

    @property
    def unchanged(self) -> bool:
        """Nothing went: the draft is the original."""
        whole = self.written is not None and bool(self.written.all())
        return whole and not self.tidied and not self.dag.model.frozen

    def stored(self) -> int:
        """How many numbers the draft stores as weights."""
        if self.unchanged:
            return stored(self.dag.model.as_read)
        return stored(replace(self.dag.model, proto=onnx.load(self.draft, load_external_data=False)))

    @property
    def model(self) -> Model:
        """The model that is cut."""
        return self.least.dag.model if self.least else self.dag.model

    def attempt(self, selection: Selection, seconds: float) -> Trial:
        """Measure a keep set against the original, unless that was declined or cannot be done.

        Raises:
            ModelError: it cannot be done, but the budget is one of measured time.
        """
        if not self.options.measure or self.failure:
            return Trial(selection, None)
        self.write(selection.alive)
        if self.unchanged:
            return Trial(selection, None)
        self.attempts += 1
        searching = self.options.budget.metric.measured
        with self.clock.stage("measure", self.attempts / TRIES if searching else None):
            model, feed = self.dag.model, self.dag.observation.feeds
            setting = replace(self.options.setting, libraries=model.libraries)
            try:
                found = measured(model.path, self.draft, feed, setting, seconds, self.options.seed)
            except RunFailed as error:
                if searching:
                    raise ModelError(
                        f"{model.path}: --latency: the model cannot be measured: {error}; give a budget of --macs"
                    ) from error
                self.failure = str(error)
                return Trial(selection, None)
        return Trial(selection, found)

    def proven(self, alive: Mask, data: Data | None = None) -> Proof:
        """Write a keep set, check and prove it as written; without the clean-up where that cannot be proven.

        ``data`` are real inputs, some of which are compared on too.

        Raises:
            ProofFailed: the checker, onnxruntime or the comparison refuses it.
            DataError: the data cannot be read.
        """
        self.write(alive)
        with self.clock.stage("prove"):
            try:
                return self._proven(alive, data)
            except ProofFailed:
                if not (self.tidied.get("merged") if self.least else self.tidied):
                    raise
            self.clean = False
            self._write(alive)
            return self._proven(alive, data)

    def bare(self) -> Model:
        """The draft as it stands, in memory."""
        return replace(self.dag.model, proto=onnx.load(self.draft))

    def recovered(self, alive: Mask, data: Data) -> Recovery | None:
        """Change the weights of the draft for the better; None where nothing went, or that was declined.

        Raises:
            DataError: a network cannot be run on the data.
            ProofFailed: what came of it is not valid.
        """
        if self.unchanged or self.least is not None:
            return None
        wanted, seed = self.options.recovers, self.options.seed
        return recovered_draft(self.dag, alive, self.draft, data, wanted, seed, self.clock)

    def recovered_blindly(self, alive: Mask) -> DataFreeRecovery | None:
        """Change the weights of the draft for the better without data; None where nothing went, or nobody asked.

        Raises:
            ProofFailed: what came of it is not valid.
        """
        if self.unchanged or self.least is not None or not self.options.recovers:
            return None
        return data_free_draft(self.known, alive, self.draft, self.options.seed, self.clock)

    def _proven(self, alive: Mask, data: Data | None) -> Proof:
        """Compare the draft with the masked original or, where it is to be exact, with the original itself."""
        left = channels_of(self.least.dag, self.least.found.alive) if self.least else None
        try:
            check(self.draft)
            proof = compared(self.dag, None if self.least else alive, self.draft, self.options.seed, data, left)
        except (ModelError, RunFailed) as error:
            raise ProofFailed(f"the compressed model is not valid ({error}); nothing written") from error
        _judge(proof, "original" if self.least else "masked original")
        return proof


def compared(
    dag: ChannelDag,
    alive: Mask | None,
    candidate: Path,
    seed: int,
    data: Data | None = None,
    left: ComparedChannels | None = None,
) -> Proof:
    """Compare a model file with the original whose channels that are not alive [labels] are masked.

    With ``alive`` None, the original is taken as it is; ``left`` then says what the file may lack of it.  Some of the
    real inputs ``data`` are among those compared on.  The reference goes through a file, not to be held in memory.

    Raises:
        RunFailed: onnxruntime cannot load or run the candidate.
        DataError: the data cannot be read.
    """
    model = dag.model
    feeds = inputs_for(model, dag.shapes, seed)
    more = [*counted(model, dag.shapes, seed), *sized_inputs(model, feeds, dag.observation.sizes, seed)]
    if data is not None:
        more += data.first(SAMPLES * (data.fixed or 1)).feeds()
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        reference = Path(folder) / "reference.onnx"
        original = dag.model.as_read
        masked = original.proto if alive is None else apply(original, masking_patch(dag, alive))
        write_model(masked, reference, external=True)
        del masked
        channels = left or channels_of(dag, alive)
        return prove(model, reference, candidate, [*feeds, *more], dag.observation.replaced, channels)


def channels_of(dag: ChannelDag, alive: Mask | None) -> ComparedChannels:
    """What the proof knows of the channels of a model, and which of them are left."""
    kept = dag.whole if alive is None else alive

    def fixed() -> set[str]:
        numbers = constant_channels(dag, kept).numbers
        return {name for name, found in numbers.items() if np.isfinite(found[kept[dag.channel_ids[name]]]).all()}

    return ComparedChannels([at.channel_ids for at in dag.sizes], alive, fixed)


def operated(dag: ChannelDag, alive: Mask, clean: bool) -> Tidied:
    """The model without the channels that are not alive; with ``clean`` its graph is cleaned up."""
    if alive.all():
        return Tidied(dag.model.as_read.proto, {})
    proto = apply(dag.model, plan_patch(dag, alive))
    if not clean:
        return Tidied(proto, {})
    return tidy(proto, constant_channels(dag, alive).uniform(dag, alive), behind_decisions(dag.model))


def _judge(proof: Proof, wanted: str) -> None:
    """Refuse what is not proven.

    Raises:
        ProofFailed: the comparison told nothing, or that the model is another one.
    """
    if proof.status == VACUOUS:
        kinds = ", ".join([*KINDS, *proof.kinds])
        outputs = ", ".join(f"'{name}' {kind}" for name, kind in proof.silent.items())
        raise ProofFailed(
            f"the model puts out nothing that can be compared on the inputs tried (outputs: {outputs}; inputs: {kinds})"
            "; nothing written; give real inputs with --calib"
        )
    if proof.status == RANDOM:
        raise ProofFailed(
            f"the model draws random numbers that cannot be made equal for a comparison ({proof.reason}); nothing "
            "written; export it with these as graph inputs"
        )
    if not proof.passed:
        raise ProofFailed(
            f"the compressed model differs from the {wanted} (relative error {proof.max_relative_error:.2g}, "
            f"bound {proof.bound:.2g}); nothing written; a rule is wrong: "
            "check those given with --rules, or report the model's operators"
        )
