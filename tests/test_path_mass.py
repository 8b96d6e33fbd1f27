"""Path mass: shares of energy, sums over chains, the order across layers; against naive code on small networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leanonnx.analysis.cost import Rate, cost_model, kernel_rate, mac_rate
from leanonnx.analysis.dag import ChannelDag
from leanonnx.ranking import elimination
from leanonnx.ranking.elimination import Elimination, Exponents
from leanonnx.ranking.groups import channel_groups, layers_of
from leanonnx.ranking.pathmass import KernelGroup, kernel_groups, path_masses
from leanonnx.statistics.moments import Statistics, measure_statistics
from tests.calibrated import Array, analysed, dag_of, net, normal_feeds
from tests.helpers import CNN, build, called, refused, saved
from tests.naive_mass import Walker, random_net

CHAIN = (
    "(float[N,3,6,6] x) => (float[N,4] y)",
    "float[9,3,3,3] a, float[9] b, float[7,9,3,3] c, float[7] d, float[28,4] e",
    "h = Conv (x, a, b) r = Relu (h) m = Conv (r, c, d) s = Relu (m) f = Flatten (s) y = Gemm (f, e)",
)


def looked_at(dag: ChannelDag, count: int = 8) -> Statistics:
    return measure_statistics(dag, normal_feeds(dag, count), count)


def masses_of(dag: ChannelDag, statistics: Statistics) -> Array:
    return path_masses(dag, statistics, kernel_groups(dag, statistics))


def removed(dag: ChannelDag, rate: Rate = kernel_rate, exponent: float = 1.0, samples: int = 8) -> tuple[Array, Array]:
    """The order of the groups, and the group of each channel id."""
    groups = channel_groups(dag, separate_slots=False)
    statistics = looked_at(dag, samples)
    elimination = Elimination(dag=dag, statistics=statistics, groups=groups, layers=layers_of(dag, groups))
    return elimination.removal_order(rate, Exponents(saved=exponent))[0], groups


def test_costs_never_decrease_in_the_order_of_a_layer() -> None:
    dag = dag_of(*CHAIN)
    groups = channel_groups(dag, separate_slots=False)
    layers = layers_of(dag, groups)
    order, losses = Elimination(dag=dag, statistics=looked_at(dag), groups=groups, layers=layers).removal_order(
        kernel_rate, Exponents()
    )
    for tensor in "rs":
        layer = layers[groups[dag.channel_ids[tensor].reshape(-1)[0]]]
        costs = losses[order[layers[order] == layer]]
        assert (np.diff(costs) >= 0).all()
        assert 0 < costs[0] < costs[-1] < np.inf
    assert np.isinf(losses[groups[dag.channel_ids["y"].reshape(-1)]]).all()


def test_the_channels_of_each_tensor_of_a_chain_have_mass_1_together() -> None:
    dag = dag_of(*CHAIN)
    mass = masses_of(dag, looked_at(dag))
    for tensor in ("x", "r", "s", "y"):
        assert mass[np.unique(dag.channel_ids[tensor])].sum() == pytest.approx(1)
    assert np.ptp(mass[dag.channel_ids["r"].reshape(-1)]) > 1e-3


def test_operands_of_an_addition_share_by_their_variances() -> None:
    dag = dag_of(
        "(float[N,3,6,6] x) => (float[N,4,4,4] y)",
        "float[5,3,3,3] a, float[5,3,3,3] b, float[4,5,1,1] c",
        "h = Conv (x, a) i = Conv (x, b) s = Add (h, i) y = Conv (s, c)",
    )
    statistics = looked_at(dag)
    mass = masses_of(dag, statistics)
    h, i, s = (dag.channel_ids[name].reshape(-1) for name in "his")
    np.testing.assert_allclose(mass[h] + mass[i], mass[s])
    np.testing.assert_allclose(mass[h] / mass[i], statistics.variance[h] / statistics.variance[i])
    assert np.abs(mass[h] / mass[s] - 0.5).max() > 0.05


def judge_by_chains(seed: int) -> None:
    """Check that every channel of a layer or join has the mass that walking all chains gives."""
    proto = random_net(seed)
    dag = analysed(proto)
    feeds = normal_feeds(dag, 4, seed)
    walker = Walker(proto, feeds)
    mass = masses_of(dag, measure_statistics(dag, feeds, 4))
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Add", "Concat") and node.output[0] in dag.channel_ids:
            channel_ids = dag.channel_ids[node.output[0]].reshape(-1)
            wanted = [walker.mass(node.output[0], k, channel_ids.size) for k in range(channel_ids.size)]
            np.testing.assert_allclose(mass[channel_ids], wanted, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_mass_is_the_sum_over_all_chains(seed: int) -> None:
    judge_by_chains(seed)


def rescaled(proto: onnx.ModelProto, factors: Array) -> onnx.ModelProto:
    """Channels of the first layer scaled, and back again in the layer that reads them."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    shapes = {"a": (-1, 1, 1, 1), "b": (-1,), "c": (1, -1, 1, 1)}
    for tensor in copy.graph.initializer:
        if tensor.name in shapes:
            scale = factors if tensor.name != "c" else 1 / factors
            array = numpy_helper.to_array(tensor) * scale.reshape(shapes[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return copy


def judge_rescaled() -> None:
    proto = net(*CHAIN)
    factors = np.exp(np.random.default_rng(1).normal(size=9))
    first, second = removed(analysed(proto))[0], removed(analysed(rescaled(proto, factors)))[0]
    np.testing.assert_array_equal(first, second)


def test_scaling_a_channel_and_its_readers_back_changes_no_order() -> None:
    judge_rescaled()


def test_a_channel_that_is_never_active_is_removed_first() -> None:
    proto = net(*CHAIN)
    bias = next(t for t in proto.graph.initializer if t.name == "b")
    array = numpy_helper.to_array(bias).copy()
    array[4] = -1e3
    bias.CopyFrom(numpy_helper.from_array(array, "b"))
    dag = analysed(proto)
    order, groups = removed(dag)
    channel_ids = groups[dag.channel_ids["h"].reshape(-1)]
    assert order[np.isin(order, channel_ids)][0] == channel_ids[4]


def test_the_first_removal_of_two_equal_channels_costs_nothing() -> None:
    """Duplicate the channel that would be removed last."""
    proto = net(*CHAIN)
    order, groups = removed(analysed(proto))
    channel_ids = groups[analysed(proto).channel_ids["h"].reshape(-1)]
    best, worst = (int(np.flatnonzero(channel_ids == order[np.isin(order, channel_ids)][k])[0]) for k in (-1, 4))
    for tensor in proto.graph.initializer:
        if tensor.name in "ab":
            array = numpy_helper.to_array(tensor).copy()
            array[worst] = array[best]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    order, _ = removed(analysed(proto), samples=200)
    place = [int(np.flatnonzero(order[np.isin(order, channel_ids)] == channel_ids[k])[0]) for k in (best, worst)]
    assert min(place) < 3
    assert max(place) == channel_ids.size - 1


def judge_merge(monkeypatch: pytest.MonkeyPatch, rate: Rate, unit: str, exponent: float, seed: int) -> None:
    """Layers with invented costs: every step removes the group with the least cost per saving."""
    dag = dag_of(*CHAIN)
    rng = np.random.default_rng(seed)
    known: dict[int, float] = {}

    def invented(members: Array, *_: object) -> tuple[Array, Array]:
        order = rng.permutation(members)
        costs = np.cumsum(rng.random(members.size))
        known.update(zip(order.tolist(), costs.tolist(), strict=True))
        return order, costs

    monkeypatch.setattr(elimination, "_sequence", invented)
    order, groups = removed(dag, rate, exponent)
    layers = layers_of(dag, groups)
    rows = [[one for one in known if layers[one] == layer] for layer in dict.fromkeys(layers[one] for one in known)]
    count, alive, found = cost_model(dag), np.ones(dag.count, bool), []
    while any(rows):
        keys = {}
        for row in rows:
            if row:
                saved = getattr(count(alive), unit) - getattr(count(alive & (groups != row[0])), unit)
                keys[row[0]] = known[row[0]] / saved**exponent
        best = min(keys, key=lambda one: keys[one])
        found.append(best)
        alive &= groups != best
        rows = [[one for one in row if one != best] for row in rows]
    assert order[: len(found)].tolist() == found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "unit"), [(kernel_rate, "kernels"), (mac_rate, "macs")])
