"""The cells: every network compressed with channels alone and with whole branches, scored and timed side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.blocks.page import BLOCKS, BUDGETS, CHANNELS, LATENCY, MATCHED, MEDIAN, NAME, ORIGINAL, RATIOS
from benchmarks.common import COMMAND, RESULTS, Row, environment, load, progress, run, save
from benchmarks.material import THREADS, Material, milliseconds, times_as_fast

FOLDER_NETWORKS = (
    "resnet20_cifar",
    "resnet32_cifar",
    "resnet56_cifar",
    "mobilenetv2_dogs",
    "effnet_lite0",
    "opennsfw",
)
ZOO_NETWORKS = ("cifar_resnet_4b", "sri_resnet_a")
NETWORKS = (*FOLDER_NETWORKS, *ZOO_NETWORKS)
KEY = ("network", "budget", "ratio", "way")
WAYS = {CHANNELS: ("--blocks", "never"), BLOCKS: ("--blocks", "auto")}
EQUAL = 0.03
"""Relative difference of two measured times up to which they count as equal."""
MATCHES = 2
"""How often channels alone are asked again, for the time that the network with branches takes."""
TUNED_RATIO = 0.2
"""Multiply-adds left of the network that is fine-tuned."""
ENTRY = "from leanonnx.cli.main import main; main()"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network, a budget (its unit and fraction), and a way to meet it."""

    network: str
    budget: str
    ratio: float
    way: str

    @property
    def key(self) -> Row:
        """The part of a row that identifies it."""
        return {"network": self.network, "budget": self.budget, "ratio": self.ratio, "way": self.way}

    def file(self, work: Path, mark: str = "") -> Path:
        """The file of the compressed network."""
        return work / f"{self.network}_{self.budget}_{self.ratio:g}_{self.way}{mark}.onnx"


@dataclass(frozen=True)
class Wanted:
    """The networks, units of budgets and ways to measure."""

    networks: Sequence[str] = NETWORKS
    budgets: Sequence[str] = BUDGETS
    ways: Sequence[str] = tuple(WAYS)


def compressed(material: Material, cell: Cell, asked: float, target: Path) -> Row:
    """Compress to a budget, and score on samples that were not used."""
    source = material.model(cell.network)
    if source is None:
        raise FileNotFoundError(cell.network)
    words: list[str | Path] = ["--calib", material.inputs(cell.network, "calib"), "--threads", str(THREADS)]
    words += ["--best-effort", "--json", *WAYS[cell.way]]
    words += ["--no-measure"] if cell.budget == "macs" else []
    target.unlink(missing_ok=True)
    plan = target.with_suffix(".json")
    done = run([COMMAND, "compress", source, target, f"--{cell.budget}", f"{asked:.5g}", "--plan-out", plan, *words])
    row: Row = {"asked": round(asked, 5), "seconds": round(done.seconds, 1)}
    if done.code:
        return row | {"exit_code": done.code, "message": done.message}
    report = done.report
    row |= {unit: report[unit]["fraction"] for unit in ("macs", "params")}
    row |= {"said": report["latency"], "warnings": report["warnings"]}
    row["removed_branches"] = [each["join"] for each in json.loads(plan.read_text()).get("removed_branches", [])]
    held = (report.get("recovery") or {}).get("deviation")
    if held:
        row["held_out"] = {"samples": held["samples"], "metric": held["metric"], "outputs": held["outputs"]}
    return row | {"unseen": material.unseen(cell.network, target)}


def side_by_side(material: Material, network: str, files: dict[str, Path], seconds: float) -> Row:
    """The original and its compressed networks by turns, and channels alone against the network with branches."""
    source = material.model(network)
    if source is None:
        raise FileNotFoundError(network)
    row: Row = {"ms": milliseconds({ORIGINAL: source, **files}, seconds)}
    if BLOCKS in files:
        others = [way for way in (CHANNELS, MATCHED) if way in files]
        row["gain"] = {way: times_as_fast(files[way], files[BLOCKS], seconds) for way in others}
    return row


