"""The curves of a sweep as a picture (matplotlib, the extra ``leanonnx[sweep]``).

A row for each model.  To the left the deviation over what is left of the original, measured time or what the budget
counts; to the right what the outputs are worth, where that can be told.  Shapes tell apart what colours do.
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

from leanonnx.commands.sweep.report import placed, remaining
from leanonnx.reporting.report import Row
from leanonnx.selection.metrics import METRICS, Metric
from leanonnx.spelling import option

PNG, SVG = "sweep.png", "sweep.svg"
WIDTH, HEIGHT = 5.6, 4.2
"""Inches of one panel."""
DPI = 150
TITLE = 58
"""Characters of a line above a panel."""
STYLE = {"font.size": 10, "axes.spines.right": False, "svg.hashsalt": "leanonnx", "axes.grid": True, "grid.alpha": 0.3}
CURVE, KNEE, FAINT = "#1f4e79", "#c04000", "#707070"
LABEL = (0.09, 0.06)
"""Width and height of the name of a point, as shares of the axes."""
SIDES = ((0, 0.8), (0, -0.8), (-0.7, 0.4), (0.7, -0.4), (0.7, 0.4), (-0.7, -0.4), (-0.8, 0), (0.8, 0))
"""Where it may be written, in its widths and heights from the point."""
Places = NDArray[np.float64]
"""Positions [points, 2]."""
SPEEDUPS = (1, 1.25, 1.5, 2, 3, 5, 10)


@dataclass(frozen=True)
class Panel:
    """One curve: ``values`` over the points, and what they are of the original (None: no line for it)."""

    label: str
    values: tuple[float | None, ...]
    original: float | None = None


def draw(row: Row, folder: Path) -> dict[str, str]:
    """Draw the curves of a report into a folder as PNG and SVG; the files, by their kind, none without a point."""
    figure = picture(row)
    if figure is None:
        return {}
    with mpl.rc_context(STYLE):
        figure.savefig(folder / PNG, dpi=DPI, metadata={"Software": None})
        figure.savefig(folder / SVG, metadata={"Date": None})
    return {"png": str(folder / PNG), "svg": str(folder / SVG)}


def picture(row: Row) -> Figure | None:
    """The curves of a report; None where there is no point to draw."""
    curves = [each for each in row["models"] if _shown(each)]
    if not curves:
        return None
    rows = [_panels(each) for each in curves]
    columns = max(len(panels) for panels in rows)
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH * columns, HEIGHT * len(curves)), layout="constrained")
        grid = figure.subplots(len(curves), columns, squeeze=False)
        for axes, each, panels in zip(grid, curves, rows, strict=True):
            for place, panel in zip(axes, panels, strict=False):
                _curve(place, each, panel, row["unit"])
            for place in axes[len(panels) :]:
                place.set_axis_off()
    return figure


def _shown(curve: Row) -> list[Row]:
    """The points that have a place in the picture."""
    return placed(curve["points"], curve["knee"]["axis"])


def _panels(curve: Row) -> list[Panel]:
    """What is drawn of a model: the deviation, and the first of accuracy, agreement and PSNR that there is."""
    told = [point["deviation"] for point in _shown(curve)]
    inputs = next((f"{each['samples']} {each['on']}" for each in told if each["samples"]), "")
    panels = [Panel(f"deviation on {inputs}\n(relative L2 error, 0 = the original)", _values(told, "relative_l2"), 0.0)]
    metrics = [each["metric"] for each in told if each["metric"]]
    if metrics:
        values = tuple(each["metric"] and each["metric"]["after"] for each in told)
        panels.append(Panel(f"{metrics[0]['name']} on {inputs}", values, metrics[0]["before"]))
    elif any(each["top1"] is not None for each in told):
        panels.append(Panel(f"share of equal top-1 choices\non {inputs}", _values(told, "top1"), 1.0))
    elif any(each["psnr"] is not None for each in told):
        panels.append(Panel(f"PSNR (dB) on {inputs}", _values(told, "psnr")))
    return panels


def _values(told: Sequence[Row], name: str) -> tuple[float | None, ...]:
    return tuple(each[name] for each in told)


def _curve(axes: Axes, curve: Row, panel: Panel, unit: str) -> None:
    axis = curve["knee"]["axis"]
    known = [(p, remaining(p, axis), v) for p, v in zip(_shown(curve), panel.values, strict=True) if v is not None]
    x, y = [one[1] for one in known], [one[2] for one in known]
    begin = [] if panel.original is None else [panel.original]
    axes.plot([1.0] * len(begin) + x, begin + y, "-", color=CURVE, zorder=2)
    label = f"{option(METRICS[unit].option)} as written beside it"
    axes.plot(x, y, "o", color=CURVE, markersize=5, zorder=3, label=label)
    if begin:
        axes.plot([1.0], begin, "s", color=FAINT, markersize=8, fillstyle="none", label="the original", clip_on=False)
    if axis == "latency":
        ends = [point["latency"]["interval"] for point, _, _ in known]
        spread = [[max(left - 1 / high, 0.0) for left, (_, high) in zip(x, ends, strict=True)]]
        spread += [[max(1 / low - left, 0.0) if low else 0.0 for left, (low, _) in zip(x, ends, strict=True)]]
        axes.errorbar(x, y, xerr=spread, fmt="none", ecolor=FAINT, capsize=2, linewidth=0.8, label="95 % interval")
        _speedups(axes)
    else:
        axes.spines["top"].set_visible(False)
    for point, left, value in known:
        if point["knee"]:
            axes.plot(
                [left], [value], "D", color=KNEE, markersize=11, fillstyle="none", zorder=4, label=_named(curve["knee"])
            )
    _frame(axes, x, [*begin, *y])
    points = np.column_stack([x, y])
    line = np.column_stack([[1.0] * len(begin) + x, begin + y])
    _label(axes, [f"{p['asked']:g}" for p, _, _ in known], points, line)
    lines = [curve["name"]] + (wrap(f"no knee: {curve['knee']['reason']}", TITLE) if curve["knee"]["reason"] else [])
    axes.set_title("\n".join(lines), fontsize=10)
    axes.set_xlabel(_axis_label(METRICS[axis]))
    axes.set_ylabel(panel.label)
    axes.legend(fontsize=8, loc="best")


def _axis_label(metric: Metric) -> str:
    return f"{metric.noun} left (fraction of the original's)" if metric.measured else f"{metric.noun} left (fraction)"


def _named(knee: Row) -> str:
    return "knee" if knee["sure"] == 1 else f"knee (in {knee['sure']:.0%} of draws)"


def _frame(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Limits: all points and room for their labels; less is left to the right."""
    axes.set_xlim(max(1.0, *x) + 0.04, 0.0)
    room = 0.1 * (max(y) - min(y) or 1.0)
    axes.set_ylim(min(y) - room, max(y) + room)


