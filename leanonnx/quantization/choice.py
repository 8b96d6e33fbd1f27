"""Choose how to quantise a model on held-out samples: ranges, rounding, biases, and the layers that stay float.

Candidates are compared as simulations in floats, so that no kernel of the processor at hand has a say, and by the error
that integers add to the float model: what that one lacks of the original is the same for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.data.samples import Dataset
from leanonnx.graph.formats import Source
from leanonnx.numeric.arrays import Floats
from leanonnx.quantization.biases import with_corrected_biases
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.kernels import kernel_layers
from leanonnx.quantization.layers import NOT_FINITE, OVERRIDABLE_WEIGHT, Layer, carriers_between, number_tensors
from leanonnx.quantization.preparation import Prepared
from leanonnx.quantization.qdq import quantised_model
from leanonnx.quantization.ranges import RANGE_METHODS, Observed, Ranges, nearest_ranges, observe_activations, ranges_by
from leanonnx.quantization.savings import by_loss_per_ms, observed_shapes, priced_layers, saved_ms
from leanonnx.quantization.simulation import simulation_of
from leanonnx.quantization.weights import RoundWeights, compensated_weights, nearest_weights
from leanonnx.recovery.draft import calibration_batch, paired_distances
from leanonnx.recovery.equalise import equalise
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.sessions import Feed
from leanonnx.spelling import option
from leanonnx.system.clock import StageProgress

FITTED_WORK = 5e10
"""Multiply-adds of one pass over the samples that ranges and moments are taken from."""
MIN_FITTED_SAMPLES, MAX_FITTED_SAMPLES = 256, 1024
"""Least and largest number of these samples, as far as there are so many."""
MAX_COMPARED_SAMPLES = 256
"""Largest number of samples on which candidates are compared with each other."""
MAX_SENSITIVITY_SAMPLES = 16
"""Largest number of samples on which single layers are compared with each other."""
COMPARED_AT_ONCE = 4
"""Candidates that run side by side."""
CLEAR_ERRORS = 2.0
"""Standard errors by which a more elaborate way has to be nearer: what is clipped shows in few samples only."""
MAX_ADDED_ERROR = 0.05
"""Error that 8 bits may add, as a share of the output: layers stay float to get below."""
MAX_FLOAT_SHARE = 0.5
"""Largest share of the layers that stay float for the sake of the deviation."""
MIXED = "mixed"
"""The way of taking ranges that is chosen for each tensor."""
EQUALISED = "equalised channels"
COMPENSATED = "compensated rounding"
CORRECTED = "corrected biases"
NO_LAYER = "it has no layer that can be computed in integers"
NONE_FASTER = "by the table of the hardware none of its layers is faster in integers"
SENSITIVE = "alone in integers it adds an error of {:.2g} of the output"


@dataclass(frozen=True, kw_only=True)
class Int8Choice:
    """A model in integers, or the reason why there is none.

    Attributes:
        proto: the model; None if there is none.
        method: the way in which ranges were taken.
        corrections: what else lowered the error: ``EQUALISED``, ``COMPENSATED``, ``CORRECTED``.
        layers: all layers; those with a reason stay float.
        error: distance to the float model on held-out samples.
        nearest: the same without corrections, by the best of the ways that take all ranges alike.
        reason: why there is no model; empty if there is one.
    """

    proto: onnx.ModelProto | None
    method: str = ""
    corrections: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    error: float = 0.0
    nearest: float = 0.0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How candidates are made of a float model, whatever layers are in integers.

    ``errors``: of the candidate with all that can be in integers, on parts of the held-out samples.
    """

    proto: onnx.ModelProto
    ranges: Ranges
    method: str
    corrections: tuple[str, ...] = ()
    round_weights: RoundWeights = field(default=nearest_weights)
    errors: Floats = field(default_factory=lambda: np.array([np.inf]))

    @property
    def error(self) -> float:
        """The mean error."""
        return float(self.errors.mean())

    def is_clearly_nearer(self, other: _Recipe) -> bool:
        """True if the error is smaller than that of another by ``CLEAR_ERRORS`` standard errors over the parts."""
        gains = other.errors - self.errors
        if not np.isfinite(gains).all():
            return self.error < other.error
        spread = float(gains.std(ddof=1)) / np.sqrt(gains.size) if gains.size > 1 else 0.0
        return float(gains.mean()) > CLEAR_ERRORS * spread

    def and_also(self, correction: str) -> _Recipe:
        """The same with a correction noted."""
        return replace(self, corrections=(*self.corrections, correction))


