"""Predicted times corrected by a profile of the network, made up here: no clock is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress import timing as timings
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.hardware.targets import builtin_hardware
from leanonnx.runtime.profiling import NodeTime
from leanonnx.runtime.sessions import RunFailed
from leanonnx.selection.latency import LatencyModel, latency_model
from leanonnx.selection.measured import MAX_FACTOR, MAX_FIXED_MS, Corrections
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, Selector
from tests.helpers import build, called_json, saved
from tests.made_up_times import comparison

TARGET = builtin_hardware()["cpu-avx512"]
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
fused (float[1, 3, 8, 8] x) => (float[1, 10] y)
<float[64, 3, 3, 3] w1, float[64, 64, 3, 3] w2, float[64, 64, 3, 3] w3, float[10, 64] w4>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2)
    d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1]> (d, w3)
    f = Add (e, b)
    g = Relu (f)
    h = Sigmoid (g)
    i = Mul (g, h)
    j = GlobalAveragePool (i)
    k = Flatten (j)
    y = Gemm <transB = 1> (k, w4)
}
"""
FUSED = {"a": "ab", "c": "cd", "g": "efg", "i": "hi", "j": "j", "k": "k", "y": "y"}
"""Names of the nodes of a profile, with the tensors of the nodes that onnxruntime made each from."""
FIXED = 0.002
"""ms that every node takes, whatever its widths."""
OPERATORS = {"a": "FusedConv", "c": "FusedConv", "g": "Conv", "i": "QuickGelu"}
"""Operators of its nodes, where they are not those of the file."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(build(NETWORK), tmp_path / "m.onnx")


@pytest.fixture
def dag(path: Path) -> ChannelDag:
    return load_dag(path)


def by_tensor(model: LatencyModel, dag: ChannelDag) -> dict[str, float]:
    """Predicted ms of each node while nothing is removed, by its output."""
    nodes, times = dag.model.proto.graph.node, dict.fromkeys("abcdefghijky", 0.0)
    for node, ms in model.node_times(dag.all_alive):
        times[nodes[node].output[0]] += ms
    return times


def profile(dag: ChannelDag, slower: dict[str, float], whole: float = 1.0) -> tuple[NodeTime, ...]:
    """The profile of a machine that takes so many times as long as the table says for each fused node, and ``FIXED``.

    Nodes that come from no node of the file take no longer.
    """
    times, nodes = by_tensor(latency_model(dag, TARGET), dag), dag.model.proto.graph.node
    fused = (
        NodeTime(
            tensor=name,
            operator=OPERATORS.get(name, nodes[dag.model.producers[name]].op_type),
            ms=FIXED + whole * slower.get(name, 1.0) * sum(times[member] for member in members),
            blocked=False,
        )
        for name, members in FUSED.items()
    )
    return (*fused, NodeTime(tensor=None, operator="ReorderOutput", ms=FIXED, blocked=False))


def factors(dag: ChannelDag, times: tuple[NodeTime, ...]) -> dict[str, float]:
    """Factor of each node by its output."""
    model, nodes = latency_model(dag, TARGET, times), dag.model.proto.graph.node
    return {nodes[node].output[0]: factor for node, factor in model.corrections.factors.items()}


def test_without_a_profile_the_table_predicts(dag: ChannelDag) -> None:
    assert latency_model(dag, TARGET).corrections == Corrections()


def test_the_time_of_a_fused_node_belongs_to_its_members(dag: ChannelDag) -> None:
    """Named after the first or the last of them."""
    expected = {"c": 3.0, "d": 3.0, "e": 2.0, "f": 2.0, "g": 2.0, "h": 5.0, "i": 5.0}
    found = factors(dag, profile(dag, {"c": 3.0, "g": 2.0, "i": 5.0}))
    assert {name: pytest.approx(found[name]) for name in found} == dict.fromkeys("abcdefghijky", 1.0) | expected


def test_the_corrected_prediction_of_the_original_is_its_measured_time(dag: ChannelDag) -> None:
    times = profile(dag, {"c": 3.0, "g": 0.5}, whole=1.7)
    assert latency_model(dag, TARGET, times)(dag.all_alive) == pytest.approx(
        sum(time.ms for time in times if time.tensor)
    )


def test_the_time_of_the_quickest_node_is_fixed(dag: ChannelDag) -> None:
    """For each node, while any of it is left."""
    model = latency_model(dag, TARGET, profile(dag, {}))
    assert model(np.zeros(dag.count, bool)) == 0
    alive = dag.all_alive.copy()
    alive[np.unique(dag.channel_ids["c"])[1:]] = False
    assert model(alive) == pytest.approx(FIXED * len(FUSED) + latency_model(dag, TARGET)(alive))
    slow = tuple(replace(time, ms=time.ms + 1.0) for time in profile(dag, {}))
    assert set(latency_model(dag, TARGET, slow).corrections.fixed.values()) == {MAX_FIXED_MS}


def test_what_is_not_in_the_profile_is_corrected_like_the_whole(dag: ChannelDag) -> None:
    """Layers without a record; records without a node, such as reorders, count for nothing."""
    known = [time for time in profile(dag, {}, whole=4.0) if time.tensor != "y"]
    strange = NodeTime(tensor=None, operator="ReorderInput", ms=9.0, blocked=False)
    assert list(factors(dag, (*known, strange)).values()) == pytest.approx([4.0] * 12)


def test_corrections_are_bounded(dag: ChannelDag) -> None:
    found = factors(dag, profile(dag, {"i": 1e4, "j": 1e-4}))
    assert found["i"] / found["j"] == pytest.approx(MAX_FACTOR**2)


@pytest.mark.parametrize("times", [(), (NodeTime(tensor="c", operator="Conv", ms=0.0, blocked=True),)])
def test_a_profile_that_tells_nothing(dag: ChannelDag, times: tuple[NodeTime, ...]) -> None:
    assert latency_model(dag, TARGET, times).corrections == Corrections()


def test_the_ranking_stays_that_of_the_table(dag: ChannelDag) -> None:
    """A profile corrects the price of widths, not what a kernel saves."""
    rates = []
    for times in ((), profile(dag, {"c": 8.0})):
        request = SelectionRequest(budget=Budget("latency", 0.6), hardware=TARGET, profile=times)
        rate = request.budget.metric.rate(Selector(dag, request).inputs)
        rates.append([rate(node, mix) for node, mix in dag.kernel_blocks])
    assert rates[0] == rates[1]


def inner_width(dag: ChannelDag, times: tuple[NodeTime, ...]) -> int:
    """Width of ``c`` that a selection by time leaves: ``a`` and ``e`` are tied."""
    request = SelectionRequest(budget=Budget("latency", 0.6), method="random", hardware=TARGET, profile=times)
    alive = Selector(dag, request).select().alive
    return int(alive[np.unique(dag.channel_ids["c"])].sum())


def test_a_layer_that_takes_no_time_is_left_out_of_the_price(dag: ChannelDag) -> None:
    """Where the rest of the network takes most of the time, more has to go."""
    assert inner_width(dag, profile(dag, {"i": 8.0, "j": 8.0})) != inner_width(dag, ())


@pytest.fixture
def latency_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Compress with faked measurements; returns the files that were profiled."""
    profiled: list[Path] = []

    def profiles(paths: list[Path], *_: object) -> tuple[tuple[NodeTime, ...], ...]:
        profiled.extend(paths)
        raise RunFailed("no profile")

    monkeypatch.setattr(timings, "profile_in_subprocess", profiles)
    monkeypatch.setattr(timings, "compare_in_subprocess", lambda *_: comparison(0.49))

    def run(*options: object) -> list[Path]:
        called_json("compress", path, path.parent / "o.onnx", *options, measure=True)
        return profiled

    return run


def test_the_original_is_profiled_for_a_latency_budget(path: Path, latency_run: Callable[..., list[Path]]) -> None:
    """Once; if it cannot be, the table alone predicts."""
    assert latency_run("--latency", 0.5) == [path]


@pytest.mark.parametrize("options", [("--macs", 0.5), ("--latency", 1.0)])
def test_other_budgets_need_no_profile(options: tuple[object, ...], latency_run: Callable[..., list[Path]]) -> None:
    assert latency_run(*options) == []


def test_factors_follow_the_network_not_the_table(dag: ChannelDag) -> None:
    """A table that is wrong about one kind of layer predicts the same once it is corrected."""
    times = profile(dag, {"c": 2.0})
    wrong = replace(TARGET, gemm=TARGET.gemm / 4)
    right, corrected = (latency_model(dag, table, times) for table in (TARGET, wrong))
    assert by_tensor(latency_model(dag, wrong), dag)["y"] > by_tensor(latency_model(dag, TARGET), dag)["y"]
    assert corrected(dag.all_alive) == pytest.approx(right(dag.all_alive))
