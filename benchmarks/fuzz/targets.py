"""Readers of leanonnx as functions of bytes, with valid inputs that a fuzzer starts from.

A target reads its input as the commands do; an exception that is not a ``LeanOnnxError`` is a fault of leanonnx.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.formats import (
    Change,
    changed_archive,
    changed_array,
    changed_image,
    changed_model,
    changed_text,
)
from leanonnx import compress, read_preprocessor, sweep
from leanonnx.analysis.dag import build_channel_dag
from leanonnx.cli.config import PYPROJECT, config_table, option_names, options_of
from leanonnx.cli.group import Commands
from leanonnx.commands.check.gates import read_gates
from leanonnx.commands.sweep.files import csv_text, json_text
from leanonnx.commands.sweep.journal import JOURNAL, Journal
from leanonnx.commands.sweep.report import curve_row, point_row, sweep_report
from leanonnx.commands.sweep.rows import HeaderRow
from leanonnx.data.samples import open_data
from leanonnx.graph.model import Model, load
from leanonnx.hardware.targets import read_hardware
from leanonnx.reporting.encoding import from_json
from leanonnx.runtime.observation import observe
from tests.helpers import CALIBRATION, CNN, build
from tests.seed_models import MODEL, SEED_MODELS

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
CNN_BYTES = build(CNN).SerializeToString()
GATES = (
    b'max-bytes = "5MB"\nmax-macs = "0.5x"\nmax-latency-ms = 4.5\nmin-speedup = 1.5\nmax-deviation = 0.01\n'
    b'min-agreement = "99%"\n'
)
CONFIG = b'json = true\n[compress]\nkeep = 0.5\nshape = ["x=1x3x8x8"]\nalign = 1\n[check]\nmin-agreement = "99%"\n'
PROJECT = b'[project]\nname = "mine"\n[tool.leanonnx]\njson = true\n[tool.leanonnx.compress]\nkeep = [0.5, 0.25]\n'
PROCESSOR = (
    b'{"do_resize": true, "size": {"shortest_edge": 8}, "crop_pct": 0.875, "do_center_crop": true, "crop_size": 8, '
    b'"do_rescale": true, "rescale_factor": 0.0039, "do_normalize": true, "image_mean": [0.5, 0.4, 0.4], '
    b'"image_std": [0.2, 0.2, 0.2], "resample": 3}'
)


@dataclass(frozen=True)
class Target:
    """A function that reads an input, given an empty folder; valid inputs; a change that keeps their format."""

    read: Callable[[bytes, Path], None]
    seeds: Sequence[bytes]
    change: Change


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _model() -> Target:
    def read(content: bytes, folder: Path) -> None:
        compress(_written(folder, MODEL, content), folder / "out.onnx", keep=0.5, best_effort=True)

    # models without further files; their folders cannot be fuzzed as one input
    files = [make() for make in SEED_MODELS.values()]
    return Target(read, [each[MODEL] for each in files if list(each) == [MODEL]], changed_model)


def _plan() -> Target:
    seeds: list[bytes] = []
    every: list[dict[str, Any]] = [{"keep": 0.5}, {"keep": 0.5, "calib": {"x": CALIBRATION}}, {"exact": True}]
    for settings in every:
        with empty_folder() as folder:
            source = _written(folder, MODEL, CNN_BYTES)
            compress(source, folder / "out.onnx", align=1, plan_out=folder / "plan.json", **settings)
            seeds.append((folder / "plan.json").read_bytes())

    def read(content: bytes, folder: Path) -> None:
        source = _written(folder, MODEL, CNN_BYTES)
        compress(source, folder / "out.onnx", plan=_written(folder, "plan.json", content))

    return Target(read, seeds, changed_text)


def _plan_weights() -> Target:
    with empty_folder() as folder:
        source, plan, weights = _written(folder, MODEL, CNN_BYTES), folder / "plan.json", folder / "weights.npz"
        given: dict[str, Any] = {"calib": {"x": CALIBRATION}, "plan_out": plan, "plan_weights": weights}
        compress(source, folder / "out.onnx", keep=0.5, align=1, **given)
        text, stored = plan.read_bytes(), weights.read_bytes()
    digest = sha256(stored).hexdigest().encode()

    def read(content: bytes, folder: Path) -> None:
        source = _written(folder, MODEL, CNN_BYTES)
        _written(folder, "weights.npz", content)
        matching = text.replace(digest, sha256(content).hexdigest().encode())
        compress(source, folder / "out.onnx", plan=_written(folder, "plan.json", matching))

    return Target(read, [stored], changed_archive)


def _journal() -> Target:
    with empty_folder() as folder:
        sweep(_written(folder, MODEL, CNN_BYTES), folder / "out", keep=[0.6, 0.4], align=1)
        content = (folder / "out" / JOURNAL).read_bytes()
        header = from_json(HeaderRow, Journal(folder / "out").header)

    def read(content: bytes, folder: Path) -> None:
        _written(folder, JOURNAL, content)
        journal = Journal(folder)
        journal.begin(header)
        points = [point_row(row.asked, row.outcome) for row in journal.points.values()]
        report = sweep_report("kernels", True, [curve_row(MODEL, MODEL, "", "kernels", points)], header.conditions)
        for text in (csv_text, json_text):
            text(report)

    return Target(read, [content, content[: len(content) // 2]], changed_text)


def _observed() -> tuple[Model, Mapping[str, tuple[int, ...]]]:
    """The model that takes samples, and the shapes of its tensors."""
    with empty_folder() as folder:
        model = load(_written(folder, MODEL, CNN_BYTES))
    return model, build_channel_dag(model, observe(model, {})).shapes


def _arrays(name: str, seeds: Sequence[bytes], change: Change) -> Target:
    model, shapes = _observed()

    def read(content: bytes, folder: Path) -> None:
        path = _written(folder, name, content)
        for _ in open_data(path if path.suffix in (".npz", ".npy") else folder, model, shapes).feeds(4):
            pass

    return Target(read, seeds, change)


def _npz() -> Target:
    contents = []
    for arrays in ({"x": CALIBRATION[:2]}, {"x": CALIBRATION[:2], "label": np.arange(2)}, {"x": CALIBRATION[:1] > 0}):
        for write in (np.savez, np.savez_compressed):
            file = io.BytesIO()
            write(file, **arrays)
            contents.append(file.getvalue())
    return _arrays("inputs.npz", contents, changed_archive)


def _npy() -> Target:
    contents = []
    for array in (CALIBRATION[:2], np.asfortranarray(CALIBRATION[:2]), CALIBRATION[:1].astype(">f8")):
        file = io.BytesIO()
        np.save(file, array)
        contents.append(file.getvalue())
    return _arrays("inputs.npy", contents, changed_array)


def _images() -> Target:
    contents = [_image_bytes(name, mode) for name in IMAGE_FORMATS for mode in ("RGB", "L")]
    return _arrays("image.png", contents, changed_image)


def _image_bytes(name: str, mode: str) -> bytes:
    from PIL import Image  # an extra of leanonnx

    file = io.BytesIO()
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).convert(mode).save(file, name)
    return file.getvalue()


def _gates() -> Target:
    def read(content: bytes, folder: Path) -> None:
        read_gates(_written(folder, "gates.toml", content))

    return Target(read, [GATES], changed_text)


def _config() -> Target:
    verbs = {name: option_names(command) for name, command in Commands().items()}

    def read(content: bytes, folder: Path) -> None:
        path = _written(folder, PYPROJECT if b"tool" in content else "leanonnx.toml", content)
        options_of(path, config_table(path), "compress", verbs)

    return Target(read, [CONFIG, PROJECT], changed_text)


def _targets() -> Target:
    def read(content: bytes, folder: Path) -> None:
        path = _written(folder, "targets.toml", content)
        names = list(read_hardware(path))
        source = _written(folder, MODEL, CNN_BYTES)
        for name in names[:1]:
            compress(source, folder / "out.onnx", keep=0.5, targets=path, target=name, best_effort=True)

    return Target(read, [(resources.files("leanonnx.hardware") / "targets.toml").read_bytes()], changed_text)


def _preprocessor() -> Target:
    model, shapes = _observed()
    image = _image_bytes("PNG", "RGB")

    def read(content: bytes, folder: Path) -> None:
        images = read_preprocessor(_written(folder, "preprocessor_config.json", content))
        (folder / "images").mkdir()
        _written(folder / "images", "image.png", image)
        for _ in open_data(folder / "images", model, shapes, images).feeds():
            pass

    return Target(read, [PROCESSOR], changed_text)


def _checkpoint() -> Target:
    import torch  # an extra of leanonnx, as what imports it

    from leanonnx.commands.finetune.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

    with empty_folder() as folder:
        weights, best = [torch.ones(3), torch.ones(2, 2)], [torch.zeros(3), torch.zeros(2, 2)]
        state = Checkpoint("run", 1, weights, best, 0.5, 1, [(0.5, 0.5)], 1.0, {"state": {}}, {}, 1.0)
        write_checkpoint(state, folder / "run.pt")
        seed = (folder / "run.pt").read_bytes()

    def read(content: bytes, folder: Path) -> None:
        read_checkpoint(_written(folder, "run.pt", content), "run")

    return Target(read, [seed], changed_archive)


TARGETS: dict[str, Callable[[], Target]] = {
    "model": _model,
    "plan": _plan,
    "plan-weights": _plan_weights,
    "npz": _npz,
    "npy": _npy,
    "images": _images,
    "gates": _gates,
    "targets": _targets,
    "preprocessor": _preprocessor,
    "config": _config,
    "journal": _journal,
    "checkpoint": _checkpoint,
}
"""Makers of the targets, by name; the checkpoint needs torch."""
