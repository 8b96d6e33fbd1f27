"""Accuracy that each choice of channels leaves, without data and without any change to the surviving weights.

    python -m benchmarks.selection [ZOO] [--page]

ZOO is a folder with the models and their own scorer, ``ZOO/zoo.py score NAME changed.onnx``, which scores 4,000
CIFAR-10 images. ``--page`` writes the page anew from the last results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from benchmarks.common import ROOT, Row, compress, environment, load, measured_by, progress, publish, run, save, table

NAMES = ("cifar_resnet_4b", "sri_resnet_a", "marabou_cifar_large", "oval_cifar_wide", "vit_ibp_3_3_8")
TRANSFORMERS = ("vit_ibp_3_3_8",)
RATIOS = (0.75, 0.5, 0.25)
SEEDS = 5
ANY = ("--align", "1")
CHOICES: dict[str, tuple[tuple[str, ...], ...]] = {
    "cover": ((*ANY, "--method", "lean", "--chains", "cover"),),
    "blocks": (("--align", "16", "--method", "lean", "--chains", "cover"),),
    "through": ((*ANY, "--method", "lean", "--chains", "through"),),
    "free": ((*ANY, "--method", "lean", "--chains", "free"),),
    **{name: ((*ANY, "--method", name),) for name in ("norm", "l1", "l2", "fpgm")},
    "random": tuple((*ANY, "--method", "random", "--seed", str(seed)) for seed in range(SEEDS)),
}
BEATEN = ("l1", "l2", "random")
MEANING = f"""\
`cover`, `through` and `free` are the three kinds of chains of `--method lean`; `blocks` is `cover` with widths in
whole blocks of 16, as they run fast on CPUs with AVX-512, where all others keep any width; `norm`, `l1`, `l2` and
`fpgm` are sizes of filters; `random` is the mean of {SEEDS} seeds. Nothing is fine-tuned or recovered: the numbers
compare choices, they are not what a recovered network reaches."""


class Cell(NamedTuple):
    """One compression: network, fraction of the multiply-adds, choice, and the options that ask for it."""

    name: str
    ratio: float
    choice: str
    options: tuple[str, ...]


def cells() -> Iterator[Cell]:
    """All that is measured."""
    for name, ratio, (choice, variants) in product(NAMES, RATIOS, CHOICES.items()):
        for options in variants:
            yield Cell(name, ratio, choice, options)


def measure(zoo: Path, folder: Path, cell: Cell) -> Row:
    """Compress and score one network."""
    model = json.loads((zoo / "zoo.json").read_text())["models"][cell.name]
    target = folder / f"{'_'.join([cell.name, str(cell.ratio), *cell.options]).replace('-', '')}.onnx"
    done = compress(zoo / model["file"], target, "--macs", str(cell.ratio), "--best-effort", *cell.options)
    if done.code:
        raise RuntimeError(f"{cell}: exit code {done.code}: {done.message}")
    scored = run([sys.executable, zoo / "zoo.py", "score", cell.name, target, "--threads", "1"])
    if scored.code:
        raise RuntimeError(f"{cell}: {scored.output}{scored.message}")
    target.unlink()
    row = {
        "network": cell.name,
        "ratio": cell.ratio,
        "choice": cell.choice,
        "options": list(cell.options),
        "macs": done.report["macs"]["fraction"],
        "accuracy": scored.report["value"],
        "baseline": scored.report["baseline"],
        "images": scored.report["n"],
    }
    progress(f"{cell.name} {cell.ratio} {' '.join(cell.options)}: {row['accuracy']:.4f} at {row['macs']:.3f}")
    return row


def measure_all(zoo: Path) -> Row:
    """Every cell, two at a time: nothing here is timed."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(partial(measure, zoo, Path(folder)), cells()))
    return {"environment": environment(), "rows": rows}


def accuracy(rows: Iterable[Row], name: str, ratio: float, choice: str) -> float:
    """Accuracy of one network, the mean over seeds where there are some."""
    wanted = (name, ratio, choice)
    return fmean(r["accuracy"] for r in rows if (r["network"], r["ratio"], r["choice"]) == wanted)


def over_budget(rows: Iterable[Row], name: str, ratio: float) -> float | None:
    """The lowest fraction of multiply-adds that was reached, where it is not the one asked for."""
    reached = [r["macs"] for r in rows if (r["network"], r["ratio"]) == (name, ratio)]
    return max(reached) if max(reached) > ratio else None


def means(rows: list[Row], names: Iterable[str]) -> dict[tuple[float, str], float]:
    """Mean accuracy over networks by ratio and choice."""
    chosen = tuple(names)
    return {
        (ratio, choice): fmean(accuracy(rows, name, ratio, choice) for name in chosen)
        for ratio, choice in product(RATIOS, CHOICES)
    }


