"""The first line on a compression: how fast, how small and how accurate its result is; and the step to take next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT, ImageFormat
from leanonnx.effort import DEFAULT_EFFORT, EFFORTS
from leanonnx.formatting import UNIT_SPACE, percent_text, printable_name
from leanonnx.recovery.draft import ADVISED_SAMPLES
from leanonnx.reporting.remarks import interval_text, percent_interval, score_text
from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import LatencyRow, MetricChange, OutputDeviation
from leanonnx.reporting.suggested_limits import suggested_limits
from leanonnx.runtime.timing import FASTER, SLOWER
from leanonnx.selection.metrics import LATENCY, METRICS
from leanonnx.spelling import call_text, current_spelling, option
from leanonnx.surgery.recipe import image_words

Mood = Literal["good", "plain", "bad"]
MOODS: tuple[Mood, ...] = ("good", "plain", "bad")
"""From the best to the worst."""
GOOD_AGREEMENT, BAD_AGREEMENT = 0.9, 0.8
"""Lower end of the interval of a good agreement, and the agreement below which it is bad.  In what follows, a number is
good only if its interval ends before what is bad."""
LITTLE_VARIATION = 0.5
"""Relative error of the mean output below which errors are also told as shares of that."""
GOOD_ERROR, BAD_ERROR = 0.1, 0.3
"""Relative error, in units of that of the original's mean output, up to which it is good, and from which it is bad."""
GOOD_DROP, BAD_DROP = 0.02, 0.1
"""Drop of a score that is a share, up to which it is good, and from which it is bad."""
GOOD_GROWTH, BAD_GROWTH = 1.1, 1.5
"""Factor by which an error that labels give may grow, likewise."""
MAX_HALVED_BUDGET = 0.98
"""Budget above which none that removes half as much is named."""
MAX_SPREAD = 1.5
"""Ratio of the ends of the interval of a speed-up, taken on a busy machine, above which it is no answer."""
SPEEDUP_TOLERANCE = 1.0001
"""Factor by which the rounded speed-up may miss the budget."""
LEAST_EFFORT = next(iter(EFFORTS))
ADVISED_SHARE = 0.75
"""Budget to begin with."""
MODEL_SUFFIX = ".onnx"
DATA = "DATA"
"""Stands for samples that the result was not made of; nobody but the user knows where they are."""


@dataclass(frozen=True)
class Statement:
    """A statement on a result, and its mood."""

    text: str
    mood: Mood


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The first line, in parts, and the next step.

    Attributes:
        alarm: what is wrong with the result as a whole; empty if nothing is.
        speed, size, accuracy: the answers to the three questions.
        next_step: what to do now.
    """

    alarm: str
    speed: Statement
    size: Statement
    accuracy: Statement
    next_step: str

    @property
    def parts(self) -> tuple[Statement, ...]:
        """Speed, accuracy and size."""
        return self.speed, self.accuracy, self.size

    @property
    def verdict(self) -> str:
        """The first line."""
        line = ", ".join(part.text for part in self.parts)
        return f"{self.alarm} {line[:1].upper()}{line[1:]}.".lstrip()

    @property
    def mood(self) -> Mood:
        """The worst mood of all parts."""
        return "bad" if self.alarm else max((part.mood for part in self.parts), key=MOODS.index)


@dataclass(frozen=True, kw_only=True)
class SummaryContext:
    """Facts that a report does not hold, for the commands of the next step.

    Attributes:
        options: those in the plan.
        source, output: both files as the user named them.
        images: the format of photographs in the data.
        libraries: of custom operators.
        timed: the options of ``bench`` under which the result was timed.
    """

    options: Mapping[str, Any]
    source: str
    output: str
    images: ImageFormat = DEFAULT_IMAGE_FORMAT
    libraries: tuple[str, ...] = ()
    timed: Mapping[str, object] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The network that the result is compared with."""
        return str(self.options.get("teacher") or self.source)

    @property
    def fresh_data(self) -> dict[str, object]:
        """The options for samples like those given, but not the same, and for how they become inputs."""
        named: dict[str, object] = {"data": DATA}
        if self.images == DEFAULT_IMAGE_FORMAT:
            return named
        by_word = current_spelling() == "command line"
        return named | (image_words(asdict(self.images)) if by_word else {"images": self.images})

    @property
    def model_options(self) -> dict[str, object]:
        """The options without which the model does not run."""
        named = {"shape": self.options.get("shapes"), "library": list(self.libraries)}
        return {name: value for name, value in named.items() if value}


