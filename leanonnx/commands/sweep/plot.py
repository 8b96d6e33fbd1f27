"""Draw the curves of a sweep (matplotlib, the extra ``sweep``).

A row for each model: to the left the deviation over the fraction of the original that is left, of its measured time or
of the metric of the budget; to the right accuracy, agreement or PSNR, where there are any.  Markers differ in shape as
well as in colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import wrap

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from leanonnx.commands.sweep.report import mean_relative_error, placed_points, remaining
from leanonnx.commands.sweep.rows import CurveRow, KneeRow, PointDeviation, PointRow, SweepReport
from leanonnx.selection.metrics import LATENCY, METRICS, Metric
from leanonnx.spelling import option

PNG, SVG = "sweep.png", "sweep.svg"
PANEL_WIDTH, PANEL_HEIGHT = 5.6, 4.2
"""Inches of one panel."""
DPI = 150
TITLE_LENGTH = 58
"""Characters of a line above a panel."""
PLOT_STYLE = {
    "font.size": 10,
    "axes.spines.right": False,
    "svg.hashsalt": "leanonnx",
    "axes.grid": True,
    "grid.alpha": 0.3,
}
CURVE_COLOUR, KNEE_COLOUR, FAINT_COLOUR = "#1f4e79", "#c04000", "#707070"
LABEL_SIZE = (0.09, 0.06)
"""Width and height of the label of a point, as shares of the axes."""
LABEL_OFFSETS = ((0, 0.8), (0, -0.8), (-0.7, 0.4), (0.7, -0.4), (0.7, 0.4), (-0.7, -0.4), (-0.8, 0), (0.8, 0))
"""Offsets that a label may have from its point, in its widths and heights."""
Positions = NDArray[np.float64]
"""Positions [points, 2]."""
SPEEDUP_TICKS = (1, 1.25, 1.5, 2, 3, 5, 10)


@dataclass(frozen=True)
class Panel:
    """One curve: ``values`` over the points, and the value of the original (None: it is not drawn)."""

    label: str
    values: tuple[float | None, ...]
    original: float | None = None


def draw(report: SweepReport, folder: Path) -> dict[str, str]:
    """Draw the curves of a report into a folder as PNG and SVG; returns the files by kind, none without a point."""
    figure = picture(report)
    if figure is None:
        return {}
    with mpl.rc_context(PLOT_STYLE):
        figure.savefig(folder / PNG, dpi=DPI, metadata={"Software": None})
        figure.savefig(folder / SVG, metadata={"Date": None})
    return {"png": str(folder / PNG), "svg": str(folder / SVG)}


def picture(report: SweepReport) -> Figure | None:
    """The curves of a report; None where there is no point to draw."""
    curves = [curve for curve in report.models if _drawn_points(curve)]
    if not curves:
        return None
    rows = [_panels(curve) for curve in curves]
    columns = max(len(panels) for panels in rows)
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure((PANEL_WIDTH * columns, PANEL_HEIGHT * len(curves)), layout="constrained")
        grid = figure.subplots(len(curves), columns, squeeze=False)
        for axes, curve, panels in zip(grid, curves, rows, strict=True):
            for place, panel in zip(axes, panels, strict=False):
                _draw_panel(place, curve, panel, report.unit)
            for place in axes[len(panels) :]:
                place.set_axis_off()
    return figure


def _drawn_points(curve: CurveRow) -> list[PointRow]:
    """The points that have a place in the picture."""
    return placed_points(curve.points, curve.knee.axis)


def _panels(curve: CurveRow) -> list[Panel]:
    """The panels of a model: the deviation, and the first of accuracy, agreement and PSNR that there is."""
    points = _drawn_points(curve)
    rows = [point.deviation for point in points if point.deviation]
    inputs = next((f"{row.samples} {row.on}" for row in rows if row.samples), "")
    errors = tuple(mean_relative_error(point) for point in points)
    panel = Panel(f"deviation on {inputs}\n(relative L2 error, 0 = the original)", errors, 0.0)
    return [panel, *_quality_panel(rows, inputs)]


def _quality_panel(rows: Sequence[PointDeviation], inputs: str) -> list[Panel]:
    metrics = [row.metric for row in rows if row.metric]
    if metrics:
        values = tuple(row.metric.after if row.metric else None for row in rows)
        return [Panel(f"{metrics[0].name} on {inputs}", values, metrics[0].before)]
    if any(row.top1 is not None for row in rows):
        return [Panel(f"share of equal top-1 choices\non {inputs}", tuple(row.top1 for row in rows), 1.0)]
    if any(row.psnr is not None for row in rows):
        return [Panel(f"PSNR (dB) on {inputs}", tuple(row.psnr for row in rows))]
    return []


def _draw_panel(axes: Axes, curve: CurveRow, panel: Panel, metric: str) -> None:
    axis, values = curve.knee.axis, zip(_drawn_points(curve), panel.values, strict=True)
    known = [(point, remaining(point, axis), value) for point, value in values if value is not None]
    x, y = [one[1] for one in known], [one[2] for one in known]
    begin = [] if panel.original is None else [panel.original]
    line_x, line_y = [1.0] * len(begin) + x, begin + y
    axes.plot(line_x, line_y, "-", color=CURVE_COLOUR, zorder=2)
    label = f"{option(METRICS[metric].option)} as written beside it"
    axes.plot(x, y, "o", color=CURVE_COLOUR, markersize=5, zorder=3, label=label)
    if begin:
        axes.plot(
            [1.0], begin, "s", color=FAINT_COLOUR, markersize=8, fillstyle="none", clip_on=False, label="the original"
        )
    if axis == LATENCY:
        _draw_intervals(axes, [point for point, _, _ in known], x, y)
        _speedups(axes)
    else:
        axes.spines["top"].set_visible(False)
    for point, left, value in known:
        if point.knee:
            label = _knee_label(curve.knee)
            axes.plot([left], [value], "D", color=KNEE_COLOUR, markersize=11, fillstyle="none", label=label, zorder=4)
    _frame(axes, x, [*begin, *y])
    labels = [f"{point.asked:g}" for point, _, _ in known]
    _label_points(axes, labels, np.column_stack([x, y]), np.column_stack([line_x, line_y]))
    reason = curve.knee.reason
    lines = [curve.name] + (wrap(f"no knee: {reason}", TITLE_LENGTH) if reason else [])
    axes.set_title("\n".join(lines), fontsize=10)
    axes.set_xlabel(_axis_label(METRICS[axis]))
    axes.set_ylabel(panel.label)
    axes.legend(fontsize=8, loc="best")


def _draw_intervals(axes: Axes, points: Sequence[PointRow], x: Sequence[float], y: Sequence[float]) -> None:
    """Draw the 95 % intervals of the times."""
    ends = [point.latency.comparison.interval for point in points if point.latency]
    below = [max(left - 1 / high, 0.0) for left, (_, high) in zip(x, ends, strict=True)]
    above = [max(1 / low - left, 0.0) if low else 0.0 for left, (low, _) in zip(x, ends, strict=True)]
    xerr = [below, above]
    axes.errorbar(x, y, xerr=xerr, fmt="none", ecolor=FAINT_COLOUR, capsize=2, linewidth=0.8, label="95 % interval")


def _axis_label(metric: Metric) -> str:
    return f"{metric.noun} left (fraction of the original's)" if metric.measured else f"{metric.noun} left (fraction)"


def _knee_label(row: KneeRow) -> str:
    return "knee" if row.sure == 1 else f"knee (in {row.sure:.0%} of draws)"


def _frame(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Set the limits: all points with room for their labels, the original to the left."""
    axes.set_xlim(max(1.0, *x) + 0.04, 0.0)
    room = 0.1 * (max(y) - min(y) or 1.0)
    axes.set_ylim(min(y) - room, max(y) + room)