def matched(material: Material, cell: Cell, row: Row, seconds: float) -> Row | None:
    """Channels alone at the measured time of the network with branches; None if they have it, or cannot.

    Args:
        material: networks and data.
        cell: the cell of channels alone.
        row: its row.
        seconds: of one measurement.
    """
    work, best, nearest = material.work, None, EQUAL
    files = {CHANNELS: cell.file(work), BLOCKS: replace(cell, way=BLOCKS).file(work)}
    target, attempt = replace(cell, way=MATCHED).file(work), work / "attempt.onnx"
    asked = row["asked"]
    for turn in range(MATCHES + 1):
        times = milliseconds(files, seconds)
        ratio = times[BLOCKS][MEDIAN] / times[CHANNELS][MEDIAN]
        if turn and (best is None or abs(ratio - 1) < nearest):
            best, nearest = cell.key | {"way": MATCHED} | row, abs(ratio - 1)
            attempt.replace(target)
        if abs(ratio - 1) <= EQUAL or turn == MATCHES:
            break
        asked, files[CHANNELS] = min(1.0, asked * ratio), attempt
        row = compressed(material, cell, asked, attempt)
        if "exit_code" in row:
            break
    return best


def results() -> Row:
    """The results so far."""
    return load(NAME) if (RESULTS / f"{NAME}.json").exists() else {"rows": [], "times": [], "tuned": []}


def measure(material: Material, wanted: Wanted, seconds: float) -> None:
    """Every cell that is missing; saved after each."""
    for network, budget, ratio in itertools.product(wanted.networks, wanted.budgets, RATIOS):
        if material.model(network) is None:
            progress(f"{network}: not there")
            continue
        fresh = False
        for way in wanted.ways:
            cell = Cell(network=network, budget=budget, ratio=ratio, way=way)
            if not _known(cell.key) or not cell.file(material.work).exists():
                enter("rows", cell.key, compressed(material, cell, ratio, cell.file(material.work)))
                fresh = True
        if fresh:
            finish(material, Cell(network=network, budget=budget, ratio=ratio, way=CHANNELS), seconds)


def finish(material: Material, cell: Cell, seconds: float) -> None:
    """Match the times under a latency budget, and time what there is."""
    work = material.work
    files = {way: replace(cell, way=way).file(work) for way in (CHANNELS, BLOCKS, MATCHED)}
    files[MATCHED].unlink(missing_ok=True)
    known = _known(cell.key)
    if cell.budget == LATENCY and known and files[CHANNELS].exists() and files[BLOCKS].exists():
        found = matched(material, cell, known, seconds)
        if found:
            enter("rows", found, {})
    there = {way: path for way, path in files.items() if path.exists()}
    place = {key: value for key, value in cell.key.items() if key != "way"}
    enter("times", place, side_by_side(material, cell.network, there, seconds))


def _known(key: Row) -> Row | None:
    return next((row for row in results()["rows"] if key.items() <= row.items()), None)


def enter(part: str, key: Row, row: Row) -> None:
    """Save a row in place of one of the same key."""
    data = results()
    names = [name for name in KEY if name in key]
    old = [each for each in data[part] if all(each.get(name) == key[name] for name in names)]
    data[part] = [each for each in data[part] if each not in old] + [key | row]
    progress(json.dumps(key | row))
    save(NAME, data | {"environment": environment()})


def tune(material: Material, network: str, ways: Sequence[str], python: Path, minutes: float, seconds: float) -> None:
    """A network with few multiply-adds, recovered and then fine-tuned on the calibration inputs.

    Args:
        material: networks and data.
        network: its name.
        ways: with whole branches or without.
        python: an interpreter that has torch and this package.
        minutes: of training.
        seconds: of one measurement.
    """
    source, data = material.model(network), material.inputs(network, "calib")
    if source is None:
        raise FileNotFoundError(network)
    for way in ways:
        cell = Cell(network=network, budget="macs", ratio=TUNED_RATIO, way=way)
        start, target = cell.file(material.work), cell.file(material.work, "_tuned")
        row = compressed(material, cell, TUNED_RATIO, start)
        if "exit_code" not in row:
            words: list[str | Path] = [python, "-c", ENTRY, "finetune", start, target, "--data", data]
            done = run([*words, "--teacher", source, "--minutes", f"{minutes:g}", "--json"])
            if done.code:
                raise RuntimeError(f"{network}: {done.message}")
            row["tuned"] = {"seconds": round(done.seconds), "unseen": material.unseen(network, target)}
            row["tuned"] |= times_as_fast(source, target, seconds)
        enter("tuned", cell.key, row)
