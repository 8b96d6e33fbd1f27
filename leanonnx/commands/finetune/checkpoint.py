"""Checkpoints of a training run, written atomically after each epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
        OptionError: the file is not a checkpoint, or belongs to another run.
    """
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**fields)
    except Exception as error:  # torch's reader raises whatever a damaged file makes it do
        raise OptionError(f"{option('checkpoint', str(path))}: no checkpoint of leanonnx; give another file") from error
    if checkpoint.run != run:
        raise OptionError(
            f"{option('checkpoint', str(path))}: was made from other files or with other options; repeat them as "
            "they were, or give another file"
        )
    return checkpoint
