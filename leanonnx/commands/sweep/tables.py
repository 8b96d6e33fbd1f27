"""Terminal tables of ``leanonnx sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.sweep.rows import ConditionsRow, CurveRow, KneeRow, LeastRow, PointRow, SweepReport
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT
from leanonnx.formatting import count_text, percent_text
from leanonnx.reporting.remarks import interval_text, score_text
from leanonnx.reporting.tables import headline_lines, other_warnings, warning_lines
from leanonnx.selection.metrics import METRICS
from leanonnx.spelling import call_text, option
from leanonnx.surgery.recipe import ARRAYS_NAME, image_words

KNEE_MEANING = "furthest above the diagonal when both axes are brought to [0, 1] (Kneedle)"


def sweep_tables(report: SweepReport) -> RenderableType:
    """The tables of ``leanonnx sweep``."""
    heading = option(METRICS[report.unit].option)
    parts = [part for curve in report.models for part in (Text(""), *_curve_parts(curve, heading))]
    written = Text(f"Written: {', '.join(report.files.values())}")
    head = [*headline_lines(report.headline), *warning_lines(other_warnings(report))]
    verdict = sweep_verdict(report)
    style = "bold green" if report.exit_code == 0 and report.headline is None else "bold yellow"
    step = Text(f"Next: {sweep_next_step(report)}", style="bold", no_wrap=True, overflow="ignore")
    ends = [written, Text(""), step, Text(verdict, style=style)]
    return Group(Text(verdict, style=style), *head, *parts, Text(""), *_condition_lines(report), *ends)


def sweep_verdict(report: SweepReport) -> str:
    """The first and last line: the points that were reached, and where the knees are."""
    reached = sum(point.code == 0 for point in report.points)
    heading = option(METRICS[report.unit].option)
    knees = [f"{curve.name} {_short(curve.knee.asked)}" for curve in report.models if curve.knee.asked is not None]
    where = f"; knee at {heading}: {', '.join(knees)}" if knees else "; no knee"
    return f"{reached} of {count_text(len(report.points), 'point')} reached{where}"


def sweep_next_step(report: SweepReport) -> str:
    """The next step: compress to the point within the tolerances, or to the knee; else more points, or milder ones."""
    name = METRICS[report.unit].option
    for curve in report.models:
        asked = curve.least.asked if curve.least is not None else curve.knee.asked
        if asked is not None:
            options = {name: asked, **_data(report.about)}
            return f"compress to it: {call_text('compress', curve.model, 'OUT.onnx', **options)}"
    if all(point.code for point in report.points):
        return f"ask for more of the model, such as {option(name, 0.9)}"
    return f"sweep more fractions, such as {option(name, '0.9,0.75,0.5,0.25')}"


def _data(about: ConditionsRow) -> dict[str, object]:
    """The options that name the samples, and say how they become inputs."""
    given = about.options.get("calib")
    if given is None:
        return {}
    words = {} if about.images is None or about.images == DEFAULT_IMAGE_FORMAT else image_words(asdict(about.images))
    return {"calib": "DATA" if given == ARRAYS_NAME else given, **words}


def _curve_parts(curve: CurveRow, heading: str) -> list[RenderableType]:
    """The points of one model, and its knee."""
    parts: list[RenderableType] = [Text(curve.model, style="bold")]
    reached = [point for point in curve.points if point.code == 0]
    if reached:
        parts.append(_point_table(reached, heading))
    texts: dict[str, list[str]] = {}
    for point in curve.points:
        for text in ([point.message] if point.code else []) + list(point.warnings):
            texts.setdefault(text, []).append(_short(point.asked))
    parts += [Text(f"{heading} {', '.join(asked)}: {text}", style="yellow") for text, asked in texts.items()]
    return [*parts, _knee_text(curve.knee, heading), *_least_lines(curve.least, heading)]


def _least_lines(row: LeastRow | None, heading: str) -> list[Text]:
    """A line on the point with the least that is within the tolerances; none without tolerances."""
    if row is None:
        return []
    if row.asked is None:
        return [Text("No point was shown to be within the tolerances.", style="yellow")]
    noun = METRICS[row.axis].noun
    return [Text(f"Least {noun} within the tolerances: {heading} {_short(row.asked)}.", style="green")]


def _knee_text(row: KneeRow, heading: str) -> Text:
    if row.asked is None:
        return Text(f"No knee: {row.reason}.")
    text = f"Knee at {heading} {_short(row.asked)}: {METRICS[row.axis].noun} left against deviation, {KNEE_MEANING}"
    if row.sure is not None and row.sure < 1:
        text += f"; it is there or at a neighbour in {row.sure:.0%} of draws from the intervals"
    return Text(f"{text}.", style="green")


def _point_table(points: Sequence[PointRow], heading: str) -> Table:
    """A line for each point, in the columns that hold anything."""
    metrics = [point.deviation.metric.name for point in points if point.deviation and point.deviation.metric]
    lines = [_cells(point, heading, metrics[0] if metrics else "metric") for point in points]
    table = Table(box=None, pad_edge=False)
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in columns:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*(line[name] for name in columns))
    return table


def _cells(point: PointRow, heading: str, metric_name: str) -> dict[str, str]:
    """The cells of a point that was reached, by their heads; ``metric_name`` is that of the metric from labels."""
    costs = {name: f"{cost.fraction:.3f}" for name, cost in point.costs.items()} if point.costs else {}
    return {
        heading: _short(point.asked),
        **costs,
        **_latency_cells(point),
        **_deviation_cells(point, metric_name),
        "s": f"{point.seconds:.1f}",
        "meets": "" if point.tolerance is None else "yes" if point.tolerance.met else "no",
        "": "◄ knee" if point.knee else "",
    }


def _latency_cells(point: PointRow) -> dict[str, str]:
    row = point.latency
    if row is None:
        return {"ms": "", "speed-up": ""}
    low, high = row.comparison.interval
    return {
        "ms": f"{row.before_ms:.3g} → {row.after_ms:.3g}",
        "speed-up": f"{row.comparison.speedup:.2f} ({low:.2f}–{high:.2f})",
    }


def _deviation_cells(point: PointRow, metric_name: str) -> dict[str, str]:
    row = point.deviation
    if row is None:
        return dict.fromkeys(("relative L2", "PSNR dB", "top-1", metric_name), "")
    known = row.intervals
    measures = (
        ("relative L2", row.relative_l2, known.relative_l2, "{:.3g}".format),
        ("PSNR dB", row.psnr, known.psnr, "{:.1f}".format),
        ("top-1", row.top1, known.top1, percent_text),
    )
    cells = {
        name: "" if value is None else f"{form(value)}{interval_text(interval, form)}"
        for name, value, interval, form in measures
    }
    if row.relative_l2 is None:
        cells["relative L2"] = "∞"
    return {**cells, metric_name: score_text(row.metric).removeprefix(f"{metric_name} ") if row.metric else ""}


def _short(asked: float) -> str:
    return f"{asked:.6g}"


def _condition_lines(report: SweepReport) -> list[RenderableType]:
    """The conditions that all points share."""
    lines = ["kernels, macs, params, bytes: fraction of the original that is left. Every point written is proven."]
    conditions = report.about
    if report.measured:
        lines += [
            f"ms, speed-up: median before → after and its ratio with 95 % interval, {conditions.provider}, "
            f"{count_text(conditions.threads, 'thread')}, {conditions.processor}; one point at a time, on the machine "
            "that runs sweep."
        ]
    else:
        lines += ["Latency was not measured."]
    deviations = [point.deviation for point in report.points if point.deviation]
    sources = dict.fromkeys(f"{each.samples} {each.on}" for each in deviations if each.samples)
    if sources:
        inputs = ", ".join(sources)
        lines += [
            f"relative L2, PSNR, top-1: deviation from the original on {inputs}, means over the outputs; in brackets, "
            "95 % intervals over samples."
        ]
    return [Text(line, style="dim") for line in lines]
