"""The view of a graph: relations between nodes and values, and attributes as onnx-graphsurgeon decodes them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from leanonnx.graph.view import GraphView
from tests.helpers import build

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 2, 4, 4] x, bool c) => (float[1, 2, 4, 4] y)
<float[2, 2, 1, 1] w>
{
    v = Identity (w)
    a = Conv <auto_pad = "SAME_UPPER", strides = [1, 1]> (x, v)
    k = Constant <value = float {2.0}> ()
    y = If (c) <
        then_branch = t () => (float[1, 2, 4, 4] t) { t = Mul (a, k) },
        else_branch = e () => (float[1, 2, 4, 4] e) { e = Conv (a, w) }
    >
}
"""
IDENTITY, CONV, CONSTANT, IF = range(4)


@pytest.fixture
def proto() -> onnx.ModelProto:
    return build(GRAPH)


def test_relations(proto: onnx.ModelProto) -> None:
    view = GraphView(proto)
    assert view.producers == {"v": IDENTITY, "a": CONV, "k": CONSTANT, "y": IF}
    assert view.producer("a") == proto.graph.node[CONV]
    assert view.producer("x") is None
    assert sorted(view.consumers["a"]) == [IF]
    assert view.consumers["y"] == [-1]
    assert view.origins == {"w": "w", "v": "w", "k": "k"}
    assert view.use_counts["w"] == 2
    assert view.input_counts["v"] == 1
    assert view.free == {"x", "c", "a", "y"}
    assert view.constant("k") == np.float32(2)
    assert view.constant_kind("v") == ("float32", 4)
    assert view.opset == 17


def test_edited_nodes_stand_in_place_of_those_of_the_model(proto: onnx.ModelProto) -> None:
    view = GraphView(proto, tuple(proto.graph.node)[CONV:])
    assert view.origins == {"w": "w", "k": "k"}
    assert view.producers["a"] == 0


def test_attributes_are_python_values(proto: onnx.ModelProto, capsys: pytest.CaptureFixture[str]) -> None:
    """Subgraphs are left out; what onnx-graphsurgeon cannot decode is too, in silence."""
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0]),
        [4],
    )
    proto.graph.node[CONV].attribute.append(helper.make_attribute("sparse", sparse))
    before, view = gs.logger.G_LOGGER.severity, GraphView(proto)
    assert view.attributes(CONV) == {"auto_pad": "SAME_UPPER", "strides": [1, 1]}
    assert view.attributes(IF) == {}
    assert isinstance(view.attributes(CONSTANT)["value"], gs.Constant)
    assert gs.logger.G_LOGGER.severity == before
    assert capsys.readouterr().out == ""
