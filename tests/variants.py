"""Networks as deployed in practice, compressed and compared with a reference that does not use channel ids.

The reference uses the plan alone: in the original file it zeroes the part of each mixing operator's weight that reads
removed input channels.  ``tests/test_variants_*.py`` have the networks, one kind each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from leanonnx.commands.compress import pipeline
from leanonnx.reporting.builders import pin_rows
from leanonnx.rules import advice
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.selection.metrics import Budget
from tests.helpers import Options, build, saved

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Sizes = Mapping[str, int]
Pins = Mapping[str, str]
"""A part of each reason that is expected, and the advice given with it."""

MATRICES = {"Gemm", "MatMul", "FusedGemm", "FusedMatMul"}
KERNELS = {"Conv", "FusedConv", "ConvTranspose"} | MATRICES
INWARD = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger"), (1, 1)),
    **dict.fromkeys(("ConvTranspose", "MatMulInteger", *MATRICES), (1, 0)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), (3, 0)),
    "QLinearConv": (3, 1),
}
"""Slot of an operator's weight, and axis of its input channels (for an untransposed weight)."""
ZEROS = {"QLinearConv": 5, "QLinearMatMul": 5, "QGemm": 5, "ConvInteger": 3, "MatMulInteger": 3}
"""Slot of the zero point of an integer operator's weight."""
PASSED_ON = ("Identity", "DequantizeLinear")


def network(signature: str, constants: str, body: str, opset: int = 17, domains: str = "") -> onnx.ModelProto:
    """A model from its signature, its constants (random where no value is given) and its nodes."""
    head = f'<ir_version: {8 if opset < 19 else 10}, opset_import: ["" : {opset}{domains}]>'
    return build(f"{head}\nnet {signature}\n<{constants}>\n{{{body}}}")


