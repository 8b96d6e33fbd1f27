"""Analyse ONNX's own test models: one operator each, in every form that its specification shows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings

from leanonnx.analysis.dag import build_channel_dag
from leanonnx.errors import UserError
from leanonnx.graph.model import load
from leanonnx.graph.tidy import tidy
from leanonnx.rules.call import Call, Effect
from leanonnx.rules.normalization import group_normalization
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import observe
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import masking_patch
from tests.at_sizes import Pair
from tests.graphs import saved
from tests.onnx_frames import COUNT, Frame, framed
from tests.test_contract import RULES, held
from tests.test_masked_equals_compact import compacted, killed

pytestmark = pytest.mark.filterwarnings("ignore")  # onnx makes its models with what numpy warns of
MANY = 700
"""Models that should at least be there; onnx has more with each release."""
FRAMED = 100
"""Models that should at least lose channels and be compared at three sizes."""
STEP = 1 if settings.default.max_examples > 1000 else 3
"""Every so many-th of them is taken; the long profile takes all."""


@cache
def cases() -> dict[str, Any]:
    """ONNX's test cases whose models have an operator which a rule knows, by name."""
    found = pytest.importorskip("onnx.backend.test.case.node").collect_testcases(None)
    known = {op for domain, op in DEFAULT_RULES if not domain}
    return {
        case.name: case
        for case in found
        if case.model is not None and "_expanded" not in case.name  # written out as a function of other operators
        if any(node.op_type in known for node in case.model.graph.node)
    }


def gone_through(proto: onnx.ModelProto, folder: Path, rules: Rules) -> bool:
    """Analyse and tidy a model; whether onnxruntime can run it at all."""
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    try:
        model = load(path, ())
        observation = observe(model, {})
    except UserError:
        return False
    build_channel_dag(model, observation, rules)
    tidy(model.proto, {}, frozenset())
    return True


def test_every_form_goes_through(tmp_path: Path) -> None:
    """No error, and every answer of a rule keeps the contract."""
    passed = failed = 0
    errors = {}
    for name, case in cases().items():
        try:
            passed, failed = (passed + 1, failed) if gone_through(case.model, tmp_path, RULES) else (passed, failed + 1)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    assert errors == {}
    assert passed >= MANY, f"{passed} models went through, {failed} were refused"


def test_wrong_rule_is_found(tmp_path: Path) -> None:
    """A rule that slices an input that is not constant."""

    def wrong(call: Call) -> Effect:
        constants = [replace(v, channel_ids=None) if v and k else v for k, v in enumerate(call.inputs)]
        return group_normalization(replace(call, inputs=tuple(constants)))

    found = cases()["test_group_normalization_example"].model
    with pytest.raises(AssertionError, match="is not constant"):
        gone_through(found, tmp_path, {**DEFAULT_RULES, ("", "GroupNormalization"): held(wrong)})


def equal_sizes(frame: Frame, folder: Path) -> int:
    """At how many sizes a model was compared without some of its channels; 0 where it has none to lose."""
    try:
        model = load(saved(frame.proto, folder))
        dag = build_channel_dag(model, observe(model, frame.sizes[0]))
    except UserError:
        return 0
    alive = next((a for a in (killed(dag, np.random.default_rng(seed)) for seed in range(4)) if not a.all()), None)
    if alive is None:
        return 0
    pair = Pair(apply_patch(model.as_read, masking_patch(dag, alive)), compacted(dag, alive), model.inputs)
    for shapes in frame.sizes:
        pair.assert_equal(shapes)
    return len(frame.sizes)


def test_every_form_is_right_at_every_size(tmp_path: Path) -> None:
    """Between two layers that mix channels, with every other axis free where the operator allows it."""
    errors, compared = {}, []
    for name, case in list(cases().items())[::STEP]:
        try:
            frame = framed(case.model, case.data_sets[0][0]) if case.data_sets else None
            compared += [equal_sizes(frame, tmp_path)] if frame else []
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    assert errors == {}
    assert compared.count(COUNT) * STEP >= FRAMED, f"{len(compared)} models, {compared.count(COUNT)} at three sizes"
