"""Warnings about a result, and hints at further speed-ups."""

from __future__ import annotations

from leanonnx.commands.compress.candidate import Candidate, CompressJob
from leanonnx.commands.compress.cautions import Caution, Gravity, texts_by_gravity
from leanonnx.data.samples import Dataset, batch_size
from leanonnx.effort import Effort
from leanonnx.evaluation.plausibility import data_remarks
from leanonnx.formatting import count_text
from leanonnx.graph.model import Model, constant_bytes
from leanonnx.graph.view import default_initializers
from leanonnx.proof.proof import is_optimised
from leanonnx.quantization.saturation import fused_difference, saturation_warnings
from leanonnx.recovery.draft import ADVISED_SAMPLES, Recovery
from leanonnx.recovery.recover import OUT_OF_TIME
from leanonnx.selection.metrics import Budget
from leanonnx.selection.search import Trial, ratio_text, undecided_text
from leanonnx.selection.selector import Selection
from leanonnx.spelling import option


def not_faster(trial: Trial) -> str:
    """A timing that is not faster than the original, in words; empty if nothing was timed."""
    timing = trial.comparison
    if timing is None:
        return ""
    if timing.is_busy:
        return undecided_text(trial)
    return f"the result is not faster than the original: {timing.verdict}, {ratio_text(timing)}"


def replacement_warning(trial: Trial, budget: Budget) -> str:
    """A warning that measuring has replaced the selection of the budget by a leaner one; empty if it has not."""
    first = trial.instead_of
    if first is None or first.comparison is None or trial.comparison is None:
        return ""
    metric = budget.metric

    def share(selection: Selection) -> str:
        return f"{metric.count(selection.after) / max(metric.count(selection.before), 1):.4f} of the {metric.noun}"

    return (
        f"measuring replaced what the budget alone had chosen: with {share(first.selection)} it was not faster than "
        f"the original ({first.comparison.verdict}, {ratio_text(first.comparison)}); a leaner selection was taken "
        f"instead: {share(trial.selection)}, {ratio_text(trial.comparison)}"
    )


def hints(model: Model) -> tuple[str, ...]:
    """Options that could make the model faster."""
    listed = len(default_initializers(model.proto))
    if not listed:
        return ()
    return (
        f"{listed} weights are listed as graph inputs, where a caller may override them; this keeps onnxruntime from "
        f"its fast kernels. If nobody overrides them, add {option('freeze', True)}",
    )


def folding_warnings(model: Model) -> list[str]:
    """Warnings about weights that are stored computed and take more bytes than what they are computed from."""
    before, after = constant_bytes(model.as_read.proto), constant_bytes(model.proto)
    if after <= before:
        return []
    return [
        f"the values of {count_text(len(model.folded), 'weight')} that the file computes from constants are stored, "
        f"which takes {after - before} bytes more than what they are computed from, before anything is removed"
    ]


def calibration_warnings(data: Dataset, recovery: Recovery, effort: Effort) -> list[Caution]:
    """Warnings about the calibration data and the recovery from them."""
    unsure, advice, weakened = list[str](), list[str](), list[str]()
    if data.count < ADVISED_SAMPLES:
        advice.append(
            f"only {data.count} calibration samples: accuracy grows up to about 1000; give at least {ADVISED_SAMPLES}"
        )
    used = recovery.samples + recovery.held_out
    if recovery.recovered and used < data.count:
        advice.append(
            f"recovery used {used} of the {data.count} samples: {option('effort', effort.name)} takes no more"
            if used >= effort.max_samples
            else f"recovery used {used} of the {data.count} samples: the activations of more do not fit into memory"
        )
    if not recovery.held_out:
        unsure.append("too few calibration samples to hold any out: the deviation is that on samples used to recover")
    if recovery.recovered and not recovery.kept:
        weakened.append("recovery did not lower the deviation on held-out samples and was left out")
    vacuous = [f"'{one.output}' is {one.vacuous}" for one in recovery.final.outputs if one.vacuous]
    if vacuous:
        unsure.append(
            f"the deviation says nothing about outputs that the original computes alike on all samples compared: "
            f"{', '.join(vacuous)}; give samples on which it changes"
        )
    if recovery.final.unused:
        unsure.append(recovery.final.unused)
    unsure += data_remarks(data, recovery.final)
    return [
        *(Caution("weakened", text) for text in weakened),
        *(Caution("unsure", text) for text in unsure),
        *(Caution("advice", text) for text in advice),
    ]


