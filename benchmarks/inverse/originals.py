"""The networks that are pruned: written in torch, trained on one core in minutes, and exported to ONNX."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.common import progress
from benchmarks.inverse import operators
from benchmarks.inverse.images import SIZE, objects, photographs
from benchmarks.inverse.problems import PROBLEMS, Data
from leanonnx.numeric.arrays import Array

SEED = 7
MRI_STEPS, SR_STEPS = 5, 3
"""Iterations of the unrolled networks."""
OBJECTS = 1200
RATE = 1.5e-3
WARM_UP = 0.05
Shapes = dict[str, tuple[int, ...]]


def denoiser(channels: int, width: int, layers: int) -> torch.nn.Module:
    """Convolutions of 3x3 with ReLU between them."""
    widths = [channels, *[width] * (layers - 1), channels]
    parts: list[torch.nn.Module] = []
    for before, after in pairwise(widths):
        parts += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1])


class Scanner(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """Compressed-sensing MRI: gradient steps on the measured coefficients, each followed by the same denoiser."""

    def __init__(self) -> None:
        super().__init__()
        real, imag = (torch.from_numpy(matrix) for matrix in operators.dft())
        self.register_buffer("dft_real", real)
        self.register_buffer("dft_imag", imag)
        self.steps = torch.nn.ParameterList(torch.nn.Parameter(torch.tensor(1.0)) for _ in range(MRI_STEPS))
        self.denoise = denoiser(2, 32, 5)

    def transform(self, x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        """The DFT of complex images [n, 2, S, S] along both axes, by products with real matrices."""
        a, b = self.dft_real, -self.dft_imag if inverse else self.dft_imag
        real, imag = x[:, :1], x[:, 1:]
        real, imag = a @ real - b @ imag, a @ imag + b @ real
        return torch.cat([real @ a - imag @ b, imag @ a + real @ b], 1)

    def measure(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The coefficients of images [n, 2, S, S] where the mask is 1."""
        return mask * self.transform(image)

    def forward(self, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Images [n, 2, S, S] from coefficients [n, 2, S, S] and where they were measured [n, 1, S, S]."""
        x = self.transform(y, inverse=True)
        for step in self.steps:
            x = x - step * self.transform(self.measure(x, mask) - y, inverse=True)
            x = x + self.denoise(x)
        return x


class Enlarger(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """Super-resolution: gradient steps with the camera's operator, each followed by a denoiser of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("camera", torch.from_numpy(operators.kernel()))
        self.steps = torch.nn.ParameterList(torch.nn.Parameter(torch.tensor(2.0)) for _ in range(SR_STEPS))
        self.denoise = torch.nn.ModuleList(denoiser(1, 32, 4) for _ in range(SR_STEPS))

    def measure(self, image: torch.Tensor) -> torch.Tensor:
        """What the camera makes of images [n, 1, S, S]."""
        return functional.conv2d(image, self.camera, stride=2, padding=2)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Images [n, 1, S, S] from images [n, 1, S / 2, S / 2]."""
        x = 4 * functional.conv_transpose2d(y, self.camera, stride=2, padding=2)
        for step, denoise in zip(self.steps, self.denoise, strict=True):
            rest = self.measure(x) - y
            x = x - step * functional.conv_transpose2d(rest, self.camera, stride=2, padding=2)
            x = x + denoise(x)
        return x


class Operator(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """What a network knows of its instrument, as a network."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """The measurement."""
        return self.network.measure(*given)


class Cleaner(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """Tomography: a U-Net of two levels that adds to the filtered back-projection."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = self.double(1, width)
        self.below = self.double(width, 2 * width)
        self.bottom = self.double(2 * width, 2 * width)
        self.rise = torch.nn.ConvTranspose2d(2 * width, 2 * width, 2, stride=2)
        self.beside = self.double(4 * width, width)
        self.lift = torch.nn.ConvTranspose2d(width, width, 2, stride=2)
        self.last = self.double(2 * width, width)
        self.out = torch.nn.Conv2d(width, 1, 1)

    @staticmethod
    def double(before: int, after: int) -> torch.nn.Module:
        """Two convolutions."""
        first, second = torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.Conv2d(after, after, 3, padding=1)
        return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [n, 1, S, S] from noisy ones."""
        whole = self.first(x)
        half = self.below(functional.max_pool2d(whole, 2))
        quarter = self.bottom(functional.max_pool2d(half, 2))
        half = self.beside(torch.cat([half, self.rise(quarter)], 1))
        return x + self.out(self.last(torch.cat([whole, self.lift(half)], 1)))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network, how long it is trained, and the shapes of its inputs and of its operator's without the batch."""

    make: Callable[[], torch.nn.Module]
    updates: int
    batch: int
    shapes: Shapes
    measured: Shapes = field(default_factory=dict)


IMAGE, COMPLEX, HALF = (1, SIZE, SIZE), (2, SIZE, SIZE), (1, SIZE // 2, SIZE // 2)
RECIPES = {
    "mri": Recipe(
        make=Scanner,
        updates=1000,
        batch=4,
        shapes={"y": COMPLEX, "mask": IMAGE},
        measured={"image": COMPLEX, "mask": IMAGE},
    ),
    "sr": Recipe(make=Enlarger, updates=1000, batch=8, shapes={"y": HALF}, measured={"image": IMAGE}),
    "ct": Recipe(make=Cleaner, updates=1200, batch=8, shapes={"x": IMAGE}),
}


def pairs(problem: str, seen: Data, rng: np.random.Generator, batch: int) -> tuple[list[Array], Array]:
    """Inputs and targets of one update, in one of eight orientations.

    Tomograms have no clean targets: the mean of three splits is to predict the fourth (Noise2Inverse, ``X:1``).
    """
    rows = rng.choice(len(seen.targets), batch, replace=False)
    if problem == "ct" and seen.splits is not None:
        aim = rng.integers(operators.SPLITS)
        chosen, turns = seen.splits[rows], int(rng.integers(4))
        turned = np.rot90(chosen, turns, (3, 4))[..., :: 1 - 2 * int(rng.integers(2))].copy()
        return [np.delete(turned, aim, 1).mean(1)], turned[:, aim]
    images = np.rot90(seen.plain[rows], int(rng.integers(4)), (1, 2))
    fresh = PROBLEMS[problem](np.ascontiguousarray(images[:, :, :: 1 - 2 * int(rng.integers(2))]), rng)
    return list(fresh.inputs.values()), fresh.targets


def pool(problem: str, photos: Path | None) -> Data:
    """What training draws from: objects, measured anew in each update; or tomograms, measured once."""
    images = objects(OBJECTS, photographs(photos if problem != "ct" else None)[0], SEED)
    if problem == "ct":
        return PROBLEMS[problem](images, np.random.default_rng(SEED))
    return Data({}, images, images)


def train(problem: str, photos: Path | None) -> torch.nn.Module:
    """A trained network."""
    torch.manual_seed(SEED)
    recipe, rng, seen = RECIPES[problem], np.random.default_rng(SEED), pool(problem, photos)
    network = recipe.make()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    start, losses = time.perf_counter(), []
    for update in range(recipe.updates):
        share = update / recipe.updates
        rate = RATE * min(1.0, (share + 1e-3) / WARM_UP) * (1 + np.cos(np.pi * share)) / 2
        optimizer.param_groups[0]["lr"] = rate
        inputs, targets = pairs(problem, seen, rng, recipe.batch)
        loss = functional.mse_loss(network(*map(torch.from_numpy, inputs)), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (update + 1) % 100 == 0:
            seconds = time.perf_counter() - start
            progress(f"{problem} {update + 1}/{recipe.updates}: loss {np.mean(losses[-100:]):.6f}, {seconds:.0f} s")
    return network.eval()


def export(network: torch.nn.Module, shapes: Shapes, output: str, path: Path) -> Path:
    """The ONNX file, its first axis free; ``shapes`` by input, without that axis."""
    names = [*shapes, output]
    given = tuple(torch.zeros(2, *shape) for shape in shapes.values())
    free = {name: {0: "n"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, given, path, input_names=names[:-1], output_names=[output], dynamic_axes=free, dynamo=False
        )
    return path


def build(problem: str, photos: Path | None, folder: Path) -> None:
    """Write a trained network, and its operator from image to measurement if the network holds it."""
    network, recipe = train(problem, photos), RECIPES[problem]
    export(network, recipe.shapes, "image", folder / f"{problem}.onnx")
    if recipe.measured:
        export(Operator(network), recipe.measured, "y", folder / f"{problem}_operator.onnx")
