"""Data for a model: what is fed equals what the files hold, little is in memory, and what does not fit is refused."""

from __future__ import annotations

import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from leanonnx.cli.options import image_format
from leanonnx.data.samples import Data, ImageFormat, open_data
from leanonnx.errors import DataError, OptionError
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import run
from tests.helpers import saved

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((13, 3, 6, 6)).astype(np.float32)
SAVERS = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
Save = Callable[..., None]


def body(inputs: str, outputs: str, nodes: str) -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {nodes} }}'


def data_for(folder: Path, inputs: str, path: Path | None = None, images: ImageFormat | None = None) -> Data:
    """The data of a path for a model that puts out its inputs as they are."""
    names = [text.split()[-1] for text in inputs.split("; ")]
    kinds = [text.split()[0] for text in inputs.split("; ")]
    outputs = ", ".join(f"{kind} o{k}" for k, kind in enumerate(kinds))
    nodes = " ".join(f"o{k} = Identity ({name})" for k, name in enumerate(names))
    proto = onnx.parser.parse_model(body(inputs.replace("; ", ", "), outputs, nodes))
    model = load(saved(proto, folder / "model.onnx"))
    return open_data(path or folder / "data.npz", model, observe(model, {}).shapes, images or ImageFormat())


def fed(data: Data, name: str = "x", batch: int = 1) -> list[np.ndarray]:
    return [feed[name] for feed in data.feeds(batch)]


@SAVERS
@pytest.mark.parametrize(("first", "batch"), [("1", 1), ("N", 1), ("N", 4), ("1", 4)])
def test_rows_of_an_array_are_fed_in_order(save: Save, first: str, batch: int, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=IMAGES)
    data = data_for(tmp_path, f"float[{first},3,6,6] x", tmp_path / "data.npz")
    size = batch if first == "N" else 1
    feeds = fed(data, batch=batch)
    assert [len(feed) for feed in feeds] == [size] * (13 // size) + [13 % size] * bool(13 % size)
    np.testing.assert_array_equal(np.concatenate(feeds), IMAGES)
    np.testing.assert_array_equal(np.concatenate(fed(data)), IMAGES)
    assert (data.count, data.dropped, data.labels) == (13, 0, None)


@SAVERS
def test_a_fixed_batch_is_filled_and_the_rest_dropped(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=IMAGES, y=np.arange(13))
    data = data_for(tmp_path, "float[4,3,6,6] x")
    feeds = list(data.labelled(batch=2))
    np.testing.assert_array_equal(np.stack([feed["x"] for feed, _ in feeds]), IMAGES[:12].reshape(3, 4, 3, 6, 6))
    assert [label.tolist() for _, label in feeds if label is not None] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (data.count, data.dropped, data.labels) == (13, 1, "y")


@SAVERS
def test_whole_inputs_are_fed_row_by_row(save: Save, tmp_path: Path) -> None:
    state, rate = RNG.standard_normal((13, 2, 1, 5)).astype(np.float32), np.arange(13)
    save(tmp_path / "data.npz", x=IMAGES, s=state, r=rate)
    data = data_for(tmp_path, "float[N,3,6,6] x; float[2,1,5] s; int64 r")
    feeds = list(data.feeds(batch=8))
    assert len(feeds) == 13
    for k, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], IMAGES[k : k + 1])
        np.testing.assert_array_equal(feed["s"], state[k])
        assert feed["r"].shape == () and feed["r"] == k and feed["r"].dtype == np.int64


def test_the_only_array_fits_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", IMAGES, labels=np.arange(13))
    data = data_for(tmp_path, "float[N,3,6,6] x")
    np.testing.assert_array_equal(np.concatenate(fed(data)), IMAGES)
    assert data.labels == "labels"


