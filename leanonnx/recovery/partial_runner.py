"""Run a network piece by piece: only tensors at the frontier are kept, and nodes beyond it may still change."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanonnx.errors import DataError
from leanonnx.graph.nodes import captured_names, is_quantised
from leanonnx.graph.view import unused_outputs
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Family
from leanonnx.operators.table import names_of
from leanonnx.runtime.sessions import Feed, RunFailed, open_session, session_runner, translate_errors

SPILL_LIMIT = 1 << 23
"""Bytes of activations kept in memory; more are written to a temporary folder."""
SHAPES = names_of(Family.SHAPE)
REPEATED_WORK = 64
"""Multiply-adds for each number of a tensor up to which it is computed again rather than written to disk."""
REPEATED_SHARE = 0.5
"""The tensors from which it is computed again take at most this share of its bytes."""
MAX_REPEATS = 2
"""Number of times that a node is run again."""
ValueOf = Callable[[str], Array]
"""Function that returns a tensor of the current run by its name."""


@dataclass(frozen=True)
class _Stored:
    """Place of an array in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class TensorSpill:
    """Tensors by name and run, in memory up to ``limit`` bytes, then in one temporary file each.

    The file of a deleted tensor is overwritten by a later one: the system has its pages already.
    """

    def __init__(self, limit: int = SPILL_LIMIT) -> None:
        self.limit = limit
        self.bytes_held = 0
        self.tensors: dict[str, dict[int, Array | _Stored]] = {}
        self.files: dict[str, _SpillFile] = {}
        self.free_files: list[_SpillFile] = []
        self.holds: Counter[str] = Counter()

    def put(self, name: str, index: int, value: Array) -> None:
        """Store the value of a tensor for one run."""
        runs = self.tensors.setdefault(name, {})
        if value.dtype.hasobject or self.bytes_held + value.nbytes <= self.limit:
            self.bytes_held += value.nbytes
            runs[index] = value
            return
        if name not in self.files:
            self.files[name] = self.free_files.pop() if self.free_files else _SpillFile()
        runs[index] = _Stored(self.files[name].append(value), value.shape, value.dtype)

    def take(self, name: str, index: int) -> Array:
        """Return the value of a tensor in one run."""
        stored = self.tensors[name][index]
        if not isinstance(stored, _Stored):
            return stored
        return self.files[name].read(stored)

    def values_of(self, name: str) -> list[Array | _Stored]:
        """Shape and data type of a tensor in each run."""
        return list(self.tensors[name].values())

    def hold(self, name: str) -> None:
        """Let a tensor survive one more ``drop``."""
        self.holds[name] += 1

    def drop(self, name: str) -> None:
        """Delete a tensor, unless it is still held."""
        if self.holds[name]:
            self.holds[name] -= 1
            return
        for stored in self.tensors.pop(name, {}).values():
            if not isinstance(stored, _Stored):
                self.bytes_held -= stored.nbytes
        if name in self.files:
            file = self.files.pop(name)
            file.end = 0
            self.free_files.append(file)

    def close(self) -> None:
        """Delete all tensors and the folder."""
        self.tensors.clear()
        for file in (*self.files.values(), *self.free_files):
            file.handle.close()


class _SpillFile:
    """A temporary file of arrays, which vanishes when it is closed."""

    def __init__(self) -> None:
        self.handle = tempfile.TemporaryFile(prefix="leanonnx-", buffering=0)  # noqa: SIM115 - closed with the spill
        weakref.finalize(self, self.handle.close)
        self.end = 0

    def append(self, value: Array) -> int:
        """Write an array, and return its offset."""
        start = self.end
        self.handle.seek(start)
        contiguous: Any = np.ascontiguousarray(value)
        left = memoryview(contiguous).cast("B") if value.size else memoryview(b"")
        while left:
            left = left[self.handle.write(left) :]
        self.end += value.nbytes
        return start

    def read(self, stored: _Stored) -> Array:
        """Read an array."""
        value: Any = np.empty(stored.shape, stored.dtype)
        left = memoryview(value).cast("B") if value.size else memoryview(b"")
        self.handle.seek(stored.offset)
        while left:
            left = left[self.handle.readinto(left) :]
        return np.asarray(value)