def write_page(data: Row) -> Path:
    """``docs/selection.md`` from the results."""
    rows = data["rows"]
    convolutional = [name for name in NAMES if name not in TRANSFORMERS]
    sections = [
        f"Top-1 accuracy in % on {rows[0]['images']} CIFAR-10 images after channels were removed until the given "
        "fraction of the multiply-adds was left.",
        MEANING.replace("\n", " "),
        "## Mean over the networks",
        _mean_table(partial(means, rows), convolutional),
        _verdict(means(rows, NAMES), means(rows, convolutional))
        + f" {_wins(rows)} The accuracy of random varies over seeds with a standard deviation of "
        f"{100 * seed_spread(rows):.1f} points, so that a few points on so few networks are no proof of a better "
        "choice. Guessing gives 10.",
        *(part for name in NAMES for part in _network(rows, name)),
        measured_by("selection", data["environment"]),
    ]
    return publish("selection", "Which channels to keep, without data", sections)


def _mean_table(mean: Callable[[Iterable[str]], dict[tuple[float, str], float]], convolutional: list[str]) -> str:
    groups = {"convolutional": convolutional, f"with {', '.join(TRANSFORMERS)}": list(NAMES)}
    rows = [
        [f"{ratio:g}, {len(names)} networks ({label})", *_marked({choice: found[ratio, choice] for choice in CHOICES})]
        for label, names in groups.items()
        for found in [mean(names)]
        for ratio in RATIOS
    ]
    return table(["multiply-adds", *CHOICES], rows)


def _marked(values: dict[str, float]) -> list[str]:
    best = max(values.values())
    return [f"**{100 * v:.1f}**" if v == best else f"{100 * v:.1f}" for v in values.values()]


def _verdict(*found: dict[tuple[float, str], float]) -> str:
    """What the means say of covering chains, the choices that they must beat first."""
    lost = dict.fromkeys(
        (other, ratio)
        for mean in found
        for other, ratio in product(CHOICES, RATIOS)
        if other != "cover" and mean[ratio, "cover"] <= mean[ratio, other]
    )
    must = [pair for pair in lost if pair[0] in BEATEN]
    others = [pair for pair in lost if pair[0] not in BEATEN]
    text = (
        "The best choice of a row is in bold. Covering chains, the default, leave more than l1, l2 and random at every "
    )
    text += f"ratio, except for {_pairs(must)}." if must else "ratio, with and without the transformer."
    return text + (f" In at least one of the two means they leave less than {_pairs(others)}." if others else "")


def _pairs(pairs: list[tuple[str, float]]) -> str:
    return ", ".join(f"{choice} at {ratio:g}" for choice, ratio in pairs)


def _wins(rows: list[Row]) -> str:
    """In how many single cells covering chains leave more than each choice that they must beat."""
    places = list(product(NAMES, RATIOS))
    wins = {
        other: sum(accuracy(rows, *place, "cover") > accuracy(rows, *place, other) for place in places)
        for other in BEATEN
    }
    counts = ", ".join(f"than {other} in {count}" for other, count in wins.items())
    return f"Of the {len(places)} single cells below they leave more {counts}."


def seed_spread(rows: Iterable[Row]) -> float:
    """Standard deviation of the accuracy over the seeds of random, the mean over networks and ratios."""
    cells: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if row["choice"] == "random":
            cells.setdefault((row["network"], row["ratio"]), []).append(row["accuracy"])
    return fmean(map(stdev, cells.values()))


def _network(rows: list[Row], name: str) -> list[str]:
    base = next(r["baseline"] for r in rows if r["network"] == name)
    lines, notes = [], []
    for ratio in RATIOS:
        held = over_budget(rows, name, ratio)
        values = {choice: accuracy(rows, name, ratio, choice) for choice in CHOICES}
        lines.append([f"{ratio:g}{'*' if held else ''}", *_marked(values)])
        if held:
            notes.append(f"{ratio:g} (up to {held:.3f} are left)")
    text = f"The untouched network reaches {100 * base:.1f}."
    if notes:
        text += f" *Not reached by every choice: {', '.join(notes)}; the lowest reachable was taken."
    return [f"## {name}", table(["multiply-adds", *CHOICES], lines), text]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("zoo", type=Path, nargs="?", default=ROOT.parent / "shared" / "zoo", help="models and scorer")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    args = parser.parse_args(argv)
    if not args.page:
        save("selection", measure_all(args.zoo))
    write_page(load("selection"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
