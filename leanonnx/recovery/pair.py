"""The original and the compressed network on the same inputs, each run only as far as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.analysis.teacher import RecoveryTeacher
from leanonnx.data.images import image_axes
from leanonnx.graph.formats import HALF_TYPES, convert_feed, convert_to_float32, float_types, is_float
from leanonnx.graph.model import Model
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.partial_runner import PartialRunner, TensorSpill, ValueOf
from leanonnx.runtime.sessions import Feed

HELD_OUT_STRIDE = 5
"""One position in ``HELD_OUT_STRIDE`` is held out if there are no held-out inputs."""


@dataclass(frozen=True)
class PairedRun:
    """One run: its index; ``held_out``: it is held out of the fit; ``mirrored``: its inputs were mirrored."""

    index: int
    held_out: bool
    mirrored: bool


class NetworkPair:
    """Both networks; ``after`` is the compressed one and may be changed where it has not been run yet.

    ``before`` is the original, or the model of ``teacher`` in its place; ``mirrors`` tells from the number of samples
    to fit to if mirrored ones are used as well.
    """

    def __init__(
        self,
        before: Model,
        after: onnx.ModelProto,
        feeds: Iterable[Feed],
        held: Iterable[Feed],
        shelf: TensorSpill,
        mirrors: Callable[[int], bool] = lambda samples: True,
        teacher: RecoveryTeacher | None = None,
    ) -> None:
        self.teacher = teacher
        halves = float_types(before.proto) & HALF_TYPES
        self.after, self.shelf = after, shelf
        self.original = PartialRunner(convert_to_float32(before.proto, halves), shelf, "original:", before.libraries)
        self.compressed = PartialRunner(after, shelf, "compressed:", before.libraries)
        self.runs: list[PairedRun] = []
        self.samples = 0
        for feed in feeds:
            self._enter(convert_feed(feed, halves), held=False, mirrored=False)
            self.samples += samples_of(feed)
        if mirrors(self.samples):
            self._enter_mirrored()
        self.has_held_out = False
        for feed in held:
            self._enter(convert_feed(feed, halves), held=True, mirrored=False)
            self.has_held_out = True
        self.compressed.share_inputs(self.original)

    def _enter(self, feed: Feed, held: bool, mirrored: bool) -> None:
        self.runs.append(PairedRun(len(self.runs), held, mirrored))
        self.original.start(feed)

    def _enter_mirrored(self) -> None:
        names = list(self.original.known)
        for run in list(self.runs):
            mirror = mirror_images({name: self.original.value(name, run.index) for name in names})
            if mirror is None:
                return
            self._enter(mirror, held=False, mirrored=True)

    def target(self, value: ValueOf) -> ValueOf:
        """The function that returns the targets of a run, from that of the tensors of the original or its teacher."""
        teacher = self.teacher
        return value if teacher is None else lambda name: teacher.value(name, value(name))

    @property
    def fitted_runs(self) -> int:
        """Number of runs that are neither held out nor mirrored."""
        return sum(not run.held_out and not run.mirrored for run in self.runs)

    def held_out_rows(self, run: PairedRun, rows: int, rng: np.random.Generator) -> Mask:
        """Mask of the held-out rows of a run [rows]."""
        if self.has_held_out:
            return np.full(rows, run.held_out)
        return np.asarray((rng.permutation(rows) + run.index) % HELD_OUT_STRIDE == 0)


def samples_of(feed: Feed) -> int:
    """Number of samples of one run: the size of the first axis of the first input that has one."""
    return next((len(value) for value in feed.values() if value.ndim), 1)


def mirror_images(feed: Feed) -> Feed | None:
    """Return the inputs with images mirrored left to right; None without images."""
    result, any_image = {}, False
    for name, value in feed.items():
        axes = image_axes(value.shape) if is_float(value) else None
        any_image |= axes is not None
        result[name] = value if axes is None else np.ascontiguousarray(np.flip(value, axes[1]))
    return result if any_image else None
