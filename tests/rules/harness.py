"""From a row of the table to a model in memory, its channel DAG, and keep sets that touch the operator."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.formats import number_format
from leanonnx.graph.model import load
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.proof import FAILED, compare_with_reference, random_inputs
from leanonnx.rules.call import Call, Effect, Rule
from leanonnx.rules.check import find_fault
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


@cache
def schema_of(op: str, domain: str, opset: int) -> Mapping[str, Any]:
    """The attributes of an operator, as onnx or onnxruntime declares them."""
    if domain == "":
        return dict(onnx.defs.get_schema(op, opset).attributes)
    found = [schema for schema in get_all_operator_schema() if (schema.name, schema.domain) == (op, domain)]
    return dict(found[0].attributes) if found else {}


def default_of(declared: Any) -> Any:
    """The default of a declared attribute; None if it has none."""
    value = getattr(declared, "default_value", None) or AttributeProto.FromString(declared._default_value)
    found = onnx.helper.get_attribute_value(value) if value.type else None
    return found.decode() if isinstance(found, bytes) else found


class WatchedCall(Call):
    """A call that takes no other default of an attribute than the operator's own."""

    def attribute(self, name: str, default: Any = None) -> Any:
        declared = schema_of(self.op, self.domain, self.opset).get(name)
        if declared is not None:
            wanted = default_of(declared)
            assert not (declared.required and default is not None), f"{self.op} always has '{name}'"
            same = np.isclose(default, wanted) if isinstance(wanted, float) else default == wanted
            assert wanted is None or same, f"'{name}' of {self.op} is {wanted} by default, not {default}"
        return super().attribute(name, default)


def watched(rule: Rule) -> Rule:
    """A rule whose calls are watched, and whose effects must keep the contract with analysis."""

    def answer(call: Call) -> Effect:
        watching = WatchedCall(**{field.name: getattr(call, field.name) for field in fields(call)})
        effect = rule(watching)
        assert find_fault(call, effect, call.channel_count()) == ""
        return effect

    return answer


WATCHED_RULES = {key: watched(rule) for key, rule in DEFAULT_RULES.items()}


@contextmanager
def analysed(proto: onnx.ModelProto, rules: Rules = WATCHED_RULES) -> Iterator[ChannelDag]:
    """The channel DAG of a model in memory."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(proto.SerializeToString())
        file.flush()
        model = load(Path(file.name))
        dag = build_channel_dag(model, observe(model, {}), rules)
        for pin in dag.pins if rules is WATCHED_RULES else ():
            if pin.tensor in dag.channel_ids:
                own = dag.groups[dag.channel_ids[pin.tensor]]
                assert np.isin(dag.groups[pin.channel_ids], own).all(), f"{pin.reason}: other channels in {pin.tensor}"
        yield dag


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
