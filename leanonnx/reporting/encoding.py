"""Convert frozen dataclasses ("rows") to JSON objects and back.

The JSON keys of a row are the names of its fields, in their order.  ``Annotated[type, JsonField(...)]`` changes this
for single fields:

1. ``key`` names a key that is no Python identifier, or that differs from the name of the field.
2. ``inline`` puts the keys of a row, or of a mapping, among those of its parent.  An inline row that is None has all
   its keys, each null.
3. ``optional`` leaves the field out where it is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

RowType = TypeVar("RowType")
Json = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class JsonField:
    """The place of a field in the JSON object."""

    key: str = ""
    inline: bool = False
    optional: bool = False


INLINE, OPTIONAL = JsonField(inline=True), JsonField(optional=True)
OPTIONAL_INLINE = JsonField(inline=True, optional=True)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A field of a row: its name, its type, and its place in the JSON object."""

    name: str
    hint: Any
    key: str
    inline: bool
    optional: bool

    @property
    def row_type(self) -> Any:
        """The type without None."""
        return next((each for each in get_args(self.hint) if is_dataclass(each)), self.hint)


@cache
def row_slots(kind: Any) -> tuple[Slot, ...]:
    """The fields of a row type; none of a mapping."""
    if not hasattr(kind, "__dataclass_fields__"):
        return ()
    hints, slots = get_type_hints(kind, include_extras=True), []
    for one in fields(kind):
        hint, place = hints[one.name], JsonField()
        if get_origin(hint) is Annotated:
            hint, place = get_args(hint)
        slots.append(
            Slot(name=one.name, hint=hint, key=place.key or one.name, inline=place.inline, optional=place.optional)
        )
    return tuple(slots)


@cache
def json_keys(kind: Any) -> tuple[str, ...]:
    """The JSON keys of a row type; none of a mapping."""
    return tuple(key for slot in row_slots(kind) for key in (json_keys(slot.row_type) if slot.inline else (slot.key,)))


def to_json(row: object) -> Json:
    """The JSON object of a row, or of a mapping of rows.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(row, Mapping):
        return {str(key): _encode(value) for key, value in row.items()}
    if not is_dataclass(row):
        raise TypeError(f"a {type(row).__name__} is no row of a report")
    result: Json = {}
    kind: Any = type(row)
    for slot in row_slots(kind):
        value = getattr(row, slot.name)
        if value is None and slot.optional:
            continue
        if slot.inline:
            result |= dict.fromkeys(json_keys(slot.row_type)) if value is None else _encode(value)
        else:
            result[slot.key] = _encode(value)
    return result


def _encode(value: Any) -> Any:
    if is_dataclass(value) or isinstance(value, Mapping):
        return to_json(value)
    return [_encode(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[RowType], value: object) -> RowType:
    """The row of a type from its JSON object; keys that the type does not have are ignored.

    Raises:
        ValueError: a key is missing, or its value is of another type; the message names the place.
    """
    row: RowType = _decode(kind, value, kind.__name__)
    return row


def _decode(hint: Any, value: Any, place: str) -> Any:
    """A JSON value as the type of a field."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is object or (value is None and NoneType in inner):
        return value
    if origin in (Union, UnionType):
        (hint,) = (each for each in inner if each is not NoneType)
        return _decode(hint, value, place)
    if is_dataclass(hint):
        return _decode_row(hint, value, place)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{place}: unexpected {value!r}")
        return value
    if issubclass(origin or hint, tuple):
        return _decode_tuple(hint, _check_type(value, list, place), place)
    if origin is not None:
        items = _check_type(value, dict, place).items()
        return {key: _decode(inner[1], item, f"{place}.{key}") for key, item in items}
    return _check_type(value, (int, float) if hint is float else hint, place)


def _decode_row(kind: Any, value: Any, place: str) -> Any:
    given = _check_type(value, dict, place)
    return kind(**{slot.name: _decode_slot(slot, given, json_keys(kind), place) for slot in row_slots(kind)})


def _decode_slot(slot: Slot, given: Json, keys: tuple[str, ...], place: str) -> Any:
    """The value of a field of a row, whose JSON keys are ``keys``."""
    if slot.inline:
        own = json_keys(slot.row_type)
        if NoneType in get_args(slot.hint) and all(given.get(key) is None for key in own):
            return None
        inner = given if own else {key: item for key, item in given.items() if key not in keys}
        return _decode(slot.hint, inner, place)
    if slot.key in given:
        return _decode(slot.hint, given[slot.key], f"{place}.{slot.key}")
    if slot.optional:
        return None
    raise ValueError(f"{place}: has no '{slot.key}'")


def _decode_tuple(hint: Any, values: list[Any], place: str) -> Any:
    """A named tuple, ``tuple[item, ...]``, or a tuple with a type for each item."""
    inner = get_args(hint) or tuple(get_type_hints(hint).values())
    if inner[-1] is Ellipsis:
        inner = inner[:1] * len(values)
    if len(inner) != len(values):
        raise ValueError(f"{place}: expected {len(inner)} items, got {len(values)}")
    items = tuple(_decode(each, value, place) for each, value in zip(inner, values, strict=True))
    return items if get_args(hint) else hint(*items)


def _check_type(value: Any, kind: Any, place: str) -> Any:
    """The value, if it is of a type; True and False are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{place}: unexpected {value!r}")
    return value
