"""The three problems: what goes into a network, what should come out, and how well it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.inverse import operators
from benchmarks.inverse.images import objects, photographs
from leanonnx.numeric.arrays import Array

PARTS = {"train": (400, 1), "calib": (128, 2), "score": (100, 3)}
"""Number of objects and seed of each part of the data; those to score on are parts of photographs of their own."""


@dataclass(frozen=True)
class Data:
    """Arrays by graph input, what should come out, what does without a network, and reconstructions of splits."""

    inputs: Mapping[str, Array]
    targets: Array
    plain: Array
    splits: Array | None = None


def mri(images: Array, rng: np.random.Generator) -> Data:
    """Few Fourier coefficients of complex images."""
    targets, mask = operators.with_phase(images, rng), operators.masks(len(images), rng)
    y = operators.scan(targets, mask, rng)
    return Data({"y": y, "mask": mask}, targets, operators.zero_filled(y))


def sr(images: Array, rng: np.random.Generator) -> Data:
    """Blurred images of half the size."""
    y = operators.camera(images, rng)
    return Data({"y": y}, images[:, None], operators.enlarged(y))


def ct(images: Array, rng: np.random.Generator) -> Data:
    """Filtered back-projections of noisy line integrals; the input is the mean over the splits."""
    splits = operators.back_projections(operators.sinograms(images, rng))
    whole = splits.mean(1)
    return Data({"x": whole}, images[:, None], whole, splits)


PROBLEMS: dict[str, Callable[[Array, np.random.Generator], Data]] = {"mri": mri, "sr": sr, "ct": ct}


def data(problem: str, part: str, folder: Path | None) -> Data:
    """A part of the data of a problem; tomograms are of phantoms alone."""
    count, seed = PARTS[part]
    train, scored = photographs(folder if problem != "ct" else None)
    images = objects(count, scored if part == "score" else train, seed)
    return PROBLEMS[problem](images, np.random.default_rng(seed))


def noiseless() -> float:
    """PSNR of tomograms to score on had their projections no noise: what learning from noisy ones alone aims at."""
    count, seed = PARTS["score"]
    images = objects(count, [], seed)
    whole = operators.back_projections(operators.line_integrals(images)).mean(1)
    return psnr(whole, images[:, None])


def psnr(images: Array, targets: Array) -> float:
    """Mean over images [n, C, H, W] of the PSNR in dB; the objects are in [0, 1], two channels are a complex number."""
    errors = ((images.astype(np.float64) - targets) ** 2).sum(1).mean((1, 2))
    return float(np.mean(-10 * np.log10(errors)))


def write(problem: str, folder: Path, photos: Path | None) -> None:
    """Write the parts as files: ``_train`` with labels, ``_calib`` with inputs alone, ``_score`` with all there is.

    ``_inputs`` has the inputs of ``_train``; ``_measured`` has them with a mask of what was measured, all of it for a
    camera. Of ``ct`` there is ``_splits`` instead: under the name of the input the splits [n, SPLITS, 1, H, W].
    """
    for part in PARTS:
        one = data(problem, part, photos)
        more = {"train": {"labels": one.targets}, "calib": {}, "score": {"labels": one.targets, "plain": one.plain}}
        _save(folder / f"{problem}_{part}.npz", {**one.inputs, **more[part]})
        if part == "train":
            _save(folder / f"{problem}_inputs.npz", one.inputs)
            if one.splits is not None:
                _save(folder / f"{problem}_splits.npz", dict.fromkeys(one.inputs, one.splits))
            else:
                mask = one.inputs["mask"] if "mask" in one.inputs else np.ones_like(one.inputs["y"])
                _save(folder / f"{problem}_measured.npz", {"y": one.inputs["y"], "mask": mask})


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(path, allow_pickle=False, **arrays)
