"""Refuse names that are not text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanonnx.errors import ModelError

REMARKS = {"doc_string", "producer_name", "producer_version", "metadata_props"}
"""Fields of ONNX that nothing but people reads."""


def check_names(message: Any, path: Path) -> None:
    """Refuse a name, an operator, a domain or a key of a protobuf message that is not UTF-8.

    protobuf gives such a text as bytes, which compare with no other name.  Remarks may be in any encoding.

    Raises:
        ModelError: there is such a name.
    """
    for field, value in message.ListFields():
        if field.name in REMARKS:
            continue
        if field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    raise ModelError(
                        f"{path}: {field.containing_type.name}.{field.name} is {text!a}, which is not UTF-8; "
                        "export the model with names in UTF-8"
                    )
        elif field.type == field.TYPE_MESSAGE:
            for each in [value] if hasattr(value, "ListFields") else value:
                check_names(each, path)
