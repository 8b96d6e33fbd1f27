"""What a provider runs at full speed: a table per target, from ``targets.toml`` or measured on a machine."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from leanonnx.errors import OptionError

WHOLE = ("block", "multiple", "grouped")
"""Entries that are whole numbers."""


@dataclass(frozen=True)
class Target:
    """Widths that cost the same, and what work costs; the fields are explained in ``targets.toml``."""

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

    def text(self) -> str:
        """The table in TOML."""
        lines = [f"{key} = {value}" for key, value in asdict(self).items() if key != "name"]
        return "\n".join([f"[{self.name}]", *lines, ""])


def known_targets() -> dict[str, Target]:
    """The targets that come with leanonnx, by name."""
    text = (resources.files("leanonnx") / "targets.toml").read_text(encoding="utf-8")
    return _read(tomllib.loads(text), "targets.toml")


def read_targets(path: Path) -> dict[str, Target]:
    """Targets measured by ``leanonnx calibrate``, by name.

    Raises:
        OptionError: the file cannot be read or is no such table.
    """
    try:
        return _read(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}; make it with `leanonnx calibrate`") from error
    except ValueError as error:
        raise OptionError(f"{path}: no table of targets ({error}); make it with `leanonnx calibrate`") from error


def _read(tables: Mapping[str, object], source: str) -> dict[str, Target]:
    names = [f.name for f in fields(Target) if f.name != "name"]
    found = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or set(table) != set(names):
            raise OptionError(f"{source}: target '{name}' must have just the entries {', '.join(names)}")
        values: dict[str, Any] = {key: int(value) if key in WHOLE else float(value) for key, value in table.items()}
        if min(values.values()) <= 0:
            raise OptionError(f"{source}: target '{name}' has an entry that is not above 0")
        found[name] = Target(name=name, **values)
    return found
