"""The test models of ONNX itself, one operator each in every form that its specification shows, go through analysis."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import pytest

from leanonnx.analysis.dag import analyse
from leanonnx.errors import UserError
from leanonnx.graph.model import load
from leanonnx.graph.tidy import tidy
from leanonnx.rules.call import Call, Effect
from leanonnx.rules.normalization import group_normalization
from leanonnx.rules.table import DEFAULT, Rules
from leanonnx.runtime.observation import observe
from tests.test_contract import RULES, held

pytestmark = pytest.mark.filterwarnings("ignore")  # onnx makes its models with what numpy warns of
MANY = 700
"""Models that should at least be there; onnx has more with each release."""


@cache
def models() -> dict[str, onnx.ModelProto]:
    """ONNX's models that have an operator which a rule knows, by name."""
    cases = pytest.importorskip("onnx.backend.test.case.node").collect_testcases(None)
    known = {op for domain, op in DEFAULT if not domain}
    return {
        case.name: case.model
        for case in cases
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
    analyse(model, observation, rules)
    tidy(model.proto, {}, frozenset())
    return True


def test_every_form_goes_through(tmp_path: Path) -> None:
    """No error, and every answer of a rule keeps the contract."""
    passed = failed = 0
    errors = {}
    for name, proto in models().items():
        try:
            passed, failed = (passed + 1, failed) if gone_through(proto, tmp_path, RULES) else (passed, failed + 1)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    assert errors == {}
    assert passed >= MANY, f"{passed} models went through, {failed} were refused"


def test_wrong_rule_is_found(tmp_path: Path) -> None:
    """A rule that slices what is no constant, as one of ours once did."""

    def wrong(call: Call) -> Effect:
        constants = [replace(v, labels=None) if v and k else v for k, v in enumerate(call.inputs)]
        return group_normalization(replace(call, inputs=tuple(constants)))

    found = models()["test_group_normalization_example"]
    with pytest.raises(AssertionError, match="is no constant"):
        gone_through(found, tmp_path, {**DEFAULT, ("", "GroupNormalization"): held(wrong)})
