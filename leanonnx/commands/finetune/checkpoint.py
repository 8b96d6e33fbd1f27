"""What is kept of a training that may be stopped at any time: written whole after each epoch, or not at all."""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.errors import OptionError, OutputError
from leanonnx.spelling import option


@dataclass(frozen=True)
class Checkpoint:
    """The state after an epoch.

    ``run`` tells what was asked for; ``value``: held-out loss of the best state, whose weights are ``best``;
    ``history``: training and held-out loss of each epoch; ``spent``: seconds.
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

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - self.best_epoch


def store(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint beside its place and rename it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        handle, draft = tempfile.mkstemp(prefix=".leanonnx-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(asdict(checkpoint), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: the checkpoint cannot be written: {error.strerror}; free some space") from error


def restored(path: Path, run: str) -> Checkpoint:
    """Read a checkpoint of the same run.

    Raises:
        OptionError: the file is no checkpoint, or one of another run.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**found)
    except (OSError, RuntimeError, EOFError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise OptionError(f"{option('checkpoint', str(path))}: no checkpoint of leanonnx; give another file") from error
    if checkpoint.run != run:
        raise OptionError(
            f"{option('checkpoint', str(path))}: was made from other files or with other options; repeat them as "
            "they were, or give another file"
        )
    return checkpoint
