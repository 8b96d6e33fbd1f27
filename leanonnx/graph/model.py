"""Read and check ONNX files.

``Model`` holds the protobuf as it will be edited (local functions inlined, external data in memory) and a view of it.
Edits are made on the protobuf, because onnx-graphsurgeon's export drops metadata and doc strings.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.lib import format as npy
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from onnx.inliner import inline_local_functions

from leanonnx.errors import ModelError, OptionError
from leanonnx.formatting import quoted_text
from leanonnx.graph.constants import check_size, external_path
from leanonnx.graph.formats import graphs
from leanonnx.graph.functions import check_functions
from leanonnx.graph.names import check_missing_names, check_names
from leanonnx.graph.noted_shapes import drop_inner_shapes, free_negative_sizes
from leanonnx.graph.storage import byte_size, digest
from leanonnx.graph.view import GraphView, Holder, default_initializers
from leanonnx.spelling import option, option_list

OUT_OF_MEMORY_TEXTS = ("allocate memory", "bad allocation", "bad_alloc", "out of memory")
"""Parts of the messages of libraries in C++ that have no memory: onnxruntime, PyTorch, CUDA."""
SYSTEM_ERROR = re.compile(r"(?:system error number|errcode =) (\d+)")
"""What onnxruntime says of a file that it cannot open or read, with the number of the error."""
MACHINE_ERRORS = {errno.EIO, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EMFILE, errno.ENFILE}
"""Numbers of errors that no model is to blame for."""
MAGIC_BYTES = 8
PICKLE_MAGIC, HDF5_MAGIC, TFLITE_MAGIC = b"\x80\x02", b"\x89HDF", b"TFL3"
"""Beginnings of files of other formats; that of TensorFlow Lite stands behind four bytes."""
UNREADABLE_TEXTS = ("Unable to open", "Protobuf parsing failed")
"""Parts of the messages of onnx and onnxruntime on a file that cannot be read, or is read in part."""
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checked model in memory; ``libraries`` hold onnxruntime's kernels of its custom operators.

    ``frozen`` counts initializers that the file lists as graph inputs and ``proto`` does not.  ``folded`` names weights
    that ``proto`` stores and the file computes from constants; ``original`` is the model that computes them.  ``size``:
    bytes of the file and its external data.  ``repaired``: the file notes shapes of inner values that contradict its
    operators, and ``proto`` does not.
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
    repaired: bool = False

    @property
    def as_read(self) -> Model:
        """The model as the file has it, before any weight was folded."""
        return self.original or self

    @property
    def files(self) -> tuple[Path, ...]:
        """The model file, followed by its external data."""
        return (self.path, *self.external_files)

    @cached_property
    def view(self) -> GraphView:
        """The relations between nodes and values; the properties below are the most used ones."""
        return GraphView(self.proto)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.view.opset

    @property
    def holders(self) -> dict[str, Holder]:
        """The initializer or the Constant node that holds each constant."""
        return self.view.holders

    @property
    def origins(self) -> dict[str, str]:
        """The name of the holder for each constant, read directly or through Identity."""
        return self.view.origins

    @property
    def producers(self) -> dict[str, int]:
        """Index of the node that outputs each value."""
        return self.view.producers

    @property
    def consumers(self) -> dict[str, list[int]]:
        """Indices of the nodes that read each value; -1 stands for the caller."""
        return self.view.consumers

    @property
    def use_counts(self) -> dict[str, int]:
        """Number of reads of each value."""
        return self.view.use_counts

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs that a caller has to feed."""
        return self.view.inputs

    @property
    def overridable(self) -> frozenset[str]:
        """Initializers whose value a caller may replace, and all values computed from them."""
        return self.view.overridable

    @property
    def free(self) -> frozenset[str]:
        """Values that depend on the data of a graph input."""
        return self.view.free

    def constant(self, name: str) -> NDArray[np.generic]:
        """The value of a constant of the main graph."""
        return self.view.constant(name)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a constant, without reading an initializer's data."""
        return self.view.shape_of(name)


def load(path: Path, libraries: tuple[Path, ...] = (), freeze: bool = False) -> Model:
    """Read, check and normalise a model file, whose custom operators are in ``libraries``.

    With ``freeze``, initializers that a caller might override become constants: they are no graph inputs any more.

    Raises:
        ModelError: no such file, empty, not ONNX, refused by the checker, external data missing.
        OptionError: a library is no file.
    """
    for library in libraries:
        if not library.is_file():
            raise OptionError(f"{option('library', str(library))}: no such file; give the path of the library")
    proto = _parse(path)
    for tensor in tensors(proto.graph):
        check_size(tensor, path)
    external = tuple(sorted({external_path(t, path) for t in tensors(proto.graph) if uses_external_data(t)}))
    refusal = _refusal_of_shapes(path)
    if external:
        _read_external(proto, path)
    if refusal is not None:
        _repair(proto, refusal)
    digests = [_digest(file) for file in (path, *external)]
    identity = digests[0] if not external else hashlib.sha256(b"".join(digests)).digest()
    if proto.functions:
        proto = _inline_functions(proto, path)
    check_missing_names(proto, path)
    free_negative_sizes(proto)
    frozen = default_initializers(proto) if freeze else frozenset()
    if frozen:
        inputs = [value for value in proto.graph.input if value.name not in frozen]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
    size = sum(file.stat().st_size for file in (path, *external))
    resolved = tuple(each.resolve() for each in libraries)
    return Model(
        path=path,
        proto=proto,
        sha256=identity.hex(),
        external_files=external,
        libraries=resolved,
        frozen=len(frozen),
        size=size,
        repaired=refusal is not None,
    )


