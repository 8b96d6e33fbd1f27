"""Ranges of activations: what is observed in one pass over real inputs, and the way to take each tensor's range.

A way is chosen for each tensor by the error that its integers add to the layers that read it, on held-out inputs: with
x the patches that a layer reads, q(x) the same in integers and W its kernels, ‖W (q(x) - x)‖² / ‖W x‖².
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx

from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.ranges import Histogram, IntegerGrid, Range, RangeMethod, range_by
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.kernels import KernelLayer, patch_runs
from leanonnx.runtime.probes import tensor_values
from leanonnx.runtime.sessions import Feed

RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)
"""Ways to take the range of a tensor."""
Ranges = Mapping[str, Range]
"""Range of each tensor."""
COMPARED_ROWS = 256
"""Positions of each layer, over all inputs, at which the ways are compared."""


@dataclass(frozen=True)
class Observed:
    """Histograms of tensors, and the largest magnitude of each channel along axis 1 or, of a matrix, along the last."""

    histograms: Mapping[str, Histogram]
    peaks: Mapping[str, Floats]


def observe_activations(
    proto: onnx.ModelProto, names: Collection[str], feeds: Iterable[Feed], libraries: Sequence[Path] = ()
) -> Observed:
    """Observe float tensors on real inputs; those of other types or with numbers that are not finite are left out.

    Args:
        proto: the float model.
        names: its tensors, graph inputs among them.
        feeds: the inputs.
        libraries: hold its custom operators.

    Raises:
        RunFailed: the model cannot be run.
    """
    histograms = {name: Histogram() for name in names}
    peaks: dict[str, Floats] = {}
    for values in tensor_values(proto, sorted(names), feeds, libraries):
        for name in list(histograms):
            array = values[name]
            if array.dtype != np.float32 or not np.isfinite(array).all():
                del histograms[name]
            elif array.size:
                histograms[name].add(array)
                peaks[name] = _larger(peaks.get(name), array)
    seen = {name: histogram for name, histogram in histograms.items() if histogram.total}
    return Observed(seen, {name: peaks[name] for name in seen})


def _larger(known: Floats | None, array: Array) -> Floats:
    """The largest magnitude of each channel; one number for all where their number changes."""
    axis = 1 if array.ndim > 2 else array.ndim - 1
    magnitudes = np.abs(array).max(tuple(k for k in range(array.ndim) if k != axis)).astype(np.float64)
    if known is None:
        return np.asarray(magnitudes)
    if known.shape != magnitudes.shape:
        known, magnitudes = known.max(keepdims=True), magnitudes.max(keepdims=True)
    return np.asarray(np.maximum(known, magnitudes))


def integer_grid(kind: Int8Format) -> IntegerGrid:
    """The integers of activations."""
    return IntegerGrid(signed=kind.signed_activations, symmetric=kind.signed_activations)


def ranges_by(method: RangeMethod, observed: Observed, kind: Int8Format) -> dict[str, Range]:
    """The range of each tensor, taken in one way."""
    grid = integer_grid(kind)
    return {name: range_by(method, histogram, grid) for name, histogram in observed.histograms.items()}


def nearest_ranges(
    proto: onnx.ModelProto,
    layers: Collection[KernelLayer],
    ways: Sequence[Ranges],
    kind: Int8Format,
    feeds: Iterable[Feed],
    runs: int,
    libraries: Sequence[Path] = (),
) -> dict[str, Range]:
    """For each tensor the range with the least error of the layers that read it; that of the first way for others.

    Args:
        proto: the float model.
        layers: its layers in integers.
        ways: ranges of each tensor; of equal errors the first wins.
        kind: the integer formats.
        feeds: held-out inputs.
        runs: their number.
        libraries: hold its custom operators.

    Raises:
        RunFailed: the model cannot be run.
    """
    grid, errors = integer_grid(kind), {name: np.zeros(len(ways)) for name in ways[0]}
    read = [each for each in layers if each.node.input[0] in errors]
    rows = {each.layer.name: -(-COMPARED_ROWS // max(runs, 1)) for each in read}
    for patches in patch_runs(proto, read, feeds, rows, libraries):
        for each in read:
            name, x = each.node.input[0], patches[each.layer.name].astype(np.float64)
            kernels = each.kernels
            whole = float(np.square(kernels @ x).sum())
            if whole:
                changes = (grid.round_trip(x, *way[name]) - x for way in ways)
                errors[name] += [float(np.square(kernels @ change).sum()) / whole for change in changes]
    return {name: ways[int(np.argmin(error))][name] for name, error in errors.items()}
