"""Integers of weights: nearest ones, or ones that make up for each other's errors on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.products import matrix_product
from leanonnx.numeric.rounding import round_compensated, round_nearest
from leanonnx.quantization.kernels import KernelLayer, patch_runs
from leanonnx.runtime.sessions import Feed

MOMENT_ROWS_PER_FEATURE = 8
"""Positions of a layer, over all inputs, for each of its features."""
MIN_MOMENT_ROWS = 8192
"""Least number of these positions, as far as there are so many."""
MAX_ROUNDED_FEATURES = 2_500
"""Number of features of a layer up to which its weights are rounded together."""
MAX_MOMENT_NUMBERS = 1 << 26
"""Numbers in the moments that one pass over the inputs measures."""

RoundWeights = Callable[[KernelLayer, Floats, int], Array]
"""Rounds the weight of a layer with scales [G, O] to integers of so many bits, in the layout of the weight."""


def nearest_weights(layer: KernelLayer, scales: Floats, bits: int) -> Array:
    """Each weight as the nearest integer."""
    return layer.in_weight_layout(round_nearest(layer.kernels, scales, bits))


@dataclass(frozen=True)
class CompensatedWeights:
    """Rounds the weights of a layer by the second moments [G, K, K] of its input patches; nearest without any."""

    integers: dict[tuple[str, bytes], Array]
    moments: Mapping[str, Floats]

    def __call__(self, layer: KernelLayer, scales: Floats, bits: int) -> Array:
        """The integers, which are kept for the next call with these scales."""
        moment = self.moments.get(layer.layer.name)
        if moment is None:
            return nearest_weights(layer, scales, bits)
        key = layer.layer.name, scales.tobytes()
        if key not in self.integers:
            self.integers[key] = layer.in_weight_layout(round_compensated(layer.kernels, moment, scales, bits))
        return self.integers[key]


def compensated_weights(
    proto: onnx.ModelProto,
    layers: Collection[KernelLayer],
    feeds: Callable[[], Iterable[Feed]],
    runs: int,
    libraries: Sequence[Path] = (),
) -> CompensatedWeights:
    """Measure the moments of all layers with at most ``MAX_ROUNDED_FEATURES``.

    Args:
        proto: the float model.
        layers: its layers in integers.
        feeds: yields the inputs, from the start at each call.
        runs: their number.
        libraries: hold its custom operators.

    Raises:
        RunFailed: the model cannot be run.
    """
    moments: dict[str, Floats] = {}
    for part in _parts([each for each in layers if each.features <= MAX_ROUNDED_FEATURES]):
        wanted = {each.layer.name: max(MIN_MOMENT_ROWS, MOMENT_ROWS_PER_FEATURE * each.features) for each in part}
        rows = {name: -(-count // max(runs, 1)) for name, count in wanted.items()}
        counts = dict.fromkeys(rows, 0)
        for patches in patch_runs(proto, part, feeds(), rows, libraries):
            for name, x in patches.items():
                products = np.stack([matrix_product(group, group.T) for group in x.astype(np.float64)])
                moments[name] = moments[name] + products if name in moments else products
                counts[name] += x.shape[2]
        for name, count in counts.items():
            if name in moments:
                moments[name] /= max(count, 1)
    return CompensatedWeights({}, moments)


def _parts(layers: Sequence[KernelLayer]) -> Iterator[list[KernelLayer]]:
    """Divide layers into those whose moments are measured in one pass."""
    part: list[KernelLayer] = []
    numbers = 0
    for each in layers:
        size = len(each.kernels) * each.features**2
        if part and numbers + size > MAX_MOMENT_NUMBERS:
            yield part
            part, numbers = [], 0
        part.append(each)
        numbers += size
    if part:
        yield part
