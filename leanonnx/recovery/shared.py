"""Layers that read one stored weight: one regression with the rows of all their uses, and the targets of each.

The uses are visited in topological order.  After each, the weight that all of them share is fitted to the rows of the
uses so far, and of the others as the pass before left them; later uses run with it.  Each pass replaces the rows of
every use by those of the network as it is then (a Gauss-Seidel iteration): at its fixed point, the weight is the least
squares solution over all uses, on the rows that it gives itself.

The rows of the n-th use in a chain of them, whose input the uses before have computed, count 1/n: the more often a
weight was applied, the more of the error is none that this use can mend.

Biases keep what they differ by from use to use: all get the same shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured_names
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.regression import Fit, MomentSums, SampleRows
from leanonnx.recovery.changes import LayerChange, apply_changes, set_constant
from leanonnx.recovery.layers import LinearLayer
from leanonnx.recovery.partial_runner import TensorSpill
from leanonnx.recovery.route import count_reads

SumsKind = type[MomentSums] | type[SampleRows]
ROLES = 3
"""Rows to fit, rows of mirrored inputs, held-out rows."""
MAX_SUM_ARRAYS = 8
"""Largest number of arrays that the sums of one role consist of."""


@dataclass(frozen=True)
class SharedChange:
    """New values for a weight that several layers read, and for the bias [O] of each if they change."""

    layers: Sequence[LinearLayer]
    weight: Array
    biases: Sequence[Array] | None

    def carry_out(self, proto: onnx.ModelProto, model: Model) -> None:
        """Write the values into a protobuf, from which ``model`` was made; it has gone through ``with_own_biases``."""
        first = self.layers[0]
        set_constant(proto, first.weight, first.route.to_stored(self.weight))
        for layer, bias in zip(self.layers, self.biases or (), strict=False):
            set_constant(proto, layer.bias, bias.reshape(model.constant(layer.bias).shape))


def with_own_biases(model: Model, groups: Sequence[Sequence[LinearLayer]]) -> onnx.ModelProto:
    """Give each layer of some groups a bias that no layer outside its group reads, unless its bias may not change."""
    changes = []
    for layers in groups:
        for layer in layers if can_shift(layers) else ():
            readers = sum(other.bias == layer.bias for other in layers)
            if not (layer.bias and count_reads(model, layer.bias) == readers):
                changes.append(LayerChange(layer, layer.weight_in(model), bias_of_layer(model, layer).reshape(-1)))
    return apply_changes(model, changes) if changes else model.proto


def can_shift(layers: Sequence[LinearLayer]) -> bool:
    """True if the biases of all layers can be changed."""
    return all(layer.can_change_bias for layer in layers)


def bias_of_layer(model: Model, layer: LinearLayer) -> Floats:
    """Bias [G, O] of a layer; zeros without one."""
    groups, out = layer.to_kernels(layer.weight_in(model)).shape[:2]
    return (np.asarray(model.constant(layer.bias), np.float64) if layer.bias else np.zeros(groups * out)).reshape(
        groups, out
    )


def _places_in_chain(model: Model, layers: Sequence[LinearLayer]) -> list[int]:
    """For each use of a weight, the largest number of uses on a path that ends with it."""
    places, uses = dict[str, int](), {layer.after for layer in layers}
    for index, node in enumerate(model.proto.graph.node):
        place = max((places.get(name, 0) for name in [*node.input, *captured_names(node)]), default=0)
        places.update(dict.fromkeys(node.output, place + (index in uses)))
    outputs = (model.proto.graph.node[layer.after].output[0] for layer in layers)
    return [places[name] for name in outputs]


class SharedFit:
    """The regression of one shared weight, over several passes.

    ``weights`` [uses]: how much a row of each use counts.  ``biases`` [uses, G, O] and ``offsets`` [uses, G, O]: biases
    before the first pass, and what is subtracted from the targets; ``start`` and ``now``: kernels [G, O, K] and shift
    of the biases [G, O] before the first pass, and now.
    """

    def __init__(self, model: Model, layers: Sequence[LinearLayer], kind: SumsKind, spill: TensorSpill) -> None:
        self.name, self.layers, self.kind, self.spill = layers[0].weight, layers, kind, spill
        self.weights = [1 / place for place in _places_in_chain(model, layers)]
        self.biases = [bias_of_layer(model, layer) for layer in layers]
        pairs = zip(self.biases, layers, strict=True)
        self.offsets = [np.zeros_like(bias) if layer.has_separate_bias else bias for bias, layer in pairs]
        kernels = layers[0].to_kernels(layers[0].weight_in(model))
        flat = np.asarray(kernels.reshape(*kernels.shape[:2], -1))
        self.now = self.start = Fit(flat, np.zeros(flat.shape[:2]), np.zeros(len(flat)))
        self.origins: tuple[Floats, Floats] | None = None
        self.seen: set[int] = set()
        self.refused = False

    def use_of(self, layer: LinearLayer) -> int:
        """Index of the use that a layer is."""
        return [one.after for one in self.layers].index(layer.after)

    def empty(self) -> list[MomentSums | SampleRows]:
        """Sums without rows, by role."""
        assert self.origins is not None  # set with the first rows
        return [self.kind(*self.origins) for _ in range(ROLES)]

    def store(self, use: int, sums: Sequence[MomentSums | SampleRows]) -> None:
        """Store the rows of a use in place of those of the pass before."""
        self.spill.drop(self._place(use))
        self.seen.add(use)
        for role, one in enumerate(sums):
            for index, array in enumerate(one.to_arrays()):
                self.spill.put(self._place(use), role * MAX_SUM_ARRAYS + index, np.asarray(array))

    def sums(self, uses: Sequence[int]) -> list[MomentSums | SampleRows]:
        """Sums over the rows of some uses, by role."""
        total = self.empty()
        for use in uses:
            stored = self.spill.tensors.get(self._place(use), {})
            for role, one in enumerate(total):
                own = sorted(index for index in stored if index // MAX_SUM_ARRAYS == role)
                arrays = [self.spill.take(self._place(use), index) for index in own]
                one.add_arrays(arrays, self.weights[use] / max(self.weights[other] for other in uses))
        return total

    def errors(self, use: int) -> tuple[float, float, float]:
        """Errors of a use on held-out rows, before the first pass and now; and the mean square of its targets."""
        if use not in self.seen:
            return 0.0, 0.0, 0.0
        held = self.sums([use])[-1]
        if not held.rows:
            return 0.0, 0.0, 0.0
        nothing = np.zeros_like(self.start.weights), -self.offsets[use]
        fits = (self.start.weights, self.start.bias), (self.now.weights, self.now.bias), nothing
        before, after, scale = (float(held.errors(*fit).sum()) for fit in fits)
        return before, after, scale

    @property
    def has_changed(self) -> bool:
        """True if the fit differs from the weight before the first pass."""
        return self.now is not self.start and not self.refused

    def change(self) -> SharedChange:
        """The change of the network to the fit."""
        first = self.layers[0]
        shape = first.to_kernels(np.zeros(first.shape)).shape
        biases = [(bias + self.now.bias).reshape(-1) for bias in self.biases]
        return SharedChange(
            self.layers,
            first.to_stored(self.now.weights.reshape(shape)),
            biases if can_shift(self.layers) else None,
        )

    def _place(self, use: int) -> str:
        return f"{self.name}:{use}"


class SharedFits:
    """The regressions of all shared weights of a network; ``close`` deletes their rows."""

    def __init__(self) -> None:
        self.spill = TensorSpill()
        self.fits: dict[str, SharedFit] = {}

    def begin(self, model: Model, layers: Sequence[LinearLayer], kind: SumsKind) -> SharedFit:
        """The regression of the layers' weight; a new one in the first pass."""
        name = layers[0].weight
        if name not in self.fits:
            self.fits[name] = SharedFit(model, layers, kind, self.spill)
        return self.fits[name]

    def close(self) -> None:
        """Delete all rows."""
        self.spill.close()
