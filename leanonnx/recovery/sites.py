"""Layers to be fitted, with the tensors around them, and those that nothing upstream has changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import name_of
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.fold import fold_positions
from leanonnx.recovery.layers import LinearLayer
from leanonnx.recovery.pair import NetworkPair
from leanonnx.recovery.rescale import BatchNorm, NormSite
from leanonnx.recovery.rows import LayerSite, OtherOperand
from leanonnx.recovery.sampling import fit_rows
from leanonnx.recovery.upstream import Upstream, last_layers, other_operand


def sites_of(
    dag: ChannelDag, alive: Mask, pair: NetworkPair, layers: Sequence[LinearLayer | BatchNorm], rows_per_feature: int
) -> tuple[list[LayerSite | NormSite], dict[int, str]]:
    """Return the layers to be fitted, in order, and the names of others, whose inputs equal the original's, by node.

    Args:
        dag: the original.
        alive: keep mask of its channels [channels].
        pair: both networks.
        layers: layers and BatchNormalizations in the order of their nodes.
        rows_per_feature: rows of a regression for each of its features.
    """
    changing: set[str] = set()
    while True:
        sites, exact = _sites(dag, alive, pair, layers, rows_per_feature, changing)
        mixed = {
            site.layer.weight
            for site in sites
            if isinstance(site, LayerSite) and site.layer.shared and site.layer.weight not in changing
        }
        if not mixed:
            return sites, exact
        changing |= mixed


def _sites(
    dag: ChannelDag,
    alive: Mask,
    pair: NetworkPair,
    layers: Sequence[LinearLayer | BatchNorm],
    rows_per_feature: int,
    changing: Collection[str],
) -> tuple[list[LayerSite | NormSite], dict[int, str]]:
    """The same, where all layers that read a shared weight in ``changing`` are fitted."""
    upstream = Upstream(dag, alive, pair.after.graph, {one.after for one in layers})
    latest = last_layers(dag.model.proto.graph.node, {one.before for one in layers})
    now = replace(dag.model, proto=pair.after)
    sites: list[LayerSite | NormSite] = []
    exact: dict[int, str] = {}
    for one in layers:
        source, node = dag.model.proto.graph.node[one.before], pair.after.graph.node[one.after]
        slot = one.data_slot if isinstance(one, LinearLayer) else 0
        other = _other(dag, now, pair, upstream, latest, one) if isinstance(one, LinearLayer) else None
        changes = isinstance(one, LinearLayer) and one.shared and one.weight in changing
        changes = changes or dag.is_unlike(source.output[0])
        if other is None and not changes and upstream.reads_exactly(node.input[slot], source.input[slot]):
            exact[one.after] = name_of(node)
            continue
        upstream.changed.add(one.after)
        x, y, x_hat = source.input[slot], source.output[0], node.input[slot]
        if isinstance(one, BatchNorm):
            sites.append(NormSite(norm=one, y=y, x_hat=x_hat))
            continue
        bare = LayerSite(dag=dag, alive=alive, layer=one, x=x, y=y, x_hat=x_hat, other=other, rows=0)
        sites.append(_with_rows(bare, pair, len(layers), rows_per_feature))
    return sites, exact


def _with_rows(site: LayerSite, pair: NetworkPair, layers: int, rows_per_feature: int) -> LayerSite:
    """The site with the numbers of rows that it takes."""
    groups = site.layer.groups
    out = int(site.kept_outputs.sum()) // groups
    site = replace(site, rows=fit_rows(groups, site.width, out, layers, rows_per_feature))
    shape = site.dag.shapes[site.y]
    positions = site.positions(shape) // max(shape[0], 1)
    runs = sum(not run.held_out for run in pair.runs)
    return replace(site, fold_rows=fold_positions(site, pair.samples, positions, runs))


def _other(
    dag: ChannelDag, now: Model, pair: NetworkPair, upstream: Upstream, latest: dict[str, int], layer: LinearLayer
) -> OtherOperand | None:
    """Other operand of the addition that reads a layer's output; None if it is exact, or depends on later layers."""
    other = other_operand(dag, now, pair.after.graph.node[layer.after].output[0])
    if other is None:
        return None
    there, wanted = other.compressed, other.original
    if there not in pair.compressed.input_dependent or wanted not in pair.original.input_dependent:
        return None
    if not dag.is_taught(wanted):
        return None
    if upstream.latest.get(there, -1) >= layer.after or latest.get(wanted, -1) >= layer.before:
        return None
    return None if upstream.reads_exactly(there, wanted) else other


def run_bytes(dag: ChannelDag, pair: NetworkPair, name: str) -> int:
    """Bytes of a tensor of the original in one run, in float32."""
    shape = dag.shapes[name]
    return 4 * math.prod(shape) // max(shape[0] if shape else 1, 1) * -(-pair.samples // max(pair.fitted_runs, 1))