@pytest.mark.parametrize("exponent", [0.75, 1.0])
def test_across_layers_the_best_bargain_is_removed_next(
    monkeypatch: pytest.MonkeyPatch, rate: Rate, unit: str, exponent: float, seed: int
) -> None:
    judge_merge(monkeypatch, rate, unit, exponent, seed)


def dense_net(depth: int = 5) -> ChannelDag:
    """Layers of one channel, each of which reads all before it, as in the mixed-scale dense network."""
    body, tensors = [], ["x"]
    for k in range(depth):
        body.append(f"i{k} = Concat <axis = 1> ({', '.join(tensors)})" if k else "i0 = Identity (x)")
        body.append(f"c{k} = Conv <pads = [1, 1, 1, 1]> (i{k}, w{k}, b{k}) r{k} = Relu (c{k})")
        tensors.append(f"r{k}")
    body.append(f"j = Concat <axis = 1> ({', '.join(tensors)}) y = Conv (j, v)")
    constants = [f"float[1,{k + 1},3,3] w{k}, float[1] b{k}" for k in range(depth)]
    return dag_of(
        "(float[N,1,6,6] x) => (float[N,2,6,6] y)",
        ", ".join([*constants, f"float[2,{depth + 1},1,1] v"]),
        " ".join(body),
    )


