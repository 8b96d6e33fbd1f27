"""Reading, checking and writing ONNX files.

``Model`` holds the protobuf as it will be edited (local functions inlined, external data in memory) beside its
onnx-graphsurgeon view, which the analysis reads; node ``k`` of one is node ``k`` of the other.  The edit itself is
made on the protobuf, because graphsurgeon's export drops metadata and doc strings.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data
from onnx.inliner import inline_local_functions

from leanonnx.errors import ModelError, OptionError
from leanonnx.graph.formats import graphs
from leanonnx.graph.functions import check_functions
from leanonnx.graph.nodes import subgraphs
from leanonnx.graph.storage import BYTE, byte_size, digest, element_bits

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL  # it would log to stdout
RANDOM_OPS = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
PACKED = 8
"""So many elements of less than a byte may be packed into one value of a typed field."""
LFS_POINTER = b"version https://git-lfs"
SHAPE_OPS = {"Shape", "Size"}
FREE_INITIALIZERS = 4
"""The IR version from which initializers need not be listed as graph inputs; a caller may override those that are."""


@dataclass(frozen=True)
class Model:
    """A checked model in memory; ``libraries`` hold onnxruntime's kernels of its custom operators.

    ``frozen`` counts initializers that the file lists as graph inputs and ``proto`` does not.  ``folded`` names weights
    that ``proto`` stores and the file computes from constants; ``original`` is the model that computes them.  ``size``:
    bytes of the file and its external data.
    """

    path: Path
    proto: onnx.ModelProto
    sha256: str
    external_files: tuple[Path, ...]
    libraries: tuple[Path, ...] = ()
    frozen: int = 0
    folded: tuple[str, ...] = ()
    original: Model | None = None
    size: int = 0

    @property
    def as_read(self) -> Model:
        """The model as the file has it, before any weight was folded."""
        return self.original or self

    @property
    def files(self) -> tuple[Path, ...]:
        """The model file, followed by its external data."""
        return (self.path, *self.external_files)

    @cached_property
    def graph(self) -> gs.Graph:
        """The graphsurgeon view that rules read."""
        return gs.import_onnx(self.proto)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), default=1)

    @cached_property
    def holders(self) -> dict[str, onnx.TensorProto | onnx.NodeProto]:
        """What holds each constant: an initializer, or the Constant node that puts it out."""
        found: dict[str, onnx.TensorProto | onnx.NodeProto] = {t.name: t for t in self.proto.graph.initializer}
        for node in self.proto.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name != "sparse_value":
                found[node.output[0]] = node
        return found

    @cached_property
    def origins(self) -> dict[str, str]:
        """For each name that is a constant, directly or by Identity: the name of what holds it."""
        found = {name: name for name in self.holders}
        for node in self.proto.graph.node:
            if node.op_type == "Identity" and node.input[0] in found:
                found[node.output[0]] = found[node.input[0]]
        return found

    @cached_property
    def producers(self) -> dict[str, int]:
        """Index of the node that puts out each value."""
        return {name: k for k, node in enumerate(self.proto.graph.node) for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[int]]:
        """Indices of the nodes that read each value, they or their subgraphs; -1 stands for the caller."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.proto.graph.node):
            for name in {*node.input, *captured(node)}:
                found.setdefault(name, []).append(index)
        for value in self.proto.graph.output:
            found.setdefault(value.name, []).append(-1)
        return found

    @cached_property
    def use_counts(self) -> dict[str, int]:
        """How many inputs of nodes and subgraphs, and graph outputs, read each value.

        Constants are counted under the name of what holds them, whatever Identity they are read through.
        """
        found = Counter(self.origins.get(value.name, value.name) for value in self.proto.graph.output)
        for node in self.proto.graph.node:
            if node.op_type != "Identity" or node.output[0] not in self.origins:
                found.update(self.origins.get(name, name) for name in [*node.input, *captured(node)])
        return dict(found)

    def constant(self, name: str) -> NDArray[np.generic]:
        """Value of a constant of the main graph."""
        return holder_array(self.holders[self.origins[name]])

    def constant_kind(self, name: str) -> tuple[str, int]:
        """Numpy type name and number of elements of a constant, without reading an initializer's data."""
        holder = self.holders[self.origins[name]]
        if isinstance(holder, onnx.TensorProto):
            kind = onnx.helper.tensor_dtype_to_np_dtype(holder.data_type)
        else:
            kind = holder_array(holder).dtype
        return kind.name, math.prod(self.shape_of(name))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a constant, without reading an initializer's data."""
        holder = self.holders[self.origins[name]]
        return tuple(holder.dims) if isinstance(holder, onnx.TensorProto) else holder_array(holder).shape

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs that a caller has to feed (initializers listed as inputs left out)."""
        fixed = {t.name for t in self.proto.graph.initializer}
        return [value for value in self.proto.graph.input if value.name not in fixed]

    @cached_property
    def overridable(self) -> frozenset[str]:
        """Initializers whose value a caller may replace, and all that is computed from them."""
        found = set(overridden(self.proto))
        for node in self.proto.graph.node if found else ():
            if not found.isdisjoint([*node.input, *captured(node)]):
                found.update(node.output)
        return frozenset(found - {""})

    @cached_property
    def free(self) -> frozenset[str]:
        """Values that depend on the data of a graph input (not merely on its shape)."""
        found = {value.name for value in self.inputs}
        for node in self.proto.graph.node:
            reads = {*node.input, *captured(node)}
            if (reads & found and node.op_type not in SHAPE_OPS) or node.op_type in RANDOM_OPS:
                found.update(node.output)
        return frozenset(found - {""})


def overridden(proto: onnx.ModelProto) -> frozenset[str]:
    """Initializers listed as graph inputs where that is not obligatory: their values are mere defaults."""
    if proto.ir_version < FREE_INITIALIZERS:
        return frozenset()
    return frozenset({v.name for v in proto.graph.input} & {t.name for t in proto.graph.initializer})


def holder_array(holder: onnx.TensorProto | onnx.NodeProto) -> NDArray[np.generic]:
    """Value of an initializer or of a Constant node."""
    if isinstance(holder, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(holder))
    attribute = holder.attribute[0]
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(attribute.t))
    value = onnx.helper.get_attribute_value(attribute)
    return np.asarray(value, {"value_float": np.float32, "value_floats": np.float32}.get(attribute.name))


def captured(node: onnx.NodeProto) -> set[str]:
    """Outer values that the subgraphs of a node (If, Loop, Scan) read."""
    found: set[str] = set()
    for graph in subgraphs(node):
        inner = {t.name for t in graph.initializer} | {v.name for v in graph.input}
        for child in graph.node:
            found |= {*child.input, *captured(child)} - inner
            inner.update(child.output)
        found |= {v.name for v in graph.output} - inner
    return found - {""}


def unneeded(nodes: Iterable[onnx.NodeProto], graph: onnx.GraphProto) -> frozenset[str]:
    """What nodes put out without any path to a graph output."""
    needed = {value.name for value in graph.output}
    spare: set[str] = set()
    for node in reversed(list(nodes)):
        if needed.isdisjoint(node.output):
            spare.update(node.output)
        else:
            needed.update([*node.input, *captured(node)])
    return frozenset(spare - needed - {""})


def load(path: Path, libraries: tuple[Path, ...] = (), freeze: bool = False) -> Model:
    """Read, check and normalise a model file, whose custom operators are in ``libraries``.

    With ``freeze``, initializers that a caller might override become constants: they are no graph inputs any more.

    Raises:
        ModelError: no such file, empty, not ONNX, refused by the checker, external data missing.
        OptionError: a library is no file.
    """
    for library in libraries:
        if not library.is_file():
            raise OptionError(f"--library {library}: no such file; give the path of the library")
    proto = _parse(path)
    for tensor in tensors(proto.graph):
        _check_size(tensor, path)
    external = tuple(sorted({_external_path(t, path) for t in tensors(proto.graph) if uses_external_data(t)}))
    check(path)
    if external:
        _read_external(proto, path)
    digests = [digest(file) for file in (path, *external)]
    identity = digests[0] if not external else hashlib.sha256(b"".join(digests)).digest()
    if proto.functions:
        proto = _inlined(proto, path)
    frozen = overridden(proto) if freeze else frozenset()
    if frozen:
        inputs = [value for value in proto.graph.input if value.name not in frozen]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
    size = sum(file.stat().st_size for file in (path, *external))
    resolved = tuple(each.resolve() for each in libraries)
    return Model(path, proto, identity.hex(), external, resolved, len(frozen), size=size)


def _inlined(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        return inline_local_functions(proto)
    except Exception as error:  # onnx raises several unrelated types
        raise ModelError(
            f"{path}: the local functions cannot be inlined: {first_line(error)}; export the model without functions"
        ) from error


def _read_external(proto: onnx.ModelProto, path: Path) -> None:
    try:
        load_external_data_for_model(proto, str(path.parent))
    except Exception as error:  # onnx raises several unrelated types
        raise ModelError(
            f"{path}: the external data cannot be read: {first_line(error)}; copy the data file again"
        ) from error


def _parse(path: Path) -> onnx.ModelProto:
    if not os.path.exists(path):
        raise ModelError(f"{path}: no such file; check the path of the input model")
    if not os.path.isfile(path):
        raise ModelError(f"{path}: not a file; give the path of one .onnx file")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: the file is empty (0 bytes); export or copy the model again")
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; check the permissions") from error
    except (DecodeError, ValueError) as error:
        with path.open("rb") as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        raise ModelError(
            f"{path}: not an ONNX model (not a protobuf, or cut short after {path.stat().st_size} bytes); "
            + ("it is a pointer of Git LFS: run git lfs pull" if pointer else "export or copy the model again")
        ) from error
    if proto.ir_version == 0 or not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(
            f"{path}: a protobuf, but no ONNX model (expected an IR version, an operator set and a graph); "
            "give the .onnx file itself"
        )
    check_functions(proto, path)
    if not proto.graph.output:
        raise ModelError(f"{path}: the graph has no outputs; export the model with at least one output")
    return proto


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph and its subgraphs."""
    for inner in graphs(graph):
        yield from inner.initializer
        for sparse in inner.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in inner.node:
            yield from (a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)


