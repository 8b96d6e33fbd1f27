"""What is pinned in real networks, why, and how far each can be compressed nevertheless.

    python -m benchmarks.pins FOLDER [--page]

Every .onnx file of FOLDER is inspected, compressed to half of its kernels, and to as few as can be reached.
``--page`` writes the page anew from the last results.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.common import (
    COMMAND,
    Row,
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

HALF = "0.5"
LOWEST = "0.001"
SHARE = 0.01
INTERFACE = ("graph input", "graph output")
INTRODUCTION = (
    "Channels that may not be removed are *pinned*, each with a reason and with what a user can do about it "
    "(`leanonnx inspect MODEL` lists them). This page shows what that comes to in real trained networks from public "
    "sources. *At half*: kernels left after `--keep 0.5`; *lowest*: kernels left by `--keep 0.001 --best-effort`, "
    "which leaves every tensor its last channel. Every file written was proven."
)
PINS = (
    f"Reasons that hold at least {SHARE:.0%} of a network's kernels, beside the interface itself (inputs and outputs "
    "keep their channels in every network). *kernels*: share of the original's kernels that touch a channel pinned for "
    "this reason, or one tied to it; reasons overlap."
)


def measure(source: Path, target: Path) -> Row:
    """Inspect one file and compress it twice."""
    looked = run([COMMAND, "inspect", source, "--json"])
    if looked.code:
        return {"network": source.stem, "refused": looked.message}
    kernels = looked.report["kernels"]
    half = compress(source, target, "--keep", HALF)
    lowest = compress(source, target, "--keep", LOWEST, "--best-effort")
    row = {"network": source.stem, "kernels": kernels, "pins": _kinds(looked.report)}
    row |= {"half_exit_code": half.code, "half": half.report["kernels"]["fraction"] if not half.code else None}
    row |= {"lowest": lowest.report["kernels"]["fraction"], "proof": lowest.report["proof"]["status"]}
    progress(f"{source.stem}: {row['half']} {row['lowest']}")
    return row


def _kinds(report: Row) -> list[Row]:
    """Kinds of pins, names of nodes left out, with what they hold together at most."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for pin in report["pins"]:
        if not pin["reason"].startswith(INTERFACE):
            found[re.sub(r" ?'[^']*'", "", pin["reason"]), pin["advice"]].append(pin["kernels"])
    rows = [
        {"reason": key[0], "advice": key[1], "places": len(held), "kernels": max(held)} for key, held in found.items()
    ]
    return sorted(rows, key=lambda row: -row["kernels"])


def page(data: Row) -> Path:
    """Write docs/pins.md."""
    rows = [row for row in data["networks"] if "refused" not in row]
    refused = [row for row in data["networks"] if "refused" in row]
    reached = sum(row["half"] is not None for row in rows)
    overview = table(
        ["network", "kernels", "at half", "lowest"],
        ([row["network"], f"{row['kernels']:,}", _at_half(row), f"{row['lowest']:.4f}"] for row in rows),
    )
    lines = [
        [row["network"], pin["reason"], pin["advice"], str(pin["places"]), f"{pin['kernels'] / row['kernels']:.1%}"]
        for row in rows
        for pin in row["pins"]
        if row["kernels"] and pin["kernels"] >= SHARE * row["kernels"]
    ]
    sections = [
        INTRODUCTION,
        measured_by("pins", data["environment"]),
        "## How far each goes",
        f"{reached} of {len(rows)} reach half of their kernels.",
        overview,
        "## What is pinned, and why",
        PINS,
        table(["network", "reason", "what to do", "places", "kernels"], lines),
    ]
    if refused:
        sections += ["## Refused", *(f"- `{row['network']}`: {row['refused']}" for row in refused)]
    return publish("pins", "What is pinned, and why", sections)


def _at_half(row: Row) -> str:
    return "refused" if row["half"] is None else f"{row['half']:.4f}"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if not arguments.page:
        if arguments.folder is None:
            parser.error("give a folder of .onnx files, or --page")
        with tempfile.TemporaryDirectory() as work:
            rows = [measure(path, Path(work) / "out.onnx") for path in sorted(arguments.folder.glob("*.onnx"))]
        save("pins", {"environment": environment(), "networks": rows})
    progress(str(page(load("pins"))))


if __name__ == "__main__":
    main()
