"""The original as a teacher: in torch where that gives what onnxruntime gives, else in onnxruntime."""

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
        return _by_onnxruntime(model, names, device), f"the teacher runs in onnxruntime, sample by sample: {error}"
    network.place(device)
    return taught, ""


def _by_onnxruntime(model: Model, known: tuple[str, ...], device: str) -> Teacher:
    """A teacher of the tensors that are known beforehand, with a session that lives as long as it does."""
    lasting = ExitStack()
    proto = in_float32(model.proto, float_kinds(model.proto) & OTHERS)
    with failing(), tapped(proto, known) as taps:
        session = lasting.enter_context(opened(taps, libraries=model.libraries))

    def teach(batch: Batch, names: tuple[str, ...]) -> list[Tensor]:
        arrays = {name: value.cpu().numpy() for name, value in batch.items()}
        count = len(next(iter(arrays.values())))
        with failing():
            rows = [finished(session, {name: value[k] for name, value in arrays.items()}) for k in range(count)]
        found = dict(zip(known, zip(*rows, strict=True), strict=True))
        return [torch.from_numpy(np.stack(found[name])).to(device) for name in names]

    weakref.finalize(teach, lasting.close)
    return teach
