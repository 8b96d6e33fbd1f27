"""How far each architecture can be compressed, folded and unfolded, and what holds it back.

    python -m benchmarks.coverage [FOLDER] [--peer PYTHON] [--page]

Every network of ``benchmarks.networks`` is compressed to 0.26 of its multiply-adds (half of all channels), each in
a process of its own. FOLDER: further .onnx files, which get rows as well. PYTHON: an interpreter that has onnxsim,
whose structured pruning is then run on the same files. ``--page`` writes the page anew from the last results.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import (
    COMMAND,
    Row,
    build,
    compress,
    environment,
    load,
    measured_by,
    progress,
    publish,
    run,
    save,
    table,
)

RATIO = 0.26
PIN_SHARE = 0.01
TRANSFORMERS = ("convnext_tiny", "vit_b16", "swin_t")
NETWORKS = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "vgg16_bn",
    "googlenet",
    "densenet121",
    "unet",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2",
    *TRANSFORMERS,
)
PEER = """
import json, sys
import numpy as np, onnx, onnxruntime, onnxsim
source, target = sys.argv[1:]
ready, _ = onnxsim.simplify(onnx.load(source))
onnx.save(onnxsim.apply_structured_pruning(ready, sparsity=0.5), target)
onnx.checker.check_model(target, full_check=True)
session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
sizes = {i.name: [d if isinstance(d, int) else 1 if k == 0 else 224 for k, d in enumerate(i.shape)]
         for i in session.get_inputs()}
found = session.run(None, {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()})
if not all(np.isfinite(value).all() for value in found):
    raise SystemExit("the outputs are not finite")
