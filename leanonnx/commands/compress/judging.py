"""The judgement on a compressed model: measured on real inputs or, after recovery without data, on random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.candidate import Candidate
from leanonnx.data.samples import data_from_feeds
from leanonnx.errors import DataError
from leanonnx.evaluation.deviation import Fidelity, compare_outputs
from leanonnx.evaluation.judgement import Judgement, judge
from leanonnx.evaluation.slices import channel_axes
from leanonnx.formatting import count_text, percent_text, printable_name
from leanonnx.inputs.synthetic import smooth_inputs
from leanonnx.quantization.result import Quantisation
from leanonnx.recovery.draft import ADVISED_SAMPLES, Recovery
from leanonnx.runtime.sessions import RunFailed
from leanonnx.spelling import option, verb

RANDOM_INPUTS = "random inputs"
"""The source of deviations that are no accuracy."""
RANDOM_INPUT_COUNT = 16
"""Number of random inputs for the deviation if there are no data."""


def judge_result(candidate: Candidate) -> Candidate:
    """Judge the outputs of the model that is to be written, if its weights were changed or there are data."""
    job, refit = candidate.job, candidate.refit
    if candidate.quantisation is not None and candidate.is_quantised and candidate.quantisation.after is not None:
        return replace(candidate, judgement=judge(candidate.quantisation.after))
    if refit.recovery is not None:
        return replace(candidate, judgement=judge(refit.recovery.final))
    if refit.data_free is None:
        return candidate
    with job.clock.stage("compare"):
        try:
            fidelity = compare_on_random_inputs(job.dag, candidate.path, job.options.seed)
        except (RunFailed, DataError):
            return candidate
    return replace(candidate, judgement=judge(fidelity))


def compare_on_random_inputs(dag: ChannelDag, candidate: Path, seed: int) -> Fidelity:
    """The deviation of a compressed model from the original on smooth random inputs.

    Raises:
        RunFailed, DataError: a model cannot run on them.
    """
    model = dag.model
    feeds = smooth_inputs(model, dag.shapes, seed, RANDOM_INPUT_COUNT)
    data, replaced = data_from_feeds(RANDOM_INPUTS, model, dag.shapes, feeds), dag.observation.replaced_formats
    (fidelity,) = compare_outputs(model, model.path, [candidate], data, replaced=replaced, axes=channel_axes(dag))
    return fidelity


def inputs_name(recovery: Recovery | None, quantisation: Quantisation | None = None) -> str:
    """The inputs that a deviation was measured on; None twice stands for no data."""
    evidence = quantisation if quantisation is not None and quantisation.is_kept else recovery
    if evidence is None:
        return RANDOM_INPUTS
    return "held-out samples" if evidence.held_out else "calibration samples"


def headline_text(candidate: Candidate) -> str | None:
    """A sentence on a ruined result: what was measured, and what helps; None for one that is sound or not judged."""
    judgement, recovery = candidate.judgement, candidate.refit.recovery
    if judgement is None or not judgement.is_ruined:
        return None
    kind = inputs_name(recovery, candidate.quantisation).removesuffix("s")
    inputs = count_text(judgement.samples, kind.removeprefix("calibration "))
    several = len(candidate.job.dag.model.proto.graph.output) > 1
    return f"the result is ruined: {evidence_text(judgement, inputs, several)}; {_list(_remedies(candidate))}"


def evidence_text(judgement: Judgement, inputs: str, several: bool) -> str:
    """The numbers that a judgement rests on.

    Args:
        judgement: the judgement.
        inputs: the inputs that it rests on, with their number.
        several: the model has several outputs, so that this one is named.
    """
    output = f"output '{printable_name(judgement.output)}'" if several else "its output"
    if judgement.kind == "not finite":
        return f"{output} is not finite where the original's is, on {inputs}"
    error = f"the relative error of {output} is {judgement.relative_l2:.2f} on {inputs}"
    if judgement.kind == "mean" or judgement.agreement is None or judgement.chance is None:
        mean = "" if judgement.mean_l2 is None else f", that of the original's mean output {judgement.mean_l2:.2f}"
        return error + mean
    agreement = f"{output} decides as the original does in {percent_text(judgement.agreement)} of the cases on {inputs}"
    if judgement.kind == "chance":
        return f"{agreement}, no better than by chance ({percent_text(judgement.chance)})"
    return f"{agreement}, less than half"


def _remedies(candidate: Candidate) -> list[str]:
    """Advice on a ruined result, the most promising first."""
    job, recovery = candidate.job, candidate.refit.recovery
    options, advice = job.options, list[str]()
    if job.data is None:
        advice.append(f"give at least {ADVISED_SAMPLES} real inputs with {option('calib')}")
    elif recovery is not None and job.data.count < ADVISED_SAMPLES:
        advice.append(f"give at least {ADVISED_SAMPLES} samples (there were {job.data.count})")
    if recovery is not None and not options.recovers:
        advice.append(f"let {option('recover', 'auto')} fit the weights")
    if recovery is not None and options.recovers and recovery.recovered is None:
        advice.append(f"give more time than {option('minutes', options.minutes)}")
    if options.plan is not None:
        advice.append("remove less than this plan does")
    else:
        budget = options.budget
        advice.append(f"keep more than {option(budget.metric.option, budget.fraction)}")
    return [*advice, f"train it with {verb('finetune')}"]


def _list(parts: Sequence[str]) -> str:
    """Alternatives: a, b or c."""
    *others, last = parts
    return f"{', '.join(others)} or {last}" if others else last
