"""The training itself: epochs, schedule, held-out loss, early stop, checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanonnx.commands.finetune.batching import Batch, Batched, stacked
from leanonnx.commands.finetune.checkpoint import Checkpoint, restored, store
from leanonnx.commands.finetune.loading import Loader, Sample, grouped
from leanonnx.commands.finetune.objectives import Objective
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.process_group import ProcessGroup
from leanonnx.numeric.arrays import Array
from leanonnx.system.clock import Progress

WARM_UP = 0.05
"""Share of the training in which the learning rate rises from nothing."""
LEAST_RATE = 0.01
"""Share of the learning rate that is left at the end."""
STEEPEST = 5.0
"""Norm to which gradients are cut."""
HELD_OUT_SEED = 0x1EA7
ENOUGH = 15000
"""Steps of a training whose number of epochs is not given."""
FEWEST, MOST = 5, 600
"""Epochs of a training whose number of epochs is not given, at least and at most."""
ENDLESS = 1 << 30
"""Epochs of a training that the time alone ends."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    ``epochs``: None for as many as the minutes hold or, without these, as make ``ENOUGH`` steps; ``rate``: the highest
    learning rate; ``minutes``: the longest it may take; ``patience``: epochs without any gain before it ends.
    """

    epochs: int | None = None
    rate: float = 2e-3
    batch: int = 32
    minutes: float | None = None
    patience: int | None = None
    seed: int = 0
    amp: bool = False
    checkpoint: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Trained:
    """What came of it: the best weights by name, and the losses.

    ``before`` and ``after``: held-out loss of the input and of the best state; ``best_epoch``: 0 for the input;
    ``history``: training and held-out loss of each epoch.
    """

    weights: dict[str, Array]
    before: float
    after: float
    best_epoch: int
    history: tuple[tuple[float, float], ...]
    resumed: int


class _Run:
    """A training under way: the student, its optimiser and the clock."""

    def __init__(
        self, student: Batched, lesson: Objective, loader: Loader, settings: Settings, world: ProcessGroup
    ) -> None:
        self.student, self.lesson, self.loader, self.settings, self.world = student, lesson, loader, settings, world
        self.network = student.network
        self.shared = world.shared(student)
        self.optimizer = torch.optim.Adam(list(self.network.weights), lr=settings.rate)
        half = torch.float16 if world.device != "cpu" and not torch.cuda.is_bf16_supported() else torch.bfloat16
        self.half = half if settings.amp else None
        self.scaler = torch.amp.GradScaler(enabled=self.half == torch.float16)
        self.spent = 0.0
        self.since = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self.world.agreed(self.spent + time.monotonic() - self.since)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.settings.minutes is not None and self.elapsed >= 60 * self.settings.minutes

    def share(self, epochs: float) -> float:
        """How much of the training is done after so many epochs, or by time where that runs out first."""
        done = epochs / self.epochs
        if self.settings.minutes is None:
            return done
        return max(done, min(self.elapsed / (60 * self.settings.minutes), 1.0))

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then half a cosine; by time where that runs out first."""
        share = self.share(step / self.steps)
        if share < WARM_UP:
            return self.settings.rate * (share / WARM_UP + 1 / max(self.steps, 1)) / (1 + 1 / max(self.steps, 1))
        turn = math.pi * (share - WARM_UP) / (1 - WARM_UP)
        return self.settings.rate * (LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(turn)) / 2)

    @property
    def epochs(self) -> int:
        """Times to go through the data."""
        if self.settings.epochs is not None:
            return self.settings.epochs
        return ENDLESS if self.settings.minutes is not None else min(max(-(-ENOUGH // self.steps), FEWEST), MOST)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return max(self.loader.batches // self.world.size, 1)

    def on_device(self, samples: list[Sample]) -> tuple[Batch, Tensor | None]:
        """A batch of samples with their labels."""
        batch = stacked([feed for feed, _ in samples], self.world.device)
        labels = [label for _, label in samples if label is not None]
        return batch, torch.from_numpy(np.stack(labels)).to(self.world.device) if labels else None

    def lossy(self, module: torch.nn.Module, samples: list[Sample], rng: np.random.Generator, training: bool) -> Tensor:
        """Loss of a batch."""
        batch, labels = self.on_device(samples)
        fed, wanted = self.lesson.prepare(batch, labels, rng, training)
        half = torch.autocast(self.world.device.partition(":")[0], self.half) if self.half else nullcontext()
        with half:
            found = module(fed, self.lesson.names)
        return self.lesson.loss(found, wanted)

    def epoch(self, number: int) -> float:
        """Train one epoch; gives the mean loss."""
        total, count = 0.0, 0
        for k, samples in enumerate(self.loader.epoch((self.settings.seed, number))):
            if k % self.world.size != self.world.rank:
                continue
            if k - self.world.rank + self.world.size > self.loader.batches and self.world.size > 1:
                break
            if self.over:
                break
            rate = self.rate(number * self.steps + k // self.world.size)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            rng = np.random.default_rng((self.settings.seed, number, k))
            loss = self.lossy(self.shared, samples, rng, training=True)
            self._step(loss)
            total, count = total + float(loss.detach()) * len(samples), count + len(samples)
        return total / max(count, 1)

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.network.weights), STEEPEST)
        if bool(torch.isfinite(norm)) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def held_out(self, kinds: dict[str, Any]) -> float:
        """Mean loss over the held-out samples, the weights rounded to the types that the file holds them in."""
        own = self.network.state()
        self.network.restore(in_kinds(own, kinds))
        total, count = 0.0, 0
        with torch.no_grad():
            for k, samples in enumerate(grouped(self.loader.held, self.settings.batch)):
                rng = np.random.default_rng((HELD_OUT_SEED, k))
                loss = self.lossy(self.student, samples, rng, training=False)
                total, count = total + float(loss) * len(samples), count + len(samples)
        self.network.restore(own)
        found = self.world.agreed(total / max(count, 1))
        return found if math.isfinite(found) else math.inf

    def checkpoint(self, run: str, epoch: int, best: Checkpoint | None, value: float, loss: float) -> Checkpoint:
        """The state after an epoch; the first is that before any training."""
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
            spent=self.elapsed,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
        )

    def resume(self, state: Checkpoint) -> None:
        """Go back to a state."""
        self.network.restore(dict(zip(self.network.names, [w.numpy() for w in state.weights], strict=True)))
        self.optimizer.load_state_dict(state.optimizer)
        self.scaler.load_state_dict(state.scaler)
        self.spent, self.since = state.spent, time.monotonic()


def in_kinds(weights: dict[str, Array], kinds: dict[str, Any]) -> dict[str, Array]:
    """Weights rounded to the types that the file holds them in, as float32."""
    return {n: w.astype(kinds[n]).astype(np.float32) if n in kinds else w for n, w in weights.items()}


def train(
    student: Batched,
    lesson: Objective,
    loader: Loader,
    settings: Settings,
    world: ProcessGroup,
    run: str,
    kinds: dict[str, Any],
    progress: Progress,
) -> Trained:
    """Train until the epochs or the minutes are over, or patience is; the best held-out state is what counts.

    Args:
        student: the network, on the device of ``world``; its weights afterwards are of no use.
        lesson: what it is trained for.
        loader: its data.
        settings: how to train.
        world: the processes that train together.
        run: what was asked for, so that a checkpoint of something else is refused.
        kinds: types of the weights that the file holds in other than float32.
        progress: told of each epoch.

    Raises:
        OptionError: the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    work = _Run(student, lesson, loader, settings, world)
    known = settings.checkpoint if settings.resume and settings.checkpoint and settings.checkpoint.exists() else None
    if known:
        state = restored(known, run)
        work.resume(state)
    else:
        state = work.checkpoint(run, 0, None, work.held_out(kinds), math.nan)
    resumed = state.epoch
    while state.epoch < work.epochs and not work.over:
        if settings.patience is not None and state.stale >= settings.patience:
            break
        loss = work.epoch(state.epoch)
        state = work.checkpoint(run, state.epoch + 1, state, work.held_out(kinds), loss)
        if settings.checkpoint and world.leads:
            store(state, settings.checkpoint)
        of = "" if work.epochs == ENDLESS else f"/{work.epochs}"
        progress(
            f"epoch {state.epoch}{of}: loss {loss:.4g}, held out {state.history[-1][1]:.4g} "
            f"(best {state.value:.4g}, input {state.history[0][1]:.4g})",
            work.share(state.epoch),
        )
    best = dict(zip(student.network.names, [weight.numpy() for weight in state.best], strict=True))
    return Trained(
        weights=in_kinds(best, kinds),
        before=state.history[0][1],
        after=state.value,
        best_epoch=state.best_epoch,
        history=tuple((a, b) for a, b in state.history[1:]),
        resumed=resumed,
    )