def _speedups(axes: Axes) -> None:
    """Add the speed-up as a second axis."""
    above = axes.secondary_xaxis("top")
    above.set_xticks([1 / times for times in SPEEDUP_TICKS], [f"{times:g}×" for times in SPEEDUP_TICKS])
    above.set_xlabel("speed-up")


def _label_points(axes: Axes, labels: Sequence[str], points: Positions, line: Positions) -> None:
    """Write the label of each point where it hides least of the curve and of other labels and is nearest to it."""
    size = np.array(LABEL_SIZE)
    low, high = (np.array([axes.get_xlim()[end], axes.get_ylim()[end]]) for end in (0, 1))
    shares = (points - low) / (high - low)
    steps = np.linspace(0, 1, 40)[:, None]
    drawn = np.concatenate([a + steps * (b - a) for a, b in pairwise((line - low) / (high - low))] + [shares])
    taken = np.empty((0, 2))
    for label, share in zip(labels, shares, strict=True):
        places = share + np.array(LABEL_OFFSETS) * size
        hidden = (np.abs(drawn - places[:, None]) < size / 2).all(-1).sum(1)
        hidden = hidden + len(drawn) * (np.abs(taken - places[:, None]) < size).all(-1).sum(1)
        away = np.linalg.norm((shares - places[:, None]) / size, axis=-1)
        hidden = hidden + len(steps) * (away < np.linalg.norm((share - places) / size, axis=-1)[:, None]).sum(1)
        hidden = hidden + len(drawn) * ((places < size / 2) | (places > 1 - size / 2)).any(-1)
        place = places[np.argmin(hidden)]
        taken = np.concatenate([taken, place[None]])
        axes.annotate(label, place, xycoords="axes fraction", ha="center", va="center", fontsize=9)