def judge_readers() -> None:
    """If consumers are chosen one by one, their channel is removed after all of them."""
    dag = dense_net()
    order, groups = removed(dag)
    place = np.argsort(order)
    pinned = np.zeros(order.size, bool)
    for pin in dag.pins:
        pinned[groups[pin.channel_ids]] = True
    pairs = [(groups[c], groups[r]) for _, (cs, rs) in dag.concat_slots for c, r in zip(cs.flat, rs.flat, strict=True)]
    apart = [(c, r) for c, r in pairs if c != r and not pinned[c]]
    assert len(apart) > 5
    assert all(place[r] < place[c] for c, r in apart)


def test_a_channel_is_removed_after_its_consumers() -> None:
    judge_readers()


def test_all_classes_are_ordered_and_pinned_ones_come_last() -> None:
    for dag in (dag_of(*CHAIN), dense_net()):
        order, groups = removed(dag)
        assert sorted(order.tolist()) == list(range(int(groups.max()) + 1))
        pinned = {int(groups[0]), *(int(one) for pin in dag.pins for one in groups[pin.channel_ids].flat)}
        assert set(order[-len(pinned) :].tolist()) == pinned


def test_without_data_it_is_refused(tmp_path: Path) -> None:
    saved(build(CNN), tmp_path / "m.onnx")
    refused(tmp_path, "compress", "m.onnx", "out.onnx", "--keep", 0.5, "--method", "path-mass", says=("--calib",))


def test_with_data_it_is_the_default(tmp_path: Path) -> None:
    saved(build(CNN), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    shared = ("compress", "m.onnx", "out.onnx", "--keep", 0.5, "--align", 1, "--recover", "none", "--calib", "x.npz")
    files = []
    for method in ((), ("--method", "path-mass"), ("--method", "lean")):
        assert called(*shared, *method, cwd=tmp_path).returncode == 0
        files.append((tmp_path / "out.onnx").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_variance_below_zero_by_rounding_counts_as_none() -> None:
    group = KernelGroup(
        node=0,
        channel_ids=np.array([1, 2]),
        destinations=np.array([3]),
        kernels=np.ones((1, 2, 1)),
        covariance=np.diag([-1e-9, 4.0]),
    )
    np.testing.assert_array_equal(group.energies, [[0.0, 4.0]])
