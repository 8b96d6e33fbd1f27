"""Layers whose input equals the original's are not fitted; those that read less than in the original are."""

from __future__ import annotations

import onnx
import pytest

from leanonnx.recovery.recover import recover
from tests.calibrated import dag_of, deviation, draft, keep, normal_feeds

BRANCHES = "h = Conv (x, a) r = Relu (h) k = Conv (x, b) s = Relu (k) t = Concat <axis = 1> (r, s)"
JOINED = {
    "layer": f"{BRANCHES} y = Conv (t, c)",
    "largest of all channels": f"{BRANCHES} m = ReduceMax <axes = [1], keepdims = 1> (t) y = Conv (m, c)",
}


def without_concat(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The network with the only operand left of its Concat in its place, as the clean-up leaves it."""
    (concat,) = (node for node in proto.graph.node if node.op_type == "Concat")
    assert len(concat.input) == 1
    for node in proto.graph.node:
        node.input[:] = [concat.input[0] if name == concat.output[0] else name for name in node.input]
    proto.graph.node.remove(concat)
    return proto


@pytest.mark.parametrize("kind", JOINED)
def test_a_layer_that_reads_what_is_left_of_a_concat_is_fitted(kind: str) -> None:
    width = 10 if kind == "layer" else 1
    constants = f"float[8,3,3,3] a, float[2,3,3,3] b, float[4,{width},1,1] c"
    dag = dag_of("(float[N,3,8,8] x) => (float[N,4,6,6] y)", constants, JOINED[kind])
    alive = keep(dag, "k", ())
    bare, feeds = without_concat(draft(dag, alive)), normal_feeds(dag, 12, batch=4)
    fitted = recover(dag, alive, bare, feeds, normal_feeds(dag, 3, seed=1, batch=4))
    before, after = (deviation(dag, proto, normal_feeds(dag, 2, seed=2)) for proto in (bare, fitted.proto))
    assert before > 0 and after < 0.97 * before
