"""The draft of a result, recovered where that brings its outputs nearer to the original's on samples held out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.data.samples import Data, batch_size
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.evaluation.deviation import Fidelity, compare
from leanonnx.evaluation.slices import bounded, channel_axes
from leanonnx.graph.formats import Source
from leanonnx.graph.model import check
from leanonnx.graph.storage import write_model
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.recover import RefitLayer, recover
from leanonnx.runtime.sessions import RunFailed
from leanonnx.system.clock import Clock
from leanonnx.system.outputs import publish

ENOUGH = 128
"""Samples below which more would help much."""
SPLITS = ((400, 10), (5, 5), (0, 0))
"""From so many samples on, one in so many is held out."""
HELD_BYTES = 1 << 33
"""Bytes of activations that may be held at once; more samples than fit are left out."""


@dataclass(frozen=True)
class Recovery:
    """How near a compressed network comes to the original on real inputs.

    ``samples`` were used to change weights and ``held_out`` others to judge; ``removed`` is the deviation of the bare
    network, ``recovered`` that with its weights changed (None: that was declined); ``kept`` tells whether they were.
    ``layers`` says what was done.
    """

    samples: int
    held_out: int
    removed: Fidelity
    recovered: Fidelity | None
    kept: bool
    layers: tuple[RefitLayer, ...]

    @property
    def final(self) -> Fidelity:
        """The deviation of what is written."""
        return self.recovered if self.recovered and self.kept else self.removed


def split(data: Data) -> tuple[Data, Data | None]:
    """The samples that weights are fitted to, and others to judge by; None where they are too few to spare any."""
    every = next(every for least, every in SPLITS if data.count >= least)
    if not every:
        return data, None
    held = data.part(held_out=True, every=every)
    return (data.part(held_out=False, every=every), held) if held.count > held.dropped else (data, None)


def parts(dag: ChannelDag, data: Data) -> tuple[Data, Data | None]:
    """``split`` of as many of the samples as the activations of both networks fit into memory for."""
    return split(data.first(max(1, HELD_BYTES // frontier(dag)) * (data.fixed or 1)))


def recovered_draft(
    dag: ChannelDag, alive: Mask, draft: Path, data: Data, wanted: bool, seed: int, clock: Clock
) -> Recovery:
    """Change the weights of a draft for the better, on its file.

    Args:
        dag: the original.
        alive: its channels that are left [labels].
        draft: the proven network; replaced by the recovered one if that deviates less.
        data: real inputs.
        wanted: whether to recover; if not, the deviation is told only.
        seed: of what is sampled.
        clock: is told how far it is.

    Raises:
        DataError: a network cannot be run on the data.
        ProofFailed: the network does not run on the data, or the recovered one is not valid.
    """
    fitted, held = parts(dag, data)
    judged, spared = held or data, held.count if held else 0
    if not wanted:
        with clock.stage("compare"):
            (removed,) = _compared(dag, [draft], judged)
        return Recovery(0, spared, removed, None, False, ())
    with tempfile.TemporaryDirectory(prefix="recovered-", dir=draft.parent) as folder:
        better = Path(folder) / draft.name
        with clock.stage("recover") as told:
            feeds, apart = fitted.feeds(batch_size(fitted)), held.feeds(batch_size(fitted)) if held else ()
            found = recover(dag, alive, onnx.load(draft), feeds, apart, seed, told)
            write_model(found.proto, better, external=bool(dag.model.external_files))
        with clock.stage("compare"):
            try:
                check(better)
            except ModelError as error:
                raise ProofFailed(f"the recovered model is not valid ({error}); nothing written") from error
            removed, after = _compared(dag, [draft, better], judged)
        kept = _distance(after) < _distance(removed)
        if kept:
            publish(better, draft)
    return Recovery(fitted.count, spared, removed, after, kept, found.layers)


def _compared(dag: ChannelDag, drafts: Sequence[Path], data: Data) -> list[Fidelity]:
    """How far drafts are from the original."""
    model = dag.model
    try:
        return compare(model, model.path, drafts, data, batch_size(data), dag.observation.replaced, channel_axes(dag))
    except RunFailed as error:
        raise ProofFailed(f"the compressed model does not run on the data ({error}); nothing written") from error


def frontier(dag: ChannelDag) -> int:
    """Bytes that a run of both networks may hold at once: three tensors each as large as the largest, in float32."""
    largest = max((math.prod(shape) for name, shape in dag.shapes.items() if name in dag.channel_ids), default=1)
    return 2 * 3 * 4 * max(1, largest)


def distance(dag: ChannelDag, candidate: Source, data: Data) -> float:
    """How far the outputs of a candidate are from those of the original, each channel by its own scale.

    Raises:
        RunFailed: the candidate cannot be run.
    """
    model, replaced = dag.model, dag.observation.replaced
    (found,) = compare(model, model.path, [candidate], data, batch_size(data), replaced, channel_axes(dag))
    return _distance(found)


def _distance(found: Fidelity) -> float:
    """Mean over the outputs of ``Channels.balanced``, an output without channels being one; infinite if one is not
    finite.
    """
    if any(math.isinf(one.relative_l2) for one in found.outputs):
        return math.inf
    parts = [
        one.channels.balanced if one.channels else float(bounded(np.array(one.relative_l2))) for one in found.outputs
    ]
    return sum(parts) / max(len(parts), 1)
