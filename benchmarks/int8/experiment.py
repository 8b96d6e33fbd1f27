"""The cells: every network, as it is and at half the multiply-adds, put into 8-bit integers by several quantisers."""

from __future__ import annotations

import filecmp
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import COMMAND, ROOT, Row, environment, progress, run, save, without_folders
from benchmarks.int8.page import (
    DEFAULTS,
    FLOAT,
    HALF,
    LEANONNX,
    METHODS,
    NAME,
    NNCF,
    ORIGINAL,
    SOURCES,
    VNNI,
    WITHOUT,
    results,
)
from benchmarks.material import Material, percentiles
from benchmarks.tolerance.inputs import prepare
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.quantization.formats import int8_format
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess
from leanonnx.runtime.timing import SLOWER

FOLDER_NETWORKS = ("effnet_lite0", "mobilenetv2_dogs", "opennsfw", "crepe_full", "resnet56_cifar")
ZOO_NETWORKS = (
    *("cifar_resnet_4b", "sri_resnet_a", "marabou_cifar_large", "oval_cifar_wide", "mnist_cntk"),
    *("ppocr_mobile_v2_cls", "yolox_nano", "nanodet_m_b", "deeplab_v3_mnv2", "super_resolution_10", "msd_cs"),
    *("carvana_unet_simp", "seis_unet", "pfld_landmarks"),
)
NETWORKS = (*ZOO_NETWORKS, *FOLDER_NETWORKS)
KEY = ("network", "source", "method", "kind")
KINDS = (VNNI, WITHOUT)
TARGETS = {VNNI: "cpu-arm", WITHOUT: "cpu-avx2"}
"""A target of each kind of processor, for which a network is made where this machine is of the other kind."""
PLAIN = (sys.executable, ROOT / "benchmarks" / "plain.py")
QUANTISERS = ROOT / "benchmarks" / "int8" / "quantisers.py"
VERSION = "from importlib.metadata import version; print(version('nncf'))"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network, what was done to it in floats, who puts it into integers, and the kind of processor."""

    network: str
    source: str
    method: str
    kind: str

    @property
    def key(self) -> Row:
        """The part of a row that identifies it."""
        return {name: getattr(self, name) for name in KEY}

    def file(self, material: Material) -> Path:
        """The file of the network."""
        model = material.model(self.network)
        if model is not None and (self.source, self.method) == (ORIGINAL, FLOAT):
            return model
        return material.work / f"{'_'.join(self.key.values())}.onnx".replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure.

    Attributes:
        networks, sources, methods: the cells.
        other_kind: those for the other kind of processor too.
        threads: numbers of threads that they are timed with; none if they are not.
        seconds: of one measurement.
        nncf: an interpreter that has NNCF.
    """

    networks: Sequence[str] = NETWORKS
    sources: Sequence[str] = SOURCES
    methods: Sequence[str] = METHODS
    other_kind: bool = True
    threads: Sequence[int] = (1, 2)
    seconds: float = 4.0
    nncf: Path | None = None

    def cells(self, network: str) -> Iterator[Cell]:
        """Cells of a network; each float network comes before those that are made from it."""
        host = host_kind()
        for source in self.sources:
            for method in METHODS:
                if method != FLOAT and (method not in self.methods or (method == NNCF and self.nncf is None)):
                    continue
                for kind in KINDS if self.other_kind and method not in (FLOAT, DEFAULTS) else (host,):
                    yield Cell(network=network, source=source, method=method, kind=kind)


def host_kind() -> str:
    """The kind of this machine's processor."""
    return WITHOUT if int8_format("cpu", "auto").reduced_weights else VNNI


def by_leanonnx(material: Material, cell: Cell, target: Path, measures: bool, threads: int = 1) -> Row:
    """Compress; ``measures``: leanonnx times the network and decides by that, which it only can for this processor."""
    words: list[str | Path] = [COMMAND, "compress", Cell.file(_float(cell, ORIGINAL), material), target, "--json"]
    words += ["--freeze", "--calib", material.inputs(cell.network, "calib"), "--threads", str(threads)]
    words += ["--macs", "0.5", "--best-effort"] if cell.source == HALF else []
    words += ["--int8"] if cell.method == LEANONNX else []
    words += [] if measures else ["--no-measure"]
    words += ["--target", TARGETS[cell.kind]] if cell.kind != host_kind() else []
    done = run(words)
    row: Row = {"seconds": round(done.seconds, 1), "measured": measures}
    if done.code:
        return row | {"exit_code": done.code, "message": done.message}
    report = done.report
    row |= {"macs": report["macs"]["fraction"], "warnings": report["warnings"]}
    if report.get("int8"):
        told = report["int8"]
        formats = [layer["format"] for layer in told["layers"]]
        row["said"] = {key: told[key] for key in ("kept", "reason", "formats", "ranges", "integer_nodes")}
        row["said"] |= {"int8_layers": formats.count("int8"), "layers": len(formats)}
    return row


def by_others(material: Material, cell: Cell, target: Path, python: Path) -> Row:
    """Quantise the float network of the same source."""
    words: list[str | Path] = [python, QUANTISERS, cell.method, Cell.file(_float(cell), material), target]
    words += [material.inputs(cell.network, "calib"), *(["--reduced"] if cell.kind == WITHOUT else [])]
    done = run(words)
    row: Row = {"seconds": round(done.seconds, 1)}
    return row | ({"exit_code": done.code, "message": done.message} if done.code else {})


def _float(cell: Cell, source: str = "") -> Cell:
    """The float network that a cell is made from, or another one of the network."""
    return replace(cell, source=source or cell.source, method=FLOAT, kind=host_kind())


