"""Properties of every compression: random networks, budgets, units and methods."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, currently_in_test_context, event, given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from leanonnx.commands.compress.pipeline import CompressResult, compress_file
from leanonnx.errors import ProofFailed
from leanonnx.runtime.sessions import run
from leanonnx.selection.metrics import Budget
from leanonnx.surgery.plan import load_plan
from tests.counting import counted, reached
from tests.graphs import models, saved
from tests.helpers import Options, build

UNITS = st.sampled_from(("kernels", "macs", "params"))
FEW = settings(max_examples=settings.default.max_examples // 3)
FRACTIONS = st.floats(0.02, 0.98)
WAYS = st.sampled_from(
    (
        {"method": "auto", "chains": "cover"},
        {"method": "auto", "align": None, "target": "cpu-avx2"},
        {"method": "lean", "chains": "free", "align": 4},
        {"method": "lean", "chains": "through"},
        {"method": "lean", "chains": "free"},
        {"method": "norm"},
        {"method": "l1"},
        {"method": "random"},
    )
)


@contextmanager
def folder_with(proto: onnx.ModelProto) -> Iterator[tuple[Path, Path]]:
    """The model as a file, and where to write the result."""
    if currently_in_test_context():
        note(onnx.printer.to_text(proto))
    with tempfile.TemporaryDirectory() as folder:
        yield saved(proto, Path(folder)), Path(folder) / "out.onnx"


def over_budget(result: CompressResult) -> bool:
    return any(text.startswith("over budget") for text in result.warnings)


@FEW
@given(models())
def test_keeping_all_gives_the_same_bytes(proto: onnx.ModelProto) -> None:
    with folder_with(proto) as (source, target):
        compress_file(source, target, Options(Budget("kernels", 1.0)))
        assert target.read_bytes() == source.read_bytes()


@given(models(), UNITS, FRACTIONS, WAYS)
def test_budgets_hold_in_the_written_file(proto: onnx.ModelProto, unit: str, fraction: float, way: dict) -> None:
    """Recounted from the file; if the budget cannot be reached, the result says so."""
    with folder_with(proto) as (source, target):
        result = compress_file(source, target, Options(Budget(unit, fraction), best_effort=True, seed=3, **way))
        before, after = counted(source), counted(target)
        assert (result.before.kernels, result.before.macs, result.before.params) == before
        assert all(count <= getattr(result.after, name) for name, count in after._asdict().items())
        if over_budget(result):
            event("out of reach")
        else:
            event("reached")
            assert getattr(after, unit) <= fraction * getattr(before, unit)


COMPUTED = """
<ir_version: 8, opset_import: ["" : 17]>
computed (float[2, 6] x) => (float[2, 4] y) <float[6, 8] w, float[8, 3] s, float[3, 5] v, float[5, 4] u>
{
    a = MatMul (x, w)
    b = MatMul (a, s)
    t = Transpose <perm = [0, 1]> (v)
    c = MatMul (b, t)
    y = MatMul (c, u)
}
"""


@pytest.mark.parametrize("options", [Options(Budget("kernels", 0.5)), Options(exact=True)], ids=["keep", "exact"])
def test_a_weight_that_is_computed_stays_so(options: Options, tmp_path: Path) -> None:
    """Removing a no-op after a constant would add its kernels, which did not count, to the file."""
    source, target = saved(build(COMPUTED), tmp_path), tmp_path / "out.onnx"
    result = compress_file(source, target, options)
    assert (result.before.kernels, result.before.macs, result.before.params) == counted(source)
    assert (result.after.kernels, result.after.macs, result.after.params) == counted(target)


@FEW
@given(models(), UNITS, FRACTIONS, WAYS)
def test_runs_repeat_and_plans_replay(proto: onnx.ModelProto, unit: str, fraction: float, way: dict) -> None:
    """The same file and options give the same bytes of model and plan; so does the plan alone, of the model."""
    with folder_with(proto) as (source, target):
        options = Options(Budget(unit, fraction), best_effort=True, **way)
        plans = [target.with_name(f"plan{k}.json") for k in range(3)]
        again, replayed = target.with_name("again.onnx"), target.with_name("replayed.onnx")
        compress_file(source, target, options, plans[0])
        compress_file(source, again, options, plans[1])
        assert again.read_bytes() == target.read_bytes()
        assert plans[1].read_bytes() == plans[0].read_bytes()
        compress_file(source, replayed, Options(plan=load_plan(plans[0])))
        assert replayed.read_bytes() == target.read_bytes()


DYING_LAYER = """
<ir_version: 8, opset_import: ["" : 17]>
dying (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)
<float[4, 3, 1, 1] w, float[4, 7, 1, 1] v, float[2, 4, 1, 1] u>
{
    c = Conv (x, w)
    d = Concat <axis = 1> (x, c)
    e = Conv (d, v)
    y = Conv (e, u)
}
"""


@pytest.mark.parametrize("chains", ["through", "free"])
def test_plan_of_a_layer_removed_as_a_whole_replays(chains: str) -> None:
    """The layer's input (here the graph input, which all its kernels share) is still there."""
    with folder_with(build(DYING_LAYER)) as (source, target):
        plan, replayed = target.with_name("plan.json"), target.with_name("replayed.onnx")
        compress_file(source, target, Options(Budget("kernels", 0.1), "lean", chains, best_effort=True), plan)
        assert [node.op_type for node in onnx.load(target).graph.node].count("Conv") == 2
        compress_file(source, replayed, Options(plan=load_plan(plan)))
        assert replayed.read_bytes() == target.read_bytes()