class PartialRunner:
    """Runs a network on many inputs, only as far as requested.

    ``proto`` may be changed between two steps where it has not been run yet.
    """

    def __init__(self, proto: onnx.ModelProto, shelf: TensorSpill, tag: str, libraries: Sequence[Path] = ()) -> None:
        self.proto, self.spill, self.tag, self.libraries = proto, shelf, tag, libraries
        self.optimise = not any(is_quantised(node) for node in proto.graph.node)  # integers are to be summed exactly
        self.runs = 0
        self.shared: dict[str, str] = {}
        graph = proto.graph
        spare = unused_outputs(graph.node, graph)
        fixed = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        self.known: dict[str, None] = {}
        self.input_dependent = {v.name for v in graph.input} - fixed
        self.reads = [[*node.input, *captured_names(node)] for node in graph.node]
        self.producers: dict[str, int] = {}
        self.todo: set[int] = set()
        for index, node in enumerate(graph.node):
            if spare.issuperset(n for n in node.output if n):
                continue
            self.producers |= {name: index for name in node.output if name}
            if not self.input_dependent.isdisjoint(self.reads[index]):
                self.todo.add(index)
                self.input_dependent.update(node.output)
        self.readers: Counter[str] = Counter()
        """Number of nodes not yet run that read a tensor."""
        for index in self.todo:
            self.readers.update(set(self.reads[index]))
        self.work = {t.name: math.prod(t.dims) // max([*t.dims, 1]) for t in graph.initializer}
        """Multiply-adds with each constant for each number that its node computes."""
        self.repeats: Counter[int] = Counter()

    def start(self, feed: Feed) -> None:
        """Add the inputs of one more run."""
        for name, value in feed.items():
            self.spill.put(self.tag + name, self.runs, value)
            self.known[name] = None
        self.runs += 1

    def share_inputs(self, other: PartialRunner) -> None:
        """Read the inputs that another network was started with."""
        self.runs = other.runs
        self.known = dict(other.known)
        self.shared = {name: other.tag + name for name in other.known}
        for name in self.shared.values():
            self.spill.hold(name)

    def value(self, name: str, index: int) -> Array:
        """Return a requested tensor in one run."""
        return self.spill.take(self._place(name), index)

    def _place(self, name: str) -> str:
        return self.shared.get(name, self.tag + name)

    def advance(self, wanted: Sequence[str], visit: Callable[[int, ValueOf], None] | None = None) -> None:
        """Run as much of the network as these tensors need, and delete tensors that are no longer needed.

        A wide tensor that would be written to disk is computed again from narrow ones instead, if that takes little.

        Args:
            wanted: tensors to compute.
            visit: called for each run with its index and a function that returns the tensors; with it, the tensors
                that no later node reads are not stored.

        Raises:
            DataError: onnxruntime cannot run this part of the network.
        """
        chosen = self._ancestors([name for name in wanted if name not in self.known])
        if chosen:
            self._run(chosen, set(wanted), visit)
        elif visit is not None:
            for run in range(self.runs):
                visit(run, partial(self._value_in, {}, run))
        self._forget(set() if visit else set(wanted))

    def _ancestors(self, wanted: Iterable[str]) -> list[int]:
        chosen: set[int] = set()
        stack = list(wanted)
        while stack:
            index = self.producers.get(stack.pop(), -1)
            if index in self.todo and index not in chosen:
                chosen.add(index)
                stack.extend(name for name in self.reads[index] if name not in self.known)
        return sorted(chosen | self._shape_readers(chosen)) if chosen else []

    def _shape_readers(self, chosen: set[int]) -> set[int]:
        """Nodes that read only the shape of tensors that are there or are computed: left for later, they keep them."""
        nodes = self.proto.graph.node
        there = {name for index in chosen for name in nodes[index].output} | self.known.keys()
        return {index for index in self.todo if nodes[index].op_type in SHAPES and there.issuperset(self.reads[index])}

    def _run(self, chosen: list[int], wanted: set[str], visit: Callable[[int, ValueOf], None] | None) -> None:
        nodes = self.proto.graph.node
        self.todo.difference_update(chosen)
        for index in chosen:
            self.readers.subtract(set(self.reads[index]))
        outputs = [name for index in chosen for name in nodes[index].output if name]
        kept = {name for name in outputs if self.readers[name] > 0 or (visit is None and name in wanted)}
        made = [name for name in outputs if name in kept or name in wanted]
        part, sources = self._part(chosen, made)
        again = False
        try:
            with (
                translate_errors(),
                open_session(part, self.optimise, self.libraries) as session,
                session_runner(session) as run_once,
            ):
                for run in range(self.runs):
                    values = {name: self.value(name, run) for name in sources}
                    values |= {n: np.asarray(v) for n, v in zip(made, run_once(values), strict=True)}
                    if visit is not None:
                        visit(run, partial(self._value_in, values, run))
                    if run == 0 and visit is not None:
                        again = self._is_repeated(chosen, values, kept)
                    for name in () if again else made:
                        if name in kept:
                            self.spill.put(self.tag + name, run, values[name])
        except RunFailed as error:
            raise DataError(
                f"the network cannot be run on the calibration data: {error}; give samples of a shape that it accepts"
            ) from error
        if again:
            self.repeats.update(chosen)
            self.todo.update(chosen)
            for index in chosen:
                self.readers.update(set(self.reads[index]))
        else:
            self.known |= dict.fromkeys(kept)

    def _is_repeated(self, chosen: list[int], values: Feed, kept: set[str]) -> bool:
        """True if nodes are run again for each of their readers, so that their outputs need not be stored."""
        stored = sum(values[name].nbytes for name in kept)
        freed = sum(values[name].nbytes for name in values if name in self.known and self.readers[name] <= 0)
        work = sum(self.work.get(name, 0) for index in chosen for name in self.reads[index])
        return (
            self.spill.bytes_held + stored * self.runs > self.spill.limit
            and freed <= REPEATED_SHARE * stored
            and work <= REPEATED_WORK
            and all(self.repeats[index] < MAX_REPEATS for index in chosen)
        )

    def _value_in(self, values: Feed, run: int, name: str) -> Array:
        return values[name] if name in values else self.value(name, run)

    def _forget(self, wanted: set[str]) -> None:
        for name in [name for name in self.known if self.readers[name] <= 0 and name not in wanted]:
            self.spill.drop(self._place(name))
            del self.known[name]

    def _part(self, chosen: list[int], made: list[str]) -> tuple[onnx.ModelProto, list[str]]:
        """Model of the chosen nodes, and the names of its inputs."""
        source = self.proto
        part = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
        part.graph.name = "part"
        taken, stack = set(chosen), list(chosen)
        while stack:
            for name in self.reads[stack.pop()]:
                index = self.producers.get(name, -1)
                if index >= 0 and index not in taken and name not in self.input_dependent:
                    taken.add(index)
                    stack.append(index)
        inside = sorted(taken)
        part.graph.node.extend(source.graph.node[index] for index in inside)
        read = {name for node in part.graph.node for name in [*node.input, *captured_names(node)]}
        part.graph.initializer.extend(t for t in source.graph.initializer if t.name in read)
        part.graph.sparse_initializer.extend(t for t in source.graph.sparse_initializer if t.values.name in read)
        own = {name for node in part.graph.node for name in node.output}
        sources = [name for name in self.known if name in read and name not in own]
        part.graph.input.extend(_declaration(name, self.spill.values_of(self._place(name))) for name in sources)
        part.graph.output.extend([onnx.ValueInfoProto(name=name) for name in made])
        return part, sources


def _declaration(name: str, runs: Sequence[Array | _Stored]) -> onnx.ValueInfoProto:
    """Declaration of an input: the rank where all runs have the same, and each size that they share.

    Without a rank, onnxruntime 1.31 infers that the result of Shape has no elements, and refuses a Resize to that size.
    """
    shapes = [value.shape for value in runs]
    same_rank = len({len(shape) for shape in shapes}) == 1
    sizes = [each[0] if len(set(each)) == 1 else None for each in zip(*shapes, strict=True)] if same_rank else None
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(runs[0].dtype), sizes)