def _speedups(axes: Axes) -> None:
    """The same axis as how many times as fast."""
    above = axes.secondary_xaxis("top")
    above.set_xticks([1 / times for times in SPEEDUPS], [f"{times:g}×" for times in SPEEDUPS])
    above.set_xlabel("speed-up")


def _label(axes: Axes, names: Sequence[str], points: Places, line: Places) -> None:
    """Write its name beside each point, where it hides least of the curve and of other names and is nearest to it."""
    size = np.array(LABEL)
    low, high = (np.array([axes.get_xlim()[end], axes.get_ylim()[end]]) for end in (0, 1))
    shares = (points - low) / (high - low)
    steps = np.linspace(0, 1, 40)[:, None]
    drawn = np.concatenate([a + steps * (b - a) for a, b in pairwise((line - low) / (high - low))] + [shares])
    taken = np.empty((0, 2))
    for name, share in zip(names, shares, strict=True):
        places = share + np.array(SIDES) * size
        hidden = (np.abs(drawn - places[:, None]) < size / 2).all(-1).sum(1)
        hidden = hidden + len(drawn) * (np.abs(taken - places[:, None]) < size).all(-1).sum(1)
        away = np.linalg.norm((shares - places[:, None]) / size, axis=-1)
        hidden = hidden + len(steps) * (away < np.linalg.norm((share - places) / size, axis=-1)[:, None]).sum(1)
        hidden = hidden + len(drawn) * ((places < size / 2) | (places > 1 - size / 2)).any(-1)
        place = places[np.argmin(hidden)]
        taken = np.concatenate([taken, place[None]])
        axes.annotate(name, place, xycoords="axes fraction", ha="center", va="center", fontsize=9)
