"""The published JSON Schemas: up to date, strict, and right for all kinds of fields."""

from __future__ import annotations

import copy
import json
import operator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jsonschema
import pytest

import leanonnx
from docs import schemas
from leanonnx.reporting.encoding import INLINE, OPTIONAL, OPTIONAL_INLINE, JsonField, to_json
from tests.schemas import validator

GOLDEN = sorted((Path(__file__).parent / "report_json").glob("*.json"))
SAMPLES = {"str": "x", "int": 1, "float": 0.5, "bool": True, "NoneType": None}
"""A value of each type that these files name."""
SYSTEM = {"memory_bytes": None, "files": {}, "warnings": [], "notes": []}
"""Values of the keys whose types are left open there."""


def golden(path: Path) -> tuple[str, Any]:
    """The schema's name of such a file, and an object of the keys and types in it."""
    name = "inspect-why" if path.stem == "inspect_why" else path.stem.partition("_")[0]
    return name, filled(json.loads(path.read_text(encoding="utf-8")))


def filled(types: Any) -> Any:
    if isinstance(types, dict):
        return {key: SYSTEM[key] if kind == "any" else filled(kind) for key, kind in types.items()}
    return [filled(kind) for kind in types] if isinstance(types, list) else SAMPLES[types]


def relaxed(schema: Any) -> Any:
    """The schema without lengths of arrays and values of strings."""
    if isinstance(schema, dict) and "enum" in schema:
        return {"type": "string"}
    if isinstance(schema, dict):
        return {key: relaxed(each) for key, each in schema.items() if key != "minItems"}
    return [relaxed(each) for each in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("name", schemas.REPORTS)
def test_schemas_are_up_to_date(name: str) -> None:
    assert leanonnx.json_schema(name) == schemas.schema(name), "run python -m docs.schemas"
    assert leanonnx.json_schema(name)["$id"] == f"urn:leanonnx:json:1:{name}"
    assert {path.stem for path in schemas.FOLDER.iterdir()} == set(schemas.REPORTS)
    validator(leanonnx.json_schema(name))


def test_unknown_schemas_are_refused() -> None:
    with pytest.raises(leanonnx.UserError, match="bnech: there is no JSON Schema of this name; give one of bench, cal"):
        leanonnx.json_schema("bnech")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_pinned_keys_and_types_follow_the_schemas(path: Path) -> None:
    name, row = golden(path)
    validator(relaxed(leanonnx.json_schema(name))).validate(row)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_wrong_keys_and_types_are_seen_everywhere(path: Path) -> None:
    """Each value replaced by one of no type of JSON, and one added to each object; but options may be anything."""
    name, row = golden(path)
    check, count = validator(relaxed(leanonnx.json_schema(name))), 0
    for *parents, last in places(row):
        changed = copy.deepcopy(row)
        parent = reduce(operator.getitem, parents, changed)
        wrong = {**parent[last], "no such key": b""} if isinstance(parent[last], dict) else b""
        for each in (wrong, b""):
            parent[last] = each
            assert "about" in (*parents, last) or not check.is_valid(changed), (parents, last)
            count += 1
    assert count > 10


def places(row: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where all values within an object stand."""
    keys = list(row) if isinstance(row, dict) else range(len(row)) if isinstance(row, list) else []
    return [each for key in keys for each in ((*where, key), *places(row[key], (*where, key)))]


# all kinds of fields


class Pair(NamedTuple):
    """A pair."""

    first: int
    second: float | None


@dataclass(frozen=True)
class Inner:
    """What lies in another row.

    Attributes:
        a: a number.
        b: Deprecated: use ``a``.
    """

    a: int
    b: str | None


@dataclass(frozen=True)
class Outer:
    """A row; None where there is none."""

    inner: Annotated[Inner | None, INLINE]
    both: Annotated[Inner | None, JsonField("or none", optional=True)]
    within: Annotated[tuple[Pair, ...], JsonField("in")]
    rows: dict[str, Inner | Pair]
    anything: object
    more: Annotated[More | None, OPTIONAL_INLINE] = None
    count: Annotated[int | None, OPTIONAL] = None
    way: Literal["up", "down"] = "up"


@dataclass(frozen=True)
class More:
    """Two keys that come together, and others."""

    left: bool
    right: bool


@dataclass(frozen=True)
class Open:
    """A row with keys of any name."""

    name: str
    others: Annotated[dict[str, float], INLINE]


OUTER = Outer(Inner(1, None), Inner(2, "b"), (Pair(1, 0.5),), {"k": Inner(1, None), "p": Pair(1, None)}, [{}])


def schema_of_row(kind: type) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    return {**schemas.row_schema(kind, rows), "$defs": rows}


@pytest.mark.parametrize(
    "row",
    [
        OUTER,
        Outer(None, None, (), {}, None, More(True, False), 3, "down"),
        Open("x", {"y": 1.5, "z": 2}),
    ],
)
def test_rows_follow_their_schemas(row: object) -> None:
    validator(schema_of_row(type(row))).validate(json.loads(json.dumps(to_json(row))))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": "1"}, "'1' is not of type 'integer', 'null'"),
        ({"a": True}, "True is not of type 'integer', 'null'"),
        ({"c": 1}, "'c' was unexpected"),
        ({"or none": None}, "None is not of type 'object'"),
        ({"count": None}, "None is not of type 'integer'"),
        ({"in": [[1]]}, "is too short"),
        ({"in": [[1, 2, 3]]}, "Expected at most 2 items"),
        ({"rows": {"k": {"a": 1}}}, "is not valid under any of the given schemas"),
        ({"way": "left"}, "'left' is not one of"),
        ({"left": True}, "'right' is a dependency of 'left'"),
    ],
)
def test_foreign_objects_do_not(change: dict[str, Any], says: str) -> None:
    row = json.loads(json.dumps(to_json(OUTER)))
    with pytest.raises(jsonschema.ValidationError, match=says):
        validator(schema_of_row(Outer)).validate({**row, **change})
    del row["a"]
    with pytest.raises(jsonschema.ValidationError, match="'a' is a required property"):
        validator(schema_of_row(Outer)).validate(row)


def test_descriptions_come_from_docstrings() -> None:
    made = schema_of_row(Outer)
    assert made["description"] == "A row; null where there is none."
    assert made["properties"]["a"] == {"type": ["integer", "null"], "description": "A number."}
    assert made["$defs"]["Inner"]["properties"]["b"]["deprecated"] is True
    assert made["$defs"]["Pair"]["prefixItems"][1] == {"title": "second", "type": ["number", "null"]}
    with pytest.raises(TypeError, match="no JSON Schema"):
        schemas.type_schema(Path, {})
