"""Match files of samples, or arrays in memory, with the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanonnx.data.batches import Pieces, join_pieces
from leanonnx.data.images import ImageFolder, ImageFormat, image_input, image_names
from leanonnx.data.npz import NpzArray, RowReader, npz_arrays
from leanonnx.errors import DataError
from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.sessions import Feed

Sample = tuple[Feed, Array | None]
"""One row of each input, and its label if there are labels."""
LABEL_NAMES = ("labels", "label", "y")
NUMERIC_KINDS = "biuf"
TEXT_KINDS = "US"
IN_MEMORY_TITLE = "calib"
"""Title of samples in memory in messages."""


@dataclass(frozen=True)
class InputSpec:
    """A graph input: declared sizes (None: free) and type; ``is_whole`` is True if one sample is the whole input."""

    name: str
    dims: tuple[int | None, ...]
    dtype: np.dtype[Any]
    is_whole: bool = False


@dataclass(frozen=True)
class GeneratedArray:
    """An array [rows, ...] whose rows are generated on demand."""

    shape: tuple[int, ...]
    read_row: RowReader

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @contextmanager
    def open_reader(self) -> Iterator[RowReader]:
        """Open a reader of rows by their index."""
        yield self.read_row


@dataclass(frozen=True)
class MappedArray:
    """An array [samples, ...] whose rows are computed from those of another array by ``function``."""

    name: str
    base: NpzArray | MemoryArray
    shape: tuple[int, ...]
    function: Callable[[Array], Array]

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @contextmanager
    def open_reader(self) -> Iterator[RowReader]:
        """Open a reader of rows by their index."""
        with self.base.open_reader() as read:
            yield lambda k: self.function(read(k))


@dataclass(frozen=True)
class MemoryArray:
    """An array [samples, ...] in memory."""

    name: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all samples together."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.array.dtype

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.shape[0]

    @contextmanager
    def open_reader(self) -> Iterator[Callable[[int], Array]]:
        """Open a reader of samples by their index, which returns copies."""
        yield lambda k: np.array(self.array[k] if self.shape else self.array, order="C")


@dataclass(frozen=True)
class RepeatedNumber:
    """One number for all samples, [samples]: what an input without axes takes, such as a sampling rate."""

    name: str
    base: NpzArray | MemoryArray
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all samples together."""
        return (self.count,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.base.dtype

    @contextmanager
    def open_reader(self) -> Iterator[RowReader]:
        """Open a reader of samples by their index."""
        with self.base.open_reader() as read:
            yield lambda _: read(0)


@dataclass(frozen=True)
class SampleFile:
    """Arrays of samples by input name, with their labels.

    ``title`` names their source in messages, ``unused`` the arrays that are neither.
    """

    title: str
    arrays: Mapping[str, NpzArray | MemoryArray | MappedArray | RepeatedNumber | ImageFolder | GeneratedArray]
    label: NpzArray | MemoryArray | None = None
    unused: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of samples; 1 if there are no inputs."""
        return min((array.count for array in self.arrays.values()), default=1)

    @contextmanager
    def open_reader(self, slots: Sequence[InputSpec], labelled: bool) -> Iterator[Callable[[int], Sample]]:
        """Open a reader of samples by their index in the file; indices must ascend."""
        with ExitStack() as stack:
            reads = [(slot, stack.enter_context(self.arrays[slot.name].open_reader())) for slot in slots]
            label = stack.enter_context(self.label.open_reader()) if labelled and self.label else None

            def read(k: int) -> Sample:
                where = f"{self.title}: sample {k} of input"
                feed = {slot.name: _in_input_type(row(k), slot.dtype, f"{where} '{slot.name}'") for slot, row in reads}
                return feed, label(k) if label else None

            yield read


def list_files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """List the .npz files of a path, or the names of its images."""
    if path.is_file():
        return [path], ()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give an .npz or .npy file, or a folder of such or of images")
    try:
        archives, names = sorted(path.glob("[!.]*.np[yz]")), image_names(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the permissions") from error
    if bool(archives) == bool(names):
        content = "both arrays and images" if names else "neither arrays (npz, npy) nor images (png, jpg, bmp, webp)"
        raise DataError(f"{path}: the folder holds {content}; give a folder that holds one kind")
    return archives, names


def sample_files(path: Path) -> list[Path]:
    """List the files of the data at a path."""
    archives, names = list_files(path)
    return archives or [path / name for name in names]


def input_spec(value: onnx.ValueInfoProto, shapes: Shapes) -> InputSpec:
    """Describe a graph input by its declared axes, or by the observed ones if it declares none."""
    kind = value.type.tensor_type
    dims: list[int | None] = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim]
    if not kind.HasField("shape"):
        dims = [None] * len(shapes[value.name])
    return InputSpec(value.name, tuple(dims), onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def open_image_folder(
    path: Path, names: tuple[str, ...], slots: list[InputSpec], shapes: Shapes, images: ImageFormat
) -> SampleFile:
    """Open a folder of images as the samples of the only input."""
    if len(slots) > 1:
        text = ", ".join(f"'{slot.name}'" for slot in slots)
        raise DataError(f"{path}: images can feed one input, but the model has {text}; give the data as .npz")
    slot = slots[0]
    frame = image_input(slot.name, slot.dims, shapes[slot.name], slot.dtype, images)
    return SampleFile(str(path), {slot.name: ImageFolder(path, names, frame)})


def open_npz_file(path: Path, slots: list[InputSpec], extras: Sequence[str] = ()) -> SampleFile:
    """Open an .npz file and match its arrays with the inputs of the model; the extra arrays keep their names."""
    return _match_arrays(str(path), dict(npz_arrays(path)), slots, extras)


def open_arrays(arrays: Mapping[str, Any], slots: list[InputSpec], extras: Sequence[str] = ()) -> SampleFile:
    """Match arrays in memory with the inputs of the model by their names; the extra arrays keep theirs."""
    whole = join_pieces(arrays, {slot.name: len(slot.dims) for slot in slots})
    members = {name: MemoryArray(name, array) for name, array in whole.items()}
    return _match_arrays(IN_MEMORY_TITLE, dict(members), slots, extras)


def further_arrays(source: Path | Mapping[str, Any], inputs: Sequence[str]) -> tuple[str, ...]:
    """Names of the numeric arrays of .npz files or in memory besides the inputs of a model and the labels.

    Raises:
        DataError: the first file cannot be read.
    """
    if isinstance(source, Path):
        archives, _ = list_files(source)
        members = {name: (one.dtype, one.shape) for name, one in (npz_arrays(archives[0]) if archives else {}).items()}
    else:
        held = {name: array if isinstance(array, Pieces) else np.asarray(array) for name, array in source.items()}
        members = {name: (array.dtype, array.shape) for name, array in held.items()}
    if not set(inputs) <= set(members):
        return ()
    label, count = next((name for name in LABEL_NAMES if name in members), None), members[inputs[0]][1][:1]
    others = [name for name in members if name not in inputs and name != label]
    return tuple(name for name in others if members[name][0].kind in NUMERIC_KINDS and members[name][1][:1] == count)


def _match_arrays(
    title: str, members: dict[str, NpzArray | MemoryArray], slots: list[InputSpec], extras: Sequence[str] = ()
) -> SampleFile:
    """Match arrays with inputs by name; a single array fits a single input under any name."""
    inputs = {slot.name for slot in slots}
    taken = inputs | set(extras)
    label = next((members[name] for name in LABEL_NAMES if name in members and name not in taken), None)
    others = [member for name, member in members.items() if member is not label and name not in extras]
    if len(slots) == 1 and len(others) == 1:
        members[slots[0].name] = others[0]
    missing = inputs - set(members)
    if missing:
        raise DataError(
            f"{title}: no array for input '{min(missing)}'; expected arrays named {', '.join(sorted(inputs))}, "
            f"got {', '.join(sorted(members)) or 'none'}; name each array after its graph input"
        )
    absent = set(extras) - set(members)
    if absent:
        raise DataError(f"{title}: no array '{min(absent)}', only {', '.join(sorted(members))}; add it to the file")
    arrays: dict[str, NpzArray | MemoryArray | RepeatedNumber]
    arrays = {name: members[name] for name in (*(slot.name for slot in slots), *extras)}
    samples = max((member.shape[0] for member in arrays.values() if member.shape), default=1)
    for slot in (slot for slot in slots if not slot.dims and not members[slot.name].shape):
        arrays[slot.name] = RepeatedNumber(slot.name, members[slot.name], samples)
    for slot in slots:
        _check_array(title, slot, arrays[slot.name])
    for name in extras:
        _check_kind(title, arrays[name], NUMERIC_KINDS, "the strategy takes numbers")
    counts = {member.name: member.shape[0] if member.shape else 0 for member in arrays.values()}
    if label:
        _check_kind(title, label, NUMERIC_KINDS, "labels are numbers")
        counts[label.name] = label.shape[0] if label.shape else 0
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise DataError(
            f"{title}: the arrays hold different numbers of samples ({text}); axis 0 counts the samples: give each as "
            "many, and inputs without a batch axis an axis more, [samples, ...]"
        )
    used = {*arrays, *(member.name for member in arrays.values()), label.name if label else ""}
    return SampleFile(title, dict(arrays), label, tuple(name for name in members if name not in used))


def _check_array(title: str, slot: InputSpec, member: NpzArray | MemoryArray | RepeatedNumber) -> None:
    """Check the shape and type of an array against its input."""
    if not _fits(member.shape, slot):
        sizes = ["?" if d is None else str(d) for d in slot.dims]
        forms = [", ".join(["samples", *row]) for row in ([sizes[1:], sizes] if sizes else [[]])]
        text, axes = " or ".join(f"[{form}]" for form in forms), _fitting_order(member.shape, slot)
        if axes is not None:
            raise DataError(
                f"{title}: array '{member.name}' has the shape {list(member.shape)}, but input '{slot.name}' takes "
                f"{text}: its channels are along another axis; give numpy.transpose(x, {axes}) in place of x"
            )
        raise DataError(
            f"{title}: array '{member.name}' has the shape {list(member.shape)}, but input '{slot.name}' takes "
            f"{text}; give it in one of these shapes"
        )
    kinds, text = (TEXT_KINDS, "text") if slot.dtype.kind == "O" else (NUMERIC_KINDS, str(slot.dtype))
    _check_kind(title, member, kinds, f"input '{slot.name}' takes {text}")


def _fits(shape: tuple[int, ...], slot: InputSpec) -> bool:
    """True if each row of an array is a sample of an input, or a whole input."""
    rank = len(slot.dims)
    dims = {rank: slot.dims[1:], rank + 1: slot.dims}.get(max(len(shape), 1))
    fits = dims is not None and all(d in (None, size) for d, size in zip(dims, shape[1:], strict=True))
    return bool(shape) and fits


def _fitting_order(shape: tuple[int, ...], slot: InputSpec) -> tuple[int, ...] | None:
    """The order of axes in which an array fits whose channels stand first or last in a sample, and should not."""
    rank = len(shape)
    start = 1 + max(rank - len(slot.dims), 0)  # whole inputs have the axis of their batch before
    before, rest = range(start), range(start, rank)
    for order in ((*before, *rest[-1:], *rest[:-1]), (*before, *rest[1:], *rest[:1])):
        if len(rest) > 1 and _fits(tuple(shape[k] for k in order), slot):
            return order
    return None


def _check_kind(title: str, member: NpzArray | MemoryArray | RepeatedNumber, kinds: str, expected: str) -> None:
    if member.dtype.kind not in kinds:
        raise DataError(f"{title}: array '{member.name}' holds {member.dtype}, but {expected}; convert the array")


def _in_input_type(value: Array, dtype: np.dtype[Any], where: str) -> Array:
    """Convert a row to the type of its input, with no loss but of precision.

    Raises:
        DataError: the row holds NaN, infinity, or numbers that the type cannot hold.
    """
    if is_float(value) and not np.isfinite(value).all():
        raise DataError(f"{where}: NaN or infinity, expected finite numbers; leave the sample out")
    with np.errstate(all="ignore"):
        result = value.astype(dtype)
    is_exact = np.isfinite(result.astype(np.float64)).all() if is_float(result) else np.array_equal(result, value)
    if not is_exact:
        raise DataError(f"{where}: numbers that {dtype} cannot hold; bring them into the range that the input takes")
    return result
