"""The original as a teacher: run in torch if that agrees with onnxruntime, else in onnxruntime."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeAlias

import numpy as np
import torch

from leanonnx.commands.finetune.batching import Batch, batched_network
from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.parity import round_trip
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.graph.formats import REPLACED_TYPES, convert_to_float32, float_types
from leanonnx.graph.model import Model
from leanonnx.runtime.probes import expose_tensors
from leanonnx.runtime.sessions import Feed, open_session, run_session, translate_errors

Teacher: TypeAlias = Callable[[Batch, "tuple[str, ...]"], "list[Tensor]"]


def open_teacher(model: Model, feeds: Sequence[Feed], names: tuple[str, ...], device: str) -> tuple[Teacher, str]:
    """Return a function that computes the teacher's tensors on a batch, and a note if it is slow.

    Args:
        model: the original.
        feeds: some of its inputs.
        names: the tensors to compute.
        device: device of the batches and of the result.
    """
    try:
        network = TorchNetwork(model, ()).eval()
        round_trip(model, model.proto, network, feeds)
        teacher = batched_network(network, feeds, names)
    except (ModelError, ProofFailed) as error:
        return _onnxruntime_teacher(model, names, device), f"the teacher runs in onnxruntime, sample by sample: {error}"
    network.place(device)
    return teacher, ""


def _onnxruntime_teacher(model: Model, known: tuple[str, ...], device: str) -> Teacher:
    """A teacher run in onnxruntime; its session is closed when the returned function is deleted."""
    resources = ExitStack()
    proto = convert_to_float32(model.proto, float_types(model.proto) & REPLACED_TYPES)
    with translate_errors(), expose_tensors(proto, known) as taps:
        session = resources.enter_context(open_session(taps, libraries=model.libraries))

    def teach(batch: Batch, names: tuple[str, ...]) -> list[Tensor]:
        arrays = {name: value.cpu().numpy() for name, value in batch.items()}
        count = len(next(iter(arrays.values())))
        with translate_errors():
            rows = [run_session(session, {name: value[k] for name, value in arrays.items()}) for k in range(count)]
        by_name = dict(zip(known, zip(*rows, strict=True), strict=True))
        return [torch.from_numpy(np.stack(by_name[name])).to(device) for name in names]

    weakref.finalize(teach, resources.close)
    return teach
