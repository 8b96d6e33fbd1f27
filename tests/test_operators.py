"""The table of operator facts is complete, agrees with ONNX and onnxruntime, and is the only place of such lists."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import leanonnx
from leanonnx.graph.nodes import is_quantised
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import OPERATORS, STANDARD_FACTS, names_with
from leanonnx.rules.table import COUNTED_WEIGHT_SLOTS, DEFAULT_RULES

ROOT = Path(leanonnx.__file__).parent
TABLES = ("operators/", "commands/finetune/operators/")
"""Modules that may list operators: the facts, and the implementations of fine-tuning."""
NAMES = {name for _, name in OPERATORS} | {schema.name for schema in onnx.defs.get_all_schemas()}
MODULES = sorted(p for p in ROOT.rglob("*.py") if not p.relative_to(ROOT).as_posix().startswith(TABLES))
SUBJECTS = {"op", "op_type", "operator"}
"""Names of variables and fields for the name of an operator."""


def lists(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of tuples, lists and sets of two or more operators."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            strings = [e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
            if sum(text in NAMES for text in strings) > 1:
                yield node.lineno, ast.unparse(node)


def substring_tests(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of tests of a part of an operator's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            searched = node.comparators[0] if isinstance(node.left, ast.Constant) else None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            searched = node.func.value if node.func.attr in {"startswith", "endswith", "find"} else None
        else:
            continue
        if _holds_operator(searched):
            yield node.lineno, ast.unparse(node)


def _holds_operator(node: ast.AST | None) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in SUBJECTS


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_operators_are_listed_in_the_table_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [*lists(tree), *substring_tests(tree)] == []


def test_lists_and_substring_tests_are_noticed() -> None:
    """A search that finds nothing would make the test above pass."""
    source = 'A = {"Conv", "Gemm"}\nB = "Conv" in node.op_type\nC = op.startswith("Q")\nD = node.op_type == "Conv"'
    tree = ast.parse(source)
    assert [line for line, _ in (*lists(tree), *substring_tests(tree))] == [1, 2, 3]


def test_every_operator_with_a_rule_has_an_entry() -> None:
    assert DEFAULT_RULES.keys() - OPERATORS.keys() == set()
    assert COUNTED_WEIGHT_SLOTS.keys() <= DEFAULT_RULES.keys()


def test_standard_operators_are_those_of_onnx() -> None:
    gone = {"Affine", "Crop", "ImageScaler", "ParametricSoftplus", "ScaledTanh", "SimplifiedLayerNormalization"}
    """Of early drafts, which onnxruntime still runs."""
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert STANDARD_FACTS.keys() - known - gone <= {"CausalConvWithState", "LinearAttention"}  # of newer ONNX than some


@pytest.mark.parametrize("name", [name for name, facts in STANDARD_FACTS.items() if facts.weight or facts.bias])
def test_slots_are_those_of_the_schema(name: str) -> None:
    facts, inputs = STANDARD_FACTS[name], [value.name for value in onnx.defs.get_schema(name).inputs]
    assert facts.weight is None or inputs[facts.weight].lower() in {"w", "b"}
    assert facts.bias is None or inputs[facts.bias] in {"B", "C"}


RUN_ALONE = [
    name
    for name, facts in STANDARD_FACTS.items()
    if facts.family is Family.UNARY and onnx.defs.has(name) and Trait.DISCRETE not in facts.traits
]


@pytest.mark.parametrize("name", RUN_ALONE)
def test_zeros_and_sizes_of_unary_operators(name: str) -> None:
    """The traits are what onnxruntime computes of zeros, with the default attributes."""
    kind = onnx.TensorProto.INT32 if name == "BitwiseNot" else onnx.TensorProto.FLOAT
    attributes = {"to": kind} if name == "Cast" else {}
    reads = ["x", "x"] if name == "CastLike" else ["x"]
    values = [helper.make_tensor_value_info(n, kind, None) for n in "xy"]
    graph = helper.make_graph([helper.make_node(name, reads, ["y"], **attributes)], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # an operator of a newer set
        pytest.skip(str(error))
    (result,) = session.run(None, {"x": np.zeros((2, 3), helper.tensor_dtype_to_np_dtype(kind))})
    traits = STANDARD_FACTS[name].traits
    assert Trait.SAME_SIZE in traits
    assert result.shape == (2, 3)
    assert (Trait.KEEPS_ZERO in traits) == (not result.any()) or name == "Clip"  # whose bounds decide


def test_quick_gelu_is_not_quantised() -> None:
    """Its name begins as those of quantised operators do."""
    assert not is_quantised(helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft"))
    assert is_quantised(helper.make_node("QLinearConv", ["x"], ["y"]))


def test_fast_kernels_and_rounded_widths_are_two_facts() -> None:
    """onnxruntime's NCHWc kernels compute Conv alone; widths of other convolutions are rounded too."""
    assert names_with(Trait.NCHWC_KERNELS) == {"Conv", "FusedConv"}
    assert names_with(Trait.NCHWC_KERNELS) < names_with(Trait.BLOCK_WIDTHS)
