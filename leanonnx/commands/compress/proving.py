"""The stage that checks a candidate and compares it with the original."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from leanonnx.analysis.branches import Branch
from leanonnx.analysis.constant_channels import constant_channels
from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.candidate import Candidate
from leanonnx.commands.compress.cautions import Caution
from leanonnx.data.samples import Dataset
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.graph.model import Model, check_model
from leanonnx.graph.storage import write_model
from leanonnx.inputs.random import INPUT_KINDS, class_number_inputs, random_inputs, sized_inputs
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.compare import ComparedChannels
from leanonnx.proof.proof import RANDOM, RESTLESS, VACUOUS, Proof, compare_with_reference
from leanonnx.proof.runtimes import ALIKE, RuntimeComparison, compare_runtimes
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.spelling import option
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import masking_patch
from leanonnx.surgery.shortening import StandIn, graft

PROOF_SAMPLES = 3
"""Real inputs that are compared on, if there are any."""


def prove_equal(candidate: Candidate) -> Candidate | ProofFailed:
    """Check a candidate and compare it with the masked original; with the original itself if it is lossless.

    A candidate that has a proof is returned as it is.

    Raises:
        DataError: the data cannot be read.
    """
    if candidate.proof is not None:
        return candidate
    job, removal = candidate.job, candidate.removal
    masked = None if removal.is_lossless else candidate.alive
    with job.clock.stage("prove"):
        try:
            check_model(candidate.path)
            channels = compared_channels(removal.dag, candidate.alive)
            proof = compare_with_original(job.dag, masked, candidate.path, job.options.seed, job.data, channels)
        except (ModelError, RunFailed) as error:
            return ProofFailed(f"the compressed model is not valid ({error}); nothing written")
    reason = _objection(proof, "original" if removal.is_lossless else "masked original")
    return ProofFailed(reason) if reason else replace(candidate, proof=proof)


def compare_with_original(
    dag: ChannelDag,
    alive: Mask | None,
    candidate: Path,
    seed: int,
    data: Dataset | None = None,
    channels: ComparedChannels | None = None,
) -> Proof:
    """Compare a model file with the original in which the removed channels are masked.

    The reference goes through a file, so that it is not kept in memory.

    Args:
        dag: the original.
        alive: its keep mask [channels]; None compares with the original itself.
        candidate: the model file.
        seed: seed of the random inputs.
        data: real inputs, the first of which are compared on too.
        channels: the channels that the file has; by default those of ``alive``.

    Raises:
        RunFailed: onnxruntime cannot load or run the candidate.
        DataError: the data cannot be read.
    """
    original = dag.model.as_read

    def reference() -> onnx.ModelProto:
        return original.proto if alive is None else apply_patch(original, masking_patch(dag, alive))

    return _compare(dag, reference, candidate, seed, data, channels or compared_channels(dag, alive))


def prove_shortened(
    shortened: ChannelDag,
    original: Model,
    replaced: Mapping[Branch, StandIn],
    seed: int,
    data: Dataset | None = None,
) -> Proof:
    """Compare a network without some branches with the original whose joins output the stand-ins.

    Args:
        shortened: the network to prove, as written.
        original: the network that the branches were found in.
        replaced: its removed branches with their stand-ins.
        seed: seed of the random inputs.
        data: real inputs, the first of which are compared on too.

    Raises:
        RunFailed: onnxruntime cannot load or run the shortened network.
        DataError: the data cannot be read.
    """
    reference = partial(graft, original, replaced)
    return _compare(shortened, reference, shortened.model.path, seed, data, compared_channels(shortened, None))


def _compare(
    dag: ChannelDag,
    reference: Callable[[], onnx.ModelProto],
    candidate: Path,
    seed: int,
    data: Dataset | None,
    channels: ComparedChannels,
) -> Proof:
    """Compare a model file with a reference on inputs of a network."""
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        written = Path(folder) / "reference.onnx"
        write_model(reference(), written, external=True)
        feeds = _proof_inputs(dag, seed, data)
        return compare_with_reference(dag.model, written, candidate, feeds, dag.observation.replaced_formats, channels)


def _proof_inputs(dag: ChannelDag, seed: int, data: Dataset | None) -> list[Feed]:
    """Random inputs of a network, those at further sizes, and the first real ones."""
    model = dag.model
    feeds = random_inputs(model, dag.shapes, seed)
    more = [
        *class_number_inputs(model, dag.shapes, seed),
        *sized_inputs(model, feeds, dag.observation.further_sizes, seed),
    ]
    if data is not None:
        more += data.subsample(PROOF_SAMPLES * (data.fixed_batch or 1)).feeds()
    return [*feeds, *more]


def prove_twice(candidate: Candidate) -> Candidate | ProofFailed:
    """Run the file as it will be written in further runtimes, if that was asked for.

    Raises:
        DataError: the data cannot be read.
    """
    job, removal = candidate.job, candidate.removal
    if not job.options.prove_twice:
        return candidate
    with job.clock.stage("prove"):
        feeds = _proof_inputs(job.dag, job.options.seed, job.data)
        try:
            rows = compare_runtimes(
                job.dag.model,
                candidate.path,
                feeds,
                removal.selection.before.macs,
                job.dag.observation.replaced_formats,
                compared_channels(removal.dag, candidate.alive),
            )
        except RunFailed as error:
            return ProofFailed(f"the compressed model is not valid ({error}); nothing written")
    failed = next((row for row in rows if row.is_wrong), None)
    if failed is not None:
        first, second = failed.runtimes
        there = "cannot be compared" if failed.original_error is None else "agree"
        return ProofFailed(
            f"output '{failed.output}' of the compressed model differs between {first} and {second} (relative error "
            f"{failed.max_relative_error:.2g}, bound {failed.bound:.2g}), which {there} on the original; nothing "
            "written; the proof itself holds: report the model to the runtime that is wrong, or leave out "
            f"{option('prove_twice', True)}"
        )
    remarks = [_remark(row) for row in rows if row.status == ALIKE]
    return replace(
        candidate, runtimes=rows, warnings=(*candidate.warnings, *(Caution("unsure", text) for text in remarks))
    )


def _remark(row: RuntimeComparison) -> str:
    """A warning that two runtimes differ by themselves."""
    first, second = row.runtimes
    if row.original_error is None:
        return (
            f"output '{row.output}' differs by {row.max_relative_error:.2g} between {first} and {second}, which cannot "
            "be compared on the original: the model computes in integers, which runtimes round differently"
        )
    return (
        f"output '{row.output}' differs by {row.max_relative_error:.2g} between {first} and {second}, and by "
        f"{row.original_error:.2g} on the original: these runtimes compute it differently, whatever is removed"
    )


def compared_channels(dag: ChannelDag, alive: Mask | None) -> ComparedChannels:
    """The channel ids of a model at all its sizes, and which of them are kept."""
    kept = dag.all_alive if alive is None else alive

    def constant_tensors() -> set[str]:
        numbers = constant_channels(dag, kept).numbers
        return {name for name, values in numbers.items() if np.isfinite(values[kept[dag.channel_ids[name]]]).all()}

    return ComparedChannels([at.channel_ids for at in dag.all_sizes], alive, constant_tensors)


def _objection(proof: Proof, reference: str) -> str:
    """The reason why a proof does not hold; empty if it does."""
    if proof.status == VACUOUS:
        kinds = ", ".join([*INPUT_KINDS, *proof.kinds])
        outputs = ", ".join(f"'{name}' {kind}" for name, kind in proof.silent.items())
        return (
            f"no output of the model can be compared on the inputs tried (outputs: {outputs}; inputs: {kinds})"
            f"; nothing written; give real inputs with {option('calib')}"
        )
    if proof.status == RANDOM and proof.reason == RESTLESS:
        return (
            "the outputs of the model differ from one run to the next on the same inputs, and cannot be compared; "
            "nothing written; try another version of onnxruntime, or export the model without what makes them differ"
        )
    if proof.status == RANDOM:
        return (
            f"the model draws random numbers that cannot be made equal for a comparison ({proof.reason}); nothing "
            "written; export it with these as graph inputs"
        )
    if proof.passed:
        return ""
    return (
        f"the compressed model differs from the {reference} (relative error {proof.max_relative_error:.2g}, "
        f"bound {proof.bound:.2g}); nothing written; a rule is wrong: "
        f"check those given with {option('rules')}, or report the model's operators"
    )
