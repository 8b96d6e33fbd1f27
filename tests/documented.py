"""Commands, Python and outputs shown on the pages, and files that stand in for a reader's.

Commands are in fenced ``sh`` blocks or in indented ones; in the latter an explanation may follow after three spaces.
A ``text`` block that follows a block of commands or Python shows the output of the last of them; ``…`` stands for lines
left out.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import build, saved, saved_external

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "models" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = (
    "leanonnx",
    "pip",
    "python",
    "python3",
    "torchrun",
    "mkdocs",
    "ruff",
    "mypy",
    "for",
    "git",
    "npm",
    "apt-get",
)
"""Beginnings of indented lines that are commands."""


@dataclass(frozen=True)
class Typed:
    """A command or code: its language (``sh`` or ``python``), its text, and the output shown below it, if any."""

    language: str
    text: str
    shown: str = ""


def typed(page: str) -> list[Typed]:
    """All commands and Python of a page in their order."""
    found: list[tuple[int, Typed]] = []
    fences = list(FENCE.finditer(page))
    for k, fence in enumerate(fences):
        language, text = fence.groups()
        shown = ""
        if k + 1 < len(fences) and fences[k + 1][1] == "text" and not page[fence.end() : fences[k + 1].start()].strip():
            shown = fences[k + 1][2]
        if language == "python":
            found.append((fence.start(), Typed("python", text, shown)))
        elif language in ("sh", "console", "bash"):
            lines = list(_joined(text))
            outputs = [""] * (len(lines) - 1) + [shown]
            found += [
                (fence.start() + n, Typed("sh", *each)) for n, each in enumerate(zip(lines, outputs, strict=True))
            ]
    outside = FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), page)
    for line in re.finditer(r"^ {4}(\S.*)$", outside, re.MULTILINE):
        if line[1].split()[0] in PROGRAMS:
            found.append((line.start(), Typed("sh", re.split(r"\s{3,}", line[1])[0])))
    return [each for _, each in sorted(found, key=lambda item: item[0])]


def _joined(text: str) -> Iterator[str]:
    """The commands of a block; a shell loop is one, and a line that ends with a backslash continues."""
    text = re.sub(r"^for .*?^done$", lambda loop: loop[0].replace("\n", " "), text, flags=re.MULTILINE | re.DOTALL)
    for line in text.replace("\\\n", " ").splitlines():
        command = line.removeprefix("$ ").strip()
        if command and not command.startswith("#"):
            yield command


CLASSIFIER = """
<ir_version: 8, opset_import: ["" : 17]>
classifier (float[N, 3, 16, 16] x) => (float[N, 10] y)
<float[32, 3, 3, 3] w1, float[32] b1, float[64, 32, 3, 3] w2, float[64, 64, 3, 3] w3, float[10, 64] w4, float[10] b4>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)
    r3 = Relu (c3)
    p3 = GlobalAveragePool (r3)
    f3 = Flatten (p3)
    y = Gemm <transB = 1> (f3, w4, b4)
}
"""
DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[1, 3, 64, 64] images) => (float[1, 18, 16, 16] large, float[1, 18, 8, 8] small)
<float[16, 3, 3, 3] w1, float[32, 16, 3, 3] w2, float[64, 32, 3, 3] w3, float[32, 96, 1, 1] w4, float[18, 32, 1, 1] w5,
    float[18, 64, 1, 1] w6, float[4] scales = {1, 1, 2, 2}>
{
    c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (images, w1)
    s1 = Sigmoid (c1)
    r1 = Mul (c1, s1)
    c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r2, w3)
    r3 = Relu (c3)
    up = Resize <mode = "nearest"> (r3, , scales)
    joined = Concat <axis = 1> (up, r2)
    c4 = Conv (joined, w4)
    r4 = Relu (c4)
    large = Conv (r4, w5)
    small = Conv (r3, w6)
}
"""
UNET = """
<ir_version: 8, opset_import: ["" : 17]>
unet (float[N, 3, 32, 32] image) => (float[N, 3, 32, 32] restored)
<float[32, 3, 3, 3] w1, float[64, 32, 3, 3] w2, float[64, 32, 2, 2] w3, float[32, 64, 3, 3] w4, float[3, 32, 1, 1] w5>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (image, w1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w2)
    r2 = Relu (c2)
    u3 = ConvTranspose <strides = [2, 2]> (r2, w3)
    joined = Concat <axis = 1> (u3, r1)
    c4 = Conv <pads = [1, 1, 1, 1]> (joined, w4)
    r4 = Relu (c4)
    restored = Conv (r4, w5)
}
"""
READER = """
<ir_version: 8, opset_import: ["" : 17]>
reader (float[N, 3, 48, W] x) => (float[N, T, 40] characters)
<float[32, 3, 3, 3] w1, float[64, 32, 3, 3] w2, float[64, 40] w3>
{
    c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w2)
    r2 = Relu (c2)
    flat = ReduceMean <axes = [2], keepdims = 0> (r2)
    steps = Transpose <perm = [0, 2, 1]> (flat)
    characters = MatMul (steps, w3)
}
"""
UNROLLED = """
<ir_version: 8, opset_import: ["" : 17]>
unrolled (float[N, 2, 16, 16] y, float[N, 1, 16, 16] mask) => (float[N, 2, 16, 16] image)
<float[16, 16] dft, float[32, 2, 3, 3] w1, float[32, 32, 3, 3] w2, float[2, 32, 3, 3] w3>
{
    left = MatMul (dft, y)
    x = MatMul (left, dft)
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)
    z = Add (x, c3)
    back = MatMul (dft, z)
    full = MatMul (back, dft)
    seen = Mul (full, mask)
    rest = Sub (seen, y)
    up = MatMul (dft, rest)
    step = MatMul (up, dft)
    v = Sub (z, step)
    d1 = Conv <pads = [1, 1, 1, 1]> (v, w1)
    s1 = Relu (d1)
    d2 = Conv <pads = [1, 1, 1, 1]> (s1, w2)
    s2 = Relu (d2)
    d3 = Conv <pads = [1, 1, 1, 1]> (s2, w3)
    image = Add (v, d3)
}
"""
GELU = CLASSIFIER.replace('["" : 17]', '["" : 17, "com.microsoft" : 1]').replace(
    "r2 = Relu (c2)", "r2 = com.microsoft.FastGelu (c2)"
)


