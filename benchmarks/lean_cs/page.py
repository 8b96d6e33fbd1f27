"""``docs/lean_cs.md`` and its plot, from the results."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from benchmarks.common import DOCS, Row, load, measured_by, publish, table

NAME = "lean_cs"
TARGET, LOWEST = 0.925, 0.05
AUTHORS = {"LEAN": "LEAN", "spectral norm": "norm", "L1 norm": "L1"}
STAGES = {"prune": "pruned only", "recover": "recovered", "finetune": "fine-tuned"}
CHAINED = {"mixed": "path mass and free chains", "path-mass": "path mass", "free": "free chains"}
METHODS = ("path-mass", "free", "cover", "norm", "l1", "random")
COLOURS = {
    "LEAN": "black",
    "spectral norm": "gray",
    "L1 norm": "silver",
    "mixed": "tab:green",
    "path-mass": "tab:red",
    "free": "tab:blue",
}


class Found:
    """The results, by method, stage and ratio."""

    def __init__(self, data: Row) -> None:
        self.data = data
        self.cells = {(r["method"], r["stage"], r["ratio"]): r for r in data["rows"]}
        self.ratios = sorted({r["ratio"] for r in data["rows"]}, reverse=True)
        self.authors = {(r["method"], r["ratio"]): r for r in data["authors"]}

    def accuracy(self, method: str, stage: str, ratio: float) -> float | None:
        """Of one of our networks."""
        value: float | None = self.cells.get((method, stage, ratio), {}).get("accuracy")
        return value

    @property
    def easier(self) -> float:
        """By how much the authors' networks do better on the 25 images than on all 50, on average."""
        return fmean(r["even"] - r["published"] for r in self.data["authors"] if r["even"])

    def theirs(self, method: str, ratio: float) -> float | None:
        """Of one of the authors' networks on the same 25 images; an estimate from all 50 where it was not run again."""
        row = self.authors.get((method, ratio))
        if row is None:
            return None
        return float(row["even"] or row["published"] + self.easier)

    def chains(self) -> list[str]:
        """Methods of which there is a chain."""
        return [m for m in CHAINED if any(stage == "chain" and method == m for method, stage, _ in self.cells)]


def percent(value: float | None) -> str:
    """An accuracy."""
    return "" if value is None else f"{100 * value:.2f}"


def main_table(found: Found) -> str:
    """Chains beside the authors' networks, each with its number of kernels."""
    head = ["ratio", "LEAN, 50 images", *(f"{short}, 25 images" for short in AUTHORS.values())]
    for method in found.chains():
        head += [f"{CHAINED[method]}: kernels", *(["by"] if method == "mixed" else []), "recovered", "fine-tuned"]
    rows = []
    for ratio in found.ratios:
        line = [f"{ratio:g}", percent(found.authors.get(("LEAN", ratio), {}).get("published"))]
        for method in AUTHORS:
            row = found.authors.get((method, ratio), {})
            value = percent(found.theirs(method, ratio))
            line.append(value if row.get("even") else f"({value})")
        for method in found.chains():
            row = found.cells.get((method, "chain", ratio), {})
            best = row.get("accuracy")
            theirs = found.theirs("LEAN", ratio)
            mark = "**" if best is not None and theirs is not None and best >= theirs else ""
            by = [row.get("ranking", "")] if method == "mixed" else []
            line += [str(row.get("kernels", "")), *by, percent(row.get("recovered")), f"{mark}{percent(best)}{mark}"]
        rows.append(line)
    return table(head, rows)


def stage_table(found: Found, stage: str) -> str:
    """All methods after one stage."""
    methods = [m for m in METHODS if any((m, stage, ratio) in found.cells for ratio in found.ratios)]
    rows = [
        [f"{ratio:g}", *(percent(found.accuracy(method, stage, ratio)) for method in methods)]
        for ratio in found.ratios
        if any((method, stage, ratio) in found.cells for method in methods)
    ]
    return table(["ratio", *methods], rows)


def verdict(found: Found, method: str) -> str:
    """Where a chain reaches what the authors reach."""
    pairs = [(r, found.accuracy(method, "chain", r), found.theirs("LEAN", r)) for r in found.ratios]
    known = [(ratio, ours, theirs) for ratio, ours, theirs in pairs if ours is not None and theirs is not None]
    short = [f"{ratio:g} ({percent(ours)} to {percent(theirs)})" for ratio, ours, theirs in known if ours < theirs]
    text = f"By {CHAINED[method]}, {len(known) - len(short)} of {len(known)} networks are at or above the authors' LEAN"
    text += f"; below at {', '.join(short)}." if short else "."
    least = found.accuracy(method, "chain", LOWEST)
    if least is not None:
        text += f" At {LOWEST:g} it has {percent(least)}; the aim was {percent(TARGET)}."
    return text


