"""Original, keep set and compressed network that do not belong together are refused by recovery, in words."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import ModelError
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery import data_free as blind
from leanonnx.recovery.recover import recover
from leanonnx.statistics.propagation import PropagatedMoments
from tests.calibrated import dag_of, draft, keep, normal_feeds

INTERFACE = "(float[N,3,8,8] x) => (float[N,4,4,4] y)"
DENSE = "h = Conv (x, a) r = Relu (h) y = Conv (r, b)", "float[8,3,3,3] a, float[4,8,3,3] b"
GROUPED = (
    "h = Conv (x, a) r = Relu (h) g = Conv <group = 8> (r, c) y = Conv <pads = [1, 1, 1, 1]> (g, b)",
    "float[8,3,3,3] a, float[8,1,3,3] c, float[4,8,3,3] b",
)
TURNED = "(float[N,6] x) => (float[N,4] y)", "h = Gemm (x, a) r = Relu (h) y = Gemm <transB = 1> (r, b)"


def without(dag: ChannelDag, *channels: int) -> Mask:
    """Keep mask of a network without these channels of tensor 'h'."""
    return keep(dag, "h", set(range(8)) - set(channels))


def by_data(dag: ChannelDag, alive: Mask, proto: onnx.ModelProto) -> None:
    recover(dag, alive, proto, normal_feeds(dag, 6), normal_feeds(dag, 3, seed=1))


def blindly(dag: ChannelDag, alive: Mask, proto: onnx.ModelProto) -> None:
    blind.fit_without_data(PropagatedMoments(dag), alive, proto)


@pytest.fixture(params=[by_data, blindly])
def way(request: pytest.FixtureRequest) -> Callable[[ChannelDag, Mask, onnx.ModelProto], None]:
    found: Callable[[ChannelDag, Mask, onnx.ModelProto], None] = request.param
    return found


NETS = {
    "dense": (dag_of(INTERFACE, DENSE[1], DENSE[0]), r"node 'H' \(Conv\): .* reads 3 .* outputs 5, .* 3 and 6; "),
    "grouped": (dag_of(INTERFACE, GROUPED[1], GROUPED[0]), r"node 'H' \(Conv\): .* 3 and 6; "),
    "turned": (dag_of(TURNED[0], "float[6,8] a, float[4,8] b", TURNED[1]), r"node 'H' \(Gemm\): .* 6 and 6; "),
}


@pytest.mark.parametrize("kind", NETS)
def test_a_network_of_another_keep_set(way: Callable[[ChannelDag, Mask, onnx.ModelProto], None], kind: str) -> None:
    dag, says = NETS[kind]
    proto = draft(dag, without(dag, 1, 2, 5))
    way(dag, without(dag, 1, 2, 5), proto)
    with pytest.raises(ModelError, match=rf"{says}join the network with"):
        way(dag, without(dag, 1, 2), proto)


def test_a_layer_that_reads_other_channels(way: Callable[[ChannelDag, Mask, onnx.ModelProto], None]) -> None:
    """Its own outputs fit; what it reads comes from elsewhere."""
    dag = NETS["dense"][0]
    alive = without(dag, 1, 2, 5)
    whole = dag.model.proto.graph.initializer
    proto = draft(dag, alive)
    for tensor in proto.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(next(one for one in whole if one.name == "b"))
    with pytest.raises(ModelError, match=r"node 'Y' \(Conv\): .* reads 8 channels and outputs 4, .* 5 and 4; "):
        way(dag, alive, proto)


def test_a_keep_set_of_another_network(way: Callable[[ChannelDag, Mask, onnx.ModelProto], None]) -> None:
    dag, other = NETS["dense"][0], NETS["grouped"][0]
    proto = draft(dag, without(dag, 1))
    with pytest.raises(ModelError, match=rf"the keep set has {other.count} channels, but the original has {dag.count}"):
        way(dag, without(other, 1), proto)


@pytest.mark.parametrize(("kind", "name"), [("inputs", "x"), ("outputs", "y")])
def test_a_network_with_another_interface(
    way: Callable[[ChannelDag, Mask, onnx.ModelProto], None], kind: str, name: str
) -> None:
    dag = NETS["dense"][0]
    alive = without(dag, 1)
    proto = draft(dag, alive)
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = "other" if value.name == name else value.name
    for node in proto.graph.node:
        node.input[:] = ["other" if given == name else given for given in node.input]
        node.output[:] = ["other" if given == name else given for given in node.output]
    with pytest.raises(ModelError, match=f"the {kind} other, but the original has {name}; join"):
        way(dag, alive, proto)