def test_an_input_named_like_labels_is_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", y=IMAGES)
    data = data_for(tmp_path, "float[N,3,6,6] y")
    assert data.labels is None and len(fed(data, "y")) == 13


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("uint8", np.uint8), ("double", np.float64)])
def test_rows_get_the_type_of_the_input(kind: str, dtype: type, tmp_path: Path) -> None:
    numbers = RNG.integers(0, 255, (4, 6)).astype(">f4")
    np.savez(tmp_path / "data.npz", x=numbers)
    found = np.concatenate(fed(data_for(tmp_path, f"{kind}[N,6] x")))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, numbers)


@SAVERS
def test_reversed_axes_are_read_right_or_refused(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=np.asfortranarray(IMAGES))
    data = data_for(tmp_path, "float[N,3,6,6] x")
    if save is np.savez:
        np.testing.assert_array_equal(np.concatenate(fed(data)), IMAGES)
    else:
        with pytest.raises(DataError, match=r"'x' is compressed with its axes reversed.*ascontiguousarray"):
            fed(data)


def test_free_sizes_are_fed_as_they_are_and_not_mixed_in_a_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES[:3])
    np.savez(tmp_path / "b.npz", x=IMAGES[:3, :, :4])
    (tmp_path / "model").mkdir()
    data = data_for(tmp_path / "model", "float[N,3,H,W] x", tmp_path)
    assert [feed.shape for feed in fed(data, batch=2)] == [(2, 3, 6, 6), (1, 3, 6, 6), (2, 3, 4, 6), (1, 3, 4, 6)]
    fixed = data_for(tmp_path / "model", "float[2,3,H,W] x", tmp_path)
    with pytest.raises(DataError, match="samples of one run differ in shape"):
        fed(fixed)


@SAVERS
def test_files_of_a_folder_follow_each_other(save: Save, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name, part in (("b", slice(4, 13)), ("a", slice(0, 4))):
        save(tmp_path / f"{name}.npz", x=IMAGES[part], label=np.arange(13)[part])
    save(tmp_path / ".hidden.npz", x=IMAGES)
    data = data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path)
    found = list(data.labelled(batch=5))
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed, _ in found]), IMAGES)
    assert [label.tolist() for _, label in found if label is not None] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12],
    ]
    held = [label.item() for _, label in data.part(held_out=True, every=3).labelled() if label is not None]
    assert held == [2, 5, 8, 11]


@SAVERS
@pytest.mark.parametrize("every", [2, 3, 5, 20])
def test_parts_are_disjoint_and_complete(save: Save, every: int, tmp_path: Path) -> None:
    save(tmp_path / "data.npz", x=np.arange(37.0))
    data = data_for(tmp_path, "float[N] x")
    held, others = (data.part(held_out, every) for held_out in (True, False))
    numbers = [np.concatenate([*fed(part), []]).astype(int).tolist() for part in (held, others)]
    assert numbers == [[k for k in range(37) if (k % every == every - 1) == out] for out in (True, False)]
    assert [held.count, others.count] == [len(part) for part in numbers]


@pytest.mark.parametrize("most", [1, 5, 36, 37, 100])
def test_the_first_samples_are_spread_evenly(most: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(37.0))
    data = data_for(tmp_path, "float[N] x").first(most)
    found = np.concatenate(fed(data)).astype(int)
    assert len(found) == data.count == min(most, 37)
    gaps = np.diff([*found, 37])
    assert found[0] == 0 and gaps.max() - gaps.min() <= 1


def test_parts_of_parts(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=np.arange(100.0))
    data = data_for(tmp_path, "float[N] x").part(held_out=False).first(10).part(held_out=True, every=2)
    kept = [k for k in range(100) if k % 5 != 4]
    assert np.concatenate(fed(data)).tolist() == [kept[k * 8] for k in range(10)][1::2]


def test_few_samples_are_in_memory(tmp_path: Path) -> None:
    """400 MB that are deflated, 40 MB that are stored."""
    deflated, rows, size = tmp_path / "deflated.npz", 1000, 100_000
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
        np.lib.format.write_array_header_1_0(out, header)
        for _ in range(rows):
            out.write(bytes(4 * size))
    np.savez(tmp_path / "stored.npz", x=np.broadcast_to(np.float32(0), (100, size)))
    for path, most in ((deflated, 40e6), (tmp_path / "stored.npz", 10e6)):
        data = data_for(tmp_path, f"float[N,{size}] x", path)
        tracemalloc.start()
        total = sum(feed["x"].size for part in (data, data.first(20)) for feed in part.feeds(batch=4))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == (data.count + 20) * size
        assert peak < most


