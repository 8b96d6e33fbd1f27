"""Gates that a new model has to pass, and the parsing of their limits from the command line or TOML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from leanonnx.checks import read_toml
from leanonnx.errors import OptionError
from leanonnx.spelling import option


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
        meaning: the condition that has to hold.
        example: a limit as a user writes it; empty for a gate that is always checked and takes no limit.
        expects: the form of a limit, in words.
        least: True if the limit is a lower bound, not an upper one.
        highest: largest allowed limit.
        scales: factors by the suffixes of a limit.
        share: True if the limit may be a multiple of BASE's number.
    """

    meaning: str
    example: str = ""
    expects: str = "a number"
    least: bool = False
    highest: float = math.inf
    scales: Mapping[str, float] | None = None
    share: bool = False


COUNT_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
BYTE_SUFFIXES = {
    **{f"{name}{b}": size for name, size in COUNT_SUFFIXES.items() for b in ("", "b")},
    **{f"{name}ib": 2.0**power for name, power in (("k", 10), ("m", 20), ("g", 30))},
}
RATIO_SUFFIXES = {"": 1.0, "%": 0.01}
DECIBEL_SUFFIXES = {"": 1.0, "db": 1.0}
MS_SUFFIXES = {"": 1.0, "ms": 1.0, "s": 1000.0}
COUNT_FORM = "a number such as 2.5M, or a multiple of BASE's such as 0.5x"
VALID, INTERFACE, RUNS, BATCHES, FINITE = "valid", "interface", "runs", "batches", "finite"
DETERMINISTIC, DENORMALS = "deterministic", "denormals"
DEVIATION, AGREEMENT, SPEEDUP, LATENCY_MS = "max-deviation", "min-agreement", "min-speedup", "max-latency-ms"
PSNR, DROP = "min-psnr", "max-drop"
SIZE, PARAMS, MACS = "max-bytes", "max-params", "max-macs"
GATES = {
    VALID: Gate("the ONNX checker accepts the file"),
    INTERFACE: Gate("takes what BASE takes, and outputs what BASE outputs"),
    RUNS: Gate("onnxruntime runs it on every input, and at every size, that BASE runs on"),
    BATCHES: Gate("a batch gives what its samples give one by one, where BASE's does"),
    FINITE: Gate("no NaN and no infinity where BASE outputs numbers"),
    DETERMINISTIC: Gate("two runs on one input output the same bytes"),
    DENORMALS: Gate("no more denormal weights than BASE has; they slow kernels down"),
    DEVIATION: Gate("‖difference‖ / ‖BASE's‖ of the worst channel of the worst output", "0.01", scales=RATIO_SUFFIXES),
    AGREEMENT: Gate(
        "share of equal decisions of the worst output",
        "0.99",
        "a share from 0 to 1",
        least=True,
        highest=1.0,
        scales=RATIO_SUFFIXES,
    ),
    PSNR: Gate(
        "PSNR in dB of the worst image output, whose peak is the range of BASE's",
        "40",
        "decibels",
        least=True,
        scales=DECIBEL_SUFFIXES,
    ),
    DROP: Gate("BASE's score less NEW's, by a function of yours", "0.01"),
    SIZE: Gate(
        "bytes of the file with its external data",
        "5MB",
        "bytes such as 5MB or 4MiB, or a multiple of BASE's such as 0.5x",
        scales=BYTE_SUFFIXES,
        share=True,
    ),
    PARAMS: Gate("numbers stored as weights", "2.5M", COUNT_FORM, scales=COUNT_SUFFIXES, share=True),
    MACS: Gate("multiply-adds of one run", "300M", COUNT_FORM, scales=COUNT_SUFFIXES, share=True),
    LATENCY_MS: Gate("median milliseconds of one run", "4.5", "milliseconds", scales=MS_SUFFIXES),
    SPEEDUP: Gate("times as fast as BASE, measured in turns", "1.5", least=True),
}
"""All gates, in the order of the report."""
LIMITED_GATES = tuple(name for name, gate in GATES.items() if gate.example)
"""Gates that are checked only if a limit is given."""
LIMIT_PATTERN = re.compile(r"([-+.e0-9]+?)\s*([a-z]*|%)")


@dataclass(frozen=True)
class GateLimit:
    """The limit of a gate: a number, or with ``share`` a multiple of BASE's."""

    number: float
    share: bool = False

    def absolute(self, base: float | None) -> float:
        """The absolute limit, given BASE's number."""
        return self.number * base if self.share and base is not None else self.number


def read_limit(name: str, given: object, where: str) -> GateLimit:
    """Parse a limit of the gate ``name``; ``where`` names its origin in messages.

    Raises:
        OptionError: the limit has another form than the gate takes, or is out of range.
    """
    gate = GATES[name]
    text = "" if isinstance(given, bool) else str(given).strip().lower()
    match = LIMIT_PATTERN.fullmatch(text) if isinstance(given, int | float | str) else None
    try:
        number, unit = (float(match[1]), match[2]) if match else (math.nan, "")
    except ValueError:
        number, unit = math.nan, ""
    share = gate.share and unit == "x"
    number *= 1.0 if share else (gate.scales or {"": 1.0}).get(unit, math.nan)
    above = number > 0 if gate.least else number >= 0
    if not (above and number <= gate.highest and number < math.inf):
        hint = f"; for a multiple of BASE's time use {SPEEDUP}" if name == LATENCY_MS and unit == "x" else ""
        raise OptionError(f"{where} {given}: expected {gate.expects}, for example {gate.example}{hint}")
    return GateLimit(number, share)


def read_gates(path: Path) -> dict[str, GateLimit]:
    """Read limits by gate from a TOML file, with lines such as ``max-bytes = "5MB"``.

    Raises:
        OptionError: the file cannot be read, is not TOML, or contains anything but limits of gates.
    """
    rows = read_toml(path, f"check the path given with {option('gates')}", f"write lines such as {DEVIATION} = 0.01")
    for name in rows:
        if name not in LIMITED_GATES:
            near = get_close_matches(name, LIMITED_GATES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise OptionError(f"{path}: there is no gate '{name}'; {hint}the gates are {', '.join(LIMITED_GATES)}")
    return {name: read_limit(name, given, f"{path}: {name} =") for name, given in rows.items()}
