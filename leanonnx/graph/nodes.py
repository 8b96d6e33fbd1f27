"""What can be read off a single node, and names for new ones."""

from __future__ import annotations

from typing import Any

import onnx

STANDARD = ("", "ai.onnx")


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value (text as a string), or a default."""
    found = next((a for a in node.attribute if a.name == name), None)
    value = default if found is None else onnx.helper.get_attribute_value(found)
    return value.decode() if isinstance(value, bytes) else value


def standard(node: onnx.NodeProto) -> str:
    """The name of an ONNX operator; nothing for those of other domains."""
    return node.op_type if node.domain in STANDARD else ""


def title(node: onnx.NodeProto) -> str:
    """Operator and name, as messages tell of a node."""
    return f"{node.op_type} '{node.name or node.output[0]}'"


def is_padded(node: onnx.NodeProto) -> bool:
    """Whether an operator with a window lays a border around its input."""
    return any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def fresh_name(taken: set[str], stem: str) -> str:
    """A name made from ``stem`` that is not taken yet; it is from now on."""
    number = 1
    while (name := f"{stem}_lean{number}") in taken:
        number += 1
    taken.add(name)
    return name
