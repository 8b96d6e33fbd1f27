"""The original as a teacher: run in torch if that agrees with onnxruntime, else in onnxruntime."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch

from leanonnx.commands.finetune.batching import Batch, batched
from leanonnx.commands.finetune.module import Network
from leanonnx.commands.finetune.objectives import Teacher
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.parity import round_trip
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.graph.formats import OTHERS, float_kinds, in_float32
from leanonnx.graph.model import Model
from leanonnx.runtime.probes import tapped
from leanonnx.runtime.sessions import Feed, failing, finished, opened


def open_teacher(model: Model, feeds: Sequence[Feed], names: tuple[str, ...], device: str) -> tuple[Teacher, str]:
    """Return a function that computes the teacher's tensors on a batch, and a note if it is slow.

    Args:
        model: the original.
        feeds: some of its inputs.
        names: the tensors to compute.
        device: device of the batches and of the result.
    """
    try:
        network = Network(model, ()).eval()
        round_trip(model, model.proto, network, feeds)
        teacher = batched(network, feeds, names)
    except (ModelError, ProofFailed) as error:
        return _onnxruntime_teacher(model, names, device), f"the teacher runs in onnxruntime, sample by sample: {error}"
    network.place(device)
    return teacher, ""


def _onnxruntime_teacher(model: Model, known: tuple[str, ...], device: str) -> Teacher:
    """A teacher run in onnxruntime; its session is closed when the returned function is deleted."""
    resources = ExitStack()
    proto = in_float32(model.proto, float_kinds(model.proto) & OTHERS)
    with failing(), tapped(proto, known) as taps:
        session = resources.enter_context(opened(taps, libraries=model.libraries))

    def teach(batch: Batch, names: tuple[str, ...]) -> list[Tensor]:
        arrays = {name: value.cpu().numpy() for name, value in batch.items()}
        count = len(next(iter(arrays.values())))
        with failing():
            rows = [finished(session, {name: value[k] for name, value in arrays.items()}) for k in range(count)]
        by_name = dict(zip(known, zip(*rows, strict=True), strict=True))
        return [torch.from_numpy(np.stack(by_name[name])).to(device) for name in names]

    weakref.finalize(teach, resources.close)
    return teach