def notes(found: Found) -> str:
    """What is to be known of single cells."""
    told: dict[str, list[str]] = {}
    for (method, _, ratio), row in found.cells.items():
        if "note" in row:
            told.setdefault(row["note"], []).append(f"{CHAINED.get(method, method)} at {ratio:g}")
    return " ".join(f"{', '.join(places)}: {note}." for note, places in told.items())


def effort(found: Found) -> str:
    """Images seen and time taken by the chains."""
    parts = []
    for method in found.chains():
        rows = [row for (m, stage, _), row in found.cells.items() if (m, stage) == (method, "chain")]
        images, seconds = sum(r["images"] for r in rows), sum(r["seconds"] for r in rows)
        low, high = min(r["images"] for r in rows), max(r["images"] for r in rows)
        parts.append(
            f"{CHAINED[method]} {images:,} images in {len(rows)} trainings ({low:,} to {high:,} each), "
            f"{seconds / 60:.0f} minutes of one thread of a busy machine, selection and recovery included"
        )
    return "Seen in training: " + "; ".join(parts) + ". The authors' 15 trainings of 3 epochs are 22,500 images."


def sections(found: Found) -> list[str]:
    """The page."""
    base, images = found.data["base"]["accuracy"], found.data["base"]["images"]
    fine = [row for (_, stage, _), row in found.cells.items() if stage == "finetune"]
    parts = [
        "Pixel accuracy in % of the mixed-scale dense network that the LEAN authors published (depth 50, width 1, 1275 "
        "kernels of 3x3), on noisy images of circles and squares. Ratios count the 3x3 kernels alone, as the paper "
        "does (`--ignore` the last layer).",
        f"Scored on {images} of the authors' 50 test images, those of even number. No training, selection or recovery "
        "has seen them; where the mixed chain changes its ranking was decided with their scores in view. The "
        f"untouched network has {percent(base)} there. Columns of the authors: LEAN as published on 50 images, then "
        "each ranking on the same 25 images; in brackets, where their network was not run again, the published value "
        f"plus {percent(found.easier)}, by which these images are easier for their networks on average.",
        "![Accuracy over ratio](lean_cs.svg)",
        "## Pruned and trained by turns",
        "Each ratio starts from the network of the line above: prune, recover, train. The authors go the same way, in "
        "15 steps. Bold: at or above the authors' LEAN.",
        main_table(found),
        " ".join([*(verdict(found, method) for method in found.chains()), notes(found)]),
        effort(found),
        "## Pruned in one step",
        f"Every method straight from the original. Recovery knows {found.data['calibration']} images and no labels. "
        "Of random there is one seed.",
    ]
    for stage, title in STAGES.items():
        if any(key[1] == stage for key in found.cells):
            parts += [f"### {title.capitalize()}", stage_table(found, stage)]
    if fine:
        parts.append(f"Each fine-tuned network has seen {fine[0]['images']:,} images.")
    parts += ["## How", HOW.replace("\n", " "), measured_by(NAME, found.data["environment"])]
    return parts


HOW = """\
500 training scenes and 100 validation images are drawn by the authors' recipe (`models/circles_squares.py`, series 1
and 2). A training step sees one image: a scene in one of its eight orientations with fresh noise. Cross-entropy, Adam,
the learning rate 1e-3 (2e-3 below a ratio of 0.2) after half a cosine; the best of three states on the validation
images counts. The network runs in `benchmarks/lean_cs/msd.c`, the same function as the ONNX graph, since convolutions
of one output channel use a small share of a processor in torch."""


def plot(found: Found) -> None:
    """Accuracy over ratio."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))

    def line(value: Callable[[str, float], float | None], name: str, label: str, **style: Any) -> None:
        points = [(ratio, 100 * one) for ratio in found.ratios if (one := value(name, ratio)) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=COLOURS[name], **style)

    def ours(stage: str) -> Callable[[str, float], float | None]:
        return lambda name, ratio: found.accuracy(name, stage, ratio)

    for name, short in AUTHORS.items():
        line(found.theirs, name, f"authors: {short}", marker="s", markersize=3, linestyle="--")
    for name in ("path-mass", "free"):
        line(ours("recover"), name, f"{CHAINED[name]}, one step, recovered", marker=".", linestyle=":")
    for name in found.chains():
        line(ours("chain"), name, f"{CHAINED[name]}, fine-tuned", marker="o")
    axes.axhline(100 * found.data["base"]["accuracy"], color="black", linewidth=0.5)
    axes.set(xscale="log", ylim=(75, 97), xlabel="kernels kept", ylabel="pixel accuracy (%)")
    marks = [0.05, 0.1, 0.2, 0.3, 0.5]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(DOCS / f"{NAME}.svg", metadata={"Date": None})


def write_page() -> None:
    """Page and plot."""
    found = Found(load(NAME))
    plot(found)
    publish(NAME, "The LEAN paper's experiment", sections(found))