def given(proto: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    """The model with the values of named constants replaced."""
    for name, value in values.items():
        for tensor in [t for t in proto.graph.initializer if t.name == name]:
            proto.graph.initializer.remove(tensor)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return proto


@dataclass(frozen=True)
class Outcome:
    """A compression: the model before and after, the tensors of the plan, and the messages."""

    source: onnx.ModelProto
    target: onnx.ModelProto
    tensors: Mapping[str, Any]
    result: pipeline.CompressResult

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Sizes of the constants of the compressed model."""
        return {t.name: list(t.dims) for t in self.target.graph.initializer}

    @property
    def pins(self) -> dict[str, str]:
        """Reasons and advice of all pins but those of the graph's inputs and outputs."""
        rows = pin_rows(self.result.dag, self.result.alive)
        return {row.reason: row.advice for row in rows if row.advice != advice.FIXED_INTERFACE}


def compress(
    proto: onnx.ModelProto,
    folder: Path,
    keep: float = 0.5,
    unit: str = "kernels",
    rules: Rules = DEFAULT_RULES,
    **options: Any,
) -> Outcome:
    """Compress a model; check that the proof passes, the budget is met and the interface is unchanged."""
    source, target, plan = saved(proto, folder / "in.onnx"), folder / "out.onnx", folder / "plan.json"
    asked = Options(Budget(unit, keep), **options)
    result = pipeline.compress_file(source, target, asked, plan, rules)
    found = onnx.load(target)
    assert result.proof.passed
    assert result.warnings == ()
    assert 0 < getattr(result.after, unit) <= keep * getattr(result.before, unit)
    assert unit != "kernels" or 0 < kernels(found) <= keep * kernels(proto)
    assert_same_interface(proto, found)
    return Outcome(proto, found, json.loads(plan.read_text())["tensors"], result)


def assert_same_interface(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Check that inputs, outputs, versions and types of constants are the same.

    New constants are indices, sizes, factors of means, and narrower copies of constants that others read whole.
    """
    assert list(one.graph.input) == list(other.graph.input)
    assert list(one.graph.output) == list(other.graph.output)
    assert (one.ir_version, list(one.opset_import)) == (other.ir_version, list(other.opset_import))
    before, after = ({t.name: t.data_type for t in proto.graph.initializer} for proto in (one, other))
    own = {name: kind for name, kind in after.items() if kind not in (TensorProto.INT64, TensorProto.BOOL)}
    own = {name: kind for name, kind in own.items() if "_scale_lean" not in name}
    origins = {name: name if name in before else name.rpartition("_lean")[0] for name in own}
    assert own == {name: before.get(origin) for name, origin in origins.items()}


def checked(
    proto: onnx.ModelProto,
    folder: Path,
    sizes: Iterable[Sizes] = ({},),
    bound: float = 1e-4,
    zeroed: bool = False,
    **options: Any,
) -> Outcome:
    """Compress a model and compare it with the reference, at each of some sizes of its free axes.

    ``zeroed``: removed channels are reduced together with others, so the reference must set them to zero.
    """
    done = compress(proto, folder, **options)
    reference = (without if zeroed else masked)(proto, done.tensors)
    for free in sizes:
        feed = random_feed(proto, free)
        wanted, found = run(reference, feed), run(done.target, feed)
        worst = max(distance(*pair) for pair in zip(wanted, found, strict=True))
        assert worst <= bound, f"it differs from the reference by {worst}"
    return done


def assert_pins(done: Outcome, expected: Pins) -> None:
    """Check that every pin has one of the expected reasons with its advice, and that every expected one occurs."""
    found = {text: pin for text in expected for reason, pin in done.pins.items() if text in reason}
    assert [reason for reason in done.pins if not any(text in reason for text in expected)] == []
    assert found == expected


def masked(proto: onnx.ModelProto, tensors: Mapping[str, Any]) -> onnx.ModelProto:
    """The original with weights set to zero (or their zero point) for the input channels that a plan drops."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    held = {t.name: t for t in copy.graph.initializer}
    behind = {node.output[0]: node for node in copy.graph.node if node.op_type in PASSED_ON}
    for node in copy.graph.node:
        slot, axes = inward(node, held)
        name, zero = _holder(node.input[slot], behind) if axes else ("", "")
        at = ZEROS.get(node.op_type, len(node.input))
        zero = zero or (node.input[at] if at < len(node.input) else "")
        for axis in axes if name in held and name in tensors else ():
            _clear(held[name], axis, tensors[name]["kept"][axis], held.get(zero))
    return copy


def without(proto: onnx.ModelProto, tensors: Mapping[str, Any]) -> onnx.ModelProto:
    """The original with constants set to zero wherever a plan drops anything, so that removed channels are zero."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in copy.graph.initializer:
        for axis, kept in enumerate(tensors[tensor.name]["kept"] if tensor.name in tensors else ()):
            _clear(tensor, axis, kept, None)
    return copy


def inward(node: onnx.NodeProto, held: Mapping[str, TensorProto]) -> tuple[int, list[int]]:
    """The slot in which a node reads its weight, and the axes on which that has the input channels."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Einsum" and set(node.input) & set(held):
        slot = next(k for k, name in enumerate(node.input) if name in held)
        terms, _, result = attributes["equation"].decode().partition("->")
        return slot, [axis for axis, letter in enumerate(terms.split(",")[slot]) if letter not in result]
    if node.op_type not in INWARD:
        return 0, []
    slot, axis = INWARD[node.op_type]
    return slot, [1 - axis if attributes.get("transB") else axis]


def _holder(name: str, behind: Mapping[str, onnx.NodeProto]) -> tuple[str, str]:
    """The initializer of a weight, and its zero point if it is dequantised."""
    zero = ""
    while name in behind:
        node = behind[name]
        zero = node.input[2] if len(node.input) > 2 else zero
        name = node.input[0]
    return name, zero


def _clear(tensor: TensorProto, axis: int, kept: list[int] | None, zero: TensorProto | None) -> None:
    """Replace the slices of a weight that are not kept by its zero point (one number, or one per output channel)."""
    if kept is None:
        return
    array = numpy_helper.to_array(tensor)
    other = [-1 if k == 1 - axis else 1 for k in range(array.ndim)]
    fill = np.zeros([], array.dtype) if zero is None else numpy_helper.to_array(zero)
    new = np.array(np.broadcast_to(fill.reshape(other) if fill.size > 1 else fill.reshape([]), array.shape))
    index = (slice(None),) * axis + (kept,)
    new[index] = array[index]
    tensor.CopyFrom(numpy_helper.from_array(new.astype(array.dtype), tensor.name))


def random_feed(proto: onnx.ModelProto, free: Sizes | None = None, seed: int = 5) -> dict[str, Array]:
    """Normal inputs (integers: 0 or 1) of the declared sizes; free axes by their name, else 1."""
    rng = np.random.default_rng(seed)
    fixed = {t.name for t in proto.graph.initializer}
    feed = {}
    for value in [v for v in proto.graph.input if v.name not in fixed]:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value if d.HasField("dim_value") else (free or {}).get(d.dim_param, 1) for d in dims]
        draw = rng.integers(0, 2, shape) if kind.kind in "iub" else rng.standard_normal(shape)
        feed[value.name] = np.asarray(draw).astype(kind)
    return feed


def run(proto: onnx.ModelProto, feed: Feed, libraries: Sequence[str] = ()) -> list[Array]:
    """Outputs in onnxruntime, unfused (8-bit kernels round on the way if fused)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    for library in libraries:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feed))]


def distance(wanted: Array, found: Array) -> float:
    """‖wanted - found‖ / ‖wanted‖, of outputs that are of the same shape, finite and not all zero."""
    assert wanted.shape == found.shape
    one, other = wanted.astype(np.float64), found.astype(np.float64)
    assert np.isfinite(one).all()
    assert wanted.dtype.kind in "iub" or np.linalg.norm(one) > 0
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(one), 1.0))


def kernels(proto: onnx.ModelProto) -> int:
    """Rows × columns of the constant weights of Conv, ConvTranspose, Gemm and MatMul, once per node."""
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in PASSED_ON and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    weights = [
        (n.op_type, shapes[n.input[1]]) for n in proto.graph.node if n.op_type in KERNELS and n.input[1] in shapes
    ]
    return sum(math.prod(shape[-2:] if op in MATRICES else shape[:2]) for op, shape in weights)