def make(material: Material, cell: Cell, wanted: Wanted, target: Path) -> Row:
    """Make the network of a cell, and score it on samples that were not used."""
    if target == material.model(cell.network):
        return score(material, cell, target)
    target.unlink(missing_ok=True)
    if cell.method in (FLOAT, LEANONNX):
        measures = bool(wanted.threads) and cell.method == LEANONNX and cell.kind == host_kind()
        row = by_leanonnx(material, cell, target, measures)
    elif not Cell.file(_float(cell), material).exists():
        row = {"exit_code": 1, "message": "there is no float network"}
    else:
        row = by_others(material, cell, target, wanted.nncf or Path(sys.executable))
    return row if "exit_code" in row else row | score(material, cell, target)


def score(material: Material, cell: Cell, path: Path) -> Row:
    """Bytes and score of a file, as its nodes are; the message if it cannot be run."""
    try:
        unseen = material.unseen(cell.network, path, () if cell.method == FLOAT else PLAIN)
    except (RuntimeError, ValueError) as error:
        return {"exit_code": 1, "message": f"not scored: {error}"}
    return {"bytes": path.stat().st_size, "unseen": unseen}


def measure(material: Material, wanted: Wanted) -> None:
    """Every cell that is missing, then the times that are missing; saved after each."""
    if wanted.nncf is not None:
        save(NAME, results() | {"nncf": run([wanted.nncf, "-c", VERSION]).output.strip()})
    for network in wanted.networks:
        if material.model(network) is None:
            progress(f"{network}: not there")
            continue
        prepare(material, network)
        for cell in wanted.cells(network):
            row, path = known(cell), cell.file(material)
            if row is None or not path.exists():
                enter(cell.key | make(material, cell, wanted, path))
        for cell in wanted.cells(network) if wanted.threads else ():
            if cell.kind == host_kind():
                finish(material, cell, wanted)


def finish(material: Material, cell: Cell, wanted: Wanted) -> None:
    """Let leanonnx decide by time where it has not yet, and time what has not been timed on a quiet machine."""
    row, path = known(cell), cell.file(material)
    if row is not None and cell.method == LEANONNX and not row.get("measured"):
        row = decide(material, cell, row)
        enter(row)
    if row is None or "exit_code" in row or (cell.source, cell.method) == (ORIGINAL, FLOAT):
        return
    before = Cell.file(_float(cell, ORIGINAL if cell.method == FLOAT else ""), material)
    for threads in wanted.threads:
        if lacks_time(row, threads):
            found = side_by_side(before, path, threads, wanted.seconds)
            if cell.method == LEANONNX and threads > 1 and found.get("verdict") == SLOWER:
                found = decided_for(material, cell, threads, before, wanted.seconds)
            row = row | {"times": row.get("times", {}) | {str(threads): found}}
            enter(row)


def decided_for(material: Material, cell: Cell, threads: int, before: Path, seconds: float) -> Row:
    """The time of what leanonnx writes when it decides for so many threads, rather than for one."""
    path = cell.file(material).with_suffix(f".{threads}.onnx")
    path.unlink(missing_ok=True)
    made = by_leanonnx(material, cell, path, True, threads)
    if "exit_code" in made:
        return {"failed": made["message"]}
    return side_by_side(before, path, threads, seconds) | {"decided_for": threads, "kept": made["said"]["kept"]}


def lacks_time(row: Row, threads: int) -> bool:
    """True if a row has no time, or one of a busy machine."""
    times = row.get("times", {}).get(str(threads))
    return times is None or times.get("busy", False)


def decide(material: Material, cell: Cell, row: Row) -> Row:
    """The row of what leanonnx writes when it measures; its score is kept where that is the same file."""
    path = cell.file(material)
    attempt = path.with_suffix(".measured.onnx")
    attempt.unlink(missing_ok=True)
    new = by_leanonnx(material, cell, attempt, True)
    if "exit_code" in new:
        path.unlink(missing_ok=True)
        return cell.key | new
    if path.exists() and "unseen" in row and filecmp.cmp(path, attempt, shallow=False):
        attempt.unlink()
        return row | new
    attempt.replace(path)
    return cell.key | new | score(material, cell, path)


def side_by_side(before: Path, after: Path, threads: int, seconds: float) -> Row:
    """Two networks by turns in a fresh process: milliseconds of both, the ratio with its 95 % interval, noise."""
    feed = load_dag(before).observation.feeds
    try:
        timing = compare_in_subprocess(before, after, feed, Setting(threads=threads), seconds)
    except RunFailed as error:
        return {"failed": str(error)}
    numbers = {"speedup": timing.speedup, "noise": timing.noise}
    row: Row = {key: round(value, 4) for key, value in numbers.items()}
    row |= {"interval": [round(end, 4) for end in timing.interval], "verdict": timing.verdict, "busy": timing.is_busy}
    return row | {"float_ms": percentiles(timing.before), "ms": percentiles(timing.after)}


def known(cell: Cell) -> Row | None:
    """The row of a cell; None if there is none."""
    return next((row for row in results()["rows"] if cell.key.items() <= row.items()), None)


def enter(row: Row) -> None:
    """Save a row in place of one of the same cell; its message without the folders of models."""
    data = results()
    if "message" in row:
        row = row | {"message": without_folders(row["message"])}
    rows = [each for each in data["rows"] if any(each[key] != row[key] for key in KEY)]
    progress(json.dumps(row))
    save(NAME, data | {"environment": environment(), "host": host_kind(), "rows": [*rows, row]})
