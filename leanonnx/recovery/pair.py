"""The original and the compressed network, run side by side on the same inputs, only as far as needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.data.images import image_axes
from leanonnx.graph.formats import HALVES, fed_in_float32, float_kinds, in_float32, is_float
from leanonnx.graph.model import Model
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.partial_runner import PartialRunner, TensorSpill
from leanonnx.runtime.sessions import Feed

EVERY = 5
"""One position in ``EVERY`` is held out if there are no held-out inputs."""


@dataclass(frozen=True)
class PairedRun:
    """One run: its index; ``held``: it is held out of the fit; ``mirrored``: its inputs were mirrored."""

    index: int
    held: bool
    mirrored: bool


class Pair:
    """Both networks; ``after`` is the compressed one and may be changed where it has not been run yet."""

    def __init__(
        self, before: Model, after: onnx.ModelProto, feeds: Iterable[Feed], held: Iterable[Feed], shelf: TensorSpill
    ) -> None:
        halves = float_kinds(before.proto) & HALVES
        self.after = after
        self.original = PartialRunner(in_float32(before.proto, halves), shelf, "original:", before.libraries)
        self.smaller = PartialRunner(after, shelf, "compressed:", before.libraries)
        self.runs: list[PairedRun] = []
        for feed in feeds:
            self._enter(fed_in_float32(feed, halves), held=False, mirrored=False)
            mirror = mirrored(feed)
            if mirror is not None:
                self._enter(fed_in_float32(mirror, halves), held=False, mirrored=True)
        self.split = False
        for feed in held:
            self._enter(fed_in_float32(feed, halves), held=True, mirrored=False)
            self.split = True

    def _enter(self, feed: Feed, held: bool, mirrored: bool) -> None:
        self.runs.append(PairedRun(len(self.runs), held, mirrored))
        self.original.start(feed)
        self.smaller.start(feed)

    def advance(self, original: Sequence[str], smaller: Sequence[str]) -> None:
        """Run both networks as far as these tensors need.

        Raises:
            DataError: onnxruntime cannot run them on the inputs.
        """
        self.original.advance(original)
        self.smaller.advance(smaller)

    def held(self, run: PairedRun, rows: int, rng: np.random.Generator) -> Mask:
        """Mask of the held-out rows of a run [rows]."""
        if self.split:
            return np.full(rows, run.held)
        return np.asarray((rng.permutation(rows) + run.index) % EVERY == 0)


def mirrored(feed: Feed) -> Feed | None:
    """Return the inputs with images mirrored left to right; None without images."""
    result, any_image = {}, False
    for name, value in feed.items():
        axes = image_axes(value.shape) if is_float(value) else None
        any_image |= axes is not None
        result[name] = value if axes is None else np.ascontiguousarray(np.flip(value, axes[1]))
    return result if any_image else None
