"""The original as a teacher: in torch where that gives what onnxruntime gives, else in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch

from leanonnx.errors import ModelError, ProofFailed
from leanonnx.finetuning.batching import Batch, batched
from leanonnx.finetuning.lessons import Teacher
from leanonnx.finetuning.module import Network
from leanonnx.finetuning.operators.call import Tensor
from leanonnx.finetuning.trip import round_trip
from leanonnx.graph.formats import OTHERS, float_kinds, in_float32
from leanonnx.graph.model import Model
from leanonnx.runtime.sessions import Feed, run


def teacher_of(model: Model, feeds: Sequence[Feed], names: tuple[str, ...], device: str) -> tuple[Teacher, str]:
    """What gives the teacher's tensors on a batch, and a note where it is slow.

    Args:
        model: the original.
        feeds: some of its inputs.
        names: tensors that will be asked for.
        device: where batches are, and the tensors are to be.
    """
    try:
        network = Network(model, ()).eval()
        round_trip(model, model.proto, network, feeds)
        taught = batched(network, feeds, names)
    except (ModelError, ProofFailed) as error:
        return _by_onnxruntime(model, device), f"the teacher runs in onnxruntime, sample by sample: {error}"
    network.place(device)
    return taught, ""


def _by_onnxruntime(model: Model, device: str) -> Teacher:
    kinds = float_kinds(model.proto) & OTHERS
    proto = in_float32(model.proto, kinds) if kinds else model.proto

    def teach(batch: Batch, names: tuple[str, ...]) -> list[Tensor]:
        tapped = onnx.ModelProto()
        tapped.CopyFrom(proto)
        del tapped.graph.output[:]
        tapped.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
        arrays = {name: value.cpu().numpy() for name, value in batch.items()}
        feeds = [{name: value[k] for name, value in arrays.items()} for k in range(len(next(iter(arrays.values()))))]
        rows = run(tapped, feeds, libraries=model.libraries)
        return [torch.from_numpy(np.stack(values)).to(device) for values in zip(*rows, strict=True)]

    return teach