def constant_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of all constants but texts."""
    numbers = (t for t in tensors(proto.graph) if t.data_type != onnx.TensorProto.STRING)
    return sum(byte_size(t.data_type, math.prod(t.dims)) for t in numbers)


def _check_size(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse a constant that declares another size than its data have, before anything is allocated for it."""
    if min(tensor.dims, default=0) < 0 or tensor.data_type not in onnx.TensorProto.DataType.values()[1:]:
        raise ModelError(f"{path}: constant '{tensor.name}' has a negative size or no known type; export it again")
    count = math.prod(tensor.dims)
    if uses_external_data(tensor):
        enough = _external_bytes(tensor, path) >= byte_size(tensor.data_type, count)
    elif tensor.HasField("raw_data"):
        enough = len(tensor.raw_data) == byte_size(tensor.data_type, count)
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        held = max(len(tensor.string_data), *(len(field) for field in fields))
        pair = tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
        small = element_bits(tensor.data_type) < BYTE
        enough = held * PACKED >= count if small else held == count * (1 + pair)
    if not enough:
        short, other = "its external data are shorter; copy the data file", "its data have others"
        where = short if uses_external_data(tensor) else other
        raise ModelError(
            f"{path}: constant '{tensor.name}' declares the sizes {list(tensor.dims)}, but {where}; "
            "export or copy the model again"
        )