def summarise(report: CompressionReport, context: SummaryContext) -> Summary:
    """The summary of a compression."""
    alarm = "The result is ruined." if report.headline is not None else _over_budget(report, context.options)
    if is_unchanged(report):
        alarm = f"{_why_unchanged(report, context.options)}: the output equals the input."
    speed, size, accuracy = _speed(report.latency), _size(report), _accuracy(report)
    step = _next_step(report, context, speed, accuracy)
    return Summary(alarm=alarm, speed=speed, size=size, accuracy=accuracy, next_step=step)


def is_unchanged(report: CompressionReport) -> bool:
    """True if nothing was removed, and no weight was changed."""
    return not report.weights_changed and all(cost.before == cost.after for _, cost in report.costs.items())


def _why_unchanged(report: CompressionReport, options: Mapping[str, Any]) -> str:
    """The reason why a compression changed nothing."""
    if report.quantisation is not None:
        return "8-bit integers were left out"
    return "Nothing had to be removed" if _fits_already(options) else "Nothing could be removed"


def _fits_already(options: Mapping[str, Any]) -> bool:
    """True if the model is within the budget as it is."""
    asked = [options[name] for name in METRICS if options.get(name) is not None]
    return bool(asked) and min(asked) >= 1


def _keeps_outputs(report: CompressionReport) -> bool:
    """True if nothing was removed but what contributes nothing, no weight was changed, and nothing is in integers."""
    kernels = report.costs.kernels
    is_whole = kernels.before == kernels.after and not report.weights_changed and not report.branches
    is_quantised = report.quantisation is not None and report.quantisation.kept
    return not is_quantised and (report.lossless is not None or is_whole)


def worst_output(outputs: Mapping[str, OutputDeviation]) -> str:
    """Name of the output that deviates most, of those that the samples say something about; None is infinite."""

    def size(name: str) -> tuple[bool, float]:
        relative = outputs[name].relative_l2
        return not outputs[name].vacuous, math.inf if relative is None else relative

    return max(outputs, key=size)


def _speed(row: LatencyRow | None) -> Statement:
    if row is None:
        return Statement("speed not measured", "plain")
    comparison, (low, high) = row.comparison, row.comparison.interval
    ratio = f"{comparison.speedup:.2f} times as fast ({low:.2f} to {high:.2f})"
    if row.busy and high > MAX_SPREAD * low:
        return Statement(f"speed not known, as the machine was busy: {low:.2f} to {high:.2f} times as fast", "plain")
    if comparison.verdict == FASTER:
        return Statement(ratio, "good")
    if row.busy:
        return Statement(f"speed not known, as the machine was busy: {ratio}", "plain")
    return Statement(f"{'slower' if comparison.verdict == SLOWER else 'not shown to be faster'}: {ratio}", "bad")


def _size(report: CompressionReport) -> Statement:
    cost = report.costs.bytes
    mood: Mood = "good" if cost.after < cost.before else "plain" if cost.after == cost.before else "bad"
    return Statement(f"{percent_text(cost.fraction)} of the size", mood)


def _accuracy(report: CompressionReport) -> Statement:
    """The worst of all statements on outputs, or the score in their place where it tells more."""
    now = report.deviation
    if now is None:
        known = _keeps_outputs(report)
        return Statement("outputs unchanged", "good") if known else Statement("accuracy not known", "plain")
    telling = {name: output for name, output in now.outputs.items() if not output.vacuous}
    if not telling and report.headline is None and report.tolerance is None:
        alike = "there is one sample to compare on" if now.samples == 1 else "the outputs are the same on all samples"
        return Statement(f"accuracy not known, as {alike}", "plain")
    first = worst_output(now.outputs)
    names = [first, *(name for name in telling or now.outputs if name != first)]
    worst = _worst_statement(report, names, now.outputs)
    if now.metric is not None and not now.metric.by_chance:
        score = Statement(score_text(now.metric), _metric_mood(now.metric))
        is_all = len(names) == 1 or MOODS.index(score.mood) >= MOODS.index(worst.mood)
        worst = score if is_all else worst
    if _is_on_fitted(report):
        worst = replace(worst, text=f"{worst.text} on samples that were fitted")
    if report.headline is not None:
        return replace(worst, mood="bad")
    return replace(worst, mood="good" if report.tolerance.met else "bad") if report.tolerance is not None else worst


