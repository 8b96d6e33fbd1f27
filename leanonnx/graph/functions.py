"""Refuse local functions that cannot be inlined."""

from __future__ import annotations

from pathlib import Path

import onnx

from leanonnx.errors import ModelError
from leanonnx.graph.formats import graphs

MAX_CALL_DEPTH = 100
"""Depth to which local functions may call each other."""
MAX_INLINED_NODES = 1_000_000
"""Nodes that a model may have once its local functions are inlined."""


def check_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse local functions that call themselves, or that become too large when they are inlined.

    Raises:
        ModelError: there are such functions.
    """
    bodies = {(f.domain, f.name): f.node for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], above: frozenset[tuple[str, str]]) -> int:
        if key in above or len(above) > MAX_CALL_DEPTH:
            raise ModelError(f"{path}: the local function '{key[1]}' calls itself; export the model without functions")
        if key not in sizes:
            calls = ((node.domain, node.op_type) for node in bodies[key])
            sizes[key] = sum(size(call, above | {key}) if call in bodies else 1 for call in calls)
        return sizes[key]

    calls = ((node.domain, node.op_type) for graph in graphs(proto.graph) for node in graph.node)
    total = sum(size(call, frozenset()) if call in bodies else 1 for call in calls)
    if total > MAX_INLINED_NODES:
        raise ModelError(f"{path}: its local functions make {total} nodes; export the model without functions")
