"""Training of a pruned network on labelled circles and squares, one image a step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import progress
from benchmarks.lean_cs.passes import Network
from benchmarks.lean_cs.stack import Stack
from leanonnx.numeric.arrays import Array
from models.circles_squares import SIZE, TRAIN_SEED, VALIDATION_SEED, Batch, images, scene

TRAIN, VALIDATION = 500, 100
RATE = 1e-3
WARM_UP = 0.03
CHECKS = (0.8, 1.0)
"""Shares of a training after which the validation images are looked at; the best state counts."""


@dataclass(frozen=True)
class Scenes:
    """The training images without noise [N, S, S] with their labels [N, S, S], and the noisy validation images."""

    clean: Array
    labels: Array
    validation: Batch


@dataclass(frozen=True)
class Tuned:
    """The best state, its accuracy on the validation images, that before, and seconds."""

    stack: Stack
    before: float
    after: float
    seconds: float


def scenes(cache: Path) -> Scenes:
    """The data, drawn once and kept in ``cache``."""
    if not cache.exists():
        drawn = [scene(TRAIN_SEED, k) for k in range(TRAIN)]
        checked = images(VALIDATION, VALIDATION_SEED)
        np.savez(
            cache,
            clean=np.stack([one.clean for one in drawn]),
            labels=np.stack([one.labels for one in drawn]),
            images=checked.images,
            checked=checked.labels,
        )
    with np.load(cache) as file:
        return Scenes(file["clean"], file["labels"], Batch(file["images"], file["checked"]))


def accuracy(network: Network, images: Array, labels: Array) -> float:
    """Share of the pixels of images [N, S, S] whose class is right."""
    with torch.no_grad():
        right = [
            (network(torch.from_numpy(image)).argmax(0).numpy() == label.reshape(-1)).mean()
            for image, label in zip(images, labels, strict=True)
        ]
    return float(np.mean(right))


def example(data: Scenes, rng: np.random.Generator, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A training image in one of its eight orientations with fresh noise, and its labels [S * S]."""
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    parts = [np.rot90(part[index], turns) for part in (data.clean, data.labels)]
    clean, labels = (part[:, ::-1] if mirrored else part for part in parts)
    noisy = clean + rng.standard_normal((SIZE, SIZE), np.float32)
    return torch.from_numpy(noisy), torch.from_numpy(labels.reshape(-1).astype(np.int64))


def tune(stack: Stack, data: Scenes, count: int, rate: float, seed: int) -> Tuned:
    """Train on ``count`` images by Adam, the learning rate half a cosine; the best of a few states counts."""
    start = time.perf_counter()
    network = Network(stack)
    checked = data.validation.images[:, 0], data.validation.labels
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    before = best = accuracy(network, *checked)
    state = network.state()
    order = np.concatenate([rng.permutation(TRAIN) for _ in range(-(-count // TRAIN))])[:count]
    checks = {round(share * count) for share in CHECKS}
    for step, index in enumerate(order, 1):
        share = (step - 1) / count
        factor = min(share / WARM_UP, 1.0) * (1 + math.cos(math.pi * share)) / 2
        optimizer.param_groups[0]["lr"] = rate * (0.01 + 0.99 * factor)
        noisy, labels = example(data, rng, index)
        loss = torch.nn.functional.cross_entropy(network(noisy).T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in checks:
            found = accuracy(network, *checked)
            progress(f"  {step}/{count} images, {time.perf_counter() - start:.0f} s: validation {found:.4f}")
            if found > best:
                best, state = found, network.state()
    return Tuned(stack.changed(state), before, best, time.perf_counter() - start)
