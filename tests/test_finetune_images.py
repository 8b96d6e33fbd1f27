"""Augmentation: all that lives on the grid of the images moves together, if the original moves its output along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanonnx.numeric.arrays import Array
from tests.helpers import build

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.commands.finetune.augment import (
    MOVES,
    flip_and_shift,
    image_inputs,
    mix_samples,
    move_with_labels,
)
from leanonnx.commands.finetune.driver import run_finetune
from leanonnx.commands.finetune.equivariance import verified_images
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.graph.model import load
from leanonnx.runtime.sessions import Feed
from tests.tuning import DENOISER, saved, settings
from tests.unrolled import measured, saved_unrolled

SIDE = 16


def places(*shape: int) -> Any:
    """A batch of eight samples of the given shape; each number tells its row and column on a grid of 16 x 16."""
    rows, columns = (np.linspace(0, SIDE, n, endpoint=False) if n > 1 else np.zeros(1) for n in shape[-2:])
    return torch.from_numpy(np.broadcast_to(rows[:, None] * 100 + columns, (8, *shape)).astype(np.float32).copy())


GRID = {"y": (1, 2, SIDE, SIDE), "mask": (1, 1, SIDE, SIDE), "plane": (1, SIDE, SIDE), "line": (1, 1, 1, SIDE)}


def test_all_that_lives_on_the_grid_moves_together() -> None:
    images = image_inputs({**GRID, "level": (1, 1), "coils": (1, 5, 2, SIDE, SIDE)})
    assert images is not None
    assert images.names == ("mask", "y")
    assert images.grids.keys() == {*GRID, "coils"}
    assert images.moves == MOVES - {"rectangle"}  # a line has no rectangle
    batch = {name: places(*shape) for name, shape in GRID.items()} | {"coils": places(1, 5, 2, SIDE, SIDE)}
    batch["level"] = torch.arange(8.0).reshape(8, 1, 1)
    found = flip_and_shift(batch, images, np.random.default_rng(0))
    assert not torch.equal(found["y"], batch["y"])
    assert torch.equal(found["level"], batch["level"])
    for name in ("mask", "plane", "coils"):
        assert torch.equal(found[name].reshape(8, -1, SIDE, SIDE)[:, 0], found["y"][:, 0, 0]), name
    assert torch.equal(found["line"][:, 0, 0, 0], found["y"][:, 0, 0, 0] % 100)


def test_sizes_that_are_multiples_move_by_multiples() -> None:
    images = image_inputs({"low": (1, 1, SIDE, SIDE), "high": (1, 3, 2 * SIDE, 2 * SIDE)})
    assert images is not None
    assert images.names == ("low",)
    batch = {"low": places(1, 1, SIDE, SIDE), "high": places(1, 3, 2 * SIDE, 2 * SIDE)}
    for seed in range(4):
        found = flip_and_shift(batch, images, np.random.default_rng(seed))
        pooled = found["high"][:, :, :1].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amin((-1, -3))
        assert torch.equal(pooled, found["low"])
    assert image_inputs({"low": (1, 1, SIDE, SIDE), "odd": (1, 1, 24, 24)}) is None
    assert image_inputs({"first": (1, 1, SIDE, SIDE), "last": (1, SIDE, SIDE, 1)}) is None


def test_mixtures_are_the_same_on_the_grid() -> None:
    images = image_inputs({"y": GRID["y"], "high": (1, 1, 2 * SIDE, 2 * SIDE)})
    assert images is not None
    value = torch.arange(6.0).reshape(6, 1, 1, 1, 1)
    batch = {"y": value.expand(6, 1, 2, SIDE, SIDE), "high": value.expand(6, 1, 1, 2 * SIDE, 2 * SIDE)}
    for seed in range(6):
        found = mix_samples(batch, images, np.random.default_rng(seed))
        assert torch.equal(found["high"][..., ::2, ::2][:, :, 0], found["y"][:, :, 0])


@pytest.mark.parametrize("shape", [(1, 2, SIDE, SIDE), (1, SIDE, SIDE), (1, 1, 2 * SIDE, 2 * SIDE)])
def test_labels_on_the_grid_move_with_the_images(shape: tuple[int, ...]) -> None:
    images = image_inputs({"x": (1, 1, SIDE, SIDE)})
    assert images is not None
    grid = images.grid_of(shape)
    batch, labels = move_with_labels(
        {"x": places(1, 1, SIDE, SIDE)}, places(*shape), grid, images, np.random.default_rng(0)
    )
    factor = shape[-1] // SIDE
    moved = labels.reshape(8, -1, *shape[-2:])[:, 0, ::factor, ::factor]
    assert not torch.equal(batch["x"], places(1, 1, SIDE, SIDE))
    inner = slice(5, -5)
    assert (moved - batch["x"][:, 0, 0])[:, inner, inner].abs().max() < (1 if factor == 1 else 51)
    assert factor > 1 or torch.equal(moved, batch["x"][:, 0, 0])


@pytest.mark.parametrize("shape", [(1,), (1, 10), (1, 3, 7, 7), (1, 1, 1, 1)])
def test_labels_off_the_grid_have_none(shape: tuple[int, ...]) -> None:
    images = image_inputs({"x": (1, 1, SIDE, SIDE)})
    assert images is not None
    assert images.grid_of(shape) is None


def test_float_labels_are_flipped_and_shifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels are twice the inputs; what reaches the loss still is."""
    from leanonnx.commands.finetune import augment, teaching

    seen: list[tuple[Array, Array, bool]] = []
    move = augment.move_with_labels

    def watching(batch: Any, labels: Any, *more: Any) -> Any:
        moved, wanted = move(batch, labels, *more)
        seen.append((moved["x"].numpy(), wanted.numpy(), torch.equal(moved["x"], batch["x"])))
        return moved, wanted

    monkeypatch.setattr(teaching, "move_with_labels", watching)
    x = np.random.default_rng(0).standard_normal((20, 1, SIDE, SIDE)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=2 * x)
    proto = build(DENOISER)
    options = FinetuneOptions(strategy="supervised", settings=settings(epochs=1))
    new = saved(proto, tmp_path / "new.onnx")
    assert run_finetune(new, tmp_path / "out.onnx", None, tmp_path / "data.npz", options) is not None
    assert seen
    assert all(np.array_equal(2 * x, y) for x, y, _ in seen)
    assert not all(same for _, _, same in seen)