def _overridable(path: Path) -> None:
    """A classifier whose weights are listed as graph inputs."""
    proto = build(CLASSIFIER)
    names = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, tensor in names.items():
        proto.graph.input.add(name=name).type.tensor_type.elem_type = tensor.data_type
        for size in tensor.dims:
            proto.graph.input[-1].type.tensor_type.shape.dim.add().dim_value = size
    saved(proto, path)


def _samples(*shape: int, count: int = 10, name: str = "x") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        rng = np.random.default_rng(0)
        np.savez(path, **{name: rng.standard_normal((count, *shape)).astype(np.float32)})

    return write


def _scans(path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((10, 1, 16, 16)) < 0.3).astype(np.float32)
    np.savez(path, y=mask * rng.standard_normal((10, 2, 16, 16)).astype(np.float32), mask=mask)


def _lines(path: Path) -> None:
    path.mkdir()
    for width in (64, 96):
        _samples(3, 48, width, count=5)(path / f"{width}.npz")


def _photos(path: Path) -> None:
    path.mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), np.uint8)).save(path / f"{k}.png")


def _checkpoint(path: Path) -> None:
    """A network with the file that says how photographs become its inputs, as exporters of Hugging Face write them."""
    path.mkdir()
    saved(build(CLASSIFIER), path / "model.onnx")
    size = {"height": 16, "width": 16}
    row = {"do_resize": True, "size": size, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255}
    row |= {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (path / "preprocessor_config.json").write_text(json.dumps(row), encoding="utf-8")


def _models(path: Path) -> None:
    """The network that comes with leanonnx, and few of its samples."""
    path.mkdir()
    shutil.copy(ROOT / "models" / "cs_unet.onnx", path)
    with np.load(ROOT / "models" / "cs_unet_samples.npz") as archive:
        np.savez(path / "cs_unet_samples.npz", **{name: array[:5] for name, array in archive.items()})


def _network(text: str) -> Callable[[Path], None]:
    return lambda path: saved(build(text), path)


STAND_INS: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("IN", "IN.onnx", "model.onnx", "classifier.onnx"), _network(CLASSIFIER)),
    **dict.fromkeys(("base.onnx", "BASE.onnx", "NEW.onnx"), _network(CLASSIFIER)),
    **dict.fromkeys(("detector.onnx", "best.onnx"), _network(DETECTOR)),
    "unet.onnx": _network(UNET),
    "ocr.onnx": _network(READER),
    "unrolled.onnx": _network(UNROLLED),
    "gelu.onnx": _network(GELU),
    "old.onnx": _overridable,
    "big.onnx": lambda path: saved_external(build(CLASSIFIER), path, "big.onnx.data"),
    "inputs.npz": _samples(3, 16, 16),
    "images.npz": _samples(3, 32, 32, name="image"),
    "lines": _lines,
    "scans.npz": _scans,
    "photos": _photos,
    "resnet": _checkpoint,
    "models": _models,
    "my_rules.py": lambda path: shutil.copy(ROOT / "docs" / "examples" / "my_rules.py", path),
}
"""A reader's files by the names that the pages give them."""


def furnish(folder: Path, text: str) -> None:
    """Create the missing files that a command or a piece of Python names."""
    for name, make in STAND_INS.items():
        if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", text) and not (folder / name).exists():
            make(folder / name)
