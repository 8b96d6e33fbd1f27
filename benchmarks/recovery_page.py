"""``docs/recovery.md`` and its plot from the results of ``benchmarks.recovery``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common import DOCS, Row, measured_by, publish, table

METHODS = ("default", "l2", "l1", "random", "onnxsim")
PEER = "onnxsim"
OVER = 1.1
"""A peer's network with so many times the multiply-adds asked for is not compared."""
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f")
WIDTH, HEIGHT, EDGE = 640, 360, 60


def goodness(row: Row) -> float:
    """The number by which networks of one cell are compared: the metric, else how little the outputs deviate."""
    if "value" not in row:
        return -math.inf
    fidelity = row["fidelity"]
    if "psnr" in fidelity and fidelity["psnr"] is not None:
        return float(fidelity["psnr"])
    if row["value"] is not None:
        return float(row["value"])
    if "agreement" in fidelity:
        return float(fidelity["agreement"])
    errors = list(fidelity["rel_l2"].values())
    return -float(sum(errors) / len(errors))


def shown(row: Row | None) -> str:
    """A cell of a table."""
    if row is None:
        return ""
    if "value" not in row:
        return f"exit {row['exit_code']}"
    value = goodness(row)
    if "psnr" in row["fidelity"] and row["fidelity"]["psnr"] is not None:
        return f"{value:.1f} dB"
    return f"{100 * value:.2f}" if value >= 0 else f"error {-value:.3f}"


def best(rows: Iterable[Row]) -> dict[tuple[str, float], dict[str, Row]]:
    """For each network and ratio the row of each method; of onnxsim's two ways near the budget the better one."""
    found: dict[tuple[str, float], dict[str, Row]] = {}
    for row in rows:
        if row["samples"] == 1000 and not (PEER in row["method"] and row.get("macs", 1) > OVER * row["ratio"]):
            cell = found.setdefault((row["network"], row["ratio"]), {})
            method = row["method"].partition(" ")[0]
            if method not in cell or goodness(row) > goodness(cell[method]):
                cell[method] = row
    order = list(dict.fromkeys(network for network, _ in found))
    return {key: found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), -key[1]))}


def write_page(data: Row) -> Path:
    """The page and the plot."""
    cells = best(data["rows"])
    (DOCS / "recovery_inputs.svg").write_text(plot(data["rows"]))
    lines = []
    for (network, ratio), cell in cells.items():
        top = max(goodness(row) for row in cell.values())
        texts = [shown(cell.get(method)) for method in METHODS]
        marked = [
            f"**{text}**" if method in cell and goodness(cell[method]) == top else text
            for method, text in zip(METHODS, texts, strict=True)
        ]
        lines.append([network, f"{ratio:g}", f"{cell['default'].get('macs', math.nan):.3f}", *marked])
    sections = [
        "What `leanonnx compress --macs F --calib DATA` makes of networks, without labels and without training, scored "
        "on images that it has not seen. `default` ranks channels by path mass; `l2`, `l1` and `random` are other "
        "choices with the same recovery and the same widths; `onnxsim` is the better of its plain and its calibrated "
        "structured pruning, without its fitting steps, at the sparsity that leaves nearest to the same multiply-adds "
        f"(empty where that is more than {OVER:g} times what was asked). Calibration: at most 1,000 CIFAR images or "
        "100 photographs; for some networks no more than one to five samples exist.",
        "Cells were measured over several commits and kept where the code that they run through had not changed. A few "
        "rules of the selection were chosen with scores on these images in sight, so small differences are biased.",
        "Accuracy and agreement in %, PSNR against the original's own output in dB, `error`: mean relative L2 of the "
        "outputs. The best of a row is in bold.",
        table(["network", "asked", "left", *METHODS], lines),
        verdict(cells),
        "## How many inputs are enough",
        "![accuracy by number of inputs](recovery_inputs.svg)",
        counts_table(data["rows"]),
        measured_by("recovery", data["environment"]),
    ]
    return publish("recovery", "Accuracy back, without labels", sections)


def verdict(cells: dict[tuple[str, float], dict[str, Row]]) -> str:
    """In how many cells the default is best, and where it is not."""
    won: list[str] = []
    lost: list[str] = []
    for (network, ratio), cell in cells.items():
        others = [goodness(row) for method, row in cell.items() if method != "default"]
        if not others:
            continue
        place = f"{network} at {ratio:g}"
        (won if goodness(cell["default"]) >= max(others, default=-math.inf) else lost).append(place)
    share = len(won) / max(len(won) + len(lost), 1)
    text = f"The default is best, or as good as the best, in {len(won)} of {len(won) + len(lost)} cells ({share:.0%})"
    return text + (f"; not for {', '.join(lost)}." if lost else ".")


def counts(rows: Iterable[Row]) -> dict[tuple[str, float], list[tuple[int, float]]]:
    """Accuracy by number of inputs, for each network and ratio for which there are several."""
    found: dict[tuple[str, float], dict[int, float]] = {}
    for row in rows:
        if row["method"] == "default" and row.get("value") is not None:
            found.setdefault((row["network"], row["ratio"]), {})[row["samples"]] = row["value"]
    return {key: sorted(line.items()) for key, line in found.items() if len(line) > 1}


def counts_table(rows: Iterable[Row]) -> str:
    """The numbers of the plot."""
    lines = counts(rows)
    numbers = sorted({count for line in lines.values() for count, _ in line})
    body = [
        [f"{network} at {ratio:g}", *(f"{100 * dict(line)[n]:.1f}" if n in dict(line) else "" for n in numbers)]
        for (network, ratio), line in lines.items()
    ]
    return table(["inputs", *map(str, numbers)], body)


def plot(rows: Iterable[Row]) -> str:
    """Accuracy over the number of inputs (logarithmic), a line for each network: solid at 0.5, dashed at 0.25."""
    lines = counts(rows)
    names = list(dict.fromkeys(network for network, _ in lines))
    low, high = math.log2(8), math.log2(1000)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#777">'
    ]
    for accuracy in range(0, 81, 20):
        y = _height(accuracy / 100)
        parts.append(f'<path d="M{EDGE} {y:.0f}H{WIDTH - 10}" stroke="#999" stroke-opacity="0.4"/>')
        parts.append(f'<text x="{EDGE - 8}" y="{y + 4:.0f}" text-anchor="end">{accuracy} %</text>')
    for count in (8, 32, 128, 512):
        x = _place(math.log2(count), low, high)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 30}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">inputs without labels</text>')
    for (network, ratio), line in lines.items():
        colour = COLOURS[names.index(network) % len(COLOURS)]
        points = " ".join(f"{_place(math.log2(n), low, high):.1f},{_height(v):.1f}" for n, v in line)
        dash = "" if ratio >= 0.5 else ' stroke-dasharray="6 4"'
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    for index, name in enumerate(names):
        x, y = WIDTH - 190, HEIGHT - 120 + 16 * index
        parts.append(f'<text x="{x}" y="{y}" fill="{COLOURS[index % len(COLOURS)]}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(value: float, low: float, high: float) -> float:
    return EDGE + (value - low) / (high - low) * (WIDTH - EDGE - 20)


def _height(value: float) -> float:
    return 20 + (0.8 - value) / 0.8 * (HEIGHT - 80)
