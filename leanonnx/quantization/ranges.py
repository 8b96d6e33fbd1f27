"""Ranges of activations: histograms on real inputs, and three ways to choose the numbers that 8 bits span."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leanonnx.numeric.arrays import Floats
from leanonnx.runtime.sessions import Feed, open_session, run_session, translate_errors

BIN_COUNT = 2048
"""Bins of a histogram."""
LEVEL_COUNT = 256
"""Numbers that 8 bits tell apart."""
TAIL_SHARE = 0.00005
"""Share of the numbers beyond each end of the range by percentile: 99.99 % lie within."""
LEAST_SPREAD = 1e-30
"""Width of a range that is divided into bins."""
RANGE_FACTORS = np.linspace(1.0, 0.3, 36)
"""Factors of the whole range that are tried for the least mean squared error."""


@dataclass(frozen=True)
class Histogram:
    """Numbers of a tensor: the ends, which hold zero, and counts in equal bins between them."""

    lowest: float
    highest: float
    counts: Floats

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.highest - self.lowest) / self.counts.size


Range = tuple[float, float]
RangeMethod = Callable[[Histogram], Range]


def whole_range(histogram: Histogram) -> Range:
    """The least and the largest number."""
    return histogram.lowest, histogram.highest


def percentile_range(histogram: Histogram) -> Range:
    """The range that leaves ``TAIL_SHARE`` of the numbers out at each end."""
    shares = np.cumsum(histogram.counts) / max(histogram.counts.sum(), 1.0)
    low = int(np.searchsorted(shares, TAIL_SHARE, side="right"))
    high = int(np.searchsorted(shares, 1 - TAIL_SHARE))
    lowest = histogram.lowest + low * histogram.width
    highest = histogram.lowest + (high + 1) * histogram.width
    return min(lowest, 0.0), max(min(highest, histogram.highest), 0.0)


def least_squares_range(histogram: Histogram) -> Range:
    """The multiple of the whole range with the least mean squared error of the numbers in 8 bits."""
    if not histogram.width:
        return whole_range(histogram)
    centres = histogram.lowest + (np.arange(histogram.counts.size) + 0.5) * histogram.width
    errors = []
    for factor in RANGE_FACTORS:
        low, step = factor * histogram.lowest, factor * (histogram.highest - histogram.lowest) / (LEVEL_COUNT - 1)
        levels = np.clip(np.round((centres - low) / step), 0, LEVEL_COUNT - 1)
        rounding = step**2 / 12 * (levels % (LEVEL_COUNT - 1) > 0)  # a bin is about as wide as a step
        errors.append(float(histogram.counts @ np.maximum((low + levels * step - centres) ** 2, rounding)))
    best = float(RANGE_FACTORS[int(np.argmin(errors))])
    return best * histogram.lowest, best * histogram.highest


RANGE_METHODS: Mapping[str, RangeMethod] = {
    "minmax": whole_range,
    "percentile": percentile_range,
    "mse": least_squares_range,
}
"""Ways to choose the range of a tensor, by name."""


def observe_histograms(
    proto: onnx.ModelProto,
    names: Collection[str],
    feeds: Callable[[], Iterable[Feed]],
    libraries: tuple[Path, ...] = (),
) -> dict[str, Histogram]:
    """Histograms of float tensors on real inputs; tensors with other types or numbers that are not finite are left out.

    Args:
        proto: the float model.
        names: its tensors, graph inputs among them.
        feeds: yields the inputs, from the start at each call.
        libraries: hold its custom operators.

    Raises:
        RunFailed: the model cannot be run.
    """
    given = {value.name for value in proto.graph.input}
    known = {value.name for value in proto.graph.output}
    asked = [name for name in names if name not in given]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in known)
    ends: dict[str, Range] = {}
    counts: dict[str, Floats] = {}
    refused: set[str] = set()
    with translate_errors(), open_session(exposed, libraries=libraries) as session:
        outputs = [value.name for value in session.get_outputs()]
        for counting in (False, True):
            for feed in feeds():
                values = {**feed, **dict(zip(outputs, run_session(session, feed), strict=True))}
                for name in names:
                    array = np.asarray(values[name])
                    if name in refused or not array.size:
                        continue
                    if array.dtype != np.float32 or not np.isfinite(array).all():
                        refused.add(name)
                    elif counting:
                        low, high = ends[name]
                        counts[name] = counts.get(name, 0.0) + np.histogram(array, BIN_COUNT, _spread(low, high))[0]
                    else:
                        low, high = ends.get(name, (0.0, 0.0))
                        ends[name] = min(low, float(array.min())), max(high, float(array.max()))
    return {name: Histogram(*ends[name], counts[name]) for name in counts if name not in refused}


def _spread(low: float, high: float) -> Range:
    """A range that can be divided into bins."""
    return (low, high) if high - low > LEAST_SPREAD else (low, low + 1.0)
