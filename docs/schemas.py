"""The JSON Schemas of the reports, from their rows; ``python -m docs.schemas`` writes them into the package."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import leanonnx
from docs.written import main
from leanonnx.commands.bench.rows import BenchReport
from leanonnx.commands.calibrate.rows import CalibrationReport
from leanonnx.commands.check.rows import CheckReport
from leanonnx.commands.finetune.rows import FinetuneReport
from leanonnx.commands.sweep.rows import SweepReport
from leanonnx.reporting.encoding import Json, Slot, row_slots
from leanonnx.reporting.reports import ChannelReport, CompressionReport, NetworkReport, SeveralReports
from leanonnx.reporting.rows import REPORT_SCHEMA
from leanonnx.reporting.schemas import SCHEMA_FOLDER
from leanonnx.runtime.versions import Versions

FOLDER = Path(leanonnx.__file__).parent / SCHEMA_FOLDER
DIALECT = "https://json-schema.org/draft/2020-12/schema"
REPORTS: Mapping[str, tuple[str, type]] = {
    "compress": ("leanonnx compress --json", CompressionReport),
    "inspect": ("leanonnx inspect --json", NetworkReport),
    "inspect-why": ("leanonnx inspect --why --json", ChannelReport),
    "several": ("leanonnx compress --json, or inspect, of several models", SeveralReports),
    "sweep": ("leanonnx sweep --json", SweepReport),
    "bench": ("leanonnx bench --json", BenchReport),
    "check": ("leanonnx check --json", CheckReport),
    "calibrate-device": ("leanonnx calibrate-device --json", CalibrationReport),
    "finetune": ("leanonnx finetune --json", FinetuneReport),
    "version": ("leanonnx --version --json", Versions),
}
"""The command that prints each object, and the type of its row."""
PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}
DEPRECATED = "Deprecated"
"""First word of the description of a key that is going to disappear."""


def schema(name: str) -> Json:
    """The JSON Schema of one object."""
    title, kind = REPORTS[name]
    rows: dict[str, Json] = {}
    top = row_schema(kind, rows)
    head = {"$schema": DIALECT, "$id": f"urn:leanonnx:json:{REPORT_SCHEMA}:{name}", "title": title}
    return {**head, **top, **({"$defs": dict(sorted(rows.items()))} if rows else {})}


def type_schema(hint: Any, rows: dict[str, Json]) -> Json:
    """The schema of a value; the rows in it are added to ``rows`` by name, and referred to.

    Raises:
        TypeError: values of this type have no schema.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_schema(inner[0], rows)
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if hint in (object, Any):
        return {}
    if origin in (Union, UnionType):
        return any_of([type_schema(each, rows) for each in inner])
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return {"type": "array", "items": type_schema(inner[0], rows)}
        return fixed_array([type_schema(each, rows) for each in inner])
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": type_schema(inner[1], rows)}
    return reference(hint, rows)


def any_of(choices: list[Json]) -> Json:
    """The schema of a value that follows one of these."""
    if not all(list(each) == ["type"] for each in choices):
        return {"anyOf": choices}
    names = [each["type"] if isinstance(each["type"], list) else [each["type"]] for each in choices]
    return {"type": list(dict.fromkeys(chain.from_iterable(names)))}


def fixed_array(items: list[Json]) -> Json:
    """The schema of an array with a schema for each item."""
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def reference(kind: Any, rows: dict[str, Json]) -> Json:
    """A reference to the schema of a row, or of a named tuple."""
    if kind.__name__ not in rows:
        rows[kind.__name__] = {}  # a row that contains itself refers to this
        rows[kind.__name__] = row_schema(kind, rows) if is_dataclass(kind) else tuple_schema(kind, rows)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def tuple_schema(kind: Any, rows: dict[str, Json]) -> Json:
    """The schema of a named tuple: an array, the items of which are titled.

    Raises:
        TypeError: it is another type.
    """
    if not hasattr(kind, "_fields"):
        raise TypeError(f"values of {kind} have no JSON Schema")
    items = [{"title": name, **type_schema(hint, rows)} for name, hint in get_type_hints(kind).items()]
    return {"description": documentation(kind)[0], **fixed_array(items)}


