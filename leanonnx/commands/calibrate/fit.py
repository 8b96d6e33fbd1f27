"""Fit a hardware table to the times of probes.

Each rate comes from a chain of equal layers: its multiply-adds divided by its time, after subtracting the start of the
run, the start of each node and the writing of outputs, as in the latency model.  Writing in integers counts as much as
in floats, so that only the multiply-adds differ; the conversions at the ends of the chain are subtracted too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leanonnx.commands.calibrate.probes import Probe
from leanonnx.hardware.targets import HARDWARE_ENTRIES, Hardware, integer_entries
from leanonnx.numeric.arrays import Floats

ProbeTimes = Mapping[Probe, float]
"""Milliseconds of one run of each probe."""
BLOCK_CANDIDATES = (4, 8, 16, 32, 64)
"""Candidate sizes of a channel block."""
PROBE_WIDTHS = range(32, 161, 4)
"""Widths timed to find the block."""
BLOCK_ERROR_TOLERANCE = 0.05
"""A smaller block is preferred if its error exceeds the best by at most this share."""
MULTIPLE_CANDIDATES = (1, 2, 4, 8)
"""Candidate numbers of channels that a fast width is a multiple of."""
EQUAL_TIME_TOLERANCE = 0.1
"""Times that differ by less than this share count as equal in ``best_multiple``."""
PROBE_WIDTH, WIDE_PROBE_WIDTH = 64, 128
"""Channels of probes on the fast path: multiples of every candidate block."""
MIN_COMPUTE_SHARE = 0.1
"""Least share of a chain's time that is attributed to its multiply-adds."""
MIN_COST = 1e-4
"""Cost in ns or µs of what is too fast to be measured: costs are above 0."""
SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True)
class FastWidths:
    """Widths that run at full speed, as in ``Hardware``."""

    block: int
    multiple: int
    grouped: int