def _is_on_fitted(report: CompressionReport) -> bool:
    """True if the deviation is that on samples that weights or ranges were fitted to, as none could be held out."""
    if report.quantisation is not None and report.quantisation.kept:
        return not report.quantisation.held_out
    row = report.recovery
    return row is not None and row.kept and not row.held_out and not row.parts


def _worst_statement(
    report: CompressionReport, names: Sequence[str], outputs: Mapping[str, OutputDeviation]
) -> Statement:
    """The statement with the worst mood, of several the first; ``names`` begins with the largest relative error.

    Where none is bad and both are errors, the largest error is told: moods take it relative to different units.
    """
    statements = [_output_statement(report, name) for name in names]
    worst = max(statements, key=lambda each: MOODS.index(each.mood))
    decides = any(outputs[names[k]].top1 is not None for k in (0, statements.index(worst)))
    return worst if worst.mood == "bad" or decides else replace(statements[0], mood=worst.mood)


def _output_statement(report: CompressionReport, name: str) -> Statement:
    """The statement on one output, with its name if there are others."""
    assert report.deviation is not None
    output = report.deviation.outputs[name]
    mood = _agreement_mood(output) if output.top1 is not None else _error_mood(report, name)
    which = f"output '{printable_name(name)}': " if len(report.deviation.outputs) > 1 else ""
    unit, error = _variation(report, name), output.relative_l2
    varies_little = output.top1 is None and output.psnr is None and error is not None and unit < LITTLE_VARIATION
    varying = f", {percent_text((error or 0.0) / unit)} of how much they vary" if varies_little else ""
    return Statement(f"{which}{accuracy_text(output)}{varying}", mood)


def _variation(report: CompressionReport, name: str) -> float:
    """Relative error of the original's mean output, in place of an output; 1 where it is not known."""
    judged = report.judgement
    return judged.mean_l2 if judged is not None and judged.output == name and judged.mean_l2 else 1.0


def accuracy_text(output: OutputDeviation) -> str:
    """The measure of an output that says most, with its interval: agreement, PSNR or relative error."""
    if output.top1 is not None:
        interval = percent_interval(output.known.top1)
        return f"the same decision in {percent_text(output.top1)} of the cases{interval}"
    if output.psnr is not None:
        interval = interval_text(output.known.psnr, f"{{:.1f}}{UNIT_SPACE}dB".format)
        return f"PSNR {output.psnr:.1f}{UNIT_SPACE}dB{interval}"
    if output.relative_l2 is None:
        return "outputs of another shape" if output.reshaped else "outputs not finite"
    return f"outputs off by {percent_text(output.relative_l2)}{percent_interval(output.known.relative_l2)}"


def _agreement_mood(output: OutputDeviation) -> Mood:
    agreement = output.top1 or 0.0
    low = output.known.top1[0] if output.known.top1 else None
    if agreement < BAD_AGREEMENT:
        return "bad"
    return "good" if low is not None and low >= GOOD_AGREEMENT else "plain"


def _error_mood(report: CompressionReport, name: str) -> Mood:
    """By the error of an output, relative to that of the original's mean output where it is known."""
    assert report.deviation is not None
    error, unit = report.deviation.outputs[name].relative_l2, _variation(report, name)
    if error is None or error > BAD_ERROR * unit:
        return "bad"
    interval = report.deviation.outputs[name].known.relative_l2
    is_sure = interval is not None and interval[1] is not None and interval[1] <= BAD_ERROR * unit
    return "good" if error <= GOOD_ERROR * unit and is_sure else "plain"


def _metric_mood(metric: MetricChange) -> Mood:
    if metric.before is None or metric.after is None:
        return "bad"
    low, high = metric.after_interval or (None, None)
    if metric.better == "lower":
        end, least, most = high, GOOD_GROWTH * metric.before, BAD_GROWTH * metric.before
        lost = metric.after
    else:
        end, least, most = None if low is None else metric.before - low, GOOD_DROP, BAD_DROP
        lost = metric.before - metric.after
    if lost > most:
        return "bad"
    return "good" if lost <= least and end is not None and end <= most else "plain"


def _over_budget(report: CompressionReport, options: Mapping[str, Any]) -> str:
    """A sentence on the budget if it was missed, else nothing."""
    shares = {metric: cost.after / max(cost.before, 1) for metric, cost in report.costs.items()}
    if report.latency is not None:
        shares[LATENCY] = 1 / report.latency.comparison.speedup
    for name, metric in METRICS.items():
        tolerance = SPEEDUP_TOLERANCE if metric.measured else 1
        if name in shares and name in options and shares[name] > options[name] * tolerance:
            left, asked = percent_text(shares[name]), percent_text(options[name])
            return f"Over budget: {left} of the {metric.noun} is left, {asked} was asked for."
    return ""


