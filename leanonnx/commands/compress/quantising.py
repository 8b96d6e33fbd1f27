"""The stage that puts a recovered candidate into 8-bit integers, or leaves it float with the reason."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx

from leanonnx.commands.compress.candidate import Candidate
from leanonnx.commands.compress.cautions import Caution
from leanonnx.commands.compress.choosing import resolved_target
from leanonnx.commands.compress.judges import Judge
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.data.samples import Dataset
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.evaluation.judgement import judge
from leanonnx.evaluation.tolerances import Look, reading_text
from leanonnx.graph.formats import float_types
from leanonnx.graph.model import Model, check_model, raise_if_unreadable
from leanonnx.graph.storage import write_model
from leanonnx.quantization.agreement import MAX_STEPS, fusion_excess, integer_nodes, steps_from_simulation
from leanonnx.quantization.choice import MAX_ADDED_ERROR, choose_int8
from leanonnx.quantization.formats import Int8Format, int8_format
from leanonnx.quantization.preparation import check_quantisable, prepare
from leanonnx.quantization.result import Quantisation
from leanonnx.quantization.saturation import fused_cause
from leanonnx.quantization.simulation import simulation_of
from leanonnx.recovery.draft import deviations_from_teacher, split_within_memory
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.search import LONG_TIMING_SECONDS, SECONDS, ratio_text
from leanonnx.spelling import option

SIMULATED_SAMPLES = 4
"""Samples on which the model in integers is compared with its simulation."""
MAX_FUSION_EXCESS = 1.0
"""Error of fused kernels, in units of that of the format, from which on a warning says so."""


@dataclass(frozen=True)
class _Draft:
    """A model in integers with its evidence; ``proto`` is None if there is none, ``warnings`` are for the user."""

    evidence: Quantisation
    proto: onnx.ModelProto | None = None
    warnings: tuple[Caution, ...] = ()


def check_int8(options: CompressOptions, model: Model) -> None:
    """Refuse a request for integers that cannot be carried out.

    Raises:
        OptionError: options contradict each other.
        ModelError: the model cannot be put into integers.
    """
    if options.int8:
        int8_format(options.provider, options.target)
        check_quantisable(model)


def quantise(candidate: Candidate) -> Candidate:
    """Put a recovered candidate into integers; it stays float if that is no gain, or goes wrong.

    Raises:
        DataError: the samples cannot be read.
        ModelError: its operator set cannot be raised.
    """
    job = candidate.job
    assert job.data is not None  # the options require it
    table = resolved_target(job.options, float_types(job.dag.model.proto))
    kind = int8_format(job.options.provider, job.options.target, table)
    fitted, held = split_within_memory(job.dag, job.data, job.effort)
    draft = _draft(candidate, kind, fitted, held)
    target = job.new_file("quantised")
    if draft.proto is not None:
        with job.clock.stage("prove"):
            draft = _with_proof(candidate, draft, target, held or fitted)
    changed, evidence = candidate, draft.evidence
    if evidence.is_kept and candidate.curve is not None:
        changed, evidence = _with_judgement(candidate, evidence, target)
    if evidence.is_kept:
        evidence = _with_timing(candidate, evidence, target)
    warnings = (*candidate.warnings, *(draft.warnings if evidence.is_kept else ()))
    if not evidence.is_kept:
        refused = Caution("missed", _kept_float(evidence))
        return replace(candidate, quantisation=evidence, warnings=(*warnings, refused))
    return replace(changed, path=target, quantisation=evidence, warnings=warnings)


def _kept_float(evidence: Quantisation) -> str:
    text = f"the float network was kept, not the one in 8-bit integers: {evidence.reason}"
    return text if evidence.comparison is None else f"{text}; {option('measure', False)} writes it for its size"


def _draft(candidate: Candidate, kind: Int8Format, fitted: Dataset, held: Dataset | None) -> _Draft:
    """The best model in integers, if there is one."""
    job, path = candidate.job, candidate.path
    evidence = Quantisation(formats=kind.text, samples=fitted.count, held_out=held.count if held else 0)
    feeds, libraries = _feeds(held or fitted), job.dag.model.libraries
    with job.clock.stage("quantise") as progress:
        try:
            prepared = prepare(onnx.load(path), job.dag.model.path, feeds, libraries)
            time_it = partial(_time_integers, candidate) if job.options.measures else None
            choice = choose_int8(job.dag, prepared, fitted, held, kind, progress, time_it)
        except RunFailed as error:
            raise_if_unreadable(error, path)
            return _Draft(replace(evidence, reason=str(error)))
    evidence = replace(
        evidence,
        method=choice.method,
        corrections=choice.corrections,
        error=None if choice.proto is None else choice.error,
        layers=choice.layers,
        raised_from=prepared.raised_from,
        comparison=choice.comparison,
        reason=choice.reason if choice.comparison is None else _not_faster(choice.comparison),
    )
    if choice.proto is None or choice.error <= MAX_ADDED_ERROR:
        return _Draft(evidence, choice.proto)
    text = (
        f"8-bit integers add an error of {choice.error:.1%} of the output, more than {MAX_ADDED_ERROR:.0%}, even "
        f"with half of the layers in float; see that the accuracy suffices, or leave out {option('int8', True)}"
    )
    return _Draft(evidence, choice.proto, (Caution("weakened", text),))


def _feeds(data: Dataset) -> list[Feed]:
    """A few samples."""
    return list(data.subsample(SIMULATED_SAMPLES * (data.fixed_batch or 1)).feeds())


def _with_proof(candidate: Candidate, draft: _Draft, target: Path, data: Dataset) -> _Draft:
    """Write a model in integers, compare it with its simulation, and measure its deviation; the reason if it is bad."""
    job, evidence, warnings = candidate.job, draft.evidence, list(draft.warnings)
    assert draft.proto is not None
    feeds, libraries = _feeds(data), job.dag.model.libraries
    simulation = simulation_of(draft.proto)
    try:
        write_model(draft.proto, target, external=bool(job.dag.model.external_files))
        check_model(target)
        steps = steps_from_simulation(draft.proto, simulation, feeds, libraries)
        if not steps <= MAX_STEPS:
            reason = f"it differs from its simulation in floats by {steps:.3g} steps of 8 bits"
            return replace(draft, evidence=replace(evidence, steps=steps, reason=reason))
        nodes = integer_nodes(target, replace(job.options.setting, libraries=libraries))
        before, after = deviations_from_teacher(job.dag, data, [candidate.path, simulation])
        if not job.options.setting.uses_gpu:
            excess = fusion_excess(draft.proto, simulation, candidate.path, feeds, libraries)
            if excess > MAX_FUSION_EXCESS:
                cause, remedy = fused_cause()
                text = (
                    f"on this processor, onnxruntime's fused integer kernels add {excess:.1f} times the error that the "
                    f"integers themselves make: {cause}; the deviation is that without it; {remedy}"
                )
                warnings.append(Caution("weakened", text))
    except (ModelError, RunFailed) as error:
        raise_if_unreadable(error, target)
        return replace(draft, evidence=replace(evidence, reason=str(error)))
    evidence = replace(evidence, steps=steps, nodes=nodes, before=before, after=after)
    ruined, sound = judge(after), judge(before)
    if ruined is not None and ruined.is_ruined and not (sound is not None and sound.is_ruined):
        evidence = replace(
            evidence, reason=f"it is ruined: the relative error of output '{ruined.output}' is {ruined.relative_l2:.2f}"
        )
    return replace(draft, evidence=evidence, warnings=tuple(warnings))


def _with_judgement(candidate: Candidate, evidence: Quantisation, path: Path) -> tuple[Candidate, Quantisation]:
    """The candidate with one more look, at the model in integers; the reason if only the float one is tolerable."""
    curve = candidate.curve
    assert curve is not None
    began, last = time.monotonic(), curve.looks[curve.chosen]
    try:
        _, readings = Judge(candidate.job, curve.allowed).read(path)
    except ProofFailed as error:
        return candidate, replace(evidence, reason=str(error))
    look = Look(fraction=last.fraction, macs=last.macs, readings=readings, seconds=time.monotonic() - began)
    if last.met and not look.met:
        texts = "; ".join(reading_text(reading) for reading in readings if not reading.met)
        return candidate, replace(evidence, reason=f"it is not within the tolerances: {texts}")
    looks = (*curve.looks, look)
    return replace(candidate, curve=replace(curve, looks=looks, chosen=len(looks) - 1)), evidence


def _with_timing(candidate: Candidate, evidence: Quantisation, path: Path) -> Quantisation:
    """The evidence with the time of the model in integers against the float one; the reason if it is no faster."""
    if not candidate.job.options.measures:
        return evidence
    for seconds in (SECONDS, LONG_TIMING_SECONDS):
        try:
            comparison = _compare(candidate, path, seconds)
        except RunFailed as error:
            return replace(evidence, reason=f"it cannot be timed: {error}")
        if comparison.is_faster:
            return replace(evidence, comparison=comparison)
        if not comparison.is_busy:
            break
    return replace(evidence, comparison=comparison, reason=_not_faster(comparison))


def _not_faster(comparison: TimingComparison) -> str:
    is_known = comparison.is_slower or not comparison.is_busy
    told = "is not" if is_known else "could not be told, as the machine was busy, to be"
    return f"it {told} faster: {ratio_text(comparison)}"


def _time_integers(candidate: Candidate, proto: onnx.ModelProto) -> TimingComparison:
    """Time a model in integers, as yet unproven, against the float one."""
    path = candidate.job.new_file("timed")
    write_model(proto, path, external=bool(candidate.job.dag.model.external_files))
    return _compare(candidate, path, SECONDS)


def _compare(candidate: Candidate, path: Path, seconds: float) -> TimingComparison:
    """Time the model in integers against the float one."""
    job = candidate.job
    setting = replace(job.options.setting, libraries=job.original.model.libraries)
    with job.clock.stage("measure"):
        feed = job.dag.observation.feeds
        return compare_in_subprocess(candidate.path, path, feed, setting, seconds, job.options.seed)
