"""Recovery on inputs without labels: refit layer by layer, with the original's activations as targets.

The layers are visited in topological order.  x̂ is the input of a layer in the compressed network with all earlier
layers refitted, x its input in the original, y its output in the original.

a. Channel regression (``fold``): all input channels are predicted from the kept ones, folded into the weights.
b. Least squares: the weights whose output is nearest to y on sampled positions, with a ridge towards (a); if the output
   is added to one that is already final, the target also compensates the error of that one.

Mirrored images are used as well if they help.  Each layer gets the candidate with the least error on held-out samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.formats import HALF_TYPES, convert_to_float32, float_types
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute, name_of, scale_and_shift
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.numeric.regression import LARGE_WIDTH, Fit, MomentSums, RegressionData, SampleRows, best_fit
from leanonnx.recovery.fold import fold_channels
from leanonnx.recovery.layers import LayerChange, LinearLayer, apply_changes, linear_layers
from leanonnx.recovery.pair import NetworkPair
from leanonnx.recovery.partial_runner import TensorSpill
from leanonnx.recovery.rescale import BatchNorm, NormChange, fit_norm, norms
from leanonnx.recovery.rows import LayerSite, OtherOperand
from leanonnx.runtime.sessions import Feed

MAX_FIT_ROWS = 100_000
"""Largest number of positions of a regression; fewer if more than ``WORK`` multiply-adds were needed, but at least
``LEAST_ROWS``, and ``PER_FEATURE`` for each feature.
"""
MAX_FIT_WORK = 2e10
MIN_FIT_ROWS = 20_000
ROWS_PER_FEATURE = 8
MAX_FEATURES = 6000
"""Number of features up to which a regression is solved in feature space, not in row space."""
MAX_ROW_SPACE = 3000
MIN_SQUARES = 1e-30


@dataclass(frozen=True)
class RefitLayer:
    """One layer: relative error of its output on held-out samples before and after, or the reason if it was skipped."""

    name: str
    before: float | None = None
    after: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RecoveryResult:
    """The network with its weights changed, and the result of each layer."""

    proto: onnx.ModelProto
    layers: tuple[RefitLayer, ...]


def recover(
    dag: ChannelDag,
    alive: Mask,
    proto: onnx.ModelProto,
    feeds: Iterable[Feed],
    held: Iterable[Feed] = (),
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda _: None,
) -> RecoveryResult:
    """Refit the weights of a compressed network so that its activations match the original on the given inputs.

    Args:
        dag: the original.
        alive: keep mask of its channels [channels].
        proto: the compressed network, whose layers have the output names of the original.
        feeds: inputs.
        held: held-out inputs; without them, some positions of ``feeds`` are held out.
        seed: seed of the sampled positions.
        on_progress: called with the progress (0 to 1).

    Raises:
        DataError: a network cannot be run on these inputs.
    """
    compressed = replace(dag.model, proto=proto)
    current = onnx.ModelProto()
    current.CopyFrom(convert_to_float32(proto, float_types(proto) & HALF_TYPES))
    linear, refused = linear_layers(dag, alive, compressed)
    fitted = {proto.graph.node[layer.after].output[0] for layer in linear if layer.can_change_bias}
    chosen: list[LinearLayer | BatchNorm] = [*linear, *norms(dag, alive, compressed, fitted)]
    chosen.sort(key=lambda one: one.after)
    shelf = TensorSpill()
    try:
        work = _LayerRecovery(
            dag, alive, NetworkPair(dag.model, current, feeds, held, shelf), seed, {layer.after for layer in chosen}
        )
        done = []
        for count, layer in enumerate(chosen):
            on_progress(count / len(chosen))
            done.append(work.refit(layer) if isinstance(layer, LinearLayer) else work.rescale(layer))
    finally:
        shelf.close()
    done += [RefitLayer(name, reason=reason) for name, reason in refused.items()]
    return RecoveryResult(apply_changes(compressed, work.changes), tuple(done))


class _LayerRecovery:
    """Refits layers one after the other; ``waiting`` holds the nodes of those that are still to come.

    ``now`` is the compressed network with the layers refitted so far: the values of its constants change in place.
    """

    def __init__(self, dag: ChannelDag, alive: Mask, pair: NetworkPair, seed: int, waiting: set[int]) -> None:
        self.dag, self.alive, self.pair, self.seed, self.waiting = dag, alive, pair, seed, waiting
        self.now = replace(dag.model, proto=pair.after)
        self.changes: dict[int, LayerChange | NormChange] = {}

    def refit(self, layer: LinearLayer) -> RefitLayer:
        """Refit one layer."""
        node = self.pair.after.graph.node[layer.after]
        source = self.dag.model.proto.graph.node[layer.before]
        beside = self._other_operand(node.output[0])
        self.waiting.remove(layer.after)
        more = ([], []) if beside is None else ([beside.original], [beside.compressed])
        x, x_hat = (one.input[layer.data_slot] for one in (source, node))
        self.pair.advance([x, source.output[0], *more[0]], [x_hat, *more[1]])
        if beside and (
            beside.original not in self.pair.original.known or beside.compressed not in self.pair.compressed.known
        ):
            beside = None
        site = LayerSite(
            dag=self.dag,
            alive=self.alive,
            layer=layer,
            pair=self.pair,
            x=x,
            y=source.output[0],
            x_hat=x_hat,
            other=beside,
        )
        name = name_of(node)
        if not site.explains_output():
            return RefitLayer(name, reason="its output does not follow from its weights and input")
        weight, bias = self._stored_weights(layer)
        behind = bias if layer.has_separate_bias else np.zeros_like(bias)
        fit, before, scale = fit_layer(site, layer.to_kernels(weight), bias - behind, self.seed)
        if fit.error < before:
            change = LayerChange(
                layer,
                layer.to_stored(fit.weights.reshape(layer.to_kernels(weight).shape)),
                (fit.bias + behind).reshape(-1) if layer.can_change_bias else None,
            )
            self._carry_out(layer.after, change)
        errors = [float(np.sqrt(max(error, 0) / max(scale, MIN_SQUARES))) for error in (before, fit.error)]
        return RefitLayer(name, errors[0], errors[1])

    def rescale(self, norm: BatchNorm) -> RefitLayer:
        """Refit one BatchNormalization."""
        node = self.pair.after.graph.node[norm.after]
        self.waiting.remove(norm.after)
        change, errors = fit_norm(norm, self.dag, self.now, self.pair, self.seed)
        if change is not None:
            self._carry_out(norm.after, change)
        return RefitLayer(name_of(node), float(errors[0]), float(errors[1]))

    def _carry_out(self, after: int, change: LayerChange | NormChange) -> None:
        self.changes[after] = change
        change.carry_out(self.pair.after, self.now)

    def _stored_weights(self, layer: LinearLayer) -> tuple[Floats, Floats]:
        """Stored weight and bias [G, O] of the compressed network."""
        weight = np.asarray(layer.weight_in(self.now), np.float64)
        groups, out = layer.to_kernels(weight).shape[:2]
        bias = np.asarray(self.now.constant(layer.bias), np.float64) if layer.bias else np.zeros(groups * out)
        return weight, bias.reshape(groups, out)

    def _other_operand(self, output: str) -> OtherOperand | None:
        """Other operand of the addition that reads a tensor; None if it depends on layers not yet refitted."""
        addition = _addition(self.now, output)
        if addition is None:
            return None
        node, mine, scale = addition
        producer = self.dag.model.producers.get(node.output[0], -1)
        theirs = self.dag.model.proto.graph.node[producer] if producer >= 0 else node
        if producer < 0 or theirs.op_type != node.op_type or len(node.input) != 2 or len(theirs.input) != 2:
            return None
        slot = 1 - list(node.input).index(mine)
        wanted, there = theirs.input[slot], node.input[slot]
        if (
            there not in self.pair.compressed.input_dependent
            or wanted not in self.pair.original.input_dependent
            or self._waits(there)
        ):
            return None
        return OtherOperand(wanted, there, scale)

    def _waits(self, name: str) -> bool:
        """True if a tensor depends on a layer that has not been refitted yet."""
        needed = {name}
        for index in reversed(self.pair.compressed.todo):
            node = self.pair.after.graph.node[index]
            if not needed.isdisjoint(node.output):
                if index in self.waiting:
                    return True
                needed.update(node.input)
        return False


def _addition(model: Model, output: str) -> tuple[onnx.NodeProto, str, Floats | None] | None:
    """Addition that is the only consumer of a tensor, the name under which it reads it, and the scale of a
    BatchNormalization in between; None without such an addition.
    """
    scale: Floats | None = None
    while True:
        consumers = model.consumers.get(output, [])
        if len(consumers) != 1 or consumers == [-1]:
            return None
        node = model.proto.graph.node[consumers[0]]
        if node.op_type == "Add":
            return node, output, scale
        if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0) or scale is not None:
            return None
        if not {*node.input[1:]} <= model.origins.keys():
            return None
        gamma, beta, mean, variance = (np.asarray(model.constant(name), np.float64) for name in node.input[1:])
        scale, _ = scale_and_shift(gamma, beta, mean, variance, attribute(node, "epsilon", 1e-5))
        output = node.output[0]


def fit_layer(site: LayerSite, kernels: Floats, bias: Floats, seed: int) -> tuple[Fit, float, float]:
    """Return the best fit of a layer, the error before it, and the mean square of the targets, on held-out rows.

    Args:
        site: the layer.
        kernels: its weights [G, O, I, taps].
        bias: its bias [G, O].
        seed: seed of the sampled positions.
    """
    groups, out, width, taps = kernels.shape
    size = width * taps
    runs = len(site.pair.runs)
    affordable = max(MAX_FIT_WORK / size**2, ROWS_PER_FEATURE * size, MIN_FIT_ROWS)
    expected = int(min(affordable, MAX_FIT_ROWS, runs * site.positions()))
    by_rows = groups == 1 and (size > MAX_FEATURES or size > max(expected, LARGE_WIDTH))
    each = max(1, -(-min(expected, MAX_ROW_SPACE if by_rows else expected) // runs))
    if by_rows:
        return _best_on_held_out(
            site, kernels.reshape(groups, out, size), bias, seed, _collect_rows(site, each, seed, SampleRows)
        )
    return _best_on_held_out(
        site, kernels.reshape(groups, out, size), bias, seed, _collect_rows(site, each, seed, MomentSums)
    )


def _best_on_held_out(
    site: LayerSite,
    flat: Floats,
    bias: Floats,
    seed: int,
    collected: tuple[RegressionData, RegressionData, RegressionData],
) -> tuple[Fit, float, float]:
    plain, mirror, held = collected
    if not plain.rows or not held.rows:
        return Fit(flat, bias, 0.0), 0.0, 0.0
    starts = [Fit(flat, bias, held.error(flat, bias))]
    fold = fold_channels(site, seed) if site.layer.can_change_bias else None
    if fold is not None:
        starts.append(Fit(*fold, held.error(*fold)))
    nothing = held.error(np.zeros_like(flat), np.zeros_like(bias))
    return best_fit(plain, mirror, held, starts, site.layer.can_change_bias), starts[0].error, nothing


def _collect_rows(
    site: LayerSite, each: int, seed: int, kind: type[RegressionData]
) -> tuple[RegressionData, RegressionData, RegressionData]:
    """Rows to fit, rows of mirrored inputs, and held-out rows."""
    sums: list[RegressionData] = []
    for run, held, read, targets in site.rows(each, seed):
        if not sums:
            origin = read.mean(0, dtype=np.float64), targets.mean(0, dtype=np.float64)
            sums = [kind(*origin) for _ in range(3)]
        sums[run.mirrored].add(read[~held], targets[~held])
        if not run.mirrored:
            sums[2].add(read[held], targets[held])
    plain, mirror, judged = sums
    return plain, mirror, judged
