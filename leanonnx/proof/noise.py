"""Random operators of a network, fixed for the proof: both sides get the same random numbers.

onnxruntime seeds a random operator by the position of its node in the graph, so that removing any node changes the
noise.  Here the reference draws the numbers once, and they are fed to all sides, cut to the kept channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from leanonnx.graph.formats import graphs, load_proto
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import RANDOM_OPS, node_title, standard_name, subgraphs
from leanonnx.graph.noops import Types
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.proof.sides import Sides, open_side
from leanonnx.runtime.sessions import Feed, RunFailed

TRAINING_SLOT = 2
"""Input slot of a Dropout for its training mode."""
DROPOUT_RATIO = 0.5
NOISE_SEED = 0
FORWARDING_OPERATORS = names_with(Trait.PASSES_FIRST)


@dataclass(frozen=True)
class FixedDraws:
    """Sides whose random numbers are inputs; ``add_draws`` adds these to the inputs of the model.

    ``reason`` names the operators whose random numbers cannot be fixed; empty if there are none.
    """

    sides: Sides
    reason: str = ""
    add_draws: Callable[[Feed], Feed] = field(default=lambda feed: feed)


@contextmanager
def fix_random_operators(model: Model, sides: Sides) -> Iterator[FixedDraws]:
    """Fix the random operators of a model on all sides; without random operators the sides stay unchanged."""
    nodes = {node.output[0]: node for node in model.proto.graph.node if _is_random(model, node)}
    reason = _unfixable_operators(model, nodes)
    if not nodes:
        yield FixedDraws(sides, reason)
        return
    original, reference, candidate = (load_proto(side) for side in (sides.original, sides.reference, sides.candidate))
    types = Types(reference).inferred
    kinds = {name: types[node.input[0] if _is_dropout(node) else name].elem_type for name, node in nodes.items()}
    stands = {name: _random_source(model, name, nodes) for node in candidate.graph.node for name in node.output[:1]}
    strange = [n for n in candidate.graph.node if _is_always_random(n) and stands[n.output[0]] is None]
    reason = reason or ", ".join(node_title(node) for node in strange)
    taps = [node.input[0] if _is_dropout(node) else name for name, node in nodes.items()]
    rng = np.random.default_rng(NOISE_SEED)
    fixed = replace(
        sides,
        original=_feed_draws(original, kinds, {name: name for name in nodes}),
        reference=_feed_draws(reference, kinds, {name: name for name in nodes}),
        candidate=_feed_draws(candidate, kinds, {name: known for name, known in stands.items() if known is not None}),
        candidate_feed=lambda feed: _cut_draws(sides, feed, nodes),
    )
    with open_side(reference, False, taps, False, sides.libraries) as once:

        def add_draws(feed: Feed) -> Feed:
            try:
                values = dict(zip(nodes, once(feed), strict=True))
            except RunFailed:
                return feed
            return feed | {
                _input(name): _mask(value, rng) if _is_dropout(nodes[name]) else value for name, value in values.items()
            }

        yield FixedDraws(fixed, reason, add_draws)


def _is_always_random(node: onnx.NodeProto) -> bool:
    return standard_name(node) in RANDOM_OPS


def _is_dropout(node: onnx.NodeProto) -> bool:
    return standard_name(node) == "Dropout"


def _is_random(model: Model, node: onnx.NodeProto) -> bool:
    """True if a node draws random numbers: a random operator, or a Dropout in training mode."""
    if not _is_dropout(node) or len(node.input) <= TRAINING_SLOT or node.input[TRAINING_SLOT] not in model.origins:
        return _is_always_random(node)
    return bool(np.all(model.constant(node.input[TRAINING_SLOT])))


def _unfixable_operators(model: Model, nodes: Mapping[str, onnx.NodeProto]) -> str:
    """Names of random operators that cannot be fixed: within subgraphs, or Dropouts whose mask is read."""
    inner = [
        f"{node_title(child)} within {node_title(node)}"
        for node in model.proto.graph.node
        for graph in subgraphs(node)
        for part in graphs(graph)
        for child in part.node
        if _is_always_random(child)
    ]
    masked = [node_title(node) for node in nodes.values() if len(node.output) > 1 and node.output[1] in model.consumers]
    return ", ".join([*inner, *masked])


def _random_source(model: Model, name: str, nodes: Mapping[str, onnx.NodeProto]) -> str | None:
    """Random output of the original that a tensor equals, None if there is none: the clean-up may have renamed it."""
    while name not in nodes:
        producer = model.producers.get(name)
        if producer is None or model.proto.graph.node[producer].op_type not in FORWARDING_OPERATORS:
            return None
        name = model.proto.graph.node[producer].input[0]
    return name


def _input(name: str) -> str:
    return f"{name}_leanonnx_drawn"


def _feed_draws(proto: onnx.ModelProto, kinds: Mapping[str, int], stands: Mapping[str, str]) -> onnx.ModelProto:
    """Copy of a model whose random numbers are inputs; ``stands`` maps tensors to the random output that they equal."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    inputs = set()
    for node in result.graph.node:
        name = stands.get(node.output[0]) if node.output else None
        if (
            name is None
            or not (_is_dropout(node) or _is_always_random(node))
            or (_is_dropout(node) and node.output[0] != name)
        ):
            continue
        operator = ("Mul", [node.input[0], _input(name)]) if _is_dropout(node) else ("Identity", [_input(name)])
        node.CopyFrom(onnx.helper.make_node(*operator, [node.output[0]], name=node.name))
        inputs.add(name)
    unread = [name for name in kinds if name not in inputs]
    result.graph.input.extend(
        onnx.helper.make_tensor_value_info(_input(n), kinds[n], None) for n in [*sorted(inputs), *unread]
    )
    return result


def _mask(value: Array, rng: np.random.Generator) -> Array:
    """Factors by which a Dropout multiplies its input."""
    return np.asarray((rng.random(value.shape) >= DROPOUT_RATIO) / (1 - DROPOUT_RATIO)).astype(value.dtype)


def _cut_draws(sides: Sides, feed: Feed, nodes: Mapping[str, onnx.NodeProto]) -> Feed:
    """Inputs of the candidate, with the random numbers of the kept channels; the reference ran on ``feed``.

    Raises:
        RunFailed: the kept channels cannot be determined.
    """
    cut = dict(feed)
    for name, node in nodes.items():
        kept = sides.channels.kept_part(node.input[0] if _is_dropout(node) else name, feed[_input(name)])
        if kept is None:
            raise RunFailed(f"the random numbers of {node_title(node)} cannot be cut to the kept channels")
        cut[_input(name)] = kept
    return cut
