"""How a target's table follows from the times of probes.

Each rate is taken from a chain of equal layers: what is left of its time without the start of the run, the start of
each node and what the nodes write, as the latency model counts them, divides its multiply-adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leanonnx.commands.calibrate.probes import Probe
from leanonnx.hardware.targets import Hardware
from leanonnx.numeric.arrays import Floats

Times = Mapping[Probe, float]
"""Milliseconds of one run."""
STEPS = (4, 8, 16, 32, 64)
"""Blocks of channels that are looked for, and the widths by which they are found."""
WIDTHS = range(32, 161, 4)
TOLERANCE = 0.05
"""A smaller block is preferred when its error is larger than the best by this share at most."""
MULTIPLES = (1, 2, 4, 8)
LEVEL = 0.1
"""Times that differ by less than this share are the same to ``best_multiple``."""
WIDE, WIDER = 64, 128
"""Channels of probes on the fast path: whole blocks, whatever the block is."""
LEAST = 0.1
"""Share of a chain's time that is its multiply-adds at least."""
LEAST_COST = 1e-4
"""ns or µs of what is too quick to be seen: costs are above 0."""
DIGITS = 3


@dataclass(frozen=True)
class Steps:
    """Widths that run at full speed, as in ``Target``."""

    block: int
    multiple: int
    grouped: int


@dataclass(frozen=True)
class Probes:
    """The chains that a table is made from; ``side``: of the image."""

    side: int

    @property
    def node(self) -> Probe:
        """Almost nothing but the start of nodes."""
        return Probe("elementwise", 8, 200, 1)

    @property
    def start(self) -> Probe:
        """Almost nothing but the start of a run."""
        return Probe("elementwise", 8, 1, 1)

    @property
    def element(self) -> Probe:
        """Many numbers written by each node, few enough to stay in the caches, as between the layers of a network."""
        return Probe("elementwise", WIDE, 8, 2 * self.side)

    @property
    def pointwise(self) -> Probe:
        """1×1 convolutions."""
        return Probe("pointwise", WIDER, 6, self.side)

    @property
    def gemm(self) -> Probe:
        """Matrix products."""
        return Probe("gemm", 6 * WIDE, 6, self.side // 2)

    def conv(self, width: int = WIDE) -> Probe:
        """3×3 convolutions."""
        return Probe("conv", width, 6, self.side)

    def depthwise(self, width: int = WIDE) -> Probe:
        """Depthwise 3×3 convolutions."""
        return Probe("depthwise", width, 32, self.side)

    def all(self, stepped: bool) -> tuple[Probe, ...]:
        """What has to be timed; ``stepped``: the widths that run at full speed are known already."""
        found = [self.node, self.start, self.element, self.pointwise, self.gemm]
        for width in (WIDE, WIDE + 1):
            found += [self.conv(width), self.depthwise(width)]
        if not stepped:
            found += [self.conv(width) for width in (*WIDTHS, *(WIDE + m for m in MULTIPLES))]
        return tuple(dict.fromkeys(found))


def table(name: str, times: Times, probes: Probes, known: Steps | None) -> Hardware:
    """The table of a machine; ``known``: the widths that run at full speed, None to find them by their times."""
    start = times[probes.start]
    node = max(times[probes.node] - start, 0.0) / (probes.node.layers - probes.start.layers)
    start = max(start - node, 0.0)
    each = max(times[probes.element] - start, 0.0) / probes.element.layers
    element = max(each - node, LEAST * each) / probes.element.numbers
    steps = known or timed_steps(times, probes)

    def rate(probe: Probe) -> float:
        """10⁹ multiply-adds per second; probes on the fast path have whole blocks."""
        rest = times[probe] - start - probe.layers * (node + probe.numbers * element)
        return probe.multiply_adds / max(rest, LEAST * times[probe]) / 1e6

    def slower(inside: Probe, outside: Probe) -> float:
        """How many times longer a multiply-add takes outside the fast kernels."""
        return 1.0 if steps.multiple == 1 else max(1.0, rate(inside) / rate(outside))

    return Hardware(
        name,
        **vars(steps),
        slow=_short(slower(probes.conv(), probes.conv(WIDE + 1))),
        slow_depthwise=_short(slower(probes.depthwise(), probes.depthwise(WIDE + 1))),
        conv=_short(rate(probes.conv())),
        pointwise=_short(rate(probes.pointwise)),
        depthwise=_short(rate(probes.depthwise())),
        gemm=_short(rate(probes.gemm)),
        element=_short(max(element * 1e6, LEAST_COST)),
        node=_short(max(node * 1e3, LEAST_COST)),
    )


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def timed_steps(times: Times, probes: Probes) -> Steps:
    """The widths that run at full speed by the times of 3×3 convolutions; grouped ones are taken to want the same."""
    block = best_block(WIDTHS, [times[probes.conv(width)] for width in WIDTHS])
    multiple = best_multiple({m: times[probes.conv(WIDE + m)] for m in MULTIPLES})
    return Steps(block, multiple, multiple)


def best_block(widths: Sequence[int], times: Sequence[float], steps: Sequence[int] = STEPS) -> int:
    """The step s for which time = a + b ⌈width/s⌉² fits best; the smallest of those that fit about as well.

    Least squares; ``times`` are of chains that read and write ``width`` channels.
    """
    measured = np.asarray(times, float)
    errors = {step: _error(np.ceil(np.asarray(widths) / step) ** 2, measured) for step in steps}
    limit = (1 + TOLERANCE) * min(errors.values()) + 1e-9 * float(measured.mean())
    return next(step for step in sorted(steps) if errors[step] <= limit)


def _error(work: Floats, times: Floats) -> float:
    """Root of the mean squared error of the best line through the times [widths]."""
    terms = np.stack([np.ones_like(work), work], axis=1)
    found = np.linalg.lstsq(terms, times, rcond=None)[0]
    return float(np.sqrt(np.mean((terms @ found - times) ** 2)))


def best_multiple(times: Mapping[int, float]) -> int:
    """The fewest channels beyond a whole block from which on more of them take no less time.

    ``times`` by number of channels beyond; all these widths lie in one started block.
    """
    counts = sorted(times)
    return next(
        count
        for k, count in enumerate(counts)
        if times[count] <= (1 + LEVEL) * min(times[later] for later in counts[k:])
    )


def relative_error(predicted: float, measured: float) -> float:
    """By how much, as a share, a predicted ratio is off; above 0 if it is too large."""
    return predicted / measured - 1