def time_warnings(job: CompressJob, recovery: Recovery) -> list[Caution]:
    """A warning if calibration had too little time, with what was left out."""
    options = job.options
    if options.minutes is None or not job.deadline.has_passed:
        return []
    limit = option("minutes", options.minutes)
    if options.recovers and not recovery.recovered:
        text = f"recovery was left out: the selection took all the time of {limit}; give more, or fewer samples"
        return [Caution("weakened", text)]
    late = [layer for layer in recovery.layers if layer.reason == OUT_OF_TIME]
    if late:
        text = (
            f"{len(late)} of {count_text(len(recovery.layers), 'layer')} were not refitted: the time of {limit} was "
            "up; give more, or fewer samples"
        )
        return [Caution("weakened", text)]
    text = f"calibration took longer than {limit}: no step is broken off; give more time, or fewer samples"
    return [Caution("advice", text)]


def result_warnings(candidate: Candidate, trial: Trial) -> tuple[str, ...]:
    """Warnings about a result, the gravest first: its timing, its budget and its size, and those of the stages."""
    options, selection, model = candidate.job.options, candidate.removal.selection, candidate.removal.dag.model
    missed, advice = list[str](), list[str]()
    if not trial.faster:
        missed.append(not_faster(trial))
    if replaced := replacement_warning(trial, options.budget):
        advice.append(replaced)
    if model.repaired:
        advice.append(
            "the file notes shapes of inner values that contradict its operators; the result leaves out all such notes"
        )
    unsure = [*_integer_warnings(candidate)]
    if trial.failure:
        unsure.append(f"latency could not be measured: {trial.failure}")
    missed += _budget_warnings(selection, options.budget, trial)
    if candidate.is_original and not candidate.refit.is_kept and (options.budget.fraction < 1 or options.exact):
        missed.append("nothing could be removed: the output equals the input")
    weakened = [] if candidate.is_original else folding_warnings(model)
    if options.plan is not None and options.plan.options.get("int8") and not options.int8:
        missed.append(
            f"{options.plan.origin} was made with {option('int8', True)}; this result is float, as a plan holds no "
            f"ranges: add {option('calib')}"
        )
    own: dict[Gravity, list[str]] = {"missed": missed, "weakened": weakened, "unsure": unsure, "advice": advice}
    cautions = (Caution(gravity, text) for gravity, texts in own.items() for text in texts)
    return texts_by_gravity((*cautions, *candidate.warnings))


def _budget_warnings(selection: Selection, budget: Budget, trial: Trial) -> list[str]:
    """A warning if a result is over its budget."""
    if not selection.reached:
        lowest = trial.fraction
        if not budget.metric.measured:
            lowest = budget.metric.count(selection.after) / max(budget.metric.count(selection.before), 1)
        return [
            f"over budget: {lowest:.4f} of the {budget.unit} is the lowest reachable, {budget.fraction:g} was asked for"
            + "".join(f"; {limit}" for limit in selection.limits)
        ]
    if not (budget.metric.measured and trial.fraction > budget.fraction):
        return []
    return [
        f"over budget: the recovered model takes {trial.fraction:.4f} of the latency, {budget.fraction:g} was "
        "asked for; the pruned model was within it"
    ]


def _integer_warnings(candidate: Candidate) -> tuple[str, ...]:
    """A warning if the original holds integers whose sums saturate on this processor."""
    job, model = candidate.job, candidate.job.dag.model
    if job.options.setting.uses_gpu:
        return ()
    feed = next(job.data.feeds(batch_size(job.data))) if job.data else job.dag.observation.feeds
    compared = "the proof compares plain kernels as well, a deviation the fused ones"
    if not is_optimised(model):
        compared = "the proof and a deviation compare the plain kernels"
    return saturation_warnings({"the result": fused_difference(model, candidate.path, [feed])}, [model], compared)