@dataclass(frozen=True)
class Keys:
    """The keys of a row: their schemas, which are required, which come only together, and the schema of others."""

    properties: dict[str, Json]
    required: tuple[str, ...]
    together: tuple[tuple[str, ...], ...]
    others: Json | Literal[False]


def row_schema(kind: Any, rows: dict[str, Json]) -> Json:
    """The schema of a row: an object without other keys than its own."""
    keys = row_keys(kind, rows)
    made: Json = {"description": documentation(kind)[0], "type": "object", "properties": keys.properties}
    made |= {"required": list(keys.required), "additionalProperties": keys.others}
    if keys.together:
        made["dependentRequired"] = {
            key: [other for other in group if other != key] for group in keys.together for key in group
        }
    return made


def row_keys(kind: Any, rows: dict[str, Json]) -> Keys:
    """The keys of a row, with those of the rows that lie inline in it."""
    properties: dict[str, Json] = {}
    required: list[str] = []
    together: list[tuple[str, ...]] = []
    others: Json | Literal[False] = False
    texts, defaults = documentation(kind)[1], {one.name: one.default for one in fields(kind)}
    for slot in row_slots(kind):
        if slot.inline and not is_dataclass(slot.row_type):
            others = type_schema(get_args(slot.hint)[1], rows)
        elif slot.inline:
            keys = row_keys(slot.row_type, rows)
            properties |= map_values(nullable, keys.properties) if is_null_inline(slot) else keys.properties
            required += () if slot.optional else keys.required
            together += [*keys.together, *([keys.required] if slot.optional else [])]
            others = others or keys.others
        else:
            properties[slot.key] = described(key_schema(slot, defaults[slot.name], rows), texts.get(slot.name, ""))
            required += () if slot.optional else (slot.key,)
    return Keys(properties, tuple(required), tuple(together), others)


def key_schema(slot: Slot, default: Any, rows: dict[str, Json]) -> Json:
    """The schema of one key; a field that is left out where it is None has no null."""
    if slot.name == "schema":
        return {"const": default, "description": "Version of this object: another one means other keys."}
    hint = slot.hint
    if slot.optional:
        hint = Union[tuple(each for each in get_args(hint) if each is not NoneType)]  # noqa: UP007 - made at run time
    return type_schema(hint, rows)


def is_null_inline(slot: Slot) -> bool:
    """True for an inline row that may be None, with all its keys there and null."""
    return NoneType in get_args(slot.hint) and not slot.optional


def nullable(made: Json) -> Json:
    """The schema of the same, or null."""
    text = {name: made[name] for name in ("description",) if name in made}
    return {**any_of([{name: each for name, each in made.items() if name not in text}, {"type": "null"}]), **text}


def map_values(change: Callable[[Json], Json], made: Mapping[str, Json]) -> dict[str, Json]:
    """The mapping with its values changed."""
    return {name: change(each) for name, each in made.items()}


def described(made: Json, text: str) -> Json:
    """The schema with a description, if there is one."""
    if not text:
        return made
    return {**made, "description": text, **({"deprecated": True} if text.startswith(DEPRECATED) else {})}


def documentation(kind: Any) -> tuple[str, dict[str, str]]:
    """The docstring of a row as plain text, and what its section "Attributes" says of each field."""
    text, _, attributes = (inspect.getdoc(kind) or "").partition("\n\nAttributes:\n")
    texts: dict[str, str] = {}
    for names, about in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
        texts |= dict.fromkeys(names.split(", "), plain(about))
    return plain(text), texts


def plain(text: str) -> str:
    """A text of a docstring as one line in the words of JSON, with a capital in front and without marks."""
    line = " ".join(text.replace("``", "'").split())
    line = re.sub(r"\b(None|True|False)\b", lambda word: {"None": "null"}.get(word[0], word[0].lower()), line)
    return line[:1].upper() + line[1:]


if __name__ == "__main__":
    files = (
        (FOLDER / f"{name}.json", json.dumps(schema(name), indent=1, ensure_ascii=False) + "\n") for name in REPORTS
    )
    raise SystemExit(main(files, "python -m docs.schemas", sys.argv[1:]))
