"""The JSON of each report keeps its keys, their order and their types, and is read back as the same rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest

from leanonnx.commands.bench.rows import BenchReport
from leanonnx.commands.check.rows import CheckReport
from leanonnx.commands.sweep.rows import SweepReport
from leanonnx.reporting.encoding import INLINE, OPTIONAL, OPTIONAL_INLINE, JsonField, from_json, to_json
from leanonnx.reporting.reports import ChannelReport, CompressionReport, NetworkReport
from tests.helpers import CALIBRATION, CNN, build, called, saved
from tests.schemas import follow_schema, schema_of

KEYS = Path(__file__).parent / "report_json"
"""The object that each command prints, with its values replaced by types."""
NETWORK = ("compress", "m.onnx", "o.onnx", "--align", 1)
UNSURE = {"memory_bytes", "files", "warnings", "notes"}
"""Keys whose values depend on the system: how busy it is, and whether matplotlib is there."""
COMMANDS: dict[str, tuple[tuple[object, ...], int, type]] = {
    "compress": ((*NETWORK, "--keep", 0.5, "--calib", "x.npz"), 0, CompressionReport),
    "compress_data_free": ((*NETWORK, "--keep", 0.5, "--recover", "auto"), 0, CompressionReport),
    "compress_exact": (("compress", "m.onnx", "o.onnx", "--exact"), 0, CompressionReport),
    "compress_twice": ((*NETWORK, "--keep", 0.5, "--prove-twice"), 0, CompressionReport),
    "compress_tolerance": (
        (*NETWORK, "--max-deviation", 9, "--min-agreement", 0.1, "--calib", "x.npz"),
        0,
        CompressionReport,
    ),
    "inspect": (("inspect", "m.onnx"), 0, NetworkReport),
    "inspect_why": (("inspect", "m.onnx", "--why", "c1:1"), 0, ChannelReport),
    "bench": (("bench", "m.onnx", "m.onnx", "--seconds", 0.02, "--threads", 1), 0, BenchReport),
    "bench_alone": (("bench", "m.onnx", "--seconds", 0.02, "--threads", 1), 0, BenchReport),
    "check": (("check", "m.onnx", "m.onnx", "--max-deviation", 0.1, "--max-latency-ms", 9999), 0, CheckReport),
    "sweep": (("sweep", "m.onnx", "--keep", "0.5,0.001", "--align", 1, "--no-measure", "--out", "s"), 1, SweepReport),
}


def printed(name: str, folder: Path) -> Any:
    """The JSON object that a command prints."""
    saved(build(CNN), folder / "m.onnx")
    np.savez(folder / "x.npz", x=CALIBRATION, labels=np.arange(24) % 5)
    words, code, _ = COMMANDS[name]
    done = called(*words, "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    return follow_schema(schema_of(*words), done.stdout)


def types(value: Any, key: str = "") -> Any:
    """The object with its values replaced by types; a list becomes the distinct types of its items."""
    if key in UNSURE:
        return "any"
    if isinstance(value, dict):
        return {name: types(item, name) for name, item in value.items()}
    if isinstance(value, list):
        items = [types(item) for item in value]
        return [item for k, item in enumerate(items) if item not in items[:k]]
    return type(value).__name__


@pytest.mark.parametrize("name", COMMANDS)
def test_keys_and_types_of_the_json(name: str, tmp_path: Path) -> None:
    row = printed(name, tmp_path)
    wanted = (KEYS / f"{name}.json").read_text(encoding="utf-8")
    assert json.dumps(types(row), indent=1) + "\n" == wanted
    kind = COMMANDS[name][2]
    assert json.dumps(to_json(from_json(kind, row))) == json.dumps(row)


# Rows of all kinds of fields


class Pair(NamedTuple):
    first: int
    second: float


@dataclass(frozen=True)
class Inner:
    a: int
    b: str | None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Annotated[Inner | None, INLINE]
    within: Annotated[tuple[Pair, ...], JsonField("in")]
    extra: Annotated[Inner | None, JsonField("extra", optional=True)]
    count: Annotated[int | None, OPTIONAL]
    rows: dict[str, Inner]
    way: Literal["up", "down"] = "up"


@dataclass(frozen=True)
class Open:
    more: Annotated[Inner | None, OPTIONAL_INLINE]
    others: Annotated[dict[str, int], INLINE]


OUTER = Outer("x", Inner(1, "b"), (Pair(1, 2.0),), None, None, {"k": Inner(2, None)})


def test_keys_of_a_row() -> None:
    wanted = {"name": "x", "a": 1, "b": "b", "in": [[1, 2.0]], "rows": {"k": {"a": 2, "b": None}}, "way": "up"}
    assert to_json(OUTER) == wanted
    assert list(to_json(OUTER)) == list(wanted)
    assert from_json(Outer, wanted) == OUTER
    empty = Outer("x", None, (), Inner(1, "c"), 3, {})
    assert to_json(empty) == {
        "name": "x",
        "a": None,
        "b": None,
        "in": [],
        "extra": {"a": 1, "b": "c"},
        "count": 3,
        "rows": {},
        "way": "up",
    }
    assert from_json(Outer, to_json(empty)) == empty


@pytest.mark.parametrize("row", [Open(None, {"z": 1}), Open(Inner(1, None), {}), Open(None, {})])
def test_mappings_among_the_keys(row: Open) -> None:
    assert from_json(Open, to_json(row)) == row


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 1}, "Outer.name: unexpected 1"),
        ({"in": [[1]]}, "Outer.in: expected 2 items, got 1"),
        ({"in": [[True, 1.0]]}, "Outer.in: unexpected True"),
        ({"a": "one"}, "Outer.a: unexpected 'one'"),
        ({"rows": {"k": {"a": 1}}}, "Outer.rows.k: has no 'b'"),
        ({"way": "left"}, "Outer.way: unexpected 'left'"),
        ({"rows": []}, r"Outer.rows: unexpected \[\]"),
    ],
)
def test_foreign_objects_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_json(Outer, {**to_json(OUTER), **change})
    with pytest.raises(ValueError, match="Outer: unexpected"):
        from_json(Outer, [])