@dataclass(frozen=True)
class Probes:
    """The chains that a table is fitted to.

    Attributes:
        side: the image side.
        has_integers: layers in integers are timed.
    """

    side: int
    has_integers: bool = True

    @property
    def node(self) -> Probe:
        """Chain dominated by the start of nodes."""
        return Probe(layer="elementwise", width=8, layers=200, side=1)

    @property
    def start(self) -> Probe:
        """Chain dominated by the start of a run."""
        return Probe(layer="elementwise", width=8, layers=1, side=1)

    @property
    def element(self) -> Probe:
        """Chain dominated by writing outputs, which fit into the caches as those of a network's layers do."""
        return Probe(layer="elementwise", width=PROBE_WIDTH, layers=8, side=2 * self.side)

    @property
    def pointwise(self) -> Probe:
        """1×1 convolutions."""
        return Probe(layer="pointwise", width=WIDE_PROBE_WIDTH, layers=6, side=self.side)

    @property
    def gemm(self) -> Probe:
        """Matrix products."""
        return Probe(layer="gemm", width=6 * PROBE_WIDTH, layers=6, side=self.side // 2)

    def conv(self, width: int = PROBE_WIDTH) -> Probe:
        """3×3 convolutions."""
        return Probe(layer="conv", width=width, layers=6, side=self.side)

    def depthwise(self, width: int = PROBE_WIDTH) -> Probe:
        """Depthwise 3×3 convolutions."""
        return Probe(layer="depthwise", width=width, layers=32, side=self.side)

    @property
    def integers(self) -> dict[str, Probe]:
        """Layers in integers, by the entries of their rates."""
        grouped = Probe(layer="grouped", width=PROBE_WIDTH, layers=6, side=self.side)
        floats = {
            "int8_conv": self.conv(),
            "int8_pointwise": self.pointwise,
            "int8_depthwise": self.depthwise(),
            "int8_grouped": grouped,
            "int8_gemm": self.gemm,
        }
        return {key: replace(probe, integers=True) for key, probe in floats.items()}

    @property
    def conversion(self) -> Probe:
        """Chain dominated by converting numbers between floats and integers."""
        return replace(self.element, integers=True)

    def all(self, stepped: bool) -> tuple[Probe, ...]:
        """All probes to time; ``stepped``: the fast widths are known already."""
        probes = [self.node, self.start, self.element, self.pointwise, self.gemm]
        for width in (PROBE_WIDTH, PROBE_WIDTH + 1):
            probes += [self.conv(width), self.depthwise(width)]
        if self.has_integers:
            probes += [self.conversion, *self.integers.values()]
        if not stepped:
            probes += [self.conv(width) for width in (*PROBE_WIDTHS, *(PROBE_WIDTH + m for m in MULTIPLE_CANDIDATES))]
        return tuple(dict.fromkeys(probes))


def fit_table(built_in: Hardware, times: ProbeTimes, probes: Probes, known: FastWidths | None) -> Hardware:
    """Fit the table of a machine.

    Args:
        built_in: the built-in table; its name, its block of integers, and without probes of these all about them.
        times: what was timed.
        probes: the probes.
        known: the fast widths; None to find them by timing.
    """
    start = times[probes.start]
    node = max(times[probes.node] - start, 0.0) / (probes.node.layers - probes.start.layers)
    start = max(start - node, 0.0)
    layer_time = max(times[probes.element] - start, 0.0) / probes.element.layers
    element = max(layer_time - node, MIN_COMPUTE_SHARE * layer_time) / probes.element.numbers
    steps = known or fast_widths_from_times(times, probes)

    def rest(probe: Probe, number: float = 0.0) -> float:
        """Time of a probe beyond its start, its nodes and its outputs; ``number``: the cost of converting one."""
        nodes = (probe.layers + probe.conversions) * node
        written = probe.numbers * (probe.layers * element + probe.conversions * number)
        return max(times[probe] - start - nodes - written, MIN_COMPUTE_SHARE * times[probe])

    def rate(probe: Probe, number: float = 0.0) -> float:
        """Rate of a probe in 10⁹ multiply-adds per second."""
        return probe.multiply_adds / rest(probe, number) / 1e6

    def slower(inside: Probe, outside: Probe) -> float:
        """Slow-down of a multiply-add outside the fast kernels."""
        return 1.0 if steps.multiple == 1 else max(1.0, rate(inside) / rate(outside))

    floats: dict[str, Any] = {
        **vars(steps),
        "slow": slower(probes.conv(), probes.conv(PROBE_WIDTH + 1)),
        "slow_depthwise": slower(probes.depthwise(), probes.depthwise(PROBE_WIDTH + 1)),
        "conv": rate(probes.conv()),
        "pointwise": rate(probes.pointwise),
        "depthwise": rate(probes.depthwise()),
        "gemm": rate(probes.gemm),
        "element": max(element * 1e6, MIN_COST),
        "node": max(node * 1e3, MIN_COST),
    }
    integers = integer_entries(floats, built_in)
    if probes.has_integers:
        number = rest(probes.conversion) / (probes.conversion.conversions * probes.conversion.numbers)
        integers |= {key: rate(probe, number) for key, probe in probes.integers.items()}
        integers["int8_convert"] = max(number * 1e6, MIN_COST)
    entries: dict[str, Any] = {**floats, **integers}
    rounded = {key: _round(value) for key, value in entries.items() if not HARDWARE_ENTRIES[key].is_integer}
    return Hardware(built_in.name, **(entries | rounded))


def _round(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def fast_widths_from_times(times: ProbeTimes, probes: Probes) -> FastWidths:
    """Find the fast widths by timing 3×3 convolutions; grouped convolutions are assumed to be alike."""
    block = best_block(PROBE_WIDTHS, [times[probes.conv(width)] for width in PROBE_WIDTHS])
    multiple = best_multiple({m: times[probes.conv(PROBE_WIDTH + m)] for m in MULTIPLE_CANDIDATES})
    return FastWidths(block, multiple, multiple)


def best_block(widths: Sequence[int], times: Sequence[float], steps: Sequence[int] = BLOCK_CANDIDATES) -> int:
    """Block size s for which time = a + b ⌈width/s⌉² fits best; the smallest of those that fit about as well.

    Least squares; ``times`` are those of chains that read and write ``widths`` channels.
    """
    measured = np.asarray(times, float)
    errors = {step: _fit_error(np.ceil(np.asarray(widths) / step) ** 2, measured) for step in steps}
    limit = (1 + BLOCK_ERROR_TOLERANCE) * min(errors.values()) + 1e-9 * float(measured.mean())
    return next(step for step in sorted(steps) if errors[step] <= limit)


def _fit_error(work: Floats, times: Floats) -> float:
    """Root mean squared error of the best line through the times [widths]."""
    terms = np.stack([np.ones_like(work), work], axis=1)
    coefficients = np.linalg.lstsq(terms, times, rcond=None)[0]
    return float(np.sqrt(np.mean((terms @ coefficients - times) ** 2)))


def best_multiple(times: Mapping[int, float]) -> int:
    """Smallest number of channels beyond a whole block from which more channels take no less time.

    ``times``: by number of channels beyond the block; all these widths lie in the same next block.
    """
    counts = sorted(times)
    return next(
        count
        for k, count in enumerate(counts)
        if times[count] <= (1 + EQUAL_TIME_TOLERANCE) * min(times[later] for later in counts[k:])
    )


def prediction_error(predicted: float, measured: float) -> float:
    """Relative error of a predicted ratio; positive if it is too large."""
    return predicted / measured - 1
