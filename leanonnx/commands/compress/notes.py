"""What is to be said of a result before anybody relies on it: warnings, and hints at what else could be done."""

from __future__ import annotations

from leanonnx.commands.compress.workshop import Workshop
from leanonnx.data.samples import Data
from leanonnx.formatting import counted
from leanonnx.graph.model import Model, constant_bytes, overridden
from leanonnx.recovery.draft import ENOUGH, Recovery
from leanonnx.selection.search import Trial


def not_faster(trial: Trial) -> str:
    """A measurement in words: how the result compares with the original."""
    found = trial.comparison
    if found is None:
        return ""
    low, high = found.interval
    words = "slower than the original" if high < 1 else "no faster than the original, beyond noise"
    return f"the result is {words}: {found.speedup:.3f} times its speed (95 % interval {low:.3f} to {high:.3f})"


def hints(model: Model) -> tuple[str, ...]:
    """What else could make the model faster."""
    listed = len(overridden(model.proto))
    if not listed:
        return ()
    return (
        f"{listed} weights are listed as graph inputs, where a caller may override them; this keeps onnxruntime from "
        "its fast kernels. If nobody overrides them, add --freeze",
    )


def folding_warnings(model: Model) -> list[str]:
    """What is to be said of weights whose values take more room than what they are computed from."""
    before, after = constant_bytes(model.as_read.proto), constant_bytes(model.proto)
    if after <= before:
        return []
    return [
        f"the values of {counted(len(model.folded), 'weight')} that the file computes from constants are stored, which "
        f"takes {after - before} bytes more than what they are computed from, before anything is removed"
    ]


def calibration_warnings(data: Data | None, recovery: Recovery | None) -> list[str]:
    """What is to be said of the calibration data and of what they were good for."""
    if data is None or recovery is None:
        return []
    found = []
    if data.count < ENOUGH:
        found.append(f"only {data.count} calibration samples: accuracy grows up to about 1000; give at least {ENOUGH}")
    used = recovery.samples + recovery.held_out
    if recovery.recovered and used < data.count:
        found.append(
            f"recovery used {used} of the {data.count} samples: the activations of more do not fit into memory"
        )
    if not recovery.held_out:
        found.append("too few calibration samples to hold any out: the deviation is that on samples used to recover")
    if recovery.recovered and not recovery.kept:
        found.append("recovery did not lower the deviation on held-out samples and was left out")
    vacuous = [f"'{one.output}' is {one.vacuous}" for one in recovery.final.outputs if one.vacuous]
    if vacuous:
        found.append(
            f"the deviation tells nothing of what the original puts out the same way on all samples compared: "
            f"{', '.join(vacuous)}; give samples on which it changes"
        )
    if recovery.final.unused:
        found.append(recovery.final.unused)
    return found


def warnings(trial: Trial, workshop: Workshop) -> tuple[str, ...]:
    """What is to be said of what was found, measured and written."""
    found, options, selection = [], workshop.options, trial.selection
    budget = options.budget
    if not trial.faster:
        found.append(not_faster(trial))
    if workshop.failure:
        found.append(f"latency could not be measured: {workshop.failure}")
    if not selection.reached:
        lowest = trial.fraction
        if not budget.metric.measured:
            lowest = budget.metric.count(selection.after) / max(budget.metric.count(selection.before), 1)
        found.append(
            f"over budget: {lowest:.4f} of the {budget.unit} is the lowest reachable, {budget.fraction:g} was asked for"
            + "".join(f"; {limit}" for limit in selection.limits)
        )
    if workshop.unchanged and (budget.fraction < 1 or options.exact):
        found.append("nothing could be removed: the output equals the input")
    if not workshop.unchanged:
        found += folding_warnings(workshop.model)
    if not workshop.clean:
        found.append("the clean-up of the graph could not be proven and was left out; please report it")
    return tuple(found)