def choose_int8(
    dag: ChannelDag,
    prepared: Prepared,
    fitted: Dataset,
    held: Dataset | None,
    kind: Int8Format,
    progress: StageProgress,
) -> Int8Choice:
    """Choose how a prepared model is quantised, and the layers that stay float.

    Args:
        dag: the original.
        prepared: the float model.
        fitted: samples that ranges and moments are taken from.
        held: other samples, to compare candidates on; None for the same.
        kind: the integer formats.
        progress: is told how much is done.

    Raises:
        RunFailed: a candidate cannot be made or run.
        DataError: the samples cannot be read.
    """
    macs = max(cost_model(dag)(dag.all_alive).macs, 1)
    count = int(min(max(FITTED_WORK / macs, MIN_FITTED_SAMPLES), MAX_FITTED_SAMPLES))
    return _Search(dag, prepared.proto, fitted.subsample(count), held or fitted, kind).best(progress)


def _why_none(layers: Sequence[Layer]) -> str:
    """The reason why no layer is in integers: the commonest of the layers' own, and what to do about it."""
    if any(layer.is_slower for layer in layers):
        return NONE_FASTER
    if not layers:
        return NO_LAYER
    ((reason, _),) = Counter(layer.reason for layer in layers).most_common(1)
    remedy = f"; if nobody does, add {option('freeze', True)}" if reason == OVERRIDABLE_WEIGHT else ""
    return f"{NO_LAYER}: {reason}{remedy}"


def _nearest(recipes: Sequence[_Recipe]) -> _Recipe:
    """The recipe with the smallest error; of two that do not differ clearly, the one that comes first."""
    best = recipes[0]
    for recipe in recipes[1:]:
        best = recipe if recipe.is_clearly_nearer(best) else best
    return best


