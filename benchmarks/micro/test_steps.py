"""Seconds of each step of a compression, on networks of the size of ResNet-50 and MobileNetV2.

    pip install '.[bench,test]'
    python -m pytest benchmarks/micro --benchmark-autosave
    python -m pytest benchmarks/micro --benchmark-compare

The second line keeps the numbers of this commit, the third compares another one with them.  These are no tests: none of
them fails because it is slow.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.networks import build
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.model import Model, load
from leanonnx.ranking.weighting import weighted_blocks
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.runtime.observation import Observation, observe
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, Selector
from leanonnx.statistics.propagation import PropagatedMoments, propagate_statistics
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import plan_patch

HALF = SelectionRequest(budget=Budget("macs", 0.5))


@pytest.fixture(scope="module", params=["resnet50", "mobilenet_v2"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights and its BatchNormalizations."""
    path = tmp_path_factory.mktemp("networks") / f"{request.param}.onnx"
    onnx.save(build(request.param, folded=False), path)
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> Model:
    """The network as it is loaded."""
    return load(file)


@pytest.fixture(scope="module")
def observation(model: Model) -> Observation:
    """Its shapes."""
    return observe(model, {})


@pytest.fixture(scope="module")
def dag(model: Model, observation: Observation) -> ChannelDag:
    """Its channels."""
    return build_channel_dag(model, observation, DEFAULT_RULES)


def test_load(benchmark: BenchmarkFixture, file: Path) -> None:
    """File → model."""
    assert benchmark(load, file).proto.graph.node


def test_observe(benchmark: BenchmarkFixture, model: Model) -> None:
    """Model → shapes, by running it."""
    assert benchmark(observe, model, {}).shapes


def test_analyse(benchmark: BenchmarkFixture, model: Model, observation: Observation) -> None:
    """Model → channel DAG."""
    assert benchmark(build_channel_dag, model, observation, DEFAULT_RULES).count


def test_weigh(benchmark: BenchmarkFixture, dag: ChannelDag) -> None:
    """Spectral norms of all kernels."""
    assert benchmark(weighted_blocks, dag)


def test_statistics(benchmark: BenchmarkFixture, dag: ChannelDag) -> None:
    """What the BatchNormalizations tell of the activations."""
    assert benchmark(lambda: propagate_statistics(PropagatedMoments(dag)))


@pytest.mark.parametrize("method", ["lean", "path-mass", "l2"])
def test_select(benchmark: BenchmarkFixture, dag: ChannelDag, method: str) -> None:
    """Channel DAG → keep set."""
    statistics = propagate_statistics(PropagatedMoments(dag)) if method == "path-mass" else None
    request = SelectionRequest(budget=HALF.budget, method=method, statistics=statistics)  # type: ignore[arg-type]
    assert benchmark(lambda: Selector(dag, request).select()).reached


def test_operate(benchmark: BenchmarkFixture, dag: ChannelDag) -> None:
    """Keep set → smaller network."""
    alive = Selector(dag, HALF).select().alive
    assert benchmark(lambda: apply_patch(dag.model, plan_patch(dag, alive))).graph.node
