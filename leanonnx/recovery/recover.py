"""Recovery on inputs without labels: refit layer by layer, with the original's activations as targets.

The layers are visited in topological order.  x̂ is the input of a layer in the compressed network with all earlier
layers refitted, x its input in the original, y its output in the original.

a. Channel regression (``fold``): all input channels are predicted from the kept ones, folded into the weights.
b. Least squares: the weights whose output is nearest to y on sampled positions, with a ridge towards (a); if the output
   is added to one that is already final, the target also compensates the error of that one.

Mirrored images are used as well with few samples, if they help.  Each layer gets the candidate with the least error on
held-out samples.  A layer whose input equals the original's is left as it is.

The cost is a small multiple of running both networks: a regression of K features takes ``rows_per_feature`` · K rows,
and more only while they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import onnx

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.effort import DEFAULT_EFFORT, EFFORTS, NO_DEADLINE, Deadline, Effort
from leanonnx.graph.formats import HALF_TYPES, convert_to_float32, float_types
from leanonnx.graph.nodes import name_of
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.changes import ConstantChange, LayerChange, apply_changes
from leanonnx.recovery.fitting import fit_layer, fit_shared, sums_kind
from leanonnx.recovery.layers import LinearLayer, linear_layers, uses_by_weight
from leanonnx.recovery.pair import NetworkPair
from leanonnx.recovery.partial_runner import TensorSpill
from leanonnx.recovery.requantise import round_fit
from leanonnx.recovery.rescale import BatchNorm, fit_norm, norms
from leanonnx.recovery.rows import LayerSite
from leanonnx.recovery.shared import SharedFit, SharedFits, with_own_biases
from leanonnx.recovery.sites import run_bytes, sites_of
from leanonnx.recovery.targets import TargetSampler
from leanonnx.runtime.sessions import Feed
from leanonnx.system.clock import StageProgress

MIRRORED_BELOW = 64
"""Number of samples to fit to below which mirrored ones are used as well."""
MIRRORED_MACS = 2e10
"""Multiply-adds of the original on all samples up to which mirrored ones are used whatever their number."""
MIN_SQUARES = 1e-30
OUT_OF_TIME = "no time was left"
UNTAUGHT = "the teacher has no counterpart of its input or output"
UNSEEN = "its output does not follow from its weights and input"


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
    on_progress: StageProgress = lambda *_: None,
    *,
    effort: Effort = EFFORTS[DEFAULT_EFFORT],
    deadline: Deadline = NO_DEADLINE,
    shared: SharedFits | None = None,
) -> RecoveryResult:
    """Refit the weights of a compressed network so that its activations match the original on the given inputs.

    Args:
        dag: the original; its teacher, if it has one, takes its place for the targets.
        alive: keep mask of its channels [channels].
        proto: the compressed network, whose layers have the output names of the original.
        feeds: inputs.
        held: held-out inputs; without them, some positions of ``feeds`` are held out.
        seed: seed of the sampled positions.
        on_progress: called with the progress (0 to 1) and the name of the layer.
        effort: bounds the positions that a regression uses for each of its features.
        deadline: no layer is begun after it.
        shared: regressions of shared weights that the pass before left, of which ``proto`` is the result.

    Raises:
        DataError: a network cannot be run on these inputs.
    """
    if shared is None:
        with closing(SharedFits()) as fits:
            return recover(
                dag, alive, proto, feeds, held, seed, on_progress, effort=effort, deadline=deadline, shared=fits
            )
    compressed = replace(dag.model, proto=proto)
    linear, refused = linear_layers(dag, alive, compressed)
    groups = uses_by_weight(linear)
    owned = replace(compressed, proto=with_own_biases(compressed, [*groups.values()]))
    linear = linear_layers(dag, alive, owned)[0] if groups else linear
    current = onnx.ModelProto()
    current.CopyFrom(convert_to_float32(owned.proto, float_types(proto) & HALF_TYPES))
    fitted = {proto.graph.node[layer.after].output[0] for layer in linear if layer.can_change_bias}
    chosen: list[LinearLayer | BatchNorm] = [*linear, *norms(dag, alive, compressed, fitted)]
    chosen.sort(key=lambda one: one.after)
    chosen = _split_taught(dag, chosen, refused)
    macs = cost_model(dag)(dag.all_alive).macs
    shelf = TensorSpill()
    try:
        pair = NetworkPair(
            dag.taught_by,
            current,
            feeds,
            held,
            shelf,
            lambda samples: samples < MIRRORED_BELOW or samples * macs < MIRRORED_MACS,
            dag.teacher,
        )
        done = _LayerRecovery(dag, alive, pair, chosen, shared, seed, effort.rows_per_feature)
        rows = {node: RefitLayer(name, 0.0, 0.0) for node, name in done.exact.items()}
        for count, site in enumerate(done.sites):
            name = name_of(current.graph.node[site.key])
            if deadline.has_passed:
                rows[site.key] = RefitLayer(name, reason=OUT_OF_TIME)
                continue
            on_progress(count / len(done.sites), f"layer {count + 1} of {len(done.sites)}, {name}")
            rows[site.key] = done.refit(count)
    finally:
        shelf.close()
    rows |= done.shared_rows(rows)
    layers = [rows[node] for node in sorted(rows)]
    layers += [RefitLayer(name, reason=reason) for name, reason in refused.items()]
    changed = [fit for fit in shared.fits.values() if fit.has_changed]
    bare = replace(compressed, proto=with_own_biases(compressed, [groups[fit.name] for fit in changed]))
    changes = [*done.changes.values(), *(fit.change() for fit in changed)]
    return RecoveryResult(apply_changes(bare, changes), tuple(layers))


def _split_taught(
    dag: ChannelDag, chosen: list[LinearLayer | BatchNorm], refused: dict[str, str]
) -> list[LinearLayer | BatchNorm]:
    """The layers whose tensors have counterparts in the teacher; ``refused`` gets the rest."""
    nodes = dag.model.proto.graph.node
    taught = []
    for one in chosen:
        node, slot = nodes[one.before], one.data_slot if isinstance(one, LinearLayer) else 0
        if dag.is_taught(node.input[slot]) and dag.is_taught(node.output[0]):
            taught.append(one)
        else:
            refused[name_of(node)] = UNTAUGHT
    return taught


class _LayerRecovery:
    """Refits layers one after the other.

    ``now`` is the compressed network with the layers refitted so far: the values of its constants change in place.
    """

    def __init__(
        self,
        dag: ChannelDag,
        alive: Mask,
        pair: NetworkPair,
        chosen: list[LinearLayer | BatchNorm],
        shared: SharedFits,
        seed: int,
        rows_per_feature: int,
    ) -> None:
        self.dag, self.alive, self.pair, self.shared, self.seed = dag, alive, pair, shared, seed
        self.now = replace(dag.model, proto=pair.after)
        self.changes: dict[int, ConstantChange] = {}
        self.sites, self.exact = sites_of(dag, alive, pair, chosen, rows_per_feature)
        sizes = [run_bytes(dag, pair, site.y) for site in self.sites]
        self.targets = TargetSampler(pair, self.sites, sizes, seed)
        self.uses = uses_by_weight(one for one in chosen if isinstance(one, LinearLayer))

    def refit(self, count: int) -> RefitLayer:
        """Refit one layer."""
        site = self.sites[count]
        after = site.key
        name = name_of(self.pair.after.graph.node[after])
        try:
            if not self.targets.prepare(count):
                if isinstance(site, LayerSite) and site.layer.shared:
                    self._shared_fit(count, site).refused = True
                return RefitLayer(name, reason=UNSEEN)
            if isinstance(site, LayerSite):
                return self._refit_use(count, site, name) if site.layer.shared else self._refit(count, site, name)
            change, errors = fit_norm(site, self.now, self.pair, self.targets, count)
            if change is not None:
                self._carry_out(after, change)
            return RefitLayer(name, float(errors[0]), float(errors[1]))
        finally:
            self.targets.forget(count)

    def _refit(self, count: int, site: LayerSite, name: str) -> RefitLayer:
        layer = site.layer
        weight, bias = self._stored_weights(layer)
        behind = bias if layer.has_separate_bias else np.zeros_like(bias)
        kernels = layer.to_kernels(weight)
        made = fit_layer(site, kernels, bias - behind, self.pair, self.targets, count)
        fit, before = made.fit, made.before
        change: ConstantChange | None = None
        if fit.error < before and layer.integers is not None:
            fit, change = round_fit(layer, self.now, made)
        elif fit.error < before:
            change = LayerChange(
                layer,
                layer.to_stored(fit.weights.reshape(kernels.shape)),
                (fit.bias + behind).reshape(-1) if layer.can_change_bias else None,
            )
        if change is not None and fit.error < before:
            self._carry_out(layer.after, change)
        after = min(fit.error, before)
        errors = [float(np.sqrt(max(error, 0) / max(made.scale, MIN_SQUARES))) for error in (before, after)]
        return RefitLayer(name, errors[0], errors[1])

    def _refit_use(self, count: int, site: LayerSite, name: str) -> RefitLayer:
        """Refit a shared weight after one more of its uses; ``shared_rows`` has the errors."""
        fit = self._shared_fit(count, site)
        if not fit.refused and fit_shared(site, fit, fit.use_of(site.layer), self.pair, self.targets, count):
            fit.change().carry_out(self.pair.after, self.now)
        return RefitLayer(name)

    def _shared_fit(self, count: int, site: LayerSite) -> SharedFit:
        uses = self.uses[site.layer.weight]
        return self.shared.begin(self.now, uses, sums_kind(site, self.targets.count(count) * len(uses)))

    def shared_rows(self, rows: Mapping[int, RefitLayer]) -> dict[int, RefitLayer]:
        """The results of the layers with shared weights, by node, as the last of their uses has left them."""
        result = {}
        for fit in self.shared.fits.values():
            for use, layer in enumerate(fit.layers):
                row = rows.get(layer.after)
                if row is None or row.reason:
                    continue
                before, after, scale = fit.errors(use)
                errors = [float(np.sqrt(error / max(scale, MIN_SQUARES))) for error in (before, after)]
                result[layer.after] = (
                    RefitLayer(row.name, reason=UNSEEN) if fit.refused else RefitLayer(row.name, errors[0], errors[1])
                )
        return result

    def _carry_out(self, after: int, change: ConstantChange) -> None:
        self.changes[after] = change
        change.carry_out(self.pair.after, self.now)

    def _stored_weights(self, layer: LinearLayer) -> tuple[Floats, Floats]:
        """Stored weight and bias [G, O] of the compressed network."""
        weight = np.asarray(layer.weight_in(self.now), np.float64)
        groups, out = layer.to_kernels(weight).shape[:2]
        bias = layer.bias_in(self.now) if layer.bias else np.zeros(groups * out)
        return weight, bias.reshape(groups, out)
