"""Checkpoints of a training run, written atomically after each epoch."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.errors import OptionError
from leanonnx.spelling import option
from leanonnx.system.outputs import draft_of


@dataclass(frozen=True)
class Checkpoint:
    """The state after an epoch.

    ``run``: fingerprint of the request; ``value``: held-out loss of the best state; ``best``: its weights;
    ``history``: training and held-out loss of each epoch; ``spent``: seconds of training so far; ``rate_share``: the
    learning rates that are used, as a share of those that were asked for.
    """

    run: str
    epoch: int
    weights: list[Tensor]
    best: list[Tensor]
    value: float
    best_epoch: int
    history: list[tuple[float, float]]
    spent: float
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rate_share: float

    @property
    def epochs_without_gain(self) -> int:
        """Number of epochs since the best one."""
        return self.epoch - self.best_epoch


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with draft_of(path) as draft, draft.open("wb") as file:
        torch.save(asdict(checkpoint), file)


def read_checkpoint(path: Path, run: str) -> Checkpoint:
    """Read a checkpoint of the same run.

    Raises:
        OptionError: the file is not a checkpoint, is damaged, or belongs to another run.
    """
    try:
        _check_sums(path)
        checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
        _check_types(checkpoint)
    except MemoryError:
        raise
    except Exception as error:  # torch's reader raises whatever a damaged file makes it do
        raise damaged_checkpoint(path) from error
    if checkpoint.run != run:
        raise OptionError(
            f"{option('checkpoint', str(path))}: was made from other files or with other options; repeat them as "
            "they were, or give another file"
        )
    return checkpoint


def damaged_checkpoint(path: Path) -> OptionError:
    """The refusal of a file that is no whole checkpoint."""
    return OptionError(f"{option('checkpoint', str(path))}: no checkpoint of leanonnx, or damaged; give another file")


def _check_sums(path: Path) -> None:
    """Compare the contents of the archive with its checksums, which PyTorch writes, and does not read.

    Raises:
        ValueError: they differ.
    """
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{name} is damaged")


def _check_types(checkpoint: Checkpoint) -> None:
    """Check the types of all fields.

    Raises:
        ValueError: one has another type.
    """
    for name, hint in get_type_hints(Checkpoint).items():
        value, kind = getattr(checkpoint, name), get_origin(hint) or hint
        if not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{name} is of type {type(value).__name__}")
    for weights in (checkpoint.weights, checkpoint.best):
        if not all(isinstance(each, torch.Tensor) and each.dtype == torch.float32 for each in weights):
            raise ValueError("weights are no tensors of float32")
    if [each.shape for each in checkpoint.weights] != [each.shape for each in checkpoint.best]:
        raise ValueError("the best weights have other shapes")
    if not all(len(losses) == 2 for losses in checkpoint.history):
        raise ValueError("an epoch without two losses")
