"""Random small ONNX models: start, steps and end.

A model is drawn through one function ``choose(n) -> 0 … n-1``, so that hypothesis shrinks it and a plain random
generator can draw it fast.  The steps are in ``graph_steps``, ``graph_moves`` and ``graph_blocks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.graph_blocks import BLOCKS
from tests.graph_builder import IR_VERSIONS, Builder, Choose, Tensor, dense
from tests.graph_moves import MOVES
from tests.graph_steps import STEPS, Step, conv, conv_of


def build(choose: Choose, blocks: Sequence[Step] = ()) -> onnx.ModelProto:
    """Draw a model: one or two inputs, a random DAG of steps (half of them ``blocks``), one or two outputs."""
    b = Builder(choose)
    inputs = _inputs(b)
    for tensor in inputs:
        conv_of(b, tensor, b.one_of((4, 6, 8, 12)), groups=1)
    for _ in range(b.between(1, 14)):
        if blocks and b.chance(2):
            b.one_of(blocks)(b)
        else:
            (conv if b.chance(4) else b.one_of((*STEPS, *MOVES, *BLOCKS)))(b)
    return _finished(b, inputs)


def _inputs(b: Builder) -> list[Tensor]:
    spatial = b.one_of(((6, 6), (8, 8), (4, 6), (12,), (4, 4, 4)))
    batch = b.between(1, 2) if b.fixed_batch else 1
    shapes = [(batch, b.between(1, 3), *spatial) for _ in range(2 if b.chance(4) else 1)]
    return [b.offer(Tensor(f"input_{k}", shape)) for k, shape in enumerate(shapes)]


def _finished(b: Builder, inputs: list[Tensor]) -> onnx.ModelProto:
    """Feed every unread tensor to a dense layer of its own, and return the sum of these."""
    read = {name for node in b.nodes for name in node.input}
    leaves = [t for t in b.tensors if t.name not in read and t not in inputs and not b.chance(12)]
    heads = [dense(b, leaf, 3) for leaf in leaves or [b.tensors[-1]]]
    total = b.node("Sum", [head.name for head in heads])[0] if len(heads) > 1 else heads[0].name
    outputs = [Tensor(total, heads[0].shape)]
    extra = b.pick(lambda t: t not in inputs)
    if extra is not None and b.chance(5):
        outputs.append(extra)
    return _model(b, inputs, outputs)


def _model(b: Builder, inputs: list[Tensor], outputs: list[Tensor]) -> onnx.ModelProto:
    listed = [t for t in b.initializers if b.chance(3)] if b.chance(4) else []
    values = [_declared(t.name, ["N" if not b.fixed_batch else t.shape[0], *t.shape[1:]]) for t in inputs]
    values += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in listed]
    results = [_declared(t.name, [None] * len(t.shape)) for t in outputs]
    graph = helper.make_graph(b.nodes, "random", values, results, b.initializers, doc_string="a random graph")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=IR_VERSIONS[b.opset])
    model.producer_name, model.model_version, model.doc_string = "tests", 7, "a random model"
    helper.set_model_props(model, {"kind": "random", "opset": str(b.opset)})
    return onnx.shape_inference.infer_shapes(model) if b.chance(3) else model


def _declared(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def from_seed(seed: int, blocks: Sequence[Step] = ()) -> onnx.ModelProto:
    """The model of a seed."""
    rng = np.random.default_rng(seed)
    return build(lambda n: int(rng.integers(n)), blocks)


@st.composite
def _drawn(draw: st.DrawFn, blocks: Sequence[Step]) -> onnx.ModelProto:
    return build(lambda n: draw(st.integers(0, n - 1)) if n > 1 else 0, blocks)


def models(blocks: Sequence[Step] = ()) -> st.SearchStrategy[onnx.ModelProto]:
    """Random models: drawn choice by choice, which shrinks well, or by a seed, which gives larger ones."""
    return st.one_of(_drawn(blocks), st.integers(0, 1 << 32).map(lambda seed: from_seed(seed, blocks)))


def saved(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """The model as a file."""
    path = folder / name
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path
