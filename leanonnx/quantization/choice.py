"""Choose how to quantise a model on held-out samples: ranges, rounding, biases, and the layers that stay float.

Candidates are compared as simulations in floats, so that no kernel of the processor at hand has a say, and by the error
that integers add to the float model: what that one lacks of the original is the same for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.data.samples import Dataset
from leanonnx.graph.formats import Source
from leanonnx.numeric.arrays import Floats
from leanonnx.quantization.biases import with_corrected_biases
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.kernels import kernel_layers
from leanonnx.quantization.layers import (
    NOT_FINITE,
    OVERRIDABLE_WEIGHT,
    Layer,
    carriers_between,
    number_tensors,
    weighted_layers,
)
from leanonnx.quantization.preparation import Prepared
from leanonnx.quantization.qdq import quantised_model
from leanonnx.quantization.ranges import RANGE_METHODS, Observed, nearest_ranges, observe_activations, ranges_by
from leanonnx.quantization.recipes import Int8Recipe, nearest_recipe
from leanonnx.quantization.savings import by_loss_per_ms, observed_shapes, priced_layers, saved_ms
from leanonnx.quantization.simulation import simulation_of
from leanonnx.quantization.weights import compensated_weights
from leanonnx.recovery.draft import calibration_batch, larger_distance, paired_distances
from leanonnx.recovery.equalise import equalise
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.sessions import Feed
from leanonnx.runtime.timing import TimingComparison
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
NOT_FASTER = "it is not faster"

TimeIntegers = Callable[[onnx.ModelProto], TimingComparison]
"""Times a model in integers against the float one."""


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
        comparison: the timing that shows that no model is faster; None if it was not that.
    """

    proto: onnx.ModelProto | None
    method: str = ""
    corrections: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    error: float = 0.0
    nearest: float = 0.0
    reason: str = ""
    comparison: TimingComparison | None = None


def choose_int8(
    dag: ChannelDag,
    prepared: Prepared,
    fitted: Dataset,
    held: Dataset | None,
    kind: Int8Format,
    progress: StageProgress,
    time: TimeIntegers | None = None,
) -> Int8Choice:
    """Choose how a prepared model is quantised, and the layers that stay float.

    With ``time``, the layers that the hardware table chooses and all that can be in integers are timed, ranges taken
    in the plainest way: the faster of the two go on; if both are slower than the float model, it ends there.

    Args:
        dag: the original.
        prepared: the float model.
        fitted: samples that ranges and moments are taken from.
        held: other samples, to compare candidates on; None for the same.
        kind: the integer formats.
        progress: is told how much is done.
        time: times a model against the float one; None if nothing is timed.

    Raises:
        RunFailed: a candidate cannot be made, run or timed.
        DataError: the samples cannot be read.
    """
    macs = max(cost_model(dag)(dag.all_alive).macs, 1)
    count = int(min(max(FITTED_WORK / macs, MIN_FITTED_SAMPLES), MAX_FITTED_SAMPLES))
    return _Search(dag, prepared.proto, fitted.subsample(count), held or fitted, kind, time).best(progress)


def _why_none(layers: Sequence[Layer]) -> str:
    """The reason why no layer is in integers: the commonest of the layers' own, and what to do about it."""
    if any(layer.is_slower for layer in layers):
        return NONE_FASTER
    if not layers:
        return NO_LAYER
    ((reason, _),) = Counter(layer.reason for layer in layers).most_common(1)
    remedy = f"; if nobody does, add {option('freeze', True)}" if reason == OVERRIDABLE_WEIGHT else ""
    return f"{NO_LAYER}: {reason}{remedy}"


