"""On random networks with branches: those with stand-ins equal their references, and their channels can be removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from hypothesis import event, given, settings
from hypothesis import strategies as st

from leanonnx.analysis.branches import Branch, compatible, find_branches
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import Model, load
from leanonnx.runtime.observation import observe
from leanonnx.surgery.shortening import shorten
from tests.graph_branches import BRANCHES
from tests.graphs import from_seed, models, saved
from tests.shortened import proof_of, random_standin
from tests.test_masked_equals_compact import agrees, analysed, assert_same_interface, check, killed

KINDS = {"linear", "shortcut", "scale"}


def some(branches: Sequence[Branch], rng: np.random.Generator) -> tuple[Branch, ...]:
    """Random branches that can be removed together."""
    chosen = [branches[k] for k in rng.permutation(len(branches)) if rng.random() < 0.7]
    return compatible(chosen)


def check_shortened(dag: ChannelDag, rng: np.random.Generator) -> None:
    """Check everything that must be true of a network without some of its branches."""
    chosen = some(find_branches(dag.model, dag.shapes), rng)
    event("branches: " + ", ".join(sorted({branch.kind for branch in chosen})))
    if not chosen:
        return
    replaced = {branch: random_standin(dag.model, branch, rng) for branch in chosen}
    proto = shorten(dag.model, replaced)
    onnx.checker.check_model(proto, full_check=True)
    assert_same_interface(dag.model.proto, proto)
    assert_rest_unchanged(dag.model, proto, chosen)
    assert agrees(proof_of(proto, dag, replaced))
    with analysed(proto) as shortened:
        check(shortened, killed(shortened, rng))


def assert_rest_unchanged(model: Model, proto: onnx.ModelProto, chosen: Sequence[Branch]) -> None:
    """Check that nodes outside the branches stay byte for byte, and that nothing is left that nobody reads."""
    gone = {k for branch in chosen for k in (branch.join, *branch.nodes, *branch.shortcut)}
    before = {node.SerializeToString() for node in model.proto.graph.node}
    lost = [node for k, node in enumerate(model.proto.graph.node) if k not in gone]
    after = {node.SerializeToString() for node in proto.graph.node}
    joined = {branch.output for branch in chosen}
    added = [node for node in proto.graph.node if node.SerializeToString() not in before]
    assert {name for node in added for name in node.output} >= joined
    read = {name for node in proto.graph.node for name in node.input} | {v.name for v in proto.graph.output}
    assert all(node.SerializeToString() in after or not read & set(node.output) for node in lost)
    listed = {value.name for value in proto.graph.input}
    read_before = {name for node in model.proto.graph.node for name in node.input}
    assert {t.name for t in proto.graph.initializer if t.name in read_before} <= read | listed


@settings(max_examples=settings.default.max_examples // 2)
@given(models(BRANCHES), st.integers(0, 1 << 30))
def test_shortened_networks_equal_their_references(proto: onnx.ModelProto, seed: int) -> None:
    """Remove random branches, then random groups of channels of what is left."""
    with analysed(proto) as dag:
        check_shortened(dag, np.random.default_rng(seed))


def test_random_models_have_branches_of_every_kind(tmp_path: Path) -> None:
    """The test above covers a kind only if the generator makes it, and if the search finds it."""
    kinds: set[str] = set()
    for seed in range(40):
        model = load(saved(from_seed(seed, BRANCHES), tmp_path))
        kinds |= {branch.kind for branch in find_branches(model, observe(model, {}).shapes)}
    assert kinds == KINDS
