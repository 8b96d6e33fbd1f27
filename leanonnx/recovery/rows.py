"""Rows of the regression of one layer: its input in the compressed network, its output in the original."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import bias_of
from leanonnx.graph.positions import Window, features, rows_at, spread_positions
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.integers import original_floats
from leanonnx.recovery.layers import LinearLayer
from leanonnx.recovery.pair import PairedRun
from leanonnx.recovery.partial_runner import ValueOf

MAX_REPLAY_ERROR = 1e-3
"""Relative error up to which a layer's output follows from its weights and input."""
REPLAYED_POSITIONS = 64
"""Number of positions at which that is checked."""
MIN_OUTPUT_NORM = 1e-6
MIN_ROW_SCALE = 1e-3


@dataclass(frozen=True)
class OtherOperand:
    """The other operand of the addition that reads a layer's output.

    Its name in the original (``original``) and in the compressed network (``compressed``), and the scale of each
    channel between the layer and the addition.
    """

    original: str
    compressed: str
    scale: Floats | None


@dataclass(frozen=True, kw_only=True)
class LayerSite:
    """A layer with the tensors around it: ``x`` and ``y`` in the original, ``x_hat`` in the compressed network.

    ``rows``: number of rows to fit to; ``fold_rows``: positions of each run for its channel regression, 0 without one.
    """

    dag: ChannelDag
    alive: Mask
    layer: LinearLayer
    x: str
    y: str
    x_hat: str
    other: OtherOperand | None
    rows: int
    fold_rows: int = 0

    @property
    def key(self) -> int:
        """Node of the layer in the compressed network, which seeds its positions."""
        return self.layer.after

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors of the original that are sampled."""
        return self.x, self.y, *([self.other.original] if self.other else [])

    @property
    def row_numbers(self) -> int:
        """Numbers that are stored for each row."""
        return int(self.kept_outputs.sum()) * (2 if self.other else 1) + (self.width if self.fold_rows else 0)

    def sample(self, value: ValueOf, chosen: Ints, run: PairedRun) -> dict[str, Array] | None:
        """Return arrays of one run of the original at the chosen positions; None if its output is not explained.

        ``y`` and ``wanted`` [O, n]: kept outputs, and those of the other operand; ``x``: rows for the channel
        regression.
        """
        y = value(self.y)
        replays = run.index == 0 and not self.dag.is_unlike(self.y)
        if replays and not self.explains_output(value(self.x), y):
            return None
        integers = self.layer.integers
        made = self.computed(value(self.x), y.shape, chosen) if integers and integers.reads else self.targets(y, chosen)
        if made is None:
            return None
        arrays = {"y": made[self.kept_outputs]}
        if self.other:
            wanted = value(self.other.original)
            if wanted.shape == y.shape:
                arrays["wanted"] = self.targets(wanted, chosen)[self.kept_outputs]
        if self.fold_rows and not run.held_out:
            arrays["x"] = self.input_rows(value(self.x), run)
        return arrays

    def input_rows(self, x: Array, run: PairedRun) -> Array:
        """Rows [n, size] of the layer's input in either network, at the positions of its channel regression."""
        axis = self.layer.block.input_axis
        rng = np.random.default_rng((self.key, run.index))
        return self.layer.data_floats(rows_at(x, axis, spread_positions(x.size // x.shape[axis], self.fold_rows, rng)))

    @cached_property
    def kept_outputs(self) -> Mask:
        """Mask of the kept outputs of the original [O]."""
        return np.asarray(self.alive[self.layer.block.destinations.reshape(-1)])

    @cached_property
    def width(self) -> int:
        """Number of features of each conv group in the compressed network."""
        block = self.layer.block
        kept = int(self.alive[block.sources].sum())
        taps = 1 if self.layer.window is None else math.prod(self.layer.window.kernel)
        return kept // self.layer.groups * taps

    @property
    def kernels(self) -> Floats:
        """The original's weights [G, O, I, taps], in floats."""
        kernels = np.asarray(self.layer.block.kernels(), np.float64)
        kernels = kernels.reshape(*kernels.shape[:3], -1)
        floats = self._in_floats(kernels.reshape(*kernels.shape[:2], -1))
        return kernels if floats is None else floats[0].reshape(kernels.shape)

    def _in_floats(self, kernels: Floats) -> tuple[Floats, Floats] | None:
        """Kernels [G, O, K] and bias [O] in floats of an original that computes in integers; None of another one."""
        model = self.dag.model
        return original_floats(model, model.proto.graph.node[self.layer.before], self.layer.block.slot, kernels)

    @property
    def original_bias(self) -> Floats | None:
        """The original's bias [O], without one that a separate node adds; None if it is computed."""
        model = self.dag.model
        node = model.proto.graph.node[self.layer.before]
        if self.layer.integers and self.layer.integers.reads:
            floats = self._in_floats(np.zeros((*self.layer.block.destinations.shape, 1)))
            return None if floats is None else floats[1]

        def constant(name: str) -> Array | None:
            return model.constant(name) if name in model.origins else self.dag.observation.values.get(name)

        return bias_of(node, self.layer.block.destinations.size, constant, self.layer.block.output_axis)

    def explains_output(self, x: Array, y: Array) -> bool:
        """True if the original's output follows from its weights and input, at some positions of one run."""
        bias, mix = self.original_bias, self.layer.block
        if bias is None or y.ndim < 2 or y.shape[self.axis(y)] != mix.destinations.size:
            return False
        if (
            x.size // x.shape[mix.input_axis] != y.size // mix.destinations.size
            if self.layer.window is None
            else len(x) != len(y)
        ):
            return False
        chosen = np.sort(np.random.default_rng(0).integers(0, self.positions(y.shape), REPLAYED_POSITIONS))
        made, wanted = self.computed(x, y.shape, chosen), self.targets(y, chosen)
        if made is None:
            return False
        if self.layer.integers and self.layer.integers.writes:
            return self.layer.integers.writes.is_rounded(made, wanted)
        return bool(
            np.linalg.norm(made - wanted) <= MAX_REPLAY_ERROR * max(float(np.linalg.norm(wanted)), MIN_OUTPUT_NORM)
        )

    def computed(self, x: Array, shape: Sequence[int], chosen: Ints) -> Array | None:
        """Outputs [O, n] that follow from the original's weights and input, before any rounding; None if none do.

        Args:
            x: its input.
            shape: shape of its output.
            chosen: flat positions.
        """
        bias = self.original_bias
        window = self.layer.window and replace(self.layer.window, groups=len(self.layer.block.sources))
        read, kernels = self._features(window, x, shape, chosen), self.kernels
        kernels = kernels.reshape(*kernels.shape[:2], -1)
        if bias is None or read.shape[1] != kernels.shape[2]:
            return None
        return np.asarray((kernels @ read).reshape(-1, len(chosen)) + bias[:, None])

    def positions(self, shape: Sequence[int]) -> int:
        """Number of output positions of a run whose output in the original has this shape, over all its samples."""
        axis = len(shape) + self.layer.block.output_axis if self.layer.window is None else 1
        return math.prod(shape) // shape[axis]

    def targets(self, y: Array, chosen: Ints) -> Array:
        """Outputs [O, n] at flat positions (samples first)."""
        return rows_at(y, self.axis(y), chosen).T

    def features(self, x_hat: Array, shape: Sequence[int], chosen: Ints) -> Array:
        """Features [G, I · taps, n] at positions of an output whose shape in the original is given."""
        return self._features(self.layer.window, x_hat, shape, chosen)

    def missing(self, wanted: Array, there: Array, chosen: Ints) -> Array | None:
        """Error of the other operand of an addition, as far as this layer can compensate it [O, n].

        Args:
            wanted: the kept channels of that operand in the original at the chosen positions [O, n].
            there: the operand in the compressed network.
            chosen: the positions.
        """
        if there.ndim < 2 or there.shape[self.axis(there)] != len(wanted):
            return None
        missing = wanted - self.targets(there, chosen)
        scale = self.other.scale if self.other else None
        if scale is None:
            return missing
        passes = (np.abs(scale) > MIN_ROW_SCALE)[:, None]
        return np.asarray(np.where(passes, missing / np.where(passes, scale[:, None], 1), 0), missing.dtype)

    def axis(self, value: Array) -> int:
        """Channel axis of the output."""
        return value.ndim + self.layer.block.output_axis if self.layer.window is None else 1

    def _features(self, window: Window | None, x: Array, shape: Sequence[int], chosen: Ints) -> Array:
        """Features [G, I · taps, n] of the layer input at flat output positions."""
        x = self.layer.data_floats(x)
        if window is None:
            return rows_at(x, self.layer.block.input_axis, chosen).T[None]
        return features(window, x, shape[2:], chosen).reshape(window.groups, -1, len(chosen))
