"""The training loop: epochs, learning rate, held-out loss, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from leanonnx.commands.finetune.batching import Batch, BatchedNetwork, stack_feeds
from leanonnx.commands.finetune.checkpoint import Checkpoint, damaged_checkpoint, read_checkpoint, write_checkpoint
from leanonnx.commands.finetune.loading import LabelledSample, Loader, group_by_shape
from leanonnx.commands.finetune.objectives import Objective
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.options import TrainingSettings
from leanonnx.commands.finetune.process_group import ProcessGroup
from leanonnx.graph.model import raise_if_machine_failed
from leanonnx.numeric.arrays import Array
from leanonnx.system.clock import Progress

LEARNING_RATE_WARM_UP_SHARE = 0.05
"""Share of the training in which the learning rate rises from 0."""
FINAL_RATE_SHARE = 0.01
"""Final learning rate as a share of the highest."""
MAX_GRADIENT_NORM = 5.0
"""Norm to which gradients are clipped."""
RETREAT_FACTOR, RETREAT_RATE_SHARE = 1.2, 0.3
"""Held-out loss after an epoch, in units of the best, from which the rate was too large: training goes on from the best
weights, at this share of the rate.
"""
HELD_OUT_SEED = 0x1EA7
DEFAULT_STEPS = 15000
"""Number of steps if neither epochs nor minutes are given."""
MIN_EPOCHS, MAX_EPOCHS = 5, 600
"""Bounds of the number of epochs if neither epochs nor minutes are given."""
UNLIMITED_EPOCHS = 1 << 30
"""Number of epochs if only the time limits the training."""


@dataclass(frozen=True)
class TrainingOutcome:
    """Best weights by name, and losses.

    ``before`` and ``after``: held-out loss of the input and of the best state; ``best_epoch``: 0 for the input;
    ``history``: training and held-out loss of each epoch; ``resumed``: the epoch that the training resumed from.
    """

    weights: dict[str, Array]
    before: float
    after: float
    best_epoch: int
    history: tuple[tuple[float, float], ...]
    resumed: int


class _Training:
    """State of a running training: the student, its optimizer and the elapsed time."""

    def __init__(
        self,
        student: BatchedNetwork,
        objective: Objective,
        loader: Loader,
        settings: TrainingSettings,
        group: ProcessGroup,
    ) -> None:
        self.student, self.objective, self.loader = student, objective, loader
        self.settings, self.group = settings, group
        self.network = student.network
        self.parallel_student = group.share_gradients(student)
        self.rate_share = 1.0
        self.optimizer = self._new_optimizer()
        half = torch.float16 if group.device != "cpu" and not torch.cuda.is_bf16_supported() else torch.bfloat16
        self.half = half if settings.amp else None
        self.scaler = torch.amp.GradScaler(enabled=self.half == torch.float16)
        self.spent = 0.0
        self.since = time.monotonic()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(self.network.weights), lr=self.settings.rate)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of training, including those before a resumption."""
        return self.group.broadcast(self.spent + time.monotonic() - self.since)

    @property
    def is_over(self) -> bool:
        """Return True if the time is up."""
        return self.settings.minutes is not None and self.elapsed_seconds >= 60 * self.settings.minutes

    def completed_share(self, epochs: float) -> float:
        """Completed share of the training after some epochs, or by time if that runs out first."""
        share = epochs / self.epochs
        if self.settings.minutes is None:
            return share
        return max(share, min(self.elapsed_seconds / (60 * self.settings.minutes), 1.0))

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then half a cosine, over epochs or, if it ends first, time."""
        highest, share = self.rate_share * self.settings.rate, self.completed_share(step / self.steps)
        if share < LEARNING_RATE_WARM_UP_SHARE:
            return (
                highest * (share / LEARNING_RATE_WARM_UP_SHARE + 1 / max(self.steps, 1)) / (1 + 1 / max(self.steps, 1))
            )
        turn = math.pi * (share - LEARNING_RATE_WARM_UP_SHARE) / (1 - LEARNING_RATE_WARM_UP_SHARE)
        return highest * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * (1 + math.cos(turn)) / 2)

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        if self.settings.epochs is not None:
            return self.settings.epochs
        return (
            UNLIMITED_EPOCHS
            if self.settings.minutes is not None
            else min(max(-(-DEFAULT_STEPS // self.steps), MIN_EPOCHS), MAX_EPOCHS)
        )

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return max(self.loader.batches // self.group.size, 1)

    def on_device(self, samples: list[LabelledSample]) -> tuple[Batch, Tensor | None]:
        """A batch of samples and their labels, on the device of this process."""
        batch = stack_feeds([feed for feed, _ in samples], self.group.device)
        labels = [label for _, label in samples if label is not None]
        return batch, torch.from_numpy(np.stack(labels)).to(self.group.device) if labels else None

    def batch_loss(
        self, module: torch.nn.Module, samples: list[LabelledSample], rng: np.random.Generator, training: bool
    ) -> Tensor:
        """Loss of a batch."""
        batch, labels = self.on_device(samples)
        fed, wanted = self.objective.prepare(batch, labels, rng, training)
        half = torch.autocast(self.group.device.partition(":")[0], self.half) if self.half else nullcontext()
        with half:
            outputs = module(fed, self.objective.names)
        return self.objective.loss(outputs, wanted)

    def epoch(self, number: int) -> float:
        """Train one epoch; return the mean loss."""
        total, count = 0.0, 0
        for k, samples in enumerate(self.loader.epoch((self.settings.seed, number))):
            if k % self.group.size != self.group.rank:
                continue
            if k - self.group.rank + self.group.size > self.loader.batches and self.group.size > 1:
                break
            if self.is_over:
                break
            rate = self.rate(number * self.steps + k // self.group.size)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            rng = np.random.default_rng((self.settings.seed, number, k))
            loss = self.batch_loss(self.parallel_student, samples, rng, training=True)
            self._step(loss)
            total, count = total + float(loss.detach()) * len(samples), count + len(samples)
        return total / max(count, 1)

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.network.weights), MAX_GRADIENT_NORM)
        if bool(torch.isfinite(norm)) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def held_out_loss(self, kinds: dict[str, Any]) -> float:
        """Mean loss over the held-out samples, with the weights rounded to their stored types."""
        own = self.network.state()
        self.network.restore(round_to_kinds(own, kinds))
        total, count = 0.0, 0
        with torch.no_grad():
            for k, samples in enumerate(group_by_shape(self.loader.held_out, self.settings.batch)):
                rng = np.random.default_rng((HELD_OUT_SEED, k))
                loss = self.batch_loss(self.student, samples, rng, training=False)
                total, count = total + float(loss) * len(samples), count + len(samples)
        self.network.restore(own)
        mean = self.group.broadcast(total / max(count, 1))
        return mean if math.isfinite(mean) else math.inf

    def checkpoint(self, run: str, epoch: int, best: Checkpoint | None, value: float, loss: float) -> Checkpoint:
        """Checkpoint after an epoch; epoch 0 is the input."""
        weights = [weight.detach().cpu().clone() for weight in self.network.weights]
        better = best is None or value < best.value
        return Checkpoint(
            run=run,
            epoch=epoch,
            weights=weights,
            best=weights if best is None or better else best.best,
            value=value if best is None or better else best.value,
            best_epoch=epoch if best is None or better else best.best_epoch,
            history=[*(best.history if best else []), (loss, value)],
            spent=self.elapsed_seconds,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            rate_share=self.rate_share,
        )

    def retreat(self, state: Checkpoint) -> Checkpoint:
        """Go back to the best weights, and on at a smaller rate."""
        self._restore(state.best)
        self.optimizer = self._new_optimizer()
        self.rate_share = RETREAT_RATE_SHARE * state.rate_share
        return replace(state, weights=state.best, optimizer=self.optimizer.state_dict(), rate_share=self.rate_share)

    def resume(self, state: Checkpoint) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: its weights do not fit; further errors come from PyTorch.
        """
        shapes = [tuple(weight.shape) for weight in self.network.weights]
        if [tuple(weight.shape) for weight in state.weights] != shapes:
            raise ValueError("weights of other shapes")
        self._restore(state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        self.scaler.load_state_dict(state.scaler)
        self.spent, self.since = state.spent, time.monotonic()
        self.rate_share = state.rate_share

    def _restore(self, weights: list[Tensor]) -> None:
        self.network.restore(dict(zip(self.network.names, [w.numpy() for w in weights], strict=True)))


def round_to_kinds(weights: dict[str, Array], kinds: dict[str, Any]) -> dict[str, Array]:
    """Round weights to their stored types; return them as float32."""
    return {n: w.astype(kinds[n]).astype(np.float32) if n in kinds else w for n, w in weights.items()}


def train(
    student: BatchedNetwork,
    objective: Objective,
    loader: Loader,
    settings: TrainingSettings,
    group: ProcessGroup,
    run: str,
    kinds: dict[str, Any],
    progress: Progress,
) -> TrainingOutcome:
    """Train until the epochs, the minutes or the patience are exhausted; return the best state by held-out loss.

    Args:
        student: the network, on the device of ``group``; its weights are undefined afterwards.
        objective: the training objective.
        loader: training and held-out data.
        settings: settings of the training.
        group: the processes that train together.
        run: fingerprint of the request; checkpoints with another one are refused.
        kinds: types of the weights that are not stored as float32.
        progress: called on each epoch.

    Raises:
        OptionError: the checkpoint is damaged, or belongs to another run.
        OutputError: the checkpoint cannot be written.
    """
    training = _Training(student, objective, loader, settings, group)
    checkpoint = (
        settings.checkpoint if settings.resume and settings.checkpoint and settings.checkpoint.exists() else None
    )
    if checkpoint:
        state = read_checkpoint(checkpoint, run)
        try:
            training.resume(state)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:  # of PyTorch and of ours
            raise_if_machine_failed(error)
            raise damaged_checkpoint(checkpoint) from error
    else:
        state = training.checkpoint(run, 0, None, training.held_out_loss(kinds), math.nan)
    resumed = state.epoch
    while state.epoch < training.epochs and not training.is_over:
        if settings.patience is not None and state.epochs_without_gain >= settings.patience:
            break
        loss = training.epoch(state.epoch)
        state = training.checkpoint(run, state.epoch + 1, state, training.held_out_loss(kinds), loss)
        if not state.history[-1][1] <= RETREAT_FACTOR * state.value:
            state = training.retreat(state)
        if settings.checkpoint and group.is_leader:
            write_checkpoint(state, settings.checkpoint)
        of = "" if training.epochs == UNLIMITED_EPOCHS else f"/{training.epochs}"
        item = (
            f"epoch {state.epoch}{of}: loss {loss:.4g}, held out {state.history[-1][1]:.4g}, "
            f"best {state.value:.4g}, input {state.history[0][1]:.4g}"
        )
        progress("train", training.completed_share(state.epoch), item)
    best = dict(zip(student.network.names, [weight.numpy() for weight in state.best], strict=True))
    return TrainingOutcome(
        weights=round_to_kinds(best, kinds),
        before=state.history[0][1],
        after=state.value,
        best_epoch=state.best_epoch,
        history=tuple((a, b) for a, b in state.history[1:]),
        resumed=resumed,
    )
