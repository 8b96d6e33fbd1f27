"""Refuse names that are not text, and missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from leanonnx.errors import ModelError
from leanonnx.graph.formats import graphs
from leanonnx.graph.nodes import standard_name

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


def check_missing_names(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse inputs and outputs without a name where the standard allows any number of them (a part of a Split).

    The checker accepts them, and onnxruntime crashes on them; of others it says what is wrong.

    Raises:
        ModelError: there is such an input or output.
    """
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    for node in (node for graph in graphs(proto.graph) for node in graph.node if "" in (*node.input, *node.output)):
        if not onnx.defs.has(standard_name(node)):
            continue
        schema = onnx.defs.get_schema(node.op_type)
        for side, names, slots in (("input", node.input, schema.inputs), ("output", node.output, schema.outputs)):
            if slots and slots[-1].option == variadic and "" in names[len(slots) - 1 :]:
                name = node.name or next(filter(None, node.output), "")
                raise ModelError(
                    f"{path}: an {side} of {node.op_type} '{name}' has no name, which only optional ones may lack; "
                    "name it, or export the model again"
                )