def _next_step(report: CompressionReport, context: SummaryContext, speed: Statement, accuracy: Statement) -> str:
    """The one step that helps most: more inputs, a milder budget, training, timing again; if all is well, a check."""
    source, output, now = context.source, context.output, report.deviation
    if is_unchanged(report):
        return _step_from_unchanged(report, context)
    if now is None and not _keeps_outputs(report):
        return f"give {ADVISED_SAMPLES} real inputs or more, without labels, with {option('calib')}: they fit the " + (
            "weights and measure the accuracy"
        )
    if now is not None and now.metric is not None and now.metric.by_chance:
        return "correct the labels, or how the inputs are scaled: the original itself scores no better than by chance"
    if now is not None and all(each.vacuous for each in now.outputs.values()):
        more = f"{ADVISED_SAMPLES} samples or more" if now.samples == 1 else "samples"
        return f"give {more} with {option('calib')} on which the outputs of the original differ"
    if now is not None and _is_on_fitted(report):
        more = f"give {ADVISED_SAMPLES} samples or more with {option('calib')} (there were {now.samples})"
        return f"{more}: none could be held out, so that the accuracy is told on those that were fitted"
    is_untimed = speed.mood != "good" and report.latency is not None and report.latency.busy
    if accuracy.mood == "bad" or (accuracy.mood == "plain" and not is_untimed):
        return _step_to_accuracy(report, context, accuracy)
    if _over_budget(report, context.options):
        held = call_text("inspect", source, **context.model_options)
        return f"see what keeps the model from becoming smaller: {held}"
    if speed.mood == "bad" or is_untimed:
        again = call_text("bench", source, output, **context.timed, **context.model_options)
        return f"time it again while nothing else runs: {again}"
    data = {} if context.options.get("calib") is None else context.fresh_data
    on_data = f", on inputs that were not used here ({DATA})" if data else ""
    options = {**data, **suggested_limits(report, _keeps_outputs(report)), **context.model_options}
    return f"check it in your tests{on_data}: {call_text('check', context.reference, output, **options)}"


def _step_from_unchanged(report: CompressionReport, context: SummaryContext) -> str:
    """The step after a compression that changed nothing."""
    if report.quantisation is not None:
        return f"give a budget, such as {option('macs', ADVISED_SHARE)}: fewer multiply-adds are faster in floats too"
    if _fits_already(context.options):
        return f"nothing, as the model is within the budget; {option('exact', True)} removes what contributes nothing"
    return f"see what may not be removed, and why: {call_text('inspect', context.source, **context.model_options)}"


def _step_to_accuracy(report: CompressionReport, context: SummaryContext, accuracy: Statement) -> str:
    """The step that makes a result more accurate that is not known to be accurate."""
    recovery, output = report.recovery, context.output
    used = recovery.samples + recovery.held_out if recovery is not None and recovery.samples else 0
    if context.options.get("recover") == "none":
        return f"let {option('recover', 'auto')} fit the weights to the samples"
    if 0 < used < ADVISED_SAMPLES:
        return f"give {ADVISED_SAMPLES} samples or more with {option('calib')} (there were {used}): few fit badly"
    if used and recovery is not None and recovery.effort == LEAST_EFFORT:
        return f"give recovery more time: {option('effort', DEFAULT_EFFORT)}"
    milder = _milder_budget(context.options)
    if accuracy.mood == "bad" and milder:
        return f"remove less: {milder}"
    if report.quantisation is not None and report.quantisation.kept:
        return f"leave out {option('int8', True)}, then train the result on more data: training needs floats"
    tuned = f"{output.removesuffix(MODEL_SUFFIX)}-tuned{MODEL_SUFFIX}"
    options = {**context.fresh_data, "teacher": context.reference, **context.model_options}
    return f"train it on more data ({DATA}), with PyTorch: {call_text('finetune', output, tuned, **options)}"


def _milder_budget(options: Mapping[str, Any]) -> str:
    """The budget that removes half as much in place of the one that was asked for; empty if none was."""
    for name, metric in METRICS.items():
        asked = options.get(name)
        if isinstance(asked, float) and asked < MAX_HALVED_BUDGET:
            return f"{option(metric.option, round((1 + asked) / 2, 2))} in place of {option(metric.option, asked)}"
    return ""