def _external_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Bytes that the file of an external constant holds for it."""
    try:
        info = ExternalDataInfo(tensor)
        offset, length = int(info.offset or 0), int(info.length or 0)
    except ValueError as error:
        raise ModelError(f"{path}: constant '{tensor.name}' has a broken place of its data; export it again") from error
    if min(offset, length) < 0:
        raise ModelError(f"{path}: constant '{tensor.name}' has a broken place of its data; export it again")
    size = _external_path(tensor, path).stat().st_size - offset
    return min(size, length) if length else size


def _external_path(tensor: onnx.TensorProto, path: Path) -> Path:
    """The data file of a constant, which must lie in the model's folder."""
    folder = path.parent.resolve()
    location = ExternalDataInfo(tensor).location
    try:
        file = (folder / location).resolve()
        inside, present = file.is_relative_to(folder), file.is_file()
    except (TypeError, ValueError, OSError) as error:  # not UTF-8, a zero byte, too long
        raise ModelError(
            f"{path}: the external data of constant '{tensor.name}' have no usable file name; export the model again"
        ) from error
    if not inside:
        raise ModelError(
            f"{path}: the data of constant '{tensor.name}' lies outside the model's folder ('{location}'); "
            "put the data file beside the model"
        )
    if not present:
        raise ModelError(
            f"{path}: the external data file '{location}' of constant '{tensor.name}' is missing; copy it to {folder}"
        )
    return file


def check(path: Path) -> None:
    """Run the ONNX checker with shape inference.

    Raises:
        ModelError: the checker refuses the model.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        raise ModelError(f"{path}: the ONNX checker refuses the model: {first_line(error)}; export it again") from error


def first_line(error: BaseException) -> str:
    """The first 300 characters of an error message, on one line.

    Errors of onnxruntime whose message is no UTF-8, because a text in the model is none, come without it.
    """
    unsaid = f"{type(error).__name__} without a message; a text in the file may not be utf-8"
    return " ".join(str(error).split())[:300] or unsaid
