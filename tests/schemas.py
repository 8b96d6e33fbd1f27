"""Outputs of commands, checked against the published JSON Schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

import leanonnx


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """What checks objects by a schema, which is itself checked first."""
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def follow_schema(name: str, text: str) -> Any:
    """The JSON object in a text, which follows the schema of that name; NaN and Infinity are no JSON."""
    row = json.loads(text, parse_constant=refuse)
    validator(leanonnx.json_schema(name)).validate(row)
    return row


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def schema_of(*args: object) -> str:
    """Name of the schema of what a command prints."""
    verb = str(args[0]).removeprefix("--")
    return f"{verb}-why" if "--why" in args else verb
