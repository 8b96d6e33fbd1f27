"""Data that do not fit a model are refused, with the file and the reason."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from leanonnx.data.samples import ImageFormat, open_data
from leanonnx.errors import DataError
from leanonnx.graph.model import load
from tests.datasets import IMAGES, body, data_for, fed, png
from tests.helpers import saved

BAD_ARRAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing": (
        "float[N,6] x; float[1] s",
        {"x": np.zeros((3, 6))},
        "no array for input 's'.*expected arrays named s, x",
    ),
    "only labels": ("float[N,6] x", {"y": np.zeros(3)}, "no array for input 'x'"),
    "rank": ("float[N,6] x", {"x": np.zeros((3, 6, 1, 1))}, r"'x' has the shape \[3, 6, 1, 1\].*\[samples, 6\] or"),
    "channels last": (
        "float[N,3,8,8] x",
        {"x": np.zeros((5, 8, 8, 3))},
        r"'x' has the shape \[5, 8, 8, 3\].*: its channels are .*numpy.transpose\(x, \(0, 3, 1, 2\)\) in place of x",
    ),
    "channels first": ("float[N,?,?,3] x", {"x": np.zeros((5, 3, 8, 9))}, r"numpy.transpose\(x, \(0, 2, 3, 1\)\)"),
    "whole inputs": ("float[2,3,8,8] x", {"x": np.zeros((5, 2, 8, 8, 3))}, r"transpose\(x, \(0, 1, 4, 2, 3\)\)"),
    "sound": ("float[N,2,?] x", {"x": np.zeros((5, 100, 2))}, r"numpy.transpose\(x, \(0, 2, 1\)\)"),
    "no order": ("float[N,3,8,8] x", {"x": np.zeros((5, 9, 9, 3))}, r"8\]; give it in one of these shapes"),
    "shape": ("float[N,6] x", {"x": np.zeros((3, 5))}, r"'x' has the shape \[3, 5\]"),
    "shape of whole inputs": ("float[2,6] x", {"x": np.zeros((3, 1, 6))}, r"or \[samples, 2, 6\]"),
    "numbers": ("float x", {"x": np.zeros((2, 2))}, r"takes \[samples\]"),
    "empty": ("float[N,6] x", {"x": np.zeros((0, 6))}, "0 samples, but one run of the model takes 1"),
    "too few": ("float[4,6] x", {"x": np.zeros((3, 6))}, "3 samples, but one run of the model takes 4"),
    "counts": ("float[N,6] x; float[N,2] s", {"x": np.zeros((3, 6)), "s": np.zeros((4, 2))}, "'x' 3, 's' 4"),
    "labels": ("float[N,6] x", {"x": np.zeros((3, 6)), "labels": np.zeros(4)}, "'x' 3, 'labels' 4"),
    "any batch": (
        "float[N,6] x; float[4,6] s; float[2,6] t",
        {name: np.zeros((8, 6)) for name in "xst"},
        r"\('s' 4, 't' 2\)",
    ),
    "batches": ("float[4,6] x; float[2,6] s", {"x": np.zeros((8, 6)), "s": np.zeros((8, 6))}, r"\('x' 4, 's' 2\)"),
    "complex": ("float[N] x", {"x": np.zeros(3, complex)}, "'x' holds complex128, but input 'x' takes float32"),
    "objects": ("float[N] x", {"x": np.array([None, 1])}, "'x' holds object"),
    "texts as labels": ("float[N] x", {"x": np.zeros(2), "y": np.array(["a", "b"])}, "labels are numbers"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    inputs, arrays, message = BAD_ARRAYS[name]
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data_for(tmp_path, inputs)


@pytest.mark.parametrize(
    ("kind", "numbers", "message"),
    [
        ("float", [0, np.nan], "sample 1 of input 'x': NaN or infinity"),
        ("int64", [0, np.inf], "sample 1 of input 'x': NaN or infinity"),
        ("float16", [0, 1e6], "sample 1 of input 'x': numbers that float16 cannot hold"),
        ("uint8", [0, 256], "numbers that uint8 cannot hold"),
        ("int64", [0, 0.5], "numbers that int64 cannot hold"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(kind: str, numbers: list[float], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array(numbers))
    with pytest.raises(DataError, match=message):
        fed(data_for(tmp_path, f"{kind}[N] x"))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for content in (b"", b"no archive", b"PK\x05\x06"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.npz: not a whole \.npz or \.npy file"):
            data_for(tmp_path, "float[N,3,6,6] x")
    for save in (np.savez, np.savez_compressed):
        save(path, x=IMAGES)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="not a whole"):
            data_for(tmp_path, "float[N,3,6,6] x")
    np.savez_compressed(path, x=IMAGES)
    content = bytearray(path.read_bytes())
    content[2000:3000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a whole"):
        fed(data_for(tmp_path, "float[N,3,6,6] x"))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("place", [70, 2000], ids=["header", "numbers"])
def test_damaged_members_are_refused_however_they_are_packed(tmp_path: Path, method: int, place: int) -> None:
    path, member = tmp_path / "data.npz", io.BytesIO()
    np.save(member, IMAGES)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", member.getvalue())
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz: not a whole \.npz or \.npy file"):
        fed(data_for(tmp_path, "float[N,3,6,6] x"))


@pytest.mark.parametrize(
    "broken", [b"{'descr': '<f4', '", b"{'descr': '<f4', ,", b"(" * 300, b"{'descr': '<f4', 1: 2}"]
)
def test_damaged_headers_are_refused(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(broken).to_bytes(2, "little") + broken)
    with pytest.raises(DataError, match=r"data\.npy: not a whole \.npz or \.npy file"):
        data_for(tmp_path, "float[N,3,6,6] x", path)


def test_declared_sizes_are_checked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive, archive.open("x.npy", "w") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 6)})
    with pytest.raises(DataError, match="'x' declares 24000000000000 bytes and holds 0"):
        data_for(tmp_path, "float[N,6] x")


def test_folders_that_hold_no_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    inputs = "float[N,3,6,6] x"
    with pytest.raises(DataError, match="no such file or folder"):
        data_for(tmp_path, inputs, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither arrays"):
        data_for(tmp_path / "model", inputs, tmp_path)
    np.savez(tmp_path / "a.npz", x=IMAGES)
    with pytest.raises(DataError, match="no images; leave out mean"):
        data_for(tmp_path / "model", inputs, tmp_path, ImageFormat(mean=(0.5,)))
    png(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"both arrays and images"):
        data_for(tmp_path / "model", inputs, tmp_path)


def test_files_of_a_folder_must_be_alike(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 6)), y=np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 6)))
    with pytest.raises(DataError, match=r"different names \('y', None\)|different names \(None, 'y'\)"):
        data_for(tmp_path / "model", "float[N,6] x", tmp_path)
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 1, 6)), y=np.zeros(3))
    with pytest.raises(DataError, match="2 axes in some files and 3 in others"):
        data_for(tmp_path / "model", "float[N,6] x", tmp_path)


def test_a_model_without_inputs_takes_no_data(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(body("", "float[2] o", "o = Constant <value = float[2] {1, 2}> ()"))
    model = load(saved(proto, tmp_path / "model.onnx"))
    with pytest.raises(DataError, match="no graph inputs"):
        open_data(tmp_path, model, {})
