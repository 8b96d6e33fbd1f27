"""Rows of the regression of one layer: its input in the compressed network, its output in the original."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import bias_of
from leanonnx.graph.positions import Window, features
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.layers import LinearLayer
from leanonnx.recovery.pair import NetworkPair, PairedRun

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
    """A layer with the tensors around it: ``x`` and ``y`` in the original, ``x_hat`` in the compressed network."""

    dag: ChannelDag
    alive: Mask
    layer: LinearLayer
    pair: NetworkPair
    x: str
    y: str
    x_hat: str
    other: OtherOperand | None

    @property
    def kept_outputs(self) -> Mask:
        """Mask of the kept outputs of the original [O]."""
        return np.asarray(self.alive[self.layer.block.destinations.reshape(-1)])

    @cached_property
    def kernels(self) -> Floats:
        """The original's weights [G, O, I, taps]."""
        kernels = np.asarray(self.layer.block.kernels(), np.float64)
        return kernels.reshape(*kernels.shape[:3], -1)

    def original_bias(self) -> Floats | None:
        """The original's bias [O], without one that a separate node adds; None if it is computed."""
        model = self.dag.model
        node = model.proto.graph.node[self.layer.before]

        def constant(name: str) -> Array | None:
            return model.constant(name) if name in model.origins else self.dag.observation.values.get(name)

        return bias_of(node, self.layer.block.destinations.size, constant, self.layer.block.output_axis)

    def explains_output(self) -> bool:
        """True if the original's output follows from its weights and input, at some positions of the first run."""
        x, y = self.pair.original.value(self.x, 0), self.pair.original.value(self.y, 0)
        bias, mix = self.original_bias(), self.layer.block
        if bias is None or y.ndim < 2 or y.shape[self._axis(y)] != mix.destinations.size:
            return False
        if (
            x.size // x.shape[mix.input_axis] != y.size // mix.destinations.size
            if self.layer.window is None
            else len(x) != len(y)
        ):
            return False
        window = self.layer.window and replace(self.layer.window, groups=len(mix.sources))
        chosen = np.random.default_rng(0).integers(0, self.positions(), REPLAYED_POSITIONS)
        read = self._features(window, x, y, chosen)
        kernels = self.kernels.reshape(*self.kernels.shape[:2], -1)
        if read.shape[2] != kernels.shape[2]:
            return False
        made = np.einsum("ngk,gok->ngo", read, kernels).reshape(len(chosen), -1) + bias
        wanted = self._targets(y, chosen)
        return bool(
            np.linalg.norm(made - wanted) <= MAX_REPLAY_ERROR * max(float(np.linalg.norm(wanted)), MIN_OUTPUT_NORM)
        )

    def positions(self) -> int:
        """Number of output positions in one run, over all its samples."""
        value = self.pair.original.value(self.y, 0)
        return int(value.size // value.shape[self._axis(value)])

    def rows(self, each: int, seed: int) -> Iterator[tuple[PairedRun, Mask, Array, Array]]:
        """Yield for each run up to ``each`` rows: held-out mask, features [n, G, I · taps], targets [n, G, O]."""
        for run in self.pair.runs:
            x_hat, y = self.pair.compressed.value(self.x_hat, run.index), self.pair.original.value(self.y, run.index)
            rng = np.random.default_rng((seed, self.layer.after, run.index))
            positions = y.size // y.shape[self._axis(y)]
            chosen = np.sort(rng.choice(positions, min(each, positions), replace=False))
            targets = self._targets(y, chosen)[:, self.kept_outputs] + self._operand_error(run.index, y, chosen)
            read = self._features(self.layer.window, x_hat, y, chosen)
            yield (
                run,
                self.pair.held_out_rows(run, len(chosen), rng),
                read,
                targets.reshape(len(chosen), self.layer.groups, -1),
            )

    def _operand_error(self, run: int, y: Array, chosen: Ints) -> Array:
        """Error of the other operand of an addition, as far as this layer can compensate it [n, O], or 0."""
        if self.other is None:
            return np.zeros(1, np.float32)
        wanted = self.pair.original.value(self.other.original, run)
        there = self.pair.compressed.value(self.other.compressed, run)
        axis = self._axis(y)
        if wanted.shape != y.shape or there.ndim != y.ndim or there.shape[axis] != int(self.kept_outputs.sum()):
            return np.zeros(1, np.float32)
        missing = self._targets(wanted, chosen)[:, self.kept_outputs] - self._targets(there, chosen)
        scale = self.other.scale
        if scale is None:
            return missing
        passes = np.abs(scale) > MIN_ROW_SCALE
        return np.asarray(np.where(passes, missing / np.where(passes, scale, 1), 0))

    def _axis(self, value: Array) -> int:
        """Channel axis of the output."""
        return value.ndim + self.layer.block.output_axis if self.layer.window is None else 1

    def _targets(self, value: Array, chosen: Ints) -> Array:
        """Rows [n, O] of an output at flat positions (samples first)."""
        if self.layer.window is None:
            return _rows_along(value, self.layer.block.output_axis)[chosen]
        size = int(np.prod(value.shape[2:]))
        sample, place = np.divmod(chosen, size)
        return np.asarray(value.reshape(*value.shape[:2], size)[sample, :, place])

    def _features(self, window: Window | None, x: Array, y: Array, chosen: Ints) -> Array:
        """Rows [n, G, I · taps] of the layer input at flat output positions."""
        if window is None:
            return _rows_along(x, self.layer.block.input_axis)[chosen][:, None, :]
        size = int(np.prod(y.shape[2:]))
        sample, place = np.divmod(chosen, size)
        order = np.argsort(sample, kind="stable")
        parts = [features(window, x[k], y.shape[2:], place[sample == k]) for k in np.unique(sample)]
        rows = np.concatenate(parts)[np.argsort(order, kind="stable")]
        return rows.reshape(len(rows), window.groups, -1)


def _rows_along(value: Array, axis: int) -> Array:
    """Rows [n, C] of a tensor with channels along ``axis``."""
    return np.asarray(np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]))
