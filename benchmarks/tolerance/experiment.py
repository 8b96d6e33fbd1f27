"""The cells: a tolerance as the target of one command, and the best of eight budgets by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import COMMAND, RESULTS, ROOT, Finished, Row, environment, load, progress, run, save
from benchmarks.material import Material, times_as_fast, worst_of
from benchmarks.tolerance.inputs import prepare
from benchmarks.tolerance.page import AIMED, HAND, NAME, Target, target_holds

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
BOXES_MODULE = "benchmarks.tolerance.boxes"
SCORE = f"{ROOT / 'benchmarks' / 'tolerance' / 'boxes.py'}:boxes_kept"


@dataclass(frozen=True)
class Case:
    """A network and the loss that may be borne."""

    network: str
    target: Target

    @property
    def key(self) -> Row:
        """The part of a row that identifies it."""
        return {"network": self.network, "option": self.target.option, "limit": self.target.limit}


AGREEING = (
    "cifar_resnet_4b",
    "sri_resnet_a",
    "marabou_cifar_large",
    "oval_cifar_wide",
    "squeezenet_fp16",
    "effnet_lite0",
    "ppocr_mobile_v2_cls",
)
CASES = (
    *(Case(name, Target("min-agreement", 0.97)) for name in AGREEING),
    Case("yolox_nano", Target("max-drop", 0.1)),
    Case("carvana_unet_simp", Target("max-deviation", 0.02)),
    Case("seis_unet", Target("max-deviation", 0.2)),
    Case("super_resolution_10", Target("min-psnr", 38)),
    Case("msd_cs", Target("max-deviation", 0.2)),
    Case("gtcrn_simple", Target("max-deviation", 0.3)),
    Case("silero_vad", Target("max-deviation", 0.2)),
    Case("crepe_full", Target("max-deviation", 0.2)),
)


def source_of(material: Material, name: str) -> Path:
    """The file of a network.

    Raises:
        FileNotFoundError: it is not there.
    """
    path = material.model(name)
    if path is None:
        raise FileNotFoundError(name)
    return path


def with_boxes(material: Material, name: str, part: str) -> Path:
    """Samples with the original's own boxes."""
    path = material.work / f"{name}_{part}_boxes.npz"
    if not path.exists():
        samples = material.inputs(name, "calib" if part == "calib" else "score")
        done = run([sys.executable, "-m", BOXES_MODULE, "boxes", source_of(material, name), samples, path], ROOT)
        if done.code:
            raise RuntimeError(f"{name}: {done.message}")
    return path


def value(material: Material, case: Case, new: Path, part: str) -> float:
    """The number that the tolerance limits, on one part of the samples."""
    if case.target.option == "max-drop":
        samples = with_boxes(material, case.network, part)
        return 1 - float(run([sys.executable, "-m", BOXES_MODULE, "score", new, samples], ROOT).report["score"])
    return float(material.unseen(case.network, new)[case.target.number])


def compress(material: Material, case: Case, target: Path, *options: str | Path) -> Finished:
    """``leanonnx compress`` without timing."""
    target.unlink(missing_ok=True)
    source, scored = source_of(material, case.network), "--score" in options
    calib = with_boxes(material, case.network, "calib") if scored else material.inputs(case.network, "calib")
    words: list[str | Path] = ["--calib", calib, "--no-measure", "--json", *options]
    return run([COMMAND, "compress", source, target, *words])


def aimed(material: Material, case: Case, seconds: float) -> Row:
    """One command with the tolerance as its target."""
    target, limit = material.work / f"{case.network}_{AIMED}.onnx", f"{case.target.limit:g}"
    words = ["--score", SCORE] if case.target.option == "max-drop" else []
    done = compress(material, case, target, *words, f"--{case.target.option}", limit, "--minimise", "macs")
    row: Row = {"seconds": round(done.seconds, 1)}
    if done.code:
        return row | {"exit_code": done.code, "message": done.message}
    report = done.report
    row |= {"macs": report["macs"]["fraction"], "tolerance": report["tolerance"]}
    row["recoveries"] = len(report["tolerance"]["looks"])
    return row | judged(material, case, target, seconds)


def judged(material: Material, case: Case, new: Path, seconds: float) -> Row:
    """The number on samples that no choice has seen, and the time beside the original."""
    number = value(material, case, new, "score")
    row: Row = {"unseen": number, "holds": target_holds(case.target.option, number, case.target.limit)}
    return row | times_as_fast(source_of(material, case.network), new, seconds)


def by_hand(material: Material, case: Case, seconds: float) -> Row:
    """The smallest of eight budgets whose number on the held-out samples of the report is within the tolerance."""
    tried: list[Row] = []
    for budget in BUDGETS:
        new = material.work / f"{case.network}_{budget:g}.onnx"
        done = compress(material, case, new, "--macs", f"{budget:g}", "--best-effort")
        row: Row = {"budget": budget, "seconds": round(done.seconds, 1), "exit_code": done.code}
        if not done.code:
            row |= {"macs": done.report["macs"]["fraction"], "held_out": held_out(material, case, new, done.report)}
        tried.append(row)
    within = [
        row
        for row in tried
        if row.get("held_out") is not None and target_holds(case.target.option, row["held_out"], case.target.limit)
    ]
    found: Row = {"seconds": sum(row["seconds"] for row in tried), "recoveries": len(tried), "tried": tried}
    if not within:
        return found | {"exit_code": 1, "message": "no budget is within the tolerance"}
    best = min(within, key=lambda row: float(row["macs"]))
    new = material.work / f"{case.network}_{best['budget']:g}.onnx"
    return found | {"macs": best["macs"], "asked": best["budget"]} | judged(material, case, new, seconds)


def held_out(material: Material, case: Case, new: Path, report: Row) -> float | None:
    """The number that a person reads off the report; the boxes are scored on all inputs of the calibration."""
    if case.target.option == "max-drop":
        return value(material, case, new, "calib")
    deviation = (report.get("recovery") or {}).get("deviation")
    number = worst_of(deviation["outputs"])[case.target.number] if deviation else None
    return None if number is None else float(number)


def results() -> Row:
    """The results so far."""
    return load(NAME) if (RESULTS / f"{NAME}.json").exists() else {"rows": []}


def measure(material: Material, networks: Sequence[str], ways: Sequence[str], seconds: float) -> None:
    """Every cell that is missing; saved after each."""
    work = {AIMED: aimed, HAND: by_hand}
    for case in CASES:
        for way in ways:
            key = case.key | {"way": way}
            if case.network not in networks or any(key.items() <= row.items() for row in results()["rows"]):
                continue
            if material.model(case.network) is None:
                progress(f"{case.network}: not there")
                continue
            prepare(material, case.network)
            row = key | work[way](material, case, seconds)
            progress(json.dumps(row))
            data = results()
            save(NAME, data | {"environment": environment(), "rows": [*data["rows"], row]})
