"""Judge one rewritten model against its original, or against the original masked by a plan, without leanonnx.

    python -m benchmarks.oodte_judge ORIGINAL RESULT [--plan P.json] [--inputs DATA.npz] [--sizes JSON]

The mask is made here from the plan alone: the entries that it removes become zero in the original's weights. Both are
run in onnxruntime on the same inputs. Prints one JSON object; a crash of onnxruntime ends this process alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

MAX_SAMPLES = 16
RANDOM_SAMPLES = 4
FREE_SIZE = 64
"""Size of a free axis, other than the first, that nobody gave."""
TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(uint8)": np.uint8}
TYPES |= {"tensor(float16)": np.float16, "tensor(double)": np.float64}
ZERO_POINT_SLOTS = {
    ("DequantizeLinear", 0): 2,
    ("QLinearConv", 3): 5,
    ("QLinearMatMul", 3): 5,
    ("ConvInteger", 1): 3,
    ("MatMulInteger", 1): 3,
}
"""Slots of integer weights, with the slot of their zero point."""
UNMASKED = {"Div": (1,), "Pow": (1,), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}
UNMASKED |= {"QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QGemm": (1, 2, 4, 5, 7, 8)}
UNMASKED |= {"ConvInteger": (2, 3), "MatMulInteger": (2, 3)}
"""Slots in which a zero would not silence a channel, but divide by it."""
Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Row = dict[str, Any]


class NotMaskable(Exception):
    """A plan says too little to mask the original by it."""


def mask_by_plan(original: Path, plan: Mapping[str, Any]) -> onnx.ModelProto:
    """The original with zeros in the entries of its weights that a plan removes.

    Raises:
        NotMaskable: the readers of a constant keep different entries, or its zero points differ.
    """
    proto = onnx.load(original)
    constants = _constants(proto)
    for name, entry in plan["tensors"].items():
        if all(kept is None for kept in entry["kept"]):
            continue
        if entry.get("others"):
            raise NotMaskable(f"the readers of '{name}' keep different entries of it")
        array = constants[name] if name in constants else _computed(original, name)
        readers = [(node, k) for node in proto.graph.node for k, each in enumerate(node.input) if each == name]
        if any(k in UNMASKED.get(node.op_type, ()) for node, k in readers):
            continue
        fill = 0 if array.dtype.kind == "f" or not readers else _zero_point(readers, constants)
        if fill is None:
            continue
        array = array.copy()
        for axis, kept in enumerate(entry["kept"]):
            if kept is not None:
                removed = np.setdiff1d(np.arange(array.shape[axis]), kept)
                array[(slice(None),) * axis + (removed,)] = fill
        _replace(proto, name, array)
    return proto


def _constants(proto: onnx.ModelProto) -> Feed:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return values


def _computed(original: Path, name: str) -> Array:
    """Value of a constant that the file computes from others."""
    proto = onnx.load(original)
    proto.graph.output.add(name=name)
    session = _session(proto)
    return np.asarray(session.run([name], random_feeds(session, {})[0])[0])


def _zero_point(readers: Sequence[tuple[onnx.NodeProto, int]], constants: Feed) -> int | None:
    """The number that stands for zero in an integer constant; None for one that is no weight, such as a shape."""
    points: set[int] = set()
    for node, k in readers:
        slot = ZERO_POINT_SLOTS.get((node.op_type, k))
        if slot is None:
            if node.op_type in ("QLinearConv", "QGemm"):
                return 0  # its bias
            return None
        name = node.input[slot] if slot < len(node.input) else ""
        points |= set(constants[name].reshape(-1).tolist()) if name else {0}
    if len(points) > 1:
        raise NotMaskable(f"'{readers[0][0].input[readers[0][1]]}' has more than one zero point")
    return points.pop()


def _replace(proto: onnx.ModelProto, name: str, array: Array) -> None:
    """Put an array in the place of a constant, or of the output of a node."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
    for known in proto.graph.initializer:
        if known.name == name:
            known.CopyFrom(tensor)
            return
    for node in proto.graph.node:
        for k, output in enumerate(node.output):
            if output == name:
                node.output[k] = f"{name}_before_masking"
    proto.graph.initializer.append(tensor)


