"""Networks without some of their branches, and what the proof says of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from leanonnx.analysis.branches import Branch, compatible, find_branches
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.commands.compress.proving import prove_shortened
from leanonnx.graph.model import Model, load
from leanonnx.proof.proof import Proof
from leanonnx.runtime.observation import observe
from leanonnx.surgery.shortening import StandIn, shorten
from tests.graphs import saved

Replaced = Mapping[Branch, StandIn]


def observed(proto: onnx.ModelProto, folder: Path) -> ChannelDag:
    """The channel DAG of a model."""
    model = load(saved(proto, folder))
    return build_channel_dag(model, observe(model, {}))


def branches_of(proto: onnx.ModelProto) -> tuple[Branch, ...]:
    """The branches of a model, those within others too."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(saved(proto, Path(folder)))
        return find_branches(model, observe(model, {}).shapes)


def random_standin(model: Model, branch: Branch, rng: np.random.Generator) -> StandIn:
    """Random arrays for a stand-in, some left out."""
    size = branch.channels
    bias = rng.standard_normal(size) if rng.random() < 0.7 else None
    if branch.kind == "shortcut":
        shape = model.shape_of(model.proto.graph.node[branch.shortcut[0]].input[1])
        weight = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return StandIn() if rng.random() < 0.3 else StandIn(weight, bias)
    matrix, factors = rng.standard_normal((size, size)) / np.sqrt(size), rng.uniform(0.3, 1, size)
    return StandIn([None, factors, matrix, matrix][rng.integers(4)], bias)


def full_standin(model: Model, branch: Branch) -> StandIn:
    """Random arrays for a stand-in, none left out; a gate gets factors alone."""
    rng = np.random.default_rng(branch.join)
    bias = rng.standard_normal(branch.channels)
    if branch.kind == "scale":
        return StandIn(rng.uniform(0.3, 1, branch.channels))
    shape: tuple[int, ...] = (branch.channels, branch.channels)
    if branch.kind == "shortcut":
        shape = model.shape_of(model.proto.graph.node[branch.shortcut[0]].input[1])
    return StandIn(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), bias)


def proof_of(proto: onnx.ModelProto, dag: ChannelDag, replaced: Replaced) -> Proof:
    """The proof of a shortened model."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(saved(proto, Path(folder)))
        sizes = {name: value.shape for name, value in dag.observation.feeds.items()}
        shortened = build_channel_dag(model, observe(model, sizes))
        return prove_shortened(shortened, dag.model, replaced, seed=0)


def without_branches(
    proto: onnx.ModelProto, standin: Callable[[Model, Branch], StandIn] = full_standin
) -> onnx.ModelProto:
    """The model without any of its branches, which is proven."""
    with tempfile.TemporaryDirectory() as folder:
        dag = observed(proto, Path(folder))
        replaced = {b: standin(dag.model, b) for b in compatible(find_branches(dag.model, dag.shapes))}
        assert replaced
        result = shorten(dag.model, replaced)
        assert proof_of(result, dag, replaced).passed
        return result
