"""Samples as Python programs have them: .npy, iterables, pairs, torch tensors, onnxruntime's CalibrationDataReader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader

import leanonnx
from leanonnx.data.batches import Pieces, as_arrays, join_pieces
from leanonnx.errors import DataError
from tests.datasets import IMAGES, RNG, data_for, fed
from tests.helpers import ANY, CALIBRATION, CNN, build, called, saved

NAME = "calib"
LABELS = np.arange(24) % 5


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds of one sample each."""

    def __init__(self, name: str) -> None:
        self.feeds = iter([{name: CALIBRATION[k : k + 1]} for k in range(24)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


class Tensor:
    """An array as torch has it, which numpy cannot read before it is detached and on the CPU."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.is_ready = array, False

    def detach(self) -> Tensor:
        return Tensor(self.array)

    def cpu(self) -> Tensor:
        self.is_ready = True
        return self

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        if not self.is_ready:
            raise TypeError("it needs gradients, or is on a GPU")
        return self.array


def generated() -> Iterator[np.ndarray]:
    yield from CALIBRATION


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: CALIBRATION,
    "tensor": lambda: Tensor(CALIBRATION),
    "nested lists": CALIBRATION.tolist,
    "samples": lambda: list(CALIBRATION),
    "generator": generated,
    "batches": lambda: [CALIBRATION[:10], CALIBRATION[10:20], CALIBRATION[20:]],
    "dicts": lambda: ({"x": row} for row in CALIBRATION),
    "dicts of batches": lambda: ({"x": CALIBRATION[k : k + 7]} for k in range(0, 24, 7)),
    "batches of tensors": lambda: [Tensor(CALIBRATION[:16]), Tensor(CALIBRATION[16:])],
    "reader": lambda: Reader("x"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_samples(form: str) -> None:
    (array,) = join_pieces(as_arrays(FORMS[form](), NAME), {"x": 4}).values()
    np.testing.assert_array_equal(np.asarray(array, np.float32), CALIBRATION)


@pytest.mark.parametrize("size", [1, 5, 24])
def test_pairs_with_labels(size: int) -> None:
    """As a DataLoader gives them, tuples or lists, with a smaller batch at the end."""
    pairs = [[Tensor(CALIBRATION[k : k + size]), Tensor(LABELS[k : k + size])] for k in range(0, 24, size)]
    arrays = join_pieces(as_arrays(pairs, NAME), {"x": 4})
    np.testing.assert_array_equal(arrays[NAME], CALIBRATION)
    np.testing.assert_array_equal(arrays["labels"], LABELS)


def test_pairs_of_single_samples() -> None:
    arrays = join_pieces(as_arrays(zip(CALIBRATION, LABELS, strict=True), NAME), {"x": 4})
    np.testing.assert_array_equal(arrays[NAME], CALIBRATION)
    np.testing.assert_array_equal(arrays["labels"], LABELS)


def test_dicts_may_differ_in_their_order() -> None:
    items = [{"x": row, "z": row} if k % 2 else {"z": row, "x": row} for k, row in enumerate(CALIBRATION)]
    arrays = join_pieces(as_arrays(items, NAME), {"x": 4, "z": 4})
    np.testing.assert_array_equal(arrays["x"], CALIBRATION)
    np.testing.assert_array_equal(arrays["z"], CALIBRATION)


class Indexed:
    """A data set as torch has it: samples by index, and no iterator."""

    def __len__(self) -> int:
        return len(CALIBRATION)

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        return CALIBRATION[range(len(self))[k]], int(LABELS[k])


def test_data_sets_by_index() -> None:
    arrays = join_pieces(as_arrays(Indexed(), NAME), {"x": 4})
    np.testing.assert_array_equal(arrays[NAME], CALIBRATION)
    np.testing.assert_array_equal(arrays["labels"], LABELS)


def test_whole_inputs() -> None:
    """Inputs of one run whose first axes differ are no batches of samples: each run is one sample."""
    feeds = [{"x": RNG.standard_normal((1, 5, 3)), "h": RNG.standard_normal((2, 1, 4))} for _ in range(6)]
    arrays = join_pieces(as_arrays(feeds, NAME), {"x": 3, "h": 3})
    assert {name: array.shape for name, array in arrays.items()} == {"x": (6, 1, 5, 3), "h": (6, 2, 1, 4)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "gives no sample"),
        ([{"x": CALIBRATION[0]}, {"z": CALIBRATION[0]}], "differ: ['x'] and ['z']"),
        ([(CALIBRATION[0],) * 3], "holds 3 arrays; give dicts"),
        ([CALIBRATION[0], CALIBRATION[0][:, 1:]], "differ in shape: [3, 7, 8] and [3, 8, 8]"),
    ],
)
def test_wrong_iterables(given: Any, says: str) -> None:
    with pytest.raises(DataError) as error:
        join_pieces(as_arrays(given, NAME), {"x": 4})
    assert says in str(error.value)


def test_pieces_tell_their_type_and_number() -> None:
    pieces = Pieces((CALIBRATION[:5], CALIBRATION[5:]))
    assert (pieces.dtype, pieces.shape) == (np.float32, (2,))


def test_compress_takes_an_iterable(tmp_path: Path) -> None:
    """The same result as from the array; a score reads what else the items hold."""
    model = saved(build(CNN), tmp_path / "m.onnx")
    seen: list[tuple[int, ...]] = []

    def score(path: Path, arrays: Any) -> float:
        seen.append(arrays["extra"].shape)
        return 1.0

    one = leanonnx.compress(model, keep=0.5, calib=CALIBRATION, **ANY)
    two = leanonnx.compress(model, keep=0.5, calib=Reader("x"), **ANY)
    assert one.model.SerializeToString() == two.model.SerializeToString()
    items = ({"x": row, "extra": np.float32(k)} for k, row in enumerate(CALIBRATION))
    leanonnx.compress(model, keep=0.5, calib=items, score=score, max_drop=0.5, best_effort=True, **ANY)
    assert seen and len(seen[0]) == 1


# .npy


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, order: Any) -> None:
    """One array for the only input, whatever the file is called."""
    np.save(tmp_path / "labels.npy", np.array(IMAGES, order=order))
    data = data_for(tmp_path, "float[N,3,6,6] x", tmp_path / "labels.npy")
    np.testing.assert_array_equal(np.concatenate(fed(data)), IMAGES)


def test_folder_of_npy(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "a.npy", IMAGES[:6])
    np.savez(folder / "b.npz", x=IMAGES[6:])
    np.testing.assert_array_equal(np.concatenate(fed(data_for(tmp_path, "float[N,3,6,6] x", folder))), IMAGES)


def test_npy_that_is_cut_or_for_two_inputs(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, IMAGES)
    with pytest.raises(DataError, match="no array for input 'x'; expected arrays named x, z, got array"):
        data_for(tmp_path, "float[N,3,6,6] x; float[N,3,6,6] z", path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"not a whole \.npz or \.npy file: it declares"):
        data_for(tmp_path, "float[N,3,6,6] x", path)


def test_npy_on_the_command_line(tmp_path: Path) -> None:
    saved(build(CNN), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", CALIBRATION)
    done = called("compress", "m.onnx", "o.onnx", "--keep", "0.5", "--calib", "x.npy", "--align", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert called("check", "m.onnx", "o.onnx", "--data", "x.npy", "--min-agreement", "1%", cwd=tmp_path).returncode == 0


def test_a_loader_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(CALIBRATION), torch.from_numpy(LABELS))
    batches = torch.utils.data.DataLoader(pairs, batch_size=7)
    arrays = join_pieces(as_arrays(batches, NAME), {"x": 4})
    np.testing.assert_array_equal(arrays[NAME], CALIBRATION)
    np.testing.assert_array_equal(arrays["labels"], LABELS)
    needs_gradients = torch.from_numpy(CALIBRATION).requires_grad_()
    np.testing.assert_array_equal(as_arrays(needs_gradients, NAME)[NAME], CALIBRATION)
