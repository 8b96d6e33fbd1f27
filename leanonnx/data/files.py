"""Files of samples, or arrays of them in memory, held against the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanonnx.data.images import Folder, ImageFormat, frame_of, image_names
from leanonnx.data.npz import Member, Read, members
from leanonnx.errors import DataError
from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed

Sample = tuple[Feed, Array | None]
"""One row of each input, and its label where there are labels."""
LABELS = ("labels", "label", "y")
NUMBERS = "biuf"
TEXTS = "US"
Shapes = Mapping[str, tuple[int, ...]]
IN_MEMORY = "calib"
"""What messages call samples that are in memory."""


@dataclass(frozen=True)
class Slot:
    """A graph input: its declared sizes (None: free), its numbers, and whether a sample is the ``whole`` of it."""

    name: str
    dims: tuple[int | None, ...]
    dtype: np.dtype[Any]
    whole: bool = False


@dataclass(frozen=True)
class Made:
    """Rows of an array of the shape [rows, ...] that are made when they are asked for."""

    shape: tuple[int, ...]
    make: Read

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """A reader of rows."""
        yield self.make


@dataclass(frozen=True)
class Held:
    """An array [samples, ...] in memory."""

    name: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all samples together."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.array.dtype

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.shape[0]

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], Array]]:
        """A reader of samples by their index, copies of their own."""
        yield lambda k: np.array(self.array[k], order="C")


@dataclass(frozen=True)
class File:
    """Where the samples of some inputs lie, by input name, with their labels; ``title`` is what messages call it."""

    title: str
    arrays: Mapping[str, Member | Held | Folder | Made]
    label: Member | Held | None = None

    @property
    def count(self) -> int:
        """Number of samples; one of a model without inputs."""
        return min((array.count for array in self.arrays.values()), default=1)

    @contextmanager
    def opened(self, slots: Sequence[Slot], labelled: bool) -> Iterator[Callable[[int], Sample]]:
        """A reader of samples by their index in the file, to be read in ascending order."""
        with ExitStack() as stack:
            reads = [(slot, stack.enter_context(self.arrays[slot.name].opened())) for slot in slots]
            label = stack.enter_context(self.label.opened()) if labelled and self.label else None

            def read(k: int) -> Sample:
                where = f"{self.title}: sample {k} of input"
                feed = {slot.name: _as_fed(row(k), slot.dtype, f"{where} '{slot.name}'") for slot, row in reads}
                return feed, label(k) if label else None

            yield read


def listed(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The .npz files of a path, or the names of its images."""
    if path.is_file():
        return [path], ()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give an .npz file, a folder of them, or a folder of images")
    try:
        archives, names = sorted(path.glob("[!.]*.npz")), image_names(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the permissions") from error
    if bool(archives) == bool(names):
        found = "both .npz files and images" if names else "neither .npz files nor images (png, jpg, bmp, webp)"
        raise DataError(f"{path}: the folder holds {found}; give a folder that holds one kind")
    return archives, names


def sample_files(path: Path) -> list[Path]:
    """The files that data at a path consist of."""
    archives, names = listed(path)
    return archives or [path / name for name in names]


def slot_of(value: onnx.ValueInfoProto, shapes: Shapes) -> Slot:
    """What a graph input declares; where it declares no axes, those observed."""
    kind = value.type.tensor_type
    dims: list[int | None] = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim]
    if not kind.HasField("shape"):
        dims = [None] * len(shapes[value.name])
    return Slot(value.name, tuple(dims), onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def folder_file(path: Path, names: tuple[str, ...], slots: list[Slot], shapes: Shapes, images: ImageFormat) -> File:
    """A folder of images."""
    if len(slots) > 1:
        text = ", ".join(f"'{slot.name}'" for slot in slots)
        raise DataError(f"{path}: images can feed one input, but the model has {text}; give the data as .npz")
    slot = slots[0]
    frame = frame_of(slot.name, slot.dims, shapes[slot.name], slot.dtype, images)
    return File(str(path), {slot.name: Folder(path, names, frame)})


def npz_file(path: Path, slots: list[Slot]) -> File:
    """An .npz file, held against the inputs of the model."""
    return _file(str(path), dict(members(path)), slots)


def held_file(arrays: Mapping[str, Any], slots: list[Slot]) -> File:
    """Arrays in memory by their names, held against the inputs of the model."""
    return _file(IN_MEMORY, {name: Held(name, np.asarray(array)) for name, array in arrays.items()}, slots)


def _file(title: str, found: dict[str, Member | Held], slots: list[Slot]) -> File:
    inputs = {slot.name for slot in slots}
    label = next((found[name] for name in LABELS if name in found and name not in inputs), None)
    others = [member for member in found.values() if member is not label]
    if len(slots) == 1 and len(others) == 1:
        found[slots[0].name] = others[0]
    missing = inputs - set(found)
    if missing:
        raise DataError(
            f"{title}: no array for input '{min(missing)}'; expected arrays named {', '.join(sorted(inputs))}, "
            f"got {', '.join(sorted(found)) or 'none'}; name each array after its graph input"
        )
    arrays = {slot.name: found[slot.name] for slot in slots}
    for slot in slots:
        _check_array(title, slot, arrays[slot.name])
    counts = {member.name: member.shape[0] if member.shape else 0 for member in arrays.values()}
    if label:
        _check_kind(title, label, NUMBERS, "labels are numbers")
        counts[label.name] = label.shape[0] if label.shape else 0
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise DataError(
            f"{title}: the arrays hold different numbers of samples ({text}); axis 0 counts the samples: give each as "
            "many, and inputs without a batch axis an axis more, [samples, ...]"
        )
    return File(title, dict(arrays), label)


def _check_array(title: str, slot: Slot, member: Member | Held) -> None:
    """Hold the shape and type of an array against its input."""
    rank, row = len(slot.dims), member.shape[1:]
    dims = {rank: slot.dims[1:], rank + 1: slot.dims}.get(max(len(member.shape), 1))
    if dims is None or not member.shape or any(d not in (None, size) for d, size in zip(dims, row, strict=True)):
        sizes = ["?" if d is None else str(d) for d in slot.dims]
        forms = [", ".join(["samples", *row]) for row in ([sizes[1:], sizes] if sizes else [[]])]
        raise DataError(
            f"{title}: array '{member.name}' has the shape {list(member.shape)}, but input '{slot.name}' takes "
            f"{' or '.join(f'[{form}]' for form in forms)}; give it in one of these shapes"
        )
    kinds, text = (TEXTS, "text") if slot.dtype.kind == "O" else (NUMBERS, str(slot.dtype))
    _check_kind(title, member, kinds, f"input '{slot.name}' takes {text}")


def _check_kind(title: str, member: Member | Held, kinds: str, expected: str) -> None:
    if member.dtype.kind not in kinds:
        raise DataError(f"{title}: array '{member.name}' holds {member.dtype}, but {expected}; convert the array")


def _as_fed(value: Array, dtype: np.dtype[Any], where: str) -> Array:
    """A row in the type of its input, nothing lost but precision.

    Raises:
        DataError: NaN, infinity, or what the type cannot hold.
    """
    if is_float(value) and not np.isfinite(value).all():
        raise DataError(f"{where}: NaN or infinity, expected finite numbers; leave the sample out")
    with np.errstate(all="ignore"):
        result = value.astype(dtype)
    kept = np.isfinite(result.astype(np.float64)).all() if is_float(result) else np.array_equal(result, value)
    if not kept:
        raise DataError(f"{where}: numbers that {dtype} cannot hold; bring them into the range that the input takes")
    return result
