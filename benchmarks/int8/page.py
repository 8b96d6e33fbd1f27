"""Tables and sentences of ``docs/int8.md`` from the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from benchmarks.blocks.page import goodness, span
from benchmarks.common import RESULTS, Row, load, measured_by, table
from leanonnx.runtime.timing import SLOWER

NAME = "int8"
ORIGINAL, HALF = "original", "half"
SOURCES = (ORIGINAL, HALF)
FLOAT, LEANONNX, DEFAULTS, SETTINGS, NNCF = "float", "leanonnx", "defaults", "settings", "nncf"
METHODS = (FLOAT, LEANONNX, DEFAULTS, SETTINGS, NNCF)
OTHERS = (DEFAULTS, SETTINGS, NNCF)
VNNI, WITHOUT = "with VNNI", "without VNNI"
NAMES = {
    LEANONNX: "leanonnx",
    DEFAULTS: "onnxruntime, defaults",
    SETTINGS: "onnxruntime, right settings",
    NNCF: "NNCF",
}
CLASSIFIERS = ("cifar_resnet_4b", "sri_resnet_a", "marabou_cifar_large", "oval_cifar_wide")
"""The four networks of CIFAR-10 by which the loss at half the multiply-adds is judged."""
THREADS = ("1", "2")
TIE = 0.1
"""Difference of two scores that shows nothing: points, dB, or hundredths of the output."""
CLEAR, POINTS = 2, 100
"""Standard errors of a difference that samples tell; points of a share."""
AREA_METRIC = "iou"
"""The score of the zoo that is no share of decisions."""
WANTED_SHARE, MAX_LOSS = 0.9, 0.5
"""Share of the cells in which leanonnx is to be as accurate as the best of the others; points that it may lose."""
MAX_MESSAGE = 160
"""Letters that are shown of a message."""
EMPTY = "Not measured yet."
Place = tuple[str, str]


def results() -> Row:
    """The results so far."""
    return load(NAME) if (RESULTS / f"{NAME}.json").exists() else {"rows": []}


def points(row: Row | None) -> float | None:
    """The score on unseen samples, more is better: % or dB, or less the relative error in hundredths of the output."""
    value = goodness(row)
    return None if value is None else value * (1 if _in_decibels(row) else 100)


def _in_decibels(row: Row | None) -> bool:
    return ((row or {}).get("unseen", {}).get("zoo") or {}).get("metric") == "psnr"


def shown_score(row: Row | None) -> str:
    """A score as a cell of a table."""
    value = points(row)
    if value is None:
        return "" if row is None else f"exit {row['exit_code']}"
    if value < 0:
        return f"error {-value / 100:.4f}"
    return f"{value:.2f}{' dB' if _in_decibels(row) else ''}"


def error(row: Row | None) -> float | None:
    """The relative L2 error on unseen samples."""
    value = (row or {}).get("unseen", {}).get("relative_l2")
    return None if value is None else float(value)


def agreement(row: Row | None) -> float | None:
    """Share of decisions on unseen samples that are those of the original."""
    unseen = (row or {}).get("unseen", {})
    zoo = (unseen.get("zoo") or {}).get("fidelity") or {}
    value = unseen.get("agreement") if zoo.get("agreement") is None else zoo["agreement"]
    return None if value is None else float(value)


def clear_gain(row: Row | None, other: Row | None) -> float | None:
    """Points by which a network is more accurate, if the samples tell; 0 if not, None without decisions.

    They tell what is more than two standard errors.  Two networks that agree with the original in shares of a and b
    differ in at most (1 - a) + (1 - b) of the decisions.
    """
    shares, scores = [agreement(each) for each in (row, other)], [points(each) for each in (row, other)]
    metric = ((row or {}).get("unseen", {}).get("zoo") or {}).get("metric")
    if row is None or None in shares or None in scores or metric == AREA_METRIC:
        return None
    apart = sum(1 - share for share in shares if share is not None)
    gain = (scores[0] or 0.0) - (scores[1] or 0.0)
    return gain if abs(gain) > CLEAR * POINTS * math.sqrt(apart / row["unseen"]["samples"]) else 0.0


class Cells:
    """The results by network and source, then by method and kind of processor."""

    def __init__(self, data: Row) -> None:
        self.host: str = data.get("host", VNNI)
        self.foreign = WITHOUT if self.host == VNNI else VNNI
        self.rows: dict[Place, dict[tuple[str, str], Row]] = {}
        for row in data["rows"]:
            self.rows.setdefault((row["network"], row["source"]), {})[row["method"], row["kind"]] = row

    @property
    def places(self) -> list[Place]:
        """The networks, each with its sources together."""
        order = list(dict.fromkeys(network for network, _ in self.rows))
        return sorted(self.rows, key=lambda place: (order.index(place[0]), SOURCES.index(place[1])))

    def row(self, place: Place, method: str, kind: str) -> Row | None:
        """The row of a cell; the defaults are the same for both kinds, and so is the float network."""
        kind = self.host if method in (FLOAT, DEFAULTS) else kind
        return self.rows.get(place, {}).get((method, kind))

    def compared(
        self, number: Callable[[Row | None], float | None], best: Callable[..., float]
    ) -> Iterator[tuple[Place, str, float, float]]:
        """Where leanonnx and at least one of the others have a number: place, kind, its own, the best of theirs."""
        for place in self.places:
            for kind in (VNNI, WITHOUT):
                own = number(self.row(place, LEANONNX, kind))
                theirs = [number(self.row(place, method, kind)) for method in OTHERS]
                known = [value for value in theirs if value is not None]
                if own is not None and known:
                    yield place, kind, own, best(known)

    def clear_gains(self) -> Iterator[list[float]]:
        """Where leanonnx and others have decisions: the clear gains over each of them."""
        for place in self.places:
            for kind in (VNNI, WITHOUT):
                own = self.row(place, LEANONNX, kind)
                found = [clear_gain(own, self.row(place, method, kind)) for method in OTHERS]
                known = [gain for gain in found if gain is not None]
                if known:
                    yield known

    def times(self, method: str) -> Iterator[tuple[Place, Row]]:
        """All times of a method on this machine."""
        for place in self.places:
            row = self.row(place, method, self.host)
            for times in (row or {}).get("times", {}).values():
                if "speedup" in times:
                    yield place, times


def _name(place: Place, method: str) -> str:
    network, source = place
    if method == FLOAT:
        return f"{network}, {source if source == ORIGINAL else 'half, float'}"
    return f"{network}, {'half, ' if source == HALF else ''}{NAMES[method]}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _time_columns(cells: Cells, place: Place, method: str, threads: str) -> list[str]:
    """Milliseconds, and times as fast as the float network (the float network at half: as the original)."""
    if (place[1], method) == (ORIGINAL, FLOAT):
        rows = [cells.row(place, other, cells.host) for other in METHODS]
        rows.append(cells.row((place[0], HALF), FLOAT, cells.host))
        known = [(row or {}).get("times", {}).get(threads, {}) for row in rows]
        return [next((span(times["float_ms"]) for times in known if "float_ms" in times), ""), ""]
    row = cells.row(place, method, cells.host)
    times = (row or {}).get("times", {}).get(threads, {})
    if "speedup" not in times:
        return ["cannot be run" if times else "", ""]
    busy = ", busy" if times["busy"] else ""
    busy += "" if "decided_for" not in times else ", decided for it" if times["kept"] else ", kept float"
    low, high = times["interval"]
    return [span(times["ms"]), f"{times['speedup']:.2f} ({low:.2f}–{high:.2f}{busy})"]


def _layers(row: Row | None) -> str:
    """How many layers leanonnx put into integers."""
    said = (row or {}).get("said")
    if said is None:
        return ""
    return f"{said['int8_layers']} of {said['layers']}" if said["kept"] else "kept float"


def int8_cells() -> str:
    """All networks."""
    cells, lines = Cells(results()), []
    for place in cells.places:
        for method in METHODS:
            row, foreign = (cells.row(place, method, kind) for kind in (cells.host, cells.foreign))
            if row is None and foreign is None:
                continue
            line = [_name(place, method), shown_score(row), _number(error(row))]
            line += ["", ""] if method in (FLOAT, DEFAULTS) else [shown_score(foreign), _number(error(foreign))]
            for threads in THREADS:
                line += _time_columns(cells, place, method, threads)
            lines.append([*line, str((row or {}).get("bytes", "")), _layers(row)])
    times = [f"{word}, {threads} thread{'s' * (threads != '1')}" for threads in THREADS for word in ("ms", "as fast")]
    head = ["network", cells.host, "relative L2", cells.foreign, "relative L2", *times, "bytes", "layers in integers"]
    return table(head, lines) if lines else EMPTY


def int8_verdict() -> str:
    """In how many cells leanonnx is as accurate as the best of the others, and nowhere slower than float."""
    cells = Cells(results())
    scores = list(cells.compared(points, max))
    if not scores:
        return EMPTY
    within = [own >= best - TIE for *_, own, best in scores]
    exactly = sum(own >= best for *_, own, best in scores)
    text = (
        f"leanonnx is at least as accurate as the best of the others in {exactly} of {len(scores)} cells, and within "
    )
    text += f"{TIE:g} points, dB or hundredths of the output in {sum(within)} ({sum(within) / len(scores):.0%}; "
    text += f"{WANTED_SHARE:.0%} wanted)."
    errors = list(cells.compared(error, min))
    nearer = sum(own <= best for *_, own, best in errors)
    text += f" Its relative L2 error is at most that of the best of the others in {nearer} of {len(errors)}."
    shares = list(cells.compared(agreement, max))
    alike = sum(own >= best for *_, own, best in shares)
    text += f" Its decisions are at least as often those of the original in {alike} of {len(shares)}."
    gains = [min(each) for each in cells.clear_gains()]
    lower, higher = sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains)
    text += (
        f" As far as the samples tell (two standard errors), it is less accurate than one of the others in {lower} of "
        f"{len(gains)} cells with decisions, and more accurate than all of them in {higher}."
    )
    worse = [
        f"{_name(place, LEANONNX)} {kind} ({own - best:+.2f})" for place, kind, own, best in scores if own < best - TIE
    ]
    text += f" Less accurate: {'; '.join(worse)}." if worse else ""
    floats = [place for place in cells.places if _layers(cells.row(place, LEANONNX, cells.host)) == "kept float"]
    text += f" It kept the float network for {'; '.join(', '.join(place) for place in floats)}." if floats else ""
    return f"{text}\n\n{_time_text(cells)}"


def _time_text(cells: Cells) -> str:
    """How often each method is slower than its float network."""
    parts = []
    for method in METHODS[1:]:
        times = [row for _, row in cells.times(method)]
        if times:
            slower = sum(row["verdict"] == SLOWER for row in times)
            busy = sum(row["busy"] for row in times)
            parts.append(f"{NAMES[method]} {slower} of {len(times)}" + (f" ({busy} on a busy machine)" if busy else ""))
    return f"Times that are slower than those of the float network: {'; '.join(parts)}." if parts else "Not timed yet."


def int8_half() -> str:
    """What integers cost the four classifiers of CIFAR-10 at half the multiply-adds."""
    cells, parts, lost = Cells(results()), [], []
    for network in CLASSIFIERS:
        place = (network, HALF)
        whole = points(cells.row(place, FLOAT, cells.host))
        for kind in (VNNI, WITHOUT):
            value = points(cells.row(place, LEANONNX, kind))
            if whole is not None and value is not None:
                lost.append(whole - value)
                parts.append(f"{network} {kind} {whole - value:+.2f}")
    if not lost:
        return EMPTY
    held = sum(loss <= MAX_LOSS for loss in lost)
    text = f"Points below the float network at half the multiply-adds: {'; '.join(parts)}. At most {MAX_LOSS:g} in "
    return f"{text}{held} of {len(lost)}."


def int8_failures() -> str:
    """What could not be made, or not be run, with the message."""
    cells, lines = Cells(results()), []
    for place in cells.places:
        for (method, kind), row in cells.rows[place].items():
            if "exit_code" in row:
                message = row["message"].replace("\n", " ").replace("`", "'")
                lines.append(f"- {_name(place, method)}, {kind}: `{message[:MAX_MESSAGE]}`")
    return "\n".join(lines) if lines else "None."


def int8_machine() -> str:
    """The script, its results and the machine."""
    data = results()
    if "environment" not in data:
        return EMPTY
    nncf = f" NNCF {data['nncf']}." if data.get("nncf") else ""
    return measured_by(NAME, data["environment"]) + nncf


NUMBERS: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (int8_cells, int8_verdict, int8_half, int8_failures, int8_machine)
}