def _session(proto: onnx.ModelProto | Path, optimise: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def random_feeds(session: ort.InferenceSession, sizes: Mapping[str, Sequence[int]]) -> list[Feed]:
    """Standard normal numbers for inputs that are float, zeros and ones for others."""
    rng = np.random.default_rng(0)
    feeds: list[Feed] = [{} for _ in range(RANDOM_SAMPLES)]
    for value in session.get_inputs():
        declared = [n if isinstance(n, int) else 1 if k == 0 else FREE_SIZE for k, n in enumerate(value.shape)]
        shape = tuple(sizes.get(value.name, declared))
        kind = np.dtype(TYPES.get(value.type, np.float32))
        for feed in feeds:
            draws = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
            feed[value.name] = np.asarray(draws).astype(kind)
    return feeds


def real_feeds(session: ort.InferenceSession, path: Path) -> list[Feed]:
    """The first samples of a file whose arrays are named after the graph inputs, axis 0 counting samples."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    feeds: list[Feed] = []
    for k in range(MAX_SAMPLES):
        feed = {}
        for value in session.get_inputs():
            array = arrays[value.name]
            if array.ndim > len(value.shape):
                feed[value.name] = array[k] if k < len(array) else array
                enough = k < len(array)
            else:
                batch = value.shape[0] if value.shape and isinstance(value.shape[0], int) else 1
                feed[value.name] = array[k * batch : (k + 1) * batch]
                enough = len(feed[value.name]) == batch
            if not enough:
                return feeds
        feeds.append(feed)
    return feeds


def moved_feed(feed: Feed) -> Feed:
    """Inputs whose floats are moved by one unit of the last place: what the network makes of mere rounding."""
    return {
        name: np.nextafter(value, np.inf, dtype=value.dtype) if value.dtype.kind == "f" else value
        for name, value in feed.items()
    }


def difference(wanted: Array, computed: Array) -> float:
    """Largest difference as a share of the largest number; of integers and text, the share of unequal elements."""
    if wanted.shape != computed.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    if wanted.dtype.kind != "f":
        return float((wanted != computed).mean())
    one, two = wanted.astype(np.float64), computed.astype(np.float64)
    known = np.isfinite(one)
    if not np.array_equal(known, np.isfinite(two)):
        return float("inf")
    gap = np.abs(one[known] - two[known]).max(initial=0)
    return float(gap / max(np.abs(one[known]).max(initial=0), 1e-30))


def is_classifier(outputs: Sequence[Array]) -> bool:
    """True for a single output with one vector of scores for each sample."""
    shape = [n for n in outputs[0].shape[1:] if n > 1]
    return len(outputs) == 1 and outputs[0].dtype.kind == "f" and outputs[0].ndim > 1 and len(shape) == 1


def compare(wanted: Sequence[Sequence[Array]], computed: Sequence[Sequence[Array]]) -> float:
    """The largest difference over all inputs and outputs."""
    pairs = [(a, b) for one, two in zip(wanted, computed, strict=True) for a, b in zip(one, two, strict=True)]
    return max(difference(a, b) for a, b in pairs)


def check(path: Path) -> str:
    """The reason why a file is not valid; empty if it is."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        _session(path)
    except Exception as error:  # noqa: BLE001 - whatever the checker or onnxruntime raises is the result
        return str(error).splitlines()[0][:200]
    return ""


def judge(
    original: Path, result: Path, plan: Mapping[str, Any] | None, data: Path | None, sizes: Mapping[str, Sequence[int]]
) -> Row:
    """Judgement on a model: is it valid, how far are its outputs, and how far is the original from itself."""
    objection = check(result)
    if objection and not check(original):
        return {"status": "invalid", "message": objection}
    with tempfile.TemporaryDirectory() as folder:
        reference = original
        if plan is not None:
            try:
                proto = mask_by_plan(original, plan)
            except NotMaskable as error:
                return {"status": "not masked", "message": str(error)}
            reference = Path(folder) / "masked.onnx"
            onnx.save(proto, reference)
        session = _session(reference)
        feeds = real_feeds(session, data) if data else random_feeds(session, sizes)
        names = [value.name for value in session.get_outputs()]
        wanted, plain, computed = (
            [[np.asarray(value) for value in runner.run(names, feed)] for feed in feeds]
            for runner in (session, _session(reference, optimise=False), _session(result))
        )
        moved = [[np.asarray(value) for value in session.run(names, moved_feed(feed))] for feed in feeds]
    own = max(compare(wanted, plain), compare(wanted, moved))
    row = {"status": "compared", "difference": compare(wanted, computed), "own": own}
    row |= {"inputs": len(feeds), "real": data is not None, "classifier": is_classifier(wanted[0])}
    if row["classifier"]:
        one, two = (np.concatenate([np.argmax(r[0].reshape(len(r[0]), -1), 1) for r in s]) for s in (wanted, computed))
        row |= {"decisions": len(one), "changed_decisions": int((one != two).sum())}
    return row


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oodte_judge", description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--sizes", type=json.loads, default={})
    args = parser.parse_args(argv)
    plan = json.loads(args.plan.read_text()) if args.plan else None
    print(json.dumps(judge(args.original, args.result, plan, args.inputs, args.sizes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