@dataclass(frozen=True)
class _Search:
    """The model and samples that candidates are made from, and compared on."""

    dag: ChannelDag
    proto: onnx.ModelProto
    fitted: Dataset
    held: Dataset
    kind: Int8Format
    time: TimeIntegers | None = None

    def best(self, progress: StageProgress) -> Int8Choice:
        """The best candidate."""
        layers, able = self.layers, self.able
        if self.slower is not None:
            return Int8Choice(proto=None, layers=layers, reason=NOT_FASTER, comparison=self.slower)
        if not able:
            return Int8Choice(proto=None, layers=layers, reason=_why_none(layers))
        plain = self.measure([self.recipe_by(way, self.proto, self.observations) for way in RANGE_METHODS])
        recipe = nearest = nearest_recipe(plain)
        progress(0.15, "ranges")
        steps: tuple[Callable[[Int8Recipe], list[Int8Recipe]], ...] = (
            self.mix_ranges,
            self.equalise_channels,
            self.compensate,
            self.correct_biases,
        )
        for index, step in enumerate(steps):
            recipe = nearest_recipe([recipe, *self.measure(step(recipe))])
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

    def recipe_by(self, way: str, proto: onnx.ModelProto, observed: Observed) -> Int8Recipe:
        """The recipe with all ranges taken in one way."""
        method = next(each for each in RANGE_METHODS if each == way)
        return Int8Recipe(proto=proto, ranges=ranges_by(method, observed, self.kind), method=way)

    def mix_ranges(self, recipe: Int8Recipe) -> list[Int8Recipe]:
        """A way chosen for each tensor; without corrections, of which there are none yet."""
        return [self.recipe_with_mixed_ranges(recipe.proto, self.observations)]

    def recipe_with_mixed_ranges(self, proto: onnx.ModelProto, observed: Observed) -> Int8Recipe:
        """The recipe with a way chosen for each tensor."""
        ways = [ranges_by(method, observed, self.kind) for method in RANGE_METHODS]
        layers = kernel_layers(proto, self.able)
        feeds, runs = self.comparison_data.feeds(self.batch), -(-self.comparison_data.count // self.batch)
        ranges = nearest_ranges(proto, layers, ways, self.kind, feeds, runs, self.dag.model.libraries)
        return Int8Recipe(proto=proto, ranges=ranges, method=MIXED)

    def equalise_channels(self, recipe: Int8Recipe) -> list[Int8Recipe]:
        """Channels equalised between layers, with new ranges."""
        proto = equalise(self.proto, self.observations.peaks)
        if proto == self.proto:
            return []
        observed = self.observe_activations(proto)
        way = recipe.method
        made = self.recipe_with_mixed_ranges(proto, observed) if way == MIXED else self.recipe_by(way, proto, observed)
        return [made.and_also(EQUALISED)]

    def compensate(self, recipe: Int8Recipe) -> list[Int8Recipe]:
        """Weights rounded such that they make up for each other's errors."""
        layers, libraries = kernel_layers(recipe.proto, self.able), self.dag.model.libraries
        runs = -(-self.fitted.count // self.batch)
        rounding = compensated_weights(recipe.proto, layers, self.fitted_feeds, runs, libraries)
        return [replace(recipe, round_weights=rounding).and_also(COMPENSATED)]

    def correct_biases(self, recipe: Int8Recipe) -> list[Int8Recipe]:
        """Biases that take back mean errors."""
        quantised, layers = self.candidate(recipe, self.able), kernel_layers(recipe.proto, self.able)
        libraries = self.dag.model.libraries
        proto = with_corrected_biases(recipe.proto, quantised, layers, self.fitted_feeds(), libraries)
        return [replace(recipe, proto=proto).and_also(CORRECTED)]

    def with_float_layers(self, choice: Int8Choice, recipe: Int8Recipe, progress: StageProgress) -> Int8Choice:
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

    def candidate(self, recipe: Int8Recipe, layers: Sequence[Layer]) -> onnx.ModelProto:
        """The model with these layers in integers."""
        carriers = carriers_between(recipe.proto, {layer.name for layer in layers}, self.unbounded_nodes)
        return quantised_model(recipe.proto, layers, carriers, recipe.ranges, self.kind, recipe.round_weights)

    def measure(self, recipes: Sequence[Int8Recipe]) -> list[Int8Recipe]:
        """Recipes with the errors of the candidates that have all layers in integers."""
        errors = self.errors([simulation_of(self.candidate(recipe, self.able)) for recipe in recipes])
        return [replace(recipe, errors=row) for recipe, row in zip(recipes, errors, strict=True)]

    def errors(self, models: Sequence[Source], samples: Dataset | None = None) -> list[Floats]:
        """Distances of models to the float model, each on parts of held-out samples."""
        data, distances = samples or self.comparison_data, list[Floats]()
        for start in range(0, len(models), COMPARED_AT_ONCE):
            part = models[start : start + COMPARED_AT_ONCE]
            distances += [*paired_distances(self.dag, part, data, self.proto, larger_distance)]
        return distances

    def observe_activations(self, proto: onnx.ModelProto) -> Observed:
        """Observations of the tensors that nodes in integers may read or write."""
        layers = {layer.name for layer in weighted_layers(self.proto) if not layer.reason}
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
        return self.with_bounds(priced_layers(self.proto, self.kind, self.shapes))

    @cached_property
    def faster_choice(self) -> tuple[tuple[Layer, ...], TimingComparison] | None:
        """The faster of the layers that the table chooses and of all that can be in integers; None untimed."""
        choices = [self.priced_by_table]
        if any(layer.is_slower for layer in self.priced_by_table):
            choices.append(self.with_bounds(weighted_layers(self.proto)))
        choices = [layers for layers in choices if any(not layer.reason for layer in layers)]
        if self.time is None or not choices:
            return None
        plain = self.recipe_by(RANGE_METHODS[0], self.proto, self.observations)
        times = [self.time(self.candidate(plain, [each for each in layers if not each.reason])) for layers in choices]
        return max(zip(choices, times, strict=True), key=lambda pair: pair[1].speedup)

    @property
    def slower(self) -> TimingComparison | None:
        """The timing that shows that no choice of layers is faster; None if it may be."""
        return self.faster_choice[1] if self.faster_choice is not None and self.faster_choice[1].is_slower else None

    def with_bounds(self, layers: Sequence[Layer]) -> tuple[Layer, ...]:
        """Layers, those whose numbers have no range with that as their reason."""
        return tuple(
            replace(layer, reason=NOT_FINITE) if not layer.reason and layer.name in self.unbounded_nodes else layer
            for layer in layers
        )

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

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, with the reason why some stay float."""
        return self.priced_by_table if self.faster_choice is None else self.faster_choice[0]

    @cached_property
    def able(self) -> tuple[Layer, ...]:
        """The layers that can be computed in integers."""
        return tuple(layer for layer in self.layers if not layer.reason)