@FEW
@given(models(), FRACTIONS, WAYS)
def test_outputs_still_depend_on_their_inputs(proto: onnx.ModelProto, fraction: float, way: dict) -> None:
    with folder_with(proto) as (source, target):
        compress_file(source, target, Options(Budget("kernels", fraction), best_effort=True, **way))
        assert reached(onnx.load(target)) == reached(onnx.load(source))


@FEW
@given(models(), FRACTIONS)
def test_unpruned_parts_stay_unchanged(proto: onnx.ModelProto, fraction: float) -> None:
    """Names, documentation, versions and properties; constants and nodes that survive keep theirs."""
    for node in proto.graph.node:
        node.doc_string = f"about {node.name}"
    with folder_with(proto) as (source, target):
        compress_file(source, target, Options(Budget("kernels", fraction), best_effort=True))
        after = onnx.load(target)
    for field in ("ir_version", "opset_import", "metadata_props", "doc_string", "producer_name", "model_version"):
        assert getattr(after, field) == getattr(proto, field)
    assert (after.graph.name, after.graph.doc_string) == (proto.graph.name, proto.graph.doc_string)
    assert list(after.graph.output) == list(proto.graph.output)
    nodes = {node.name: node for node in proto.graph.node}
    for node in after.graph.node:
        if node.name in nodes:
            assert (node.op_type, node.doc_string) == (nodes[node.name].op_type, nodes[node.name].doc_string)
    tensors = {t.name: t for t in proto.graph.initializer}
    computed = {name for node in proto.graph.node for name in node.output}
    for tensor in after.graph.initializer:
        old = tensors.get(tensor.name)
        if old is None:
            assert "_lean" in tensor.name or tensor.name in computed
        elif list(old.dims) == list(tensor.dims) and old.data_type == TensorProto.FLOAT:
            assert old.raw_data == tensor.raw_data
        else:
            assert old.data_type == tensor.data_type


@dataclass(frozen=True)
class Dense:
    """A stack of convolutions, each reading a Concat of some of the layers before it (-1: the inputs)."""

    inputs: int
    relu: bool
    reads: list[list[int]]
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    head: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, inputs: int, relu: bool) -> Dense:
        widths = [int(n) for n in rng.integers(2, 7, rng.integers(2, 6))]
        reads = [sorted({*rng.integers(-1, k, 2).tolist(), k - 1} if k else {-1}) for k in range(len(widths))]
        channels = [2 * inputs, *widths]
        fans = [sum(channels[j + 1] for j in layers) for layers in reads]
        shapes = [(out, fan, 3, 3) for out, fan in zip(widths, fans, strict=True)]
        weights = [rng.standard_normal(shape).astype(np.float32) / 3 for shape in shapes]
        biases = [rng.standard_normal(out).astype(np.float32) for out in widths]
        return cls(inputs, relu, reads, weights, biases, rng.standard_normal((3, widths[-1], 1, 1)).astype(np.float32))

    def rescaled(self, rng: np.random.Generator) -> Dense:
        """Every channel times a power of two where it is made, and by the inverse where it is read."""
        factors = [np.exp2(rng.integers(-6, 7, bias.size)).astype(np.float32) for bias in self.biases]
        inputs = np.ones(2 * self.inputs, np.float32)
        inverse = [np.concatenate([1 / factors[j] if j >= 0 else inputs for j in layers]) for layers in self.reads]
        weights = [
            weight * made[:, None, None, None] * read[:, None, None]
            for weight, made, read in zip(self.weights, factors, inverse, strict=True)
        ]
        biases = [bias * made for bias, made in zip(self.biases, factors, strict=True)]
        return replace(self, weights=weights, biases=biases, head=self.head / factors[-1][:, None, None])

    def model(self) -> onnx.ModelProto:
        names = [f"x{k}" for k in range(self.inputs)]
        nodes = [helper.make_node("Concat", names, ["layer_-1"], axis=1)]
        constants = {"head": self.head}
        for k, reads in enumerate(self.reads):
            constants |= {f"w{k}": self.weights[k], f"b{k}": self.biases[k]}
            source = [f"layer_{j}" for j in reads]
            nodes.append(helper.make_node("Concat", source, [f"read_{k}"], axis=1))
            nodes.append(helper.make_node("Conv", [f"read_{k}", f"w{k}", f"b{k}"], [f"conv_{k}"], pads=[1] * 4))
            nodes.append(helper.make_node("Relu" if self.relu else "Identity", [f"conv_{k}"], [f"layer_{k}"]))
        nodes.append(helper.make_node("Conv", [f"layer_{len(self.reads) - 1}", "head"], ["y"]))
        graph = helper.make_graph(
            nodes,
            "dense",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 6, 6]) for name in names],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 6, 6])],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@FEW
