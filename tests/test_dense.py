"""Networks whose layers have one channel and read all earlier ones: kernels are chosen one by one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.pipeline import compress_file, load_dag
from leanonnx.ranking.criteria import Method, RankingInputs, rank
from leanonnx.ranking.groups import channel_groups
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, select
from leanonnx.statistics.moments import measure_statistics
from tests.helpers import Options, build, saved

DEPTH, LAST = 8, "Y"
KERNELS = DEPTH * (DEPTH + 1) // 2


def dense(seed: int) -> onnx.ModelProto:
    """A small mixed-scale dense network."""
    lines, weights, maps = [], [], ["f0"]
    for k in range(DEPTH):
        lines.append(f"c{k} = Concat <axis = 1> ({', '.join(maps)})")
        lines.append(f"y{k} = Conv <pads = [1, 1, 1, 1]> (c{k}, w{k})")
        lines.append(f"f{k + 1} = Relu (y{k})")
        weights.append(f"float[1, {len(maps)}, 3, 3] w{k}")
        maps.append(f"f{k + 1}")
    lines.append(f"c_last = Concat <axis = 1> ({', '.join(maps)})")
    lines.append("y = Conv (c_last, w_last)")
    weights.append(f"float[3, {len(maps)}, 1, 1] w_last")
    head = '<ir_version: 8, opset_import: ["" : 17]> dense (float[N, 1, 12, 12] f0) => (float[N, 3, 12, 12] y)'
    return build(f"{head} <{', '.join(weights)}> {{ {chr(10).join(lines)} }}", seed)


@cache
def network(seed: int) -> tuple[Path, ChannelDag]:
    path = saved(dense(seed), Path(mkdtemp()) / "dense.onnx")
    return path, load_dag(path)


def last_node(dag: ChannelDag) -> int:
    return next(k for k, node in enumerate(dag.model.proto.graph.node) if node.name == LAST)


def request(dag: ChannelDag, method: Method, keep: float, chains: str = "cover") -> SelectionRequest:
    return SelectionRequest(
        budget=Budget("kernels", keep), method=method, chains=chains, ignored=frozenset({last_node(dag)})
    )


RANKINGS = [("lean", "cover"), ("lean", "free"), ("lean", "through"), ("norm", "cover"), ("l1", "cover")]


@pytest.mark.parametrize(("method", "chains"), RANKINGS)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_channels_read_by_an_ignored_layer_stay(method: Method, chains: str, keep: float) -> None:
    _, dag = network(0)
    alive = select(dag, request(dag, method, keep, chains)).alive
    (mix,) = [mix for node, mix in dag.kernel_blocks if node == last_node(dag)]
    maps = [int(dag.channel_ids[f"f{k}"].reshape(-1)[0]) for k in range(1, DEPTH + 1)]
    assert alive[mix.sources.reshape(-1)[1:]].tolist() == alive[maps].tolist()


@pytest.mark.parametrize(("method", "chains"), RANKINGS)
def test_whole_layers_are_removable(method: Method, chains: str) -> None:
    _, dag = network(1)
    selection = select(dag, request(dag, method, 5.5 / KERNELS, chains))
    assert 1 <= selection.after.kernels <= 5 < DEPTH


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [0.15, 0.3, 0.6])
def test_the_remainder_computes_the_proven_function(seed: int, keep: float, tmp_path: Path) -> None:
    """No reader of starved channels is left; otherwise the file would be refused."""
    path, _ = network(seed)
    for method, chains in RANKINGS:
        options = Options(Budget("kernels", keep), method=method, chains=chains, ignore=(LAST,))
        result = compress_file(path, tmp_path / f"{method}_{chains}.onnx", options)
        assert result.after.kernels <= keep * result.before.kernels


@pytest.mark.parametrize(("method", "order"), [("l1", 1), ("l2", 2)])
def test_readers_are_ranked_by_their_kernels(method: Method, order: int) -> None:
    _, dag = network(2)
    weights = WeightedDag(dag, frozenset({last_node(dag)}))
    classes = channel_groups(dag, False, weights.ignored)
    ranking = rank(RankingInputs(weighted=weights, chains="cover", seed=0, enough=lambda _: False), method)
    node = next(k for k, n in enumerate(dag.model.proto.graph.node) if "y5" in n.output)
    (mix,) = [mix for k, mix in dag.kernel_blocks if k == node]
    sizes = np.linalg.norm(mix.kernels()[0, 0].reshape(6, 9), order, axis=1)
    found = ranking.scores[classes[mix.sources[0]]]
    assert np.allclose(found, sizes, rtol=1e-5)


@pytest.mark.parametrize(("method", "chains"), RANKINGS)
def test_a_pinned_layer_keeps_its_input_channels(method: Method, chains: str, tmp_path: Path) -> None:
    path, _ = network(3)
    pins = ("f3", "f5")
    options = Options(Budget("kernels", 0.3), method=method, chains=chains, ignore=(LAST,), pin=pins)
    result = compress_file(path, tmp_path / "pinned.onnx", options)
    assert all(result.alive[result.dag.channel_ids[name]].all() for name in pins)


@pytest.mark.parametrize("layer", range(2, DEPTH))
def test_a_useless_kernel_is_removed_early_though_the_last_layer_ignores_its_channel(
    layer: int, tmp_path: Path
) -> None:
    """A channel cannot be removed before its consumers, so its own kernels compete as long as it is kept."""
    proto = dense(5)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w_last":
            array[:, :-1] *= 1e-6
        if tensor.name == f"w{layer}":
            array[:, 1] *= 1e-2
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    dag = load_dag(saved(proto, tmp_path / "dense.onnx"))
    rng = np.random.default_rng(0)
    feeds = [{"f0": rng.standard_normal((4, 1, 12, 12)).astype(np.float32)}]
    weights = WeightedDag(dag, frozenset({last_node(dag)}), measure_statistics(dag, feeds, 1))
    ranking = rank(RankingInputs(weighted=weights, chains="cover", seed=0, enough=lambda _: False), "path-mass")
    node = next(k for k, n in enumerate(dag.model.proto.graph.node) if f"y{layer}" in n.output)
    (mix,) = [mix for k, mix in dag.kernel_blocks if k == node]
    useless = ranking.groups[mix.sources[0, 1]]
    place = ranking.order.tolist().index(useless)
    assert place > 0.6 * ranking.order.size
