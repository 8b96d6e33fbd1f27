"""From a row of the table to a model in memory, its channel DAG, and keep sets that touch the operator."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.formats import number_format
from leanonnx.graph.model import load
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.proof import FAILED, compare_with_reference, random_inputs
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import run
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import masking_patch
from tests.rules.case import Form, Refusal
from tests.rules.model_builder import Choose, ModelBuilder, Sample
from tests.test_masked_equals_compact import (
    BOUND,
    agrees,
    allowed,
    assert_same_interface,
    assert_smaller,
    compacted,
    distance,
    doomed,
    wider,
)


def sampled(form: Form | Refusal, choose: Choose) -> Sample:
    """One model of a form."""
    opset = form.opsets[choose(len(form.opsets))]
    builder = ModelBuilder(choose, opset, stem=isinstance(form, Refusal))
    form.build(builder)
    return builder.finish()


def seeded(seed: int) -> Choose:
    """Choices from a seed."""
    rng = np.random.default_rng(seed)
    return lambda n: int(rng.integers(n))


@contextmanager
def analysed(proto: onnx.ModelProto, rules: Rules = DEFAULT_RULES) -> Iterator[ChannelDag]:
    """The channel DAG of a model in memory."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(proto.SerializeToString())
        file.flush()
        model = load(Path(file.name))
        yield build_channel_dag(model, observe(model, {}), rules)


def touched(dag: ChannelDag, sample: Sample, beside: bool = False) -> NDArray[np.int64]:
    """Groups of the removable channels that the subject reads or outputs (the first and the last of each tensor
    come first)."""
    names = [n for n in [*sample.subject.input, *sample.subject.output] if n in dag.channel_ids]
    names = [probe.tensor for probe in sample.probes] if beside else names
    each = [np.unique(dag.groups[dag.channel_ids[n].reshape(-1)]) for n in names]
    order = [int(classes[k]) for k in (0, -1) for classes in each] + np.concatenate(each).tolist()
    return np.array([c for c in dict.fromkeys(order) if allowed(dag, without(dag, c))], np.int64)


def emptied(dag: ChannelDag, order: int) -> Mask:
    """Keep mask [channels] after removing every removable group, from the first to the last (1) or in reverse (-1)."""
    dead = np.zeros(dag.pinned_groups.size, bool)
    for k in range(dead.size)[::order]:
        tried = doomed(dag, dead | without(dag, k))
        dead = tried if allowed(dag, tried) else dead
    return ~dead[dag.groups]


def without(dag: ChannelDag, *classes: int) -> Mask:
    """Removed groups [groups] when these are removed, with all that depends on them."""
    dead = np.zeros(dag.pinned_groups.size, bool)
    dead[list(classes)] = True
    return doomed(dag, dead)


def check(dag: ChannelDag, alive: Mask) -> None:
    """Check everything that must be true of one keep set.  Unfused, 8-bit kernels are exact."""
    compact = compacted(dag, alive)
    onnx.checker.check_model(compact, full_check=True)
    assert_same_interface(dag.model.proto, compact)
    assert_smaller(dag, alive, compact)
    masked = apply_patch(dag.model.as_read, masking_patch(dag, alive))
    feeds = random_inputs(dag.model, dag.shapes)[:1]
    proof = compare_with_reference(dag.model, masked, compact, feeds)
    assert agrees(proof), f"the compact model is off by {proof.max_relative_error}"
    if number_format(dag.model.proto) != "float32":
        error = distance(run(masked, feeds, optimise=False), run(compact, feeds, optimise=False))
        assert error <= BOUND, f"the compact model, unfused, is off by {error}"
    batch = wider(dag, feeds[0])
    if batch is not None:
        assert agrees(compare_with_reference(dag.model, masked, compact, [batch])), (
            "the compact model is off on a batch of three"
        )


def verdict(dag: ChannelDag, alive: Mask) -> str:
    """'equal', 'different', or which stage refuses the compact model."""
    stage = "surgery"
    try:
        compact = compacted(dag, alive)
        masked = apply_patch(dag.model.as_read, masking_patch(dag, alive))
        stage = "checker"
        onnx.checker.check_model(compact, full_check=True)
        stage = "onnxruntime"
        proof = compare_with_reference(dag.model, masked, compact, random_inputs(dag.model, dag.shapes)[:1])
    except Exception:  # the checker and onnxruntime raise many unrelated types
        return stage
    return "different" if proof.status == FAILED else "equal"
