"""Numbers within pages that people write: marked blocks of docs/ are filled from the committed results.

    python -m benchmarks.digest            fill them
    python -m benchmarks.digest --check    exit 1 if one holds anything else

A block begins with ``<!-- numbers: NAME -->`` and ends with ``<!-- end of numbers -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from statistics import fmean, median

from benchmarks import reliability_page as reliability
from benchmarks.blocks import page as residual
from benchmarks.common import DOCS, Row, load, table
from benchmarks.int8 import page as integers
from benchmarks.inverse import page as inverse
from benchmarks.latency_page import cells_of, efficiency
from benchmarks.lean_cs.page import Found, percent
from benchmarks.recovery_page import best
from benchmarks.selection import NAMES, TRANSFORMERS, means
from benchmarks.tolerance import page as tolerance
from docs.written import main

BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(\n<!-- end of numbers -->)", re.DOTALL)
CLASSIFIERS = [name for name in NAMES if name not in TRANSFORMERS]
CHOICES = ("cover", "through", "free", "norm", "l2", "random")
PAPER = (0.5493, 0.2471, 0.1112, 0.05)
"""Ratios of the LEAN paper's experiment that are shown."""


def chains() -> str:
    """Accuracy after pruning alone, by choice."""
    rows = load("selection")["rows"]
    found = means(rows, CLASSIFIERS)
    ratios = sorted({ratio for ratio, _ in found}, reverse=True)
    head = ["multiply-adds left", *CHOICES]
    return table(head, [[f"{r:g}", *(f"{100 * found[r, choice]:.1f}" for choice in CHOICES)] for r in ratios])


def inputs() -> str:
    """Accuracy with inputs, beside pruning alone."""
    alone = means(load("selection")["rows"], CLASSIFIERS)
    cells = best(load("recovery")["rows"])
    lines = []
    for ratio in sorted({ratio for name, ratio in cells if name in CLASSIFIERS}, reverse=True):
        row = [f"{ratio:g}", f"{100 * alone[ratio, 'cover']:.1f}" if (ratio, "cover") in alone else ""]
        row += [_mean(cells, method, ratio) for method in ("default", "l2", "random")]
        lines.append(row)
    head = ["multiply-adds left", "cover, no inputs", "path mass, recovered", "l2, recovered", "random, recovered"]
    return table(head, lines)


def _mean(cells: dict[tuple[str, float], dict[str, Row]], method: str, ratio: float) -> str:
    """Mean accuracy of the classifiers in %, where all of them were scored."""
    rows = [cells.get((name, ratio), {}).get(method) for name in CLASSIFIERS]
    values = [row["value"] for row in rows if row and "value" in row]
    return f"{100 * fmean(values):.1f}" if len(values) == len(CLASSIFIERS) else ""


def accuracy() -> str:
    """Accuracy beside onnxsim, cell by cell where both came near the budget."""
    lines = []
    for (name, ratio), cell in best(load("recovery")["rows"]).items():
        if "onnxsim" in cell and "value" in cell["onnxsim"]:
            ours, theirs = cell["default"], cell["onnxsim"]
            lines.append([name, f"{ratio:g}", *(_score(row) for row in (ours, theirs))])
    return table(["network", "multiply-adds asked", "leanonnx", "onnxsim"], lines)


def _score(row: Row) -> str:
    psnr = row["fidelity"].get("psnr")
    return f"{100 * row['value']:.1f} %" if psnr is None else f"{psnr:.1f} dB"


def speed() -> str:
    """Speed beside onnxsim at about the same multiply-adds."""
    cells = [(name, cell) for name, cell in cells_of(load("latency")) if "onnxsim" in cell]
    ours, theirs = [cell for _, cell in cells], [cell["onnxsim"] for _, cell in cells]
    sides = {"leanonnx": ours, "onnxsim": theirs}
    lines = [
        [
            name,
            str(len(side)),
            str(sum(cell["speedup"] < 1 for cell in side)),
            f"{min(cell['speedup'] for cell in side):.2f}",
            f"{median(efficiency(cell) for cell in side):.2f}",
        ]
        for name, side in sides.items()
    ]
    better = [(name, cell) for name, cell in cells if efficiency(cell["onnxsim"]) > efficiency(cell)]
    names = ", ".join(f"{name} ({count})" for name, count in _counted(name for name, _ in better))
    head = ["", "cells", "slower than the original", "lowest ratio of times", "median efficiency"]
    return table(head, lines) + f"\n\nonnxsim is the more efficient one in {len(better)} cells: {names}."


def _counted(names: Iterable[str]) -> list[tuple[str, int]]:
    listed = list(names)
    return sorted(((name, listed.count(name)) for name in set(listed)), key=lambda item: (-item[1], item[0]))


def reach() -> str:
    """How far either goes, and how long it takes."""
    rows = [row for row in load("coverage")["rows"] if row["onnxsim"]["valid"]]
    lines = [
        [name, f"{median(macs):.2f}", f"{max(macs):.2f}", f"{median(seconds):.1f}", f"{max(seconds):.1f}"]
        for name, macs, seconds in (
            ("leanonnx", [row["macs"] for row in rows], [row["seconds"] for row in rows]),
            ("onnxsim", [row["onnxsim"]["macs"] for row in rows], [row["onnxsim"]["seconds"] for row in rows]),
        )
    ]
    head = ["", "multiply-adds left, median", "most", "seconds, median", "most"]
    return f"{len(rows)} files:\n\n{table(head, lines)}"


def paper() -> str:
    """The LEAN paper's own experiment beside the authors' networks."""
    found = Found(load("lean_cs"))
    lines = [
        [
            f"{ratio:g}",
            percent(found.theirs("LEAN", ratio)),
            percent(found.accuracy("mixed", "chain", ratio)),
            percent(found.accuracy("path-mass", "recover", ratio)),
        ]
        for ratio in PAPER
    ]
    head = ["kernels left", "authors, pruned and trained by turns", "leanonnx, the same", "in one step, no training"]
    return table(head, lines)


BLOCKS: dict[str, Callable[[], str]] = {f.__name__: f for f in (chains, inputs, accuracy, speed, reach, paper)}
BLOCKS |= inverse.BLOCKS | residual.NUMBERS | tolerance.NUMBERS | integers.NUMBERS | reliability.NUMBERS


def filled(text: str) -> str:
    """A page with its blocks as the results say.

    Raises:
        KeyError: no block has that name.
    """
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", text)


if __name__ == "__main__":
    pages = ((path, filled(path.read_text(encoding="utf-8"))) for path in sorted(DOCS.glob("*.md")))
    raise SystemExit(main(pages, "python -m benchmarks.digest", sys.argv[1:]))