def gradient(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full((height, width), 7)], -1).astype(np.uint8)


def test_images_become_tensors(tmp_path: Path) -> None:
    Image.fromarray(gradient(6, 10)).save(tmp_path / "b.png")
    Image.fromarray(gradient(6, 6)).save(tmp_path / "a.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "model").mkdir()
    images = ImageFormat(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    wide = (gradient(6, 10)[:, 2:8] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    data = data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path, images)
    assert data.count == 2 and data.labels is None
    np.testing.assert_allclose(fed(data)[1][0], wide.transpose(2, 0, 1), rtol=1e-5)
    data = data_for(tmp_path / "model", "float[1,6,6,3] x", tmp_path, images)
    np.testing.assert_allclose(fed(data)[1][0], wide, rtol=1e-5)
    data = data_for(tmp_path / "model", "float[3,6,6] x", tmp_path, ImageFormat(scale=1, order="bgr"))
    np.testing.assert_array_equal(fed(data)[0], gradient(6, 6).transpose(2, 0, 1)[::-1])
    data = data_for(tmp_path / "model", "uint8[N,6,6,3] x", tmp_path)
    np.testing.assert_array_equal(fed(data, batch=2)[0], [gradient(6, 6), gradient(6, 10)[:, 2:8]])


def test_images_are_made_to_fit(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 17, 3), 200, np.uint8)).convert("RGBA").save(tmp_path / "a.png")
    Image.fromarray(np.full((9, 200), 100, np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "model").mkdir()
    data = data_for(tmp_path / "model", "float[N,1,H,W] x", tmp_path, ImageFormat(size=(12, 20), layout="nchw"))
    np.testing.assert_allclose(
        np.concatenate(fed(data)).reshape(2, -1).T, np.full((240, 2), [200, 100]) / 255, atol=0.01
    )
    assert fed(data)[0].shape == (1, 1, 12, 20)


def png(path: Path, side: int = 6) -> None:
    Image.fromarray(gradient(side, side)).save(path)


REFUSED_IMAGES = {
    "two inputs": ("float[N,3,6,6] x; float[1] s", {}, "images can feed one input, but the model has 'x', 's'"),
    "no image": ("float[N,6] x", {}, "input 'x' takes 1×6, no image"),
    "channels": ("float[N,4,6,6] x", {"layout": "nchw"}, "4 channels, expected 1 or 3"),
    "which axis": ("float[N,3,6,3] x", {}, "cannot be told; add --layout nchw or --layout nhwc"),
    "size": ("float[N,3,6,6] x", {"size": (8, 6)}, "--size 8x6: input 'x' takes 6x6"),
    "means": ("float[N,3,6,6] x", {"mean": (0.0, 1.0)}, "--mean: 2 numbers, but input 'x' takes 3 channels"),
    "stds": ("float[N,3,6,6] x", {"std": (1.0, 1.0)}, "--std: 2 numbers"),
    "bytes": ("uint8[N,3,6,6] x", {"mean": (0.5,)}, "pixels as they are; leave out --mean"),
}


@pytest.mark.parametrize("name", REFUSED_IMAGES)
def test_images_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    inputs, images, message = REFUSED_IMAGES[name]
    png(tmp_path / "a.png")
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=message):
        data_for(tmp_path / "model", inputs, tmp_path, ImageFormat(**images))


def test_broken_and_deep_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
        fed(data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path))
    (tmp_path / "a.jpg").unlink()
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: more than 8 bits"):
        fed(data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path))


def test_without_pillow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "model").mkdir()
    data = data_for(tmp_path / "model", "float[N,3,6,6] x", tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"pip install 'leanonnx\[images\]'"):
        fed(data)