def feeds_of(path: Path) -> list[Feed]:
    with np.load(path) as data:
        return [{name: data[name][k : k + 1] for name in data.files if name != "labels"} for k in range(3)]


def test_a_mask_of_frequencies_is_not_flipped_with_the_image(tmp_path: Path) -> None:
    base, new = saved_unrolled(tmp_path / "base.onnx"), saved_unrolled(tmp_path / "new.onnx", 2, seed=1)
    data = measured(tmp_path / "data.npz")
    feeds = feeds_of(data)
    images = image_inputs({name: value.shape for name, value in feeds[0].items()})
    assert images is not None and images.moves == MOVES
    verified, notes = verified_images(images, load(base), feeds, moves_labels=False)
    assert not verified.moves
    assert len(notes) == 1 and "flips (" in notes[0] and "rectangles" in notes[0]
    batch = {name: torch.from_numpy(np.stack([feed[name] for feed in feeds])) for name in feeds[0]}
    for change in (flip_and_shift, mix_samples):
        same = change(batch, verified, np.random.default_rng(0))
        assert all(torch.equal(same[name], batch[name]) for name in batch)
    result = run_finetune(new, tmp_path / "out.onnx", base, data, FinetuneOptions(settings=settings(epochs=1)))
    assert result is not None
    said = [text for text in result.warnings if text.startswith("augmentation without")]
    assert len(said) == 1 and "flips (" in said[0]
    off = FinetuneOptions(augment=False, settings=settings(epochs=1))
    result = run_finetune(new, tmp_path / "off.onnx", base, data, off)
    assert result is not None and not [text for text in result.warnings if "augmentation" in text]


INPAINTING = """
<ir_version: 8, opset_import: ["" : 17]>
painter (float[N, 2, 16, 16] x, float[N, 1, 16, 16] mask) => (float[N, 2, 32, 32] y)
<float[2, 2, 1, 1] w, float[4] scales>
{
    m = Mul (x, mask)
    c = Conv (m, w)
    y = Resize <mode = "nearest"> (c, , scales)
}
"""


def test_a_mask_of_pixels_is_flipped_with_the_image(tmp_path: Path) -> None:
    """The output has twice the size."""
    proto = build(INPAINTING)
    next(t for t in proto.graph.initializer if t.name == "scales").raw_data = np.float32([1, 1, 2, 2]).tobytes()
    rng = np.random.default_rng(0)
    feeds = [
        {
            "x": rng.standard_normal((1, 2, SIDE, SIDE)).astype(np.float32),
            "mask": (rng.random((1, 1, SIDE, SIDE)) < 0.5).astype(np.float32),
        }
        for _ in range(3)
    ]
    images = image_inputs({name: value.shape for name, value in feeds[0].items()})
    assert images is not None
    verified, notes = verified_images(images, load(saved(proto, tmp_path / "m.onnx")), feeds, moves_labels=True)
    assert {"flip", "shift", "rectangle"} <= verified.moves
    assert "blend" not in verified.moves  # the mean of two masks is no mask
    assert "blends of two samples" in notes[0] and "flips" not in notes[0]


LOPSIDED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 1, 16, 16] x) => (float[N, 1, 16, 16] y)
<float[16] ramp, float[1, 1, 3, 3] w>
{
    r = Mul (x, ramp)
    y = Conv <pads = [1, 1, 1, 1]> (r, w)
}
"""


def test_a_plain_image_is_moved_unless_labels_would_have_to_follow(tmp_path: Path) -> None:
    proto = build(LOPSIDED)
    next(t for t in proto.graph.initializer if t.name == "ramp").raw_data = np.linspace(-9, 9, 16, dtype="f4").tobytes()
    model = load(saved(proto, tmp_path / "m.onnx"))
    feeds = [{"x": row[None]} for row in np.random.default_rng(0).standard_normal((3, 1, SIDE, SIDE)).astype("f4")]
    images = image_inputs({"x": (1, 1, SIDE, SIDE)})
    assert images is not None
    assert verified_images(images, model, feeds, moves_labels=False) == (images, [])
    verified, notes = verified_images(images, model, feeds, moves_labels=True)
    assert "flip" not in verified.moves and "flips" in notes[0]
