"""Choose how to quantise a model on held-out samples: the way to take ranges, and the layers that stay float.

Candidates are compared as simulations in floats, so that no kernel of the processor at hand has a say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.data.samples import Dataset
from leanonnx.graph.formats import Source
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.layers import NOT_FINITE, Layer, carriers_between, number_tensors
from leanonnx.quantization.preparation import Prepared
from leanonnx.quantization.qdq import RoundWeights, nearest_weights, quantised_model
from leanonnx.quantization.ranges import RANGE_METHODS, Histogram, Range, observe_histograms
from leanonnx.quantization.savings import observed_shapes, priced_layers
from leanonnx.quantization.simulation import simulated
from leanonnx.recovery.draft import calibration_batch, paired_distances
from leanonnx.system.clock import StageProgress

MAX_RANGE_SAMPLES = 256
"""Largest number of samples that ranges are taken from."""
MAX_COMPARED_SAMPLES = 64
"""Largest number of samples on which candidates are compared with each other."""
COMPARED_AT_ONCE = 4
"""Candidates that run side by side."""
MAX_ADDED_ERROR = 0.05
"""Error that 8 bits may add, as a share of the output: together with the float network's own, as independent errors
add up, it bounds the distance to the original."""
MAX_FLOAT_SHARE = 0.5
"""Largest share of the layers that stay float for the sake of the deviation."""
NO_LAYER = "it has no layer that can be computed in integers"
SENSITIVE = "alone in integers it adds an error of {:.2g} of the output"


@dataclass(frozen=True, kw_only=True)
class Int8Choice:
    """A model in integers, or the reason why there is none.

    Attributes:
        proto: the model; None if there is none.
        method: the way in which ranges were taken.
        layers: all layers; those with a reason stay float.
        before, after: distances to the original on held-out samples, of the float model and of this one.
        reason: why there is no model; empty if there is one.
    """

    proto: onnx.ModelProto | None
    method: str = ""
    layers: tuple[Layer, ...] = ()
    before: float = 0.0
    after: float = 0.0
    reason: str = ""

    @property
    def limit(self) -> float:
        """The distance that layers stay float to get below."""
        return math.hypot(self.before, MAX_ADDED_ERROR)


def choose_int8(
    dag: ChannelDag,
    prepared: Prepared,
    fitted: Dataset,
    held: Dataset | None,
    kind: Int8Format,
    progress: StageProgress,
    round_weights: RoundWeights = nearest_weights,
) -> Int8Choice:
    """Choose the ranges, and the layers that stay float, of a prepared model.

    Args:
        dag: the original.
        prepared: the float model.
        fitted: samples that ranges are taken from.
        held: other samples, to compare candidates on; None for the same.
        kind: the integer formats.
        progress: is told how much is done.
        round_weights: rounds the weights of a layer.

    Raises:
        RunFailed: a candidate cannot be made or run.
        DataError: the samples cannot be read.
    """
    search = _Search(dag, prepared.proto, fitted, (held or fitted).subsample(MAX_COMPARED_SAMPLES), kind, round_weights)
    return search.best(progress)


@dataclass(frozen=True)
class _Search:
    """What candidates are made from, and compared on."""

    dag: ChannelDag
    proto: onnx.ModelProto
    fitted: Dataset
    compared: Dataset
    kind: Int8Format
    round_weights: RoundWeights

    def best(self, progress: StageProgress) -> Int8Choice:
        """The best candidate."""
        layers = self.layers
        able = [layer for layer in layers if not layer.reason]
        if not able:
            return Int8Choice(proto=None, layers=layers, reason=NO_LAYER)
        ways = {name: self.candidate(able, name) for name in RANGE_METHODS}
        progress(0.2, "ranges")
        before, *distances = self.distances([self.proto, *(simulated(proto) for proto in ways.values())])
        after, method = min(zip(distances, ways, strict=True), key=lambda pair: pair[0])
        choice = Int8Choice(proto=ways[method], method=method, layers=layers, before=before, after=after)
        if after <= choice.limit or len(able) == 1:
            return choice
        return self.with_float_layers(choice, able, progress)

    def with_float_layers(self, choice: Int8Choice, able: Sequence[Layer], progress: StageProgress) -> Int8Choice:
        """The candidate in which the fewest of the most sensitive layers stay float, if that meets the limit.

        The number doubles until the limit is met, then is halved towards the least that meets it; where half of the
        layers do not suffice, the nearest candidate is taken.
        """
        added = []
        for start in range(0, len(able), COMPARED_AT_ONCE):
            part = able[start : start + COMPARED_AT_ONCE]
            protos = [simulated(self.candidate([layer], choice.method)) for layer in part]
            added += [max(distance - choice.before, 0.0) for distance in self.distances(protos)]
            progress(0.2 + 0.6 * (start + len(part)) / len(able), part[-1].name)
        order = np.argsort([-error for error in added], kind="stable").tolist()
        seen: dict[int, Int8Choice] = {0: choice}

        def look(count: int) -> bool:
            reasons = {able[k].name: SENSITIVE.format(added[k]) for k in order[:count]}
            left = [layer for layer in able if layer.name not in reasons]
            proto = self.candidate(left, choice.method)
            (after,) = self.distances([simulated(proto)])
            layers = tuple(
                replace(layer, reason=layer.reason or reasons.get(layer.name, "")) for layer in choice.layers
            )
            seen[count] = replace(choice, proto=proto, layers=layers, after=after)
            return after <= choice.limit

        most, low, high = max(1, int(MAX_FLOAT_SHARE * len(able))), 0, 1
        while not look(high) and high < most:
            low, high = high, min(2 * high, most)
        while seen[high].after <= choice.limit and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if look(middle) else (middle, high)
        return min(seen.values(), key=lambda each: each.after) if seen[high].after > choice.limit else seen[high]

    def candidate(self, layers: Collection[Layer], method: str) -> onnx.ModelProto:
        """The model with these layers in integers."""
        carriers = carriers_between(self.proto, {layer.name for layer in layers}, self.unbounded_nodes)
        return quantised_model(self.proto, layers, carriers, self.ranges[method], self.kind, self.round_weights)

    def distances(self, models: Sequence[Source]) -> list[float]:
        """Distances of models to the original."""
        found: list[float] = []
        for start in range(0, len(models), COMPARED_AT_ONCE):
            parts = paired_distances(self.dag, models[start : start + COMPARED_AT_ONCE], self.compared)
            found += [float(row.mean()) for row in parts]
        return found

    @cached_property
    def histograms(self) -> dict[str, Histogram]:
        """Histograms of the tensors that nodes in integers may read or write."""
        layers = {layer.name for layer in self.priced_by_table if not layer.reason}
        nodes = layers.union(carriers_between(self.proto, layers))
        constants = {tensor.name for tensor in self.proto.graph.initializer}
        names = {
            name
            for node in self.proto.graph.node
            if node.name in nodes
            for name in (*node.input, *node.output)
            if name and name not in constants
        }
        batch, data = calibration_batch(self.dag, self.fitted), self.fitted.subsample(MAX_RANGE_SAMPLES)
        libraries = self.dag.model.libraries
        return observe_histograms(self.proto, sorted(names), lambda: data.feeds(batch), libraries)

    @cached_property
    def ranges(self) -> Mapping[str, Mapping[str, Range]]:
        """Ranges of tensors, by the way in which they are taken."""
        return {
            method: {name: choose(histogram) for name, histogram in self.histograms.items()}
            for method, choose in RANGE_METHODS.items()
        }

    @cached_property
    def unbounded_nodes(self) -> frozenset[str]:
        """Nodes that read or write numbers without a range."""
        known = self.histograms.keys() | {tensor.name for tensor in self.proto.graph.initializer}
        return frozenset(node.name for node in self.proto.graph.node if not known.issuperset(number_tensors(node)))

    @cached_property
    def priced_by_table(self) -> tuple[Layer, ...]:
        """All layers, with the reason why some stay float whatever the ranges are."""
        first = next(iter(self.fitted.subsample(self.fitted.fixed_batch or 1).feeds()))
        return priced_layers(self.proto, self.kind, observed_shapes(self.proto, first, self.dag.model.libraries))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, with the reason why some stay float."""
        return tuple(
            replace(layer, reason=NOT_FINITE) if not layer.reason and layer.name in self.unbounded_nodes else layer
            for layer in self.priced_by_table
        )