BAD_ARRAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing": (
        "float[N,6] x; float[1] s",
        {"x": np.zeros((3, 6))},
        "no array for input 's'.*expected arrays named s, x",
    ),
    "only labels": ("float[N,6] x", {"y": np.zeros(3)}, "no array for input 'x'"),
    "rank": ("float[N,6] x", {"x": np.zeros((3, 6, 1, 1))}, r"'x' has the shape \[3, 6, 1, 1\].*\[samples, 6\] or"),
    "shape": ("float[N,6] x", {"x": np.zeros((3, 5))}, r"'x' has the shape \[3, 5\]"),
    "shape of whole inputs": ("float[2,6] x", {"x": np.zeros((3, 1, 6))}, r"or \[samples, 2, 6\]"),
    "one number": ("float x", {"x": np.zeros(())}, r"takes \[samples\]"),
    "empty": ("float[N,6] x", {"x": np.zeros((0, 6))}, "0 samples, but one run of the model takes 1"),
    "too few": ("float[4,6] x", {"x": np.zeros((3, 6))}, "3 samples, but one run of the model takes 4"),
    "counts": ("float[N,6] x; float[N,2] s", {"x": np.zeros((3, 6)), "s": np.zeros((4, 2))}, "'x' 3, 's' 4"),
    "labels": ("float[N,6] x", {"x": np.zeros((3, 6)), "labels": np.zeros(4)}, "'x' 3, 'labels' 4"),
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
        with pytest.raises(DataError, match=r"data\.npz: not a whole \.npz file"):
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
    with pytest.raises(DataError, match=r"neither \.npz files nor images"):
        data_for(tmp_path / "model", inputs, tmp_path)
    np.savez(tmp_path / "a.npz", x=IMAGES)
    with pytest.raises(DataError, match="no images; leave out --mean"):
        data_for(tmp_path / "model", inputs, tmp_path, ImageFormat(mean=(0.5,)))
    png(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"both \.npz files and images"):
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


def test_the_feeds_run(tmp_path: Path) -> None:
    """What is fed is what onnxruntime takes."""
    proto = onnx.parser.parse_model(
        body("float16[N,3,H,W] x, int64[1] k, bool[2] b", "float16[N,3,H,W] y", "c = Cast <to = 10> (k) y = Add (x, c)")
    )
    path = saved(proto, tmp_path / "model.onnx")
    model = load(path)
    np.savez_compressed(tmp_path / "data.npz", x=IMAGES, k=np.arange(13), b=np.ones((13, 2), np.uint8))
    data = open_data(tmp_path / "data.npz", model, observe(model, {}).shapes)
    found = run(path, list(data.feeds(batch=4)))
    wanted = IMAGES.astype(np.float16) + np.arange(13, dtype=np.float16).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(np.concatenate([values[0] for values in found]), wanted, rtol=1e-2)


def test_options_of_images_are_read() -> None:
    assert image_format("0", "1", 255, "auto", None) == ImageFormat()
    found = image_format("0.5,0.4,0.3", "2", 1, "nhwc,bgr", "224x320")
    assert found == ImageFormat((0.5, 0.4, 0.3), (2.0,), 1, "nhwc", (224, 320), "bgr")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("mean", text) for text in ("", "a", "1,,2", "nan", "1;2")),
        *(("std", text) for text in ("0", "1,0,1", "inf", "x")),
        *(("scale", number) for number in (0.0, -1.0, float("nan"), float("inf"))),
        *(("layout", text) for text in ("", "chw", "nchw,rgb", "bgr")),
        *(("size", text) for text in ("", "224", "0x3", "3x", "-1x3", "1.5x2")),
    ],
)
def test_wrong_options_of_images_are_refused(option: str, value: Any) -> None:
    plain = {"mean": "0", "std": "1", "scale": 255.0, "layout": "auto", "size": None}
    with pytest.raises(OptionError, match=f"^--{option} .*: expected .*"):
        image_format(**{**plain, option: value})