@given(st.integers(0, 1 << 30), FRACTIONS)
def test_chains_through_do_not_see_the_scale_of_a_channel(seed: int, fraction: float) -> None:
    """α on a channel's producer and 1/α on its consumers is the same network: the same channels are kept."""
    rng = np.random.default_rng(seed)
    dense = Dense.random(rng, inputs=1, relu=True)
    kept = []
    for network in (dense, dense.rescaled(rng)):
        with folder_with(network.model()) as (source, target):
            options = Options(Budget("kernels", fraction), "lean", "through", best_effort=True)
            try:
                kept.append(compress_file(source, target, options).alive)
            except ProofFailed as error:  # a network without a living path computes a constant
                assume("no output of the model can be compared" not in str(error))
                raise
    assert np.array_equal(*kept)


@FEW
@given(st.integers(0, 1 << 30), st.floats(0.02, 0.5), WAYS)
def test_every_input_still_moves_the_output(seed: int, fraction: float, way: dict) -> None:
    """Without activations nothing can hide an input: changing one alone changes the output of the compact network."""
    rng = np.random.default_rng(seed)
    proto = Dense.random(rng, inputs=2, relu=False).model()
    with folder_with(proto) as (source, target):
        compress_file(source, target, Options(Budget("kernels", fraction), best_effort=True, **way))
        assume(target.read_bytes() != source.read_bytes())
        feed = {f"x{k}": rng.standard_normal((1, 2, 6, 6)).astype(np.float32) for k in range(2)}
        feeds = [feed, *({**feed, name: feed[name] + 1} for name in feed)]
        base, *moved = (outputs[0] for outputs in run(target, feeds))
    for output in moved:
        assert np.abs(output - base).max() > 1e-6 * np.abs(base).max()


SLICED_AWAY = """
<ir_version: 8, opset_import: ["" : 17]>
sliced (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)
<float[6, 3, 1, 1] w, float[6, 6, 1, 1] v, float[2, 6, 1, 1] u, float[2, 8, 1, 1] t,
 int64[1] low = {4}, int64[1] high = {12}, int64[1] axis = {1}>
{
    c = Conv (x, w)
    d = Conv (c, v)
    e = Concat <axis = 1> (c, d)
    f = Slice (e, low, high, axis)
    g = Conv (f, t)
    h = Conv (c, u)
    y = Add (g, h)
}
"""


def test_plan_of_channels_that_are_concatenated_and_sliced_away_replays() -> None:
    """The plan does not mention a position that no kernel reads: it is always removed."""
    with folder_with(build(SLICED_AWAY)) as (source, target):
        plan, replayed = target.with_name("plan.json"), target.with_name("replayed.onnx")
        compress_file(source, target, Options(Budget("kernels", 0.7)), plan)
        compress_file(source, replayed, Options(plan=load_plan(plan)))
        assert replayed.read_bytes() == target.read_bytes()


TIED_READERS = """
<ir_version: 8, opset_import: ["" : 17]>
tied (float[1, 1, 1, 6] x) => (float[1, 4, 1, 6] y)
<float[6, 4] m, float[2, 2, 1, 1] w, float[4, 2, 1, 1] v, int64[1] zero = {0}, int64[1] two = {2}, int64[1] axis = {3},
 int64[2, 6] windows = {0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 0}, int64[4] sizes = {1, 2, 1, 6}>
{
    a = Slice (x, zero, two, axis)
    c = MatMul (x, m)
    d = Concat <axis = 3> (a, c)
    g = Gather <axis = 3> (d, windows)
    t = Transpose <perm = [0, 1, 3, 2, 4]> (g)
    f = Reshape (t, sizes)
    e = Conv (f, w)
    r = Relu (e)
    y = Conv (r, v)
}
"""


def test_positions_tied_to_a_useful_one_are_useful() -> None:
    """Positions of a Concat that a convolution slides over are read together, though edges lead from one only."""
    with folder_with(build(TIED_READERS)) as (source, target):
        result = compress_file(source, target, Options(Budget("kernels", 0.75), best_effort=True))
        assert result.proof.passed