@dataclass(frozen=True)
class _Search:
    """What candidates are made from, and compared on."""

    dag: ChannelDag
    proto: onnx.ModelProto
    fitted: Dataset
    held: Dataset
    kind: Int8Format

    def best(self, progress: StageProgress) -> Int8Choice:
        """The best candidate."""
        layers = self.layers
        able = self.able
        if not able:
            return Int8Choice(proto=None, layers=layers, reason=_why_none(layers))
        plain = self.measure([self.recipe_by(way, self.proto, self.observations) for way in RANGE_METHODS])
        recipe = nearest = _nearest(plain)
        progress(0.15, "ranges")
        steps: tuple[Callable[[_Recipe], list[_Recipe]], ...] = (
            self.mix_ranges,
            self.equalise_channels,
            self.compensate,
            self.correct_biases,
        )
        for index, step in enumerate(steps):
            recipe = _nearest([recipe, *self.measure(step(recipe))])
            progress(0.15 + 0.15 * (index + 1), step.__name__)
        choice = Int8Choice(
            proto=self.candidate(recipe, able),
            method=recipe.method,
            corrections=recipe.corrections,
            layers=layers,
            error=recipe.error,
            nearest=nearest.error,
        )
        if recipe.error <= MAX_ADDED_ERROR or len(able) == 1:
            return choice
        return self.with_float_layers(choice, recipe, progress)

    def recipe_by(self, way: str, proto: onnx.ModelProto, observed: Observed) -> _Recipe:
        """The recipe with all ranges taken in one way."""
        method = next(each for each in RANGE_METHODS if each == way)
        return _Recipe(proto=proto, ranges=ranges_by(method, observed, self.kind), method=way)

    def mix_ranges(self, recipe: _Recipe) -> list[_Recipe]:
        """A way chosen for each tensor; without corrections, of which there are none yet."""
        return [self.recipe_with_mixed_ranges(recipe.proto, self.observations)]

    def recipe_with_mixed_ranges(self, proto: onnx.ModelProto, observed: Observed) -> _Recipe:
        """The recipe with a way chosen for each tensor."""
        ways = [ranges_by(method, observed, self.kind) for method in RANGE_METHODS]
        layers = kernel_layers(proto, self.able)
        feeds, runs = self.comparison_data.feeds(self.batch), -(-self.comparison_data.count // self.batch)
        ranges = nearest_ranges(proto, layers, ways, self.kind, feeds, runs, self.dag.model.libraries)
        return _Recipe(proto=proto, ranges=ranges, method=MIXED)

    def equalise_channels(self, recipe: _Recipe) -> list[_Recipe]:
        """Channels equalised between layers, with new ranges."""
        proto = equalise(self.proto, self.observations.peaks)
        if proto == self.proto:
            return []
        observed = self.observe_activations(proto)
        way = recipe.method
        made = self.recipe_with_mixed_ranges(proto, observed) if way == MIXED else self.recipe_by(way, proto, observed)
        return [made.and_also(EQUALISED)]

    def compensate(self, recipe: _Recipe) -> list[_Recipe]:
        """Weights rounded such that they make up for each other's errors."""
        layers, libraries = kernel_layers(recipe.proto, self.able), self.dag.model.libraries
        runs = -(-self.fitted.count // self.batch)
        rounding = compensated_weights(recipe.proto, layers, self.fitted_feeds, runs, libraries)
        return [replace(recipe, round_weights=rounding).and_also(COMPENSATED)]

    def correct_biases(self, recipe: _Recipe) -> list[_Recipe]:
        """Biases that take back mean errors."""
        quantised, layers = self.candidate(recipe, self.able), kernel_layers(recipe.proto, self.able)
        libraries = self.dag.model.libraries
        proto = with_corrected_biases(recipe.proto, quantised, layers, self.fitted_feeds(), libraries)
        return [replace(recipe, proto=proto).and_also(CORRECTED)]

    def with_float_layers(self, choice: Int8Choice, recipe: _Recipe, progress: StageProgress) -> Int8Choice:
        """The candidate in which few layers stay float, those with the most loss per ms first, if it meets the limit.

        The number doubles until the limit is met, then is halved towards the least that meets it; where half of the
        layers do not suffice, the nearest candidate is taken.
        """
        able, added, few = self.able, list[float](), self.held.subsample(MAX_SENSITIVITY_SAMPLES)
        for start in range(0, len(able), COMPARED_AT_ONCE):
            part = able[start : start + COMPARED_AT_ONCE]
            rows = self.errors([simulation_of(self.candidate(recipe, [layer])) for layer in part], few)
            added += [float(row.mean()) for row in rows]
            progress(0.75 + 0.15 * (start + len(part)) / len(able), part[-1].name)
        lost = dict(zip((layer.name for layer in able), added, strict=True))
        order = by_loss_per_ms(lost, self.savings)
        seen: dict[int, Int8Choice] = {0: choice}

        def look(count: int) -> bool:
            reasons = {name: SENSITIVE.format(lost[name]) for name in order[:count]}
            proto = self.candidate(recipe, [layer for layer in able if layer.name not in reasons])
            error = float(self.errors([simulation_of(proto)])[0].mean())
            layers = tuple(
                replace(layer, reason=layer.reason or reasons.get(layer.name, "")) for layer in choice.layers
            )
            seen[count] = replace(choice, proto=proto, layers=layers, error=error)
            return error <= MAX_ADDED_ERROR

        most, low, high = max(1, int(MAX_FLOAT_SHARE * len(able))), 0, 1
        while not look(high) and high < most:
            low, high = high, min(2 * high, most)
        while seen[high].error <= MAX_ADDED_ERROR and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if look(middle) else (middle, high)
        return min(seen.values(), key=lambda each: each.error) if seen[high].error > MAX_ADDED_ERROR else seen[high]

    def candidate(self, recipe: _Recipe, layers: Sequence[Layer]) -> onnx.ModelProto:
        """The model with these layers in integers."""
        carriers = carriers_between(recipe.proto, {layer.name for layer in layers}, self.unbounded_nodes)
        return quantised_model(recipe.proto, layers, carriers, recipe.ranges, self.kind, recipe.round_weights)

    def measure(self, recipes: Sequence[_Recipe]) -> list[_Recipe]:
        """Recipes with the errors of the candidates that have all layers in integers."""
        errors = self.errors([simulation_of(self.candidate(recipe, self.able)) for recipe in recipes])
        return [replace(recipe, errors=row) for recipe, row in zip(recipes, errors, strict=True)]

    def errors(self, models: Sequence[Source], samples: Dataset | None = None) -> list[Floats]:
        """Distances of models to the float model, each on parts of held-out samples."""
        data, distances = samples or self.comparison_data, list[Floats]()
        for start in range(0, len(models), COMPARED_AT_ONCE):
            distances += [*paired_distances(self.dag, models[start : start + COMPARED_AT_ONCE], data, self.proto)]
        return distances

    def observe_activations(self, proto: onnx.ModelProto) -> Observed:
        """Observations of the tensors that nodes in integers may read or write."""
        layers = {layer.name for layer in self.priced_by_table if not layer.reason}
        nodes = layers.union(carriers_between(proto, layers))
        constants = {tensor.name for tensor in proto.graph.initializer}
        names = {
            name
            for node in proto.graph.node
            if node.name in nodes
            for name in (*node.input, *node.output)
            if name and name not in constants
        }
        return observe_activations(proto, names, self.fitted_feeds(), self.dag.model.libraries)

    @cached_property
    def observations(self) -> Observed:
        """Observations of the float model."""
        return self.observe_activations(self.proto)

    @cached_property
    def comparison_data(self) -> Dataset:
        """Samples on which candidates are compared."""
        return self.held.subsample(MAX_COMPARED_SAMPLES)

    @cached_property
    def batch(self) -> int:
        """Number of samples of a run."""
        return calibration_batch(self.dag, self.fitted)

    def fitted_feeds(self) -> Iterable[Feed]:
        """Inputs that ranges and moments are taken from."""
        return self.fitted.feeds(self.batch)

    @cached_property
    def unbounded_nodes(self) -> frozenset[str]:
        """Nodes that read or write numbers without a range."""
        known = self.observations.histograms.keys() | {tensor.name for tensor in self.proto.graph.initializer}
        return frozenset(node.name for node in self.proto.graph.node if not known.issuperset(number_tensors(node)))

    @cached_property
    def priced_by_table(self) -> tuple[Layer, ...]:
        """All layers, with the reason why some stay float whatever the ranges are."""
        return priced_layers(self.proto, self.kind, self.shapes)

    @cached_property
    def shapes(self) -> Shapes:
        """Shapes of the tensors of layers, and of what may pass integers on, with one sample."""
        first = next(iter(self.fitted.subsample(self.fitted.fixed_batch or 1).feeds()))
        return observed_shapes(self.proto, first, self.dag.model.libraries)

    @property
    def savings(self) -> dict[str, float]:
        """ms that layers save in integers by the table; none without one."""
        table = self.kind.table
        saved = {} if table is None else saved_ms(self.proto, self.shapes, table)
        return {layer.name: saved[layer.name] for layer in self.able if layer.name in saved}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, with the reason why some stay float."""
        return tuple(
            replace(layer, reason=NOT_FINITE) if not layer.reason and layer.name in self.unbounded_nodes else layer
            for layer in self.priced_by_table
        )

    @cached_property
    def able(self) -> tuple[Layer, ...]:
        """The layers that can be computed in integers."""
        return tuple(layer for layer in self.layers if not layer.reason)