print(json.dumps({"version": onnxsim.__version__}))
"""
MEANING = {
    "reached": "Fractions are what is left of the original after surgery, as `leanonnx` reports it; *error* is the "
    "relative difference between the file written and the masked original, the worst of three inputs; *seconds* are "
    "those of the whole process, proof included. BN: batch normalisation left in the graph (yes), folded into the "
    "convolutions (folded), or none in the network.",
    "pins": "For each network that stays above the budget, the kinds of pins and how many there are, those that touch "
    f"the most kernels first; kinds that touch less than {PIN_SHARE:.0%} of the kernels are left out.",
    "peer": "{version}: `simplify`, which folds batch normalisation, then "
    "`apply_structured_pruning(sparsity=0.5)`, which removes half of the channels of each layer whose surroundings it "
    "recognises. *valid*: the checker and onnxruntime accept the result. The two are asked different questions: "
    "onnxsim for half of the channels, leanonnx for the multiply-adds that half of all channels would leave, where it "
    "may take more from one layer to spare another. So the table shows how much of each network either one reaches at "
    "this setting, not which keeps the better channels; a higher sparsity takes onnxsim further down.",
}


def measure(source: Path, target: Path, name: str, batch_norm: str, best_effort: bool) -> Row:
    """Compress one file; where the budget is out of reach, to the lowest that can be reached."""
    done = compress(source, target, "--macs", str(RATIO), *(["--best-effort"] if best_effort else []))
    refusal = ""
    if done.code == 1 and not best_effort:
        refusal = done.message
        done = compress(source, target, "--macs", str(RATIO), "--best-effort")
    row: Row = {"network": name, "batch_norm": batch_norm, "exit_code": done.code, "seconds": round(done.seconds, 2)}
    row["message"] = refusal or (done.message if done.code else "")
    if not done.code:
        report = done.report
        row |= {unit: report[unit]["fraction"] for unit in ("kernels", "macs", "params", "bytes")}
        row |= {"reached": row["macs"] <= RATIO, "proof": report["proof"]["status"]}
        row |= {"error": report["proof"]["max_relative_error"], "bound": report["proof"]["bound"]}
        row |= {"before": report["macs"]["before"], "kernels_before": report["kernels"]["before"]}
        row |= {"pins": _reasons(report), "warnings": report["warnings"]}
    progress(f"{name} ({batch_norm}): {row.get('macs', row['message'])} {done.seconds:.1f} s")
    return row


def _reasons(report: Row) -> list[Row]:
    """Kinds of pins with their number, the kind that touches the most living kernels first."""
    held: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for pin in report["pins"]:
        kind = re.sub(r" '[^']*'", "", pin["reason"])
        held[kind] += pin["kernels"]
        places[kind] += 1
    return [{"kind": kind, "places": places[kind], "kernels": kernels} for kind, kernels in held.most_common()]


def measure_peer(python: Path, source: Path, target: Path, before: int | None) -> Row:
    """Structured pruning by onnxsim, counted by ``leanonnx inspect``."""
    target.unlink(missing_ok=True)
    done = run([python, "-c", PEER, source, target])
    row: Row = {
        "valid": done.code == 0,
        "seconds": round(done.seconds, 2),
        "message": done.message if done.code else "",
    }
    if target.exists():
        counted = run([COMMAND, "inspect", target, "--json"])
        if not counted.code and before:
            row["macs"] = round(counted.report["macs"] / before, 6)
    return row | {"version": done.report.get("version", "")}


def sources(folder: Path) -> Iterator[tuple[Path, str, str, bool]]:
    """Each network as file, name, how its batch normalisation is written, and whether best effort is enough."""
    for name in NETWORKS:
        for folded in (False,) if name in TRANSFORMERS else (True, False):
            path = build(name, folded, folder / f"{name}.onnx")
            yield path, name, "none" if name in TRANSFORMERS else "folded" if folded else "yes", name in TRANSFORMERS


def measure_all(further: Path | None, peer: Path | None) -> Row:
    """Every network and every further file."""
    rows, files = [], []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for path, name, batch_norm, best_effort in sources(folder):
            row = measure(path, folder / "out.onnx", name, batch_norm, best_effort)
            rows.append(row | _peer(peer, path, folder, row))
            path.unlink()
        for path in sorted(further.glob("*.onnx")) if further else ():
            row = measure(path, folder / "out.onnx", path.name, "", best_effort=False)
            files.append(row | _peer(peer, path, folder, row))
    return {"environment": environment(), "ratio": RATIO, "rows": rows, "files": files}


def _peer(python: Path | None, source: Path, folder: Path, row: Row) -> Row:
    return {"onnxsim": measure_peer(python, source, folder / "peer.onnx", row.get("before"))} if python else {}


def write_page(data: Row) -> Path:
    """``docs/coverage.md`` from the results."""
    rows = data["rows"] + data["files"]
    ratio = data["ratio"]
    sections = [
        f"Each network, with random weights, compressed by `leanonnx compress --macs {ratio:g}`; where this is out of "
        "reach, by the same with `--best-effort`.",
        table(["network", "BN", "MACs", "kernels", "parameters", "error", "seconds"], map(_line, rows)),
        _summary(data["rows"], ratio) + " " + MEANING["reached"],
        *_pins([row for row in rows if not row.get("reached")]),
        *_peers(rows),
        measured_by("coverage", data["environment"]),
    ]
    return publish("coverage", "What can be compressed", sections)


def _line(row: Row) -> list[str]:
    if row["exit_code"]:
        return [row["network"], row["batch_norm"], f"exit {row['exit_code']}", "", "", "", f"{row['seconds']:.1f}"]
    fractions = [f"{row[unit]:.3f}" for unit in ("macs", "kernels", "params")]
    if not row["reached"]:
        fractions[0] += "*"
    return [row["network"], row["batch_norm"], *fractions, f"{row['error']:.1e}", f"{row['seconds']:.1f}"]


def _summary(rows: list[Row], ratio: float) -> str:
    reached = sum(bool(row.get("reached")) for row in rows)
    proven = sum(row.get("proof") == "passed" for row in rows)
    return (
        f"{reached} of {len(rows)} files reach {ratio:g} of the multiply-adds (* marks the others); "
        f"{proven} of {len(rows)} results are proven and written."
    )


def _pins(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        [f"{row['network']} ({row['batch_norm']})", f"{row['macs']:.3f}", pin["kind"], str(pin["places"])]
        for row in rows
        for pin in row.get("pins", [])
        if pin["kernels"] >= PIN_SHARE * row["kernels_before"]
    ]
    return ["## What holds the others back", table(["network", "MACs", "pin", "places"], lines), MEANING["pins"]]


def _peers(rows: list[Row]) -> list[str]:
    found = [row for row in rows if "onnxsim" in row]
    if not found:
        return []
    lines = [
        [
            row["network"],
            row["batch_norm"],
            _left(row),
            _left(row["onnxsim"]),
            "yes" if row["onnxsim"]["valid"] else "no",
        ]
        for row in found
    ]
    version = next(row["onnxsim"]["version"] for row in found if row["onnxsim"]["version"])
    head = ["network", "BN", "leanonnx, MACs", "onnxsim, MACs", "onnxsim, valid"]
    return [
        "## Beside onnxsim",
        table(head, lines),
        MEANING["peer"].format(version=f"onnxsim {version.removeprefix('v')}"),
    ]


def _left(row: Row) -> str:
    return f"{row['macs']:.3f}" if "macs" in row else "–"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="further .onnx files")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="an interpreter that has onnxsim")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    args = parser.parse_args(argv)
    if not args.page:
        save("coverage", measure_all(args.folder, args.peer))
    data = load("coverage")
    write_page(data)
    return 0 if all(row["exit_code"] == 0 for row in data["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
