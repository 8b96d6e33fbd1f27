"""Augmentations are used only where the original moves its output with its inputs.

A mask of measured frequencies has the size of the image and does not live on its grid: whoever mirrors both asks for
something else.  Therefore the original runs on a few samples and on the same ones moved.  If f(move(x)) is not close to
move(f(x)), as compared with the change that the move makes to the output, the augmentation is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from leanonnx.commands.finetune.augment import (
    Augmentation,
    Grid,
    ImageInputs,
    Mixture,
    Motion,
    reach,
)
from leanonnx.commands.finetune.batching import Batch, stack_feeds
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.evaluation.kinds import has_complex_image
from leanonnx.graph.formats import REPLACED_TYPES, convert_feed, convert_to_float32, float_types
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed, run

MAX_ERROR = 0.5
"""Largest root mean square of f(move(x)) - move(f(x)), as a share of that of f(x) - move(f(x))."""
BORDER_DIVISOR = 4
"""Near the edges, a side divided by this, shifted images differ in more than position and are not compared."""
TEST_SHARE = 0.7
MIXTURES: tuple[Augmentation, ...] = ("blend", "rectangle")
TITLES: dict[Augmentation, str] = {
    "flip": "flips",
    "shift": "shifts",
    "blend": "blends of two samples",
    "rectangle": "rectangles of other samples",
}


def verified_images(
    images: ImageInputs, original: Model, feeds: Sequence[Feed], moves_labels: bool
) -> tuple[ImageInputs, list[str]]:
    """Return the image inputs with the augmentations that the original goes along with, and notes on the others.

    It is not asked if there is nothing that would have to move along: if no output lives on the grid of the images; or
    if one plain image is all that does, and the answer to the moved image is computed anew.  Mixtures are tried if
    several inputs live on the grid, or if it follows neither flips nor shifts.

    Args:
        images: the image inputs.
        original: the network that is asked.
        feeds: some inputs.
        moves_labels: labels on the grid are moved with the images.
    """
    if not moves_labels and len(images.grids) == 1 and not has_complex_image(feeds[0]):
        return images, []
    same = [feed for feed in feeds if _shapes(feed) == _shapes(feeds[0])]
    answer = _answering(original, same[0])
    outputs = answer(stack_feeds(same))
    grids = {k: grid for k, value in enumerate(outputs) if (grid := images.grid_of(tuple(value.shape[1:]))) is not None}
    if not grids:
        return images, []

    def error(move: Augmentation) -> float:
        if move in MIXTURES and len(same) < 2:
            return np.inf
        change = _mixture(move, len(same)) if move in MIXTURES else _motion(move, images, len(same))
        moved = answer(change.apply_to_inputs(stack_feeds(same), images))
        return max(
            _error(outputs[k], moved[k], change.apply(outputs[k], grid), grid, move) for k, grid in grids.items()
        )

    errors = {move: error(move) for move in sorted(images.moves.difference(MIXTURES))}
    follows = any(each <= MAX_ERROR for each in errors.values())
    if not follows or len(images.grids) > 1:
        mixtures = sorted(images.moves.intersection(MIXTURES))
        errors |= {move: error(move) if follows else np.inf for move in mixtures}
    return _without(images, errors)


def _without(images: ImageInputs, errors: dict[Augmentation, float]) -> tuple[ImageInputs, list[str]]:
    """The image inputs without the moves that the original does not follow, and a note that says so."""
    lost = [move for move in sorted(errors) if not errors[move] <= MAX_ERROR]
    if not lost:
        return images, []
    named = ", ".join(f"{TITLES[move]}{_error_text(errors[move])}" for move in lost)
    note = (
        f"augmentation without {named}: the original's output does not move with its inputs (error as a share of the "
        f"change, at most {MAX_ERROR})"
    )
    return replace(images, moves=images.moves - set(lost)), [note]


def _error_text(error: float) -> str:
    return f" ({error:.2f})" if np.isfinite(error) else ""


def _answering(original: Model, like: Feed) -> Callable[[Batch], list[Tensor]]:
    """A function that runs a network on a batch whose inputs are of the types of a feed."""
    kinds = float_types(original.proto) & REPLACED_TYPES
    proto = convert_to_float32(original.proto, kinds)
    types = {name: value.dtype for name, value in convert_feed(like, kinds).items()}

    def answer(batch: Batch) -> list[Tensor]:
        count = len(next(iter(batch.values())))
        rows = [{name: batch[name][k].numpy().astype(types[name]) for name in types} for k in range(count)]
        computed: list[list[Array]] = run(proto, rows, libraries=original.libraries)
        return [torch.from_numpy(np.stack(column).astype(np.float64)) for column in zip(*computed, strict=True)]

    return answer


def _motion(move: Augmentation, images: ImageInputs, count: int) -> Motion:
    """A motion that only flips, or that only shifts, to other sides in every other sample."""
    signs = np.where(np.arange(count) % 2, -1, 1) * (move == "shift")
    down, right = reach(images)
    return Motion(np.full(count, move == "flip"), down * signs, -right * signs)


def _mixture(move: Augmentation, count: int) -> Mixture:
    """A mixture of each sample with the next."""
    corners = np.full((2, 2, count), 0.5) if move == "rectangle" else None
    return Mixture((np.arange(count) + 1) % count, np.full(count, TEST_SHARE, np.float32), corners)


def _error(before: Tensor, moved: Tensor, wanted: Tensor, grid: Grid, move: Augmentation) -> float:
    """Distance of the output for moved inputs from the moved output, relative to the change that the move makes."""
    if move == "shift":
        before, moved, wanted = (_inner(value, grid) for value in (before, moved, wanted))
    change = float((before - wanted).square().sum())
    error = float((moved - wanted).square().sum())
    return float(np.sqrt(error / change)) if change else np.inf if error else 0.0


def _inner(value: Tensor, grid: Grid) -> Tensor:
    for axis in grid.axes:
        border = value.shape[axis] // BORDER_DIVISOR
        value = value.narrow(axis, border, max(value.shape[axis] - 2 * border, 1))
    return value


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in feed.items()}
