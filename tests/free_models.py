"""Random small models with free axes: batch, height, width or length, and arithmetic of sizes of all kinds.

``models`` draws them with the sizes at which they are to be run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.at_sizes import runs_at
from tests.graph_blocks import BLOCKS, best_pixels
from tests.graph_builder import IR_VERSIONS, Choose, Tensor, dense
from tests.graph_folds import FOLDS
from tests.graph_free import COUNT, FreeBuilder, Size, free, values_of
from tests.graph_moves import MOVES, gather_pixels, grid, split
from tests.graph_sizes import SIZES
from tests.graph_steps import STEPS, Step, conv, conv_of, gemm, join_constant

BATCHES = ((1, 3, 2, 1009, 2003), (1, 2, 3, 1009, 2003), (2, 3, 1, 1009, 2003))
PIXELS = (
    ((4, 8, 6, 24 * 101, 24 * 173), (6, 4, 10, 24 * 409, 24 * 103)),
    ((6, 10, 12, 24 * 101, 24 * 173), (4, 8, 6, 24 * 409, 24 * 103)),
    ((5, 7, 9, 3001, 4001), (4, 6, 5, 5003, 6007)),
)
LENGTHS = ((8, 12, 20, 24 * 101, 24 * 173), (6, 10, 9, 3001, 4001))
CUBES = ((4, 6, 4, 24 * 101, 24 * 173), (4, 4, 6, 24 * 409, 24 * 103), (2, 4, 6, 24 * 67, 24 * 311))
FIXED: set[Step] = {gather_pixels, grid, split, gemm, join_constant, best_pixels}
"""Steps that write the number of pixels into a constant."""
USUAL = [step for step in (*STEPS, *MOVES, *BLOCKS) if step not in FIXED]
MOST_OUTPUTS = 4

Shapes = dict[str, tuple[int, ...]]


class FreeModel(NamedTuple):
    """A model, and shapes of its inputs that differ in every free axis; the first is the one to be observed at."""

    proto: onnx.ModelProto
    sizes: tuple[Shapes, ...]


def build(choose: Choose) -> FreeModel:
    """Draw a model: one or two inputs of the same sizes, a random DAG of steps, one to four outputs."""
    b = FreeBuilder(choose)
    inputs = _inputs(b)
    for tensor in inputs:
        if tensor.axis == 1:
            conv_of(b, tensor, b.one_of((4, 6, 8, 12)), groups=1)
        else:
            out = b.one_of((4, 6, 8))
            weight = b.weight((tensor.channels, out), tensor.channels, 1)
            b.put(tensor.resized(out), "MatMul", [tensor.name, weight], 2)
    for _ in range(b.between(1, 8)):
        b.attempt(conv if b.chance(4) else b.one_of((*SIZES, *FOLDS)) if b.chance(2) else b.one_of(USUAL))
    outputs = _outputs(b, inputs)
    order = np.roll(range(COUNT), b.choose(COUNT))
    sizes = tuple({t.name: tuple(values_of(n, COUNT)[k] for n in t.shape) for t in inputs} for k in order)
    return FreeModel(_model(b, inputs, outputs), sizes)


def _inputs(b: FreeBuilder) -> list[Tensor]:
    """Images, signals, volumes or tokens; the batch, or the sizes, or both are free."""
    kind, which = (
        b.one_of(("image", "image", "image", "signal", "tokens", "volume")),
        b.one_of(("all", "all", "batch", "sizes")),
    )
    axes = {
        "image": b.one_of(PIXELS),
        "signal": (b.one_of(LENGTHS),),
        "tokens": (b.one_of(LENGTHS),),
        "volume": CUBES,
    }[kind]
    batch = b.one_of(BATCHES)
    lead = batch[0] if which == "sizes" else Size(batch)
    sizes = [values[0] if which == "batch" else Size(values) for values in axes]
    found = []
    for k in range(2 if b.chance(4) else 1):
        channels = b.between(1, 3)
        shape = (lead, *sizes, channels + 1) if kind == "tokens" else (lead, channels, *sizes)
        found.append(b.offer(Tensor(f"input_{k}", shape, 2 if kind == "tokens" else 1)))
    return found


def _outputs(b: FreeBuilder, inputs: list[Tensor]) -> list[Tensor]:
    """End every tensor that nothing reads in a layer of its own; what has the same shape then is summed up."""
    read = {name for node in b.nodes for name in node.input}
    leaves = [t for t in b.tensors if t.name not in read and t not in inputs] or [b.tensors[-1]]
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for leaf in leaves:
        head = _head(b, leaf)
        groups.setdefault(head.shape, []).append(head)
    outputs = [_summed(b, group) for group in groups.values()][-MOST_OUTPUTS:]
    extra = b.pick(lambda t: t not in inputs)
    if extra is not None and b.chance(6):
        outputs.append(extra)
    return list(dict.fromkeys(outputs))


def _summed(b: FreeBuilder, heads: list[Tensor]) -> Tensor:
    if len(heads) == 1:
        return heads[0]
    return Tensor(b.node("Sum", [head.name for head in heads])[0], heads[0].shape)


def _head(b: FreeBuilder, leaf: Tensor) -> Tensor:
    """Three numbers for each pixel or token, or for the whole, from the channels of a tensor."""
    if free(leaf.channels):
        return leaf
    if leaf.is_image and b.chance(2):
        head = conv_of(b, leaf, 3, 1, same=True)
        b.tensors.remove(head)
        return head
    if leaf.axis == len(leaf.shape) - 1 and b.chance(2):
        weight = b.weight((leaf.channels, 3), leaf.channels, 1)
        return Tensor(b.node("MatMul", [leaf.name, weight])[0], leaf.resized(3), leaf.axis)
    axes = [k for k in range(1, len(leaf.shape)) if k != leaf.axis]
    if not axes:
        return dense(b, leaf, 3)
    flat = b.axes_node("ReduceMean", [leaf.name], axes, 18, keepdims=0)
    return dense(b, Tensor(flat, (leaf.shape[0], leaf.channels)), 3)


def _model(b: FreeBuilder, inputs: list[Tensor], outputs: list[Tensor]) -> onnx.ModelProto:
    nameless = b.chance(4)
    values = [_declared(t.name, _axes(t, nameless)) for t in inputs]
    results = [_declared(t.name, [None] * len(t.shape)) for t in outputs]
    graph = helper.make_graph(b.nodes, "random", values, results, b.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=IR_VERSIONS[b.opset])


def _axes(t: Tensor, nameless: bool) -> list[int | str | None]:
    """Sizes of a graph input: names of free axes, or nothing."""
    return [n if not free(n) else None if nameless else f"axis_{k}" for k, n in enumerate(t.shape)]


def _declared(name: str, axes: list[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)


def from_seed(seed: int) -> FreeModel:
    """The model of a seed."""
    rng = np.random.default_rng(seed)
    return build(lambda n: int(rng.integers(n)))


@st.composite
def _drawn(draw: st.DrawFn) -> FreeModel:
    return build(lambda n: draw(st.integers(0, n - 1)) if n > 1 else 0)


def models() -> st.SearchStrategy[FreeModel]:
    """Random models: drawn choice by choice, which shrinks well, or by a seed, which gives larger ones."""
    return st.one_of(_drawn(), st.integers(0, 1 << 32).map(from_seed)).filter(accepted)


def accepted(model: FreeModel) -> bool:
    """True if the model runs at all sizes and the checker accepts it (it rejects a Resize to an empty size)."""
    try:
        onnx.checker.check_model(model.proto, full_check=True)
    except onnx.shape_inference.InferenceError:
        return False
    return len(runs_at(model.proto, model.proto.graph.input, model.sizes)) == len(model.sizes)
