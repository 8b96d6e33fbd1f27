"""Run a network piece by piece: only tensors at the frontier are kept, and nodes beyond it may still change."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from leanonnx.errors import DataError
from leanonnx.graph.nodes import captured_names
from leanonnx.graph.view import unused_outputs
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed, RunFailed, open_session, session_runner, translate_errors

SPILL_LIMIT = 1 << 28
"""Bytes of activations kept in memory; more are written to a temporary folder."""


class TensorSpill:
    """Tensors by name and run, in memory up to ``limit`` bytes, then in files of a temporary folder.

    For a tensor in a file only the number of the file is kept in memory.
    """

    def __init__(self, limit: int = SPILL_LIMIT) -> None:
        self.limit = limit
        self.bytes_held = 0
        self.tensors: dict[str, dict[int, Array | int]] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.count = 0

    def put(self, name: str, index: int, value: Array) -> None:
        """Store the value of a tensor for one run."""
        runs = self.tensors.setdefault(name, {})
        if self.bytes_held + value.nbytes <= self.limit:
            self.bytes_held += value.nbytes
            runs[index] = value
            return
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="leanonnx-")
        np.save(self._file(self.count), value)
        runs[index] = self.count
        self.count += 1

    def take(self, name: str, index: int) -> Array:
        """Return the value of a tensor in one run."""
        stored = self.tensors[name][index]
        return np.load(self._file(stored)) if isinstance(stored, int) else stored

    def drop(self, name: str) -> None:
        """Delete a tensor."""
        for stored in self.tensors.pop(name).values():
            if isinstance(stored, int):
                os.unlink(self._file(stored))
            else:
                self.bytes_held -= stored.nbytes

    def close(self) -> None:
        """Delete all tensors and the folder."""
        self.tensors.clear()
        if self.folder is not None:
            self.folder.cleanup()

    def _file(self, number: int) -> str:
        return f"{self.folder.name if self.folder else ''}/{number}.npy"


class PartialRunner:
    """Runs a network on many inputs, only as far as requested.

    ``proto`` may be changed between two steps where it has not been run yet.
    """

    def __init__(self, proto: onnx.ModelProto, shelf: TensorSpill, tag: str, libraries: Sequence[Path] = ()) -> None:
        self.proto, self.spill, self.tag, self.libraries = proto, shelf, tag, libraries
        self.runs = 0
        graph = proto.graph
        spare = unused_outputs(graph.node, graph)
        fixed = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        self.known: dict[str, None] = {}
        self.input_dependent = {v.name for v in graph.input} - fixed
        self.todo = [k for k, node in enumerate(graph.node) if not spare.issuperset(n for n in node.output if n)]
        self.input_independent: list[int] = []
        for index in list(self.todo):
            node = graph.node[index]
            if self.input_dependent.isdisjoint([*node.input, *captured_names(node)]):
                self.input_independent.append(index)
                self.todo.remove(index)
            else:
                self.input_dependent.update(node.output)

    def start(self, feed: Feed) -> None:
        """Add the inputs of one more run."""
        for name, value in feed.items():
            self.spill.put(self.tag + name, self.runs, value)
            self.known[name] = None
        self.runs += 1

    def value(self, name: str, index: int) -> Array:
        """Return a requested tensor in one run."""
        return self.spill.take(self.tag + name, index)

    def advance(self, wanted: Sequence[str]) -> None:
        """Run as much of the network as these tensors need, and delete tensors that are no longer needed.

        Raises:
            DataError: onnxruntime cannot run this part of the network.
        """
        chosen = self._ancestors([name for name in wanted if name not in self.known])
        if chosen:
            self._run(chosen, set(wanted))
        self._forget(set(wanted))

    def _ancestors(self, wanted: Sequence[str]) -> list[int]:
        needed = set(wanted)
        chosen = []
        for index in reversed(self.todo):
            node = self.proto.graph.node[index]
            if not needed.isdisjoint(node.output):
                chosen.append(index)
                needed.update(n for n in [*node.input, *captured_names(node)] if n not in self.known)
        return chosen[::-1]

    def _run(self, chosen: list[int], wanted: set[str]) -> None:
        nodes = self.proto.graph.node
        self.todo = [index for index in self.todo if index not in set(chosen)]
        later = self._read_later()
        made = [name for index in chosen for name in nodes[index].output if name and name in (later | wanted)]
        part, sources = self._part(chosen, made)
        try:
            with (
                translate_errors(),
                open_session(part, libraries=self.libraries) as session,
                session_runner(session) as run_once,
            ):
                for run in range(self.runs):
                    values = run_once({name: self.value(name, run) for name in sources})
                    for name, value in zip(made, values, strict=True):
                        self.spill.put(self.tag + name, run, np.asarray(value))
        except RunFailed as error:
            raise DataError(
                f"the network cannot be run on the calibration data: {error}; give samples of a shape that it accepts"
            ) from error
        self.known |= dict.fromkeys(made)

    def _read_later(self) -> set[str]:
        """Names that nodes not yet run read, and the graph outputs."""
        later = {value.name for value in self.proto.graph.output}
        for index in self.todo:
            node = self.proto.graph.node[index]
            later.update([*node.input, *captured_names(node)])
        return later

    def _forget(self, wanted: set[str]) -> None:
        later = self._read_later() | wanted
        for name in [name for name in self.known if name not in later]:
            self.spill.drop(self.tag + name)
            del self.known[name]

    def _part(self, chosen: list[int], made: list[str]) -> tuple[onnx.ModelProto, list[str]]:
        """Model of the chosen nodes, and the names of its inputs."""
        source = self.proto
        part = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
        part.graph.name = "part"
        read: set[str] = set()
        for index in chosen:
            read |= {*source.graph.node[index].input, *captured_names(source.graph.node[index])}
        still = []
        for index in reversed(self.input_independent):
            node = source.graph.node[index]
            if not read.isdisjoint(node.output):
                still.append(node)
                read |= {*node.input, *captured_names(node)}
        part.graph.node.extend([*still[::-1], *(source.graph.node[index] for index in chosen)])
        part.graph.initializer.extend(t for t in source.graph.initializer if t.name in read)
        part.graph.sparse_initializer.extend(t for t in source.graph.sparse_initializer if t.values.name in read)
        inside = {name for node in part.graph.node for name in node.output}
        sources = [name for name in self.known if name in read and name not in inside]
        for name in sources:
            value = self.value(name, 0)
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        part.graph.output.extend([onnx.ValueInfoProto(name=name) for name in made])
        return part, sources
