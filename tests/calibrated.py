"""Networks on inputs of their own: what the tests of statistics, path mass and recovery begin with."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from leanonnx.analysis.closure import Closure
from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.numeric.channel_ids import Mask
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import plan_patch
from tests.helpers import build, saved

Array = NDArray[Any]
Feed = dict[str, Array]
HEAD = '<ir_version: {ir}, opset_import: ["" : {opset}]> net '


def net(interface: str, constants: str, body: str, seed: int = 0, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """A model from its parts in ONNX text, its constants random."""
    return build(f"{HEAD.format(opset=opset, ir=ir)}{interface} <{constants}> {{ {body} }}", seed)


def analysed(proto: onnx.ModelProto) -> ChannelDag:
    """The channel DAG of a model; its file is removed after the call."""
    with tempfile.TemporaryDirectory() as folder:
        return load_dag(saved(proto, Path(folder) / "model.onnx"))


@cache
def dag_of(interface: str, constants: str, body: str, seed: int = 0) -> ChannelDag:
    """The channel DAG of a model from its parts."""
    return analysed(net(interface, constants, body, seed))


def normal_feeds(dag: ChannelDag, count: int, seed: int = 0, batch: int = 1) -> list[Feed]:
    """Normal inputs with a mean other than 0; ``batch`` samples in each where that is free."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        feed = {}
        for value in dag.model.inputs:
            fixed = value.type.tensor_type.shape.dim[0].HasField("dim_value")
            shape = dag.shapes[value.name] if fixed else (batch, *dag.shapes[value.name][1:])
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feed[value.name] = (rng.standard_normal(shape) + 0.3).astype(kind)
        found.append(feed)
    return found


def values(proto: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> list[Array]:
    """Tensors of a network in onnxruntime, concatenated over the runs along axis 0."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(list(names), feed) for feed in feeds]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]


def keep(dag: ChannelDag, tensor: str, channels: Collection[int], axis: int = 1) -> Mask:
    """Keep mask of all channels but the unlisted ones of a tensor and their ties."""
    rows = np.moveaxis(dag.channel_ids[tensor], axis, 0).reshape(dag.channel_ids[tensor].shape[axis], -1)
    lost = [k for k in range(len(rows)) if k not in channels]
    kept = np.ones(int(dag.groups.max()) + 1, bool)
    kept[dag.groups[rows[lost].reshape(-1)]] = False
    return Closure(dag, dag.groups).alive_channels(kept)


def draft(dag: ChannelDag, alive: Mask) -> onnx.ModelProto:
    """The network without the removed channels."""
    return apply_patch(dag.model, plan_patch(dag, alive))


def deviation(dag: ChannelDag, proto: onnx.ModelProto, feeds: Sequence[Feed]) -> float:
    """‖difference‖ / ‖original‖ of all outputs together."""
    names = [value.name for value in dag.model.proto.graph.output]
    wanted, found = values(dag.model.proto, names, feeds), values(proto, names, feeds)
    flat, other = (np.concatenate([np.ravel(v).astype(float) for v in side]) for side in (wanted, found))
    return float(np.linalg.norm(flat - other) / np.linalg.norm(flat))


def smooth_images(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth images, of which a network can leave something out."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 3, 3)).repeat(3, 2).repeat(3, 3)[:, :, :8, :8]
    return (coarse + 0.3 * rng.standard_normal((count, 3, 8, 8))).astype(np.float32)