def _digest(file: Path) -> bytes:
    try:
        return digest(file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}; check the permissions") from error


def _inline_functions(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        return inline_local_functions(proto)
    except Exception as error:  # onnx raises several unrelated types
        raise_if_machine_failed(error)
        raise ModelError(
            f"{path}: the local functions cannot be inlined: {first_line(error)}; export the model without functions"
        ) from error


def _read_external(proto: onnx.ModelProto, path: Path) -> None:
    try:
        load_external_data_for_model(proto, str(path.parent))
    except Exception as error:  # onnx raises several unrelated types
        raise_if_machine_failed(error)
        raise ModelError(
            f"{path}: the external data cannot be read: {first_line(error)}; copy the data file again"
        ) from error


def _parse(path: Path) -> onnx.ModelProto:
    if not os.path.exists(path):
        raise ModelError(f"{path}: no such file; check the path of the model")
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
        _check_known_formats(path)
        raise ModelError(
            f"{path}: not an ONNX model (not a protobuf, or cut short after {path.stat().st_size} bytes); "
            + ("it is a pointer of Git LFS: run git lfs pull" if pointer else "export or copy the model again")
        ) from error
    if proto.ir_version == 0:
        _check_known_formats(path)
    if proto.ir_version == 0 or not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(
            f"{path}: a protobuf, but no ONNX model (expected an IR version, an operator set and a graph); "
            "give the .onnx file itself"
        )
    check_names(proto, path)
    check_functions(proto, path)
    if not proto.graph.output:
        raise ModelError(f"{path}: the graph has no outputs; export the model with at least one output")
    return proto


def _check_known_formats(path: Path) -> None:
    """Refuse a file of another format by its name, with the way from there.

    Raises:
        ModelError: the file holds arrays, or a model of another library.
    """
    with path.open("rb") as file:
        start = file.read(MAGIC_BYTES)
    names = _names_in_zip(path)
    if start.startswith(npy.MAGIC_PREFIX) or any(name.endswith(".npy") for name in names):
        raise ModelError(
            f"{path}: arrays, not a model; give the .onnx file here, and the arrays with "
            f"{option_list('calib', 'data', last='or')}"
        )
    if any(name.endswith("data.pkl") for name in names) or start.startswith(PICKLE_MAGIC):
        raise ModelError(f"{path}: a file of PyTorch, not an ONNX model; export the model with torch.onnx.export")
    if start.startswith(HDF5_MAGIC) or start[4:8] == TFLITE_MAGIC or any(name.endswith(".h5") for name in names):
        raise ModelError(f"{path}: a file of Keras or TensorFlow, not an ONNX model; convert the model with tf2onnx")


def _names_in_zip(path: Path) -> list[str]:
    """The names in an archive; none if the file is no whole archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


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


def check_model(path: Path, with_shapes: bool = True) -> None:
    """Run the ONNX checker, with shape inference if ``with_shapes``.

    Raises:
        ModelError: the checker refuses the model.
    """
    try:
        onnx.checker.check_model(str(path), full_check=with_shapes)
    except Exception as error:  # the checker raises several unrelated types
        raise_if_machine_failed(error)
        raise ModelError(f"{path}: the ONNX checker refuses the model: {first_line(error)}; export it again") from error


def _refusal_of_shapes(path: Path) -> ModelError | None:
    """The refusal of a file whose shapes are wrong while all else is right; None if the file is right.

    Raises:
        ModelError: the checker refuses more than shapes.
    """
    try:
        check_model(path)
    except ModelError as refusal:
        check_model(path, with_shapes=False)
        return refusal
    return None


def _repair(proto: onnx.ModelProto, refusal: ModelError) -> None:
    """Leave out what is noted of inner shapes, in place; onnxruntime does not trust it either.

    Raises:
        ModelError: the shapes still contradict each other.
    """
    drop_inner_shapes(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        raise_if_machine_failed(error)
        raise refusal from error


def raise_if_machine_failed(error: BaseException | str) -> None:
    """Raise what an error of a library says of the machine rather than of the model; its message will do.

    Raises:
        MemoryError: there is not enough memory.
        OSError: a file cannot be read or written, for a reason that is not in the model.
    """
    text = str(error)
    if isinstance(error, MemoryError) or any(each in text for each in OUT_OF_MEMORY_TEXTS):
        raise MemoryError(text)
    match = SYSTEM_ERROR.search(text)
    if match and int(match[1]) in MACHINE_ERRORS:
        raise OSError(int(match[1]), os.strerror(int(match[1])))


def raise_if_unreadable(error: BaseException, path: Path) -> None:
    """Raise an OSError if a library says that it cannot read a file, which leanonnx has written itself."""
    if any(text in str(error) for text in UNREADABLE_TEXTS):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from error


def first_line(error: BaseException) -> str:
    """An error message on one line, cut if it is long.

    Errors of onnxruntime whose message is no UTF-8, because a text in the model is none, come without it.
    """
    unsaid = f"{type(error).__name__} without a message; a text in the file may not be utf-8"
    return quoted_text(str(error)) or unsaid
