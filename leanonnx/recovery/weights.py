"""Weights changed by recovery, in an .npz file: extracted from a draft, inserted into another of the same keep set.

Each array is a constant of the compressed network, under its name there: the name in the input file, except for added
biases and for constants of which nodes read different slices.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.lib import format as npy

from leanonnx.errors import PlanError
from leanonnx.formatting import quoted_text
from leanonnx.graph.model import Model, check_model
from leanonnx.graph.nodes import BIAS, holder_array
from leanonnx.graph.storage import write_model
from leanonnx.numeric.arrays import Array
from leanonnx.recovery.changes import add_bias, set_constant
from leanonnx.spelling import option, option_list
from leanonnx.surgery.recipe import WeightsFile

NPY_SUFFIX = ".npy"

BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
"""The only bias type that numpy does not support."""


@dataclass(frozen=True)
class StoredWeights:
    """Changed constants by name; ``biases`` maps each added bias to the output tensor of its node."""

    arrays: Mapping[str, Array]
    biases: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Return the content of the file, deterministic for the same weights."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, array in self.arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}{NPY_SUFFIX}"), "w", force_zip64=True) as member:
                    npy.write_array(member, np.asanyarray(array, order="C"), allow_pickle=False)
        return stream.getvalue()


def changed_weights(bare: Model, draft: onnx.ModelProto, fitted: Collection[str] = ()) -> StoredWeights:
    """Constants of a draft that differ from those of the bare network from which it was made.

    ``fitted`` names constants of that network that were fitted themselves, and are stored in any case.
    """
    made = replace(bare, proto=draft)
    changed = {name: holder for name, holder in made.holders.items() if bare.holders.get(name) != holder}
    changed |= {name: made.holders[name] for name in fitted if name in made.holders}
    arrays = {name: holder_array(holder) for name, holder in changed.items()}
    pairs = zip(bare.proto.graph.node, draft.graph.node, strict=True)
    biases = {new.input[BIAS]: new.output[0] for old, new in pairs if list(old.input) != list(new.input)}
    return StoredWeights(arrays, biases)


def read_weights(file: WeightsFile, origin: str) -> StoredWeights:
    """Read the weights that the plan ``origin`` refers to.

    Raises:
        PlanError: the file is missing or damaged, or is not the one written with the plan.
    """
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise PlanError(
            f"{origin}: its weights '{file.path}' cannot be read: {error.strerror}; put the file there, or add "
            f"{option('recover', 'none')} to go without"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise PlanError(
            f"{file.path}: not the weights that {origin} was written with (sha256 {digest[:12]}…, expected "
            f"{file.sha256[:12]}…); {_remedy()}"
        )
    try:
        return StoredWeights(_arrays(content), file.biases)
    except MemoryError:
        raise
    except Exception as error:  # zipfile and numpy raise whatever a damaged file makes them do
        raise PlanError(f"{file.path}: not a whole file of weights: {quoted_text(str(error))}; {_remedy()}") from error


def _arrays(content: bytes) -> dict[str, Array]:
    """The arrays of an .npz file by name."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                arrays[info.filename.removesuffix(NPY_SUFFIX)] = npy.read_array(member, allow_pickle=False)
    return arrays


def insert_weights(bare: Model, weights: StoredWeights, origin: str) -> onnx.ModelProto:
    """Return a copy of a compressed network with the stored weights.

    Raises:
        PlanError: the weights do not fit.
    """
    result = onnx.ModelProto()
    result.CopyFrom(bare.proto)
    for name, array in weights.arrays.items():
        place = weights.biases.get(name)
        if place is None:
            old = bare.constant(name) if name in bare.holders else None
            if old is None or old.shape != array.shape or _view_as(array, old.dtype).dtype != old.dtype:
                held = "no such constant" if old is None else f"{old.dtype} {list(old.shape)}"
                raise PlanError(
                    f"{origin}: the weights of '{name}' are {array.dtype} {list(array.shape)}, but the network has "
                    f"{held}; {_remedy()}"
                )
            set_constant(result, name, _view_as(array, old.dtype))
            continue
        index = bare.producers.get(place, -1)
        if index < 0:
            raise PlanError(
                f"{origin}: the bias '{name}' belongs to '{place}', which is no output of a node; {_remedy()}"
            )
        add_bias(result, result.graph.node[index], name, _view_as(array, BFLOAT16))
    return result


def restore_weights(original: Model, draft: Path, weights: StoredWeights, origin: str) -> None:
    """Insert weights into the file of a draft.

    Raises:
        ModelError: the result is not valid.
        PlanError: the weights do not fit.
    """
    bare = replace(original, proto=onnx.load(draft))
    write_model(insert_weights(bare, weights, origin), draft, external=bool(original.external_files))
    check_model(draft)


def _view_as(array: Array, kind: np.dtype[np.generic]) -> Array:
    """View an array in its type: number formats that numpy does not support are stored as raw bytes."""
    is_raw = array.dtype.kind == "V" and array.dtype.itemsize == kind.itemsize
    return array.view(kind) if is_raw else array


def _remedy() -> str:
    return f"make both again with {option_list('plan_out', 'plan_weights')}"
