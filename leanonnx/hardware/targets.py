"""Cost tables of hardware, from ``targets.toml`` or measured on a machine."""

from __future__ import annotations

import json
import math
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from leanonnx.checks import read_toml
from leanonnx.errors import OptionError
from leanonnx.spelling import verb

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
"""Table names that need no quotes in TOML."""
LINE_WIDTH = 118


@dataclass(frozen=True)
class HardwareEntry:
    """Unit and meaning of an entry of a table; ``is_integer`` is True for numbers of channels."""

    unit: str
    meaning: str
    is_integer: bool = False


HARDWARE_ENTRIES = {
    "block": HardwareEntry(
        "channels", "computed together: a started block costs as much as a full one", is_integer=True
    ),
    "multiple": HardwareEntry(
        "channels",
        "what a convolution reads must be a multiple of this, or it leaves the fast kernels",
        is_integer=True,
    ),
    "grouped": HardwareEntry(
        "channels",
        "channels per group must be a multiple of this, or a grouped convolution leaves them",
        is_integer=True,
    ),
    "slow": HardwareEntry("times", "as long takes a multiply-add of a convolution outside the fast kernels"),
    "slow_depthwise": HardwareEntry("times", "as long takes one of a depthwise convolution outside them"),
    "conv": HardwareEntry("10⁹/s", "multiply-adds of k×k convolutions, all threads together"),
    "pointwise": HardwareEntry("10⁹/s", "multiply-adds of 1×1 convolutions"),
    "depthwise": HardwareEntry("10⁹/s", "multiply-adds of depthwise convolutions"),
    "gemm": HardwareEntry("10⁹/s", "multiply-adds of matrix products"),
    "element": HardwareEntry("ns", "for each number that a node writes"),
    "node": HardwareEntry("µs", "for each node"),
    "int8_block": HardwareEntry(
        "channels", "that a conv group writes, computed together in 8-bit integers", is_integer=True
    ),
    "int8_conv": HardwareEntry("10⁹/s", "multiply-adds of k×k convolutions in 8-bit integers"),
    "int8_pointwise": HardwareEntry("10⁹/s", "multiply-adds of 1×1 convolutions in them"),
    "int8_depthwise": HardwareEntry("10⁹/s", "multiply-adds of depthwise convolutions in them"),
    "int8_grouped": HardwareEntry("10⁹/s", "multiply-adds of grouped convolutions in them"),
    "int8_gemm": HardwareEntry("10⁹/s", "multiply-adds of matrix products in them"),
    "int8_convert": HardwareEntry("ns", "for each number converted between floats and integers"),
}
"""Units and meanings of the fields of ``Hardware``."""
FLOAT_ENTRIES = {
    "int8_conv": "conv",
    "int8_pointwise": "pointwise",
    "int8_depthwise": "depthwise",
    "int8_grouped": "conv",
    "int8_gemm": "gemm",
    "int8_convert": "element",
}
"""The entry that a cost in integers is in proportion to, where it is not measured."""
PLAIN_TABLE = "cpu-plain"
"""The built-in table for what is not known."""


@dataclass(frozen=True)
class Hardware:
    """Cost table of one hardware: block sizes, and the cost of operations; ``HARDWARE_ENTRIES`` explains the fields."""

    name: str
    block: int
    multiple: int
    grouped: int
    slow: float
    slow_depthwise: float
    conv: float
    pointwise: float
    depthwise: float
    gemm: float
    element: float
    node: float
    int8_block: int
    int8_conv: float
    int8_pointwise: float
    int8_depthwise: float
    int8_grouped: float
    int8_gemm: float
    int8_convert: float

    def to_toml(self) -> str:
        """Format the table as TOML."""
        lines = [f"{key} = {value}" for key, value in asdict(self).items() if key != "name"]
        name = self.name if BARE_KEY.fullmatch(self.name) else json.dumps(self.name)
        return "\n".join([f"[{name}]", *lines, ""])

    def fill_block(self, channels: int) -> int:
        """Round a number of channels up to whole blocks, whose cost is the same."""
        return -(-channels // self.block) * self.block


def entries_legend() -> str:
    """Return TOML comment lines that explain the entries."""
    rows = [f"{name:<15} {entry.unit:<9} {entry.meaning}" for name, entry in HARDWARE_ENTRIES.items()]
    return "".join(f"# {row}\n" for row in rows)


def tables_text(tables: Iterable[Hardware], head: str) -> str:
    """Format tables as a TOML file; ``head`` is a sentence that describes them."""
    comment = "".join(f"# {line}\n" for line in textwrap.wrap(head, LINE_WIDTH))
    return "\n".join([f"{comment}#\n{entries_legend()}", *(table.to_toml() for table in tables)])


def builtin_hardware() -> dict[str, Hardware]:
    """Return the built-in hardware tables by name."""
    text = (resources.files("leanonnx.hardware") / "targets.toml").read_text(encoding="utf-8")
    return _read(tomllib.loads(text), "targets.toml")


def read_hardware(path: Path) -> dict[str, Hardware]:
    """Read hardware tables measured by ``leanonnx calibrate-device``, by name.

    Raises:
        OptionError: the file cannot be read or holds no such tables.
    """
    return _read(read_toml(path, _remedy(), f"remove it and {_remedy()}"), str(path))


def _remedy() -> str:
    return f"make it with `{verb('calibrate-device')}`"


def _read(tables: Mapping[str, object], source: str) -> dict[str, Hardware]:
    hardware = {}
    for name, table in tables.items():
        if isinstance(table, dict) and set(table) == set(HARDWARE_ENTRIES) - {"int8_block", *FLOAT_ENTRIES}:
            table = _with_integers(name, table, source)
        if not isinstance(table, dict) or set(table) != set(HARDWARE_ENTRIES):
            raise OptionError(
                f"{source}: target '{name}' must have just the entries {', '.join(HARDWARE_ENTRIES)}; correct it, or "
                f"remove the target and {_remedy()}"
            )
        hardware[name] = Hardware(
            name, **{key: _value(table[key], key, f"{source}: target '{name}'") for key in HARDWARE_ENTRIES}
        )
    return hardware


def _with_integers(name: str, table: Mapping[str, object], source: str) -> dict[str, object]:
    """The table of an earlier version, which knew no integers, with the built-in ratios."""
    known = builtin_hardware()
    checked = {key: _value(table[key], key, f"{source}: target '{name}'") for key in table}
    return {**checked, **integer_entries(checked, known.get(name, known[PLAIN_TABLE]))}


def integer_entries(floats: Mapping[str, float], like: Hardware) -> dict[str, Any]:
    """The entries of integers, as far from the given ones of floats as they are in another table."""
    rates = {key: getattr(like, key) * floats[other] / getattr(like, other) for key, other in FLOAT_ENTRIES.items()}
    return {"int8_block": like.int8_block, **rates}


def _value(value: object, key: str, where: str) -> Any:
    """Check an entry, which must be a number above 0, and an integer if it counts channels."""
    expected = "a whole number" if HARDWARE_ENTRIES[key].is_integer else "a number"
    kinds = (int,) if HARDWARE_ENTRIES[key].is_integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        raise OptionError(
            f"{where}: {key} = {json.dumps(value, default=str)}, expected {expected} above 0; correct it, "
            f"or {_remedy()}"
        )
    return value if HARDWARE_ENTRIES[key].is_integer else float(value)
