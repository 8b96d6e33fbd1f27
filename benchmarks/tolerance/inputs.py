"""Inputs for calibration where the zoo has too few to show a tolerance by, made from the part that is not scored.

One sample in three is held out to judge by.  Samples that come from one original image or recording are therefore put
where all of them are held out, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.material import Material, Part
from leanonnx.numeric.arrays import Array

PERIOD = 3
"""One sample in so many is held out."""
CALIB_EVERY = 5
"""One photograph in so many is for calibration, as in the zoo."""
SIDE, DETECTED = 224, 416
FILL = 114
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
CAFFE_MEAN = np.array([104, 117, 123], np.float32)
RATE = 16000
Rng = np.random.Generator
Sample = dict[str, Array]


def grouped(originals: int, copies: int) -> Iterator[int]:
    """Index of the original of each sample: originals k, k + PERIOD, … fill the places k, k + PERIOD, …"""
    for at in range(originals // PERIOD * PERIOD * copies):
        yield at // (PERIOD * copies) * PERIOD + at % PERIOD


def photographs(zoo: Path, part: Part) -> list[Path]:
    """The photographs of a part."""
    files = sorted((zoo / "data" / "imagenet").glob("*.jpg"))
    return [path for k, path in enumerate(files) if (k % CALIB_EVERY == CALIB_EVERY - 1) == (part == "calib")]


def view(image: Image.Image, rng: Rng) -> Image.Image:
    """A part of a photograph, at random, perhaps mirrored."""
    side = round(min(image.size) * rng.uniform(0.65, 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    part = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def letterboxed(image: Image.Image) -> Array:
    """A whole photograph in a square, the rest grey [3, height, width], blue first."""
    scale = DETECTED / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    canvas = np.full((DETECTED, DETECTED, 3), FILL, np.float32)
    canvas[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1))


def luminance(image: Image.Image) -> Array:
    """Brightness of the middle of a photograph [1, height, width], from 0 to 1."""
    left, top = ((length - SIDE) // 2 for length in image.size)
    part = image.crop((left, top, left + SIDE, top + SIDE)).convert("YCbCr").getchannel(0)
    return np.asarray(part, np.float32)[None] / 255


def caffe(image: Image.Image) -> Array:
    """As SqueezeNet takes it: half precision, blue first."""
    return (np.asarray(image, np.float32)[..., ::-1] - CAFFE_MEAN).transpose(2, 0, 1).astype(np.float16)


def torch_like(image: Image.Image) -> Array:
    """As most networks trained on ImageNet take it."""
    return ((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def write_views(material: Material, part: Part, encode: Callable[[Image.Image], Array], copies: int) -> Sample:
    """Several views of each photograph."""
    files, rng = photographs(material.zoo, part), np.random.default_rng(0)
    images = [Image.open(path).convert("RGB") for path in files]
    return {"x": np.stack([encode(view(images[k], rng)) for k in grouped(len(images), copies)])}


def write_whole(material: Material, part: Part, encode: Callable[[Image.Image], Array], most: int) -> Sample:
    """Photographs as they are."""
    files = photographs(material.zoo, part)[:: 1 if part == "calib" else 4][:most]
    return {"x": np.stack([encode(Image.open(path).convert("RGB")) for path in files])}


def write_copies(material: Material, name: str, change: Callable[[Array, Rng], Array], copies: int) -> Sample:
    """Changed copies of the zoo's inputs for calibration; few originals fill their places several times."""
    plain = replace(material, work=material.work / "originals")
    plain.work.mkdir(exist_ok=True)
    with np.load(plain.inputs(name, "calib")) as data:
        ((key, values),) = data.items()
    rng, count = np.random.default_rng(0), len(values)
    places = -(-count // PERIOD) * PERIOD
    owners = [k if k < count else max(k - PERIOD, k % count) for k in range(places)]
    return {key: np.stack([change(values[owners[k]], rng) for k in grouped(places, copies)])}


def turned(image: Array, rng: Rng) -> Array:
    """One of the eight symmetries of a square image, at random."""
    image = np.rot90(image, int(rng.integers(4)), (-2, -1))
    return np.ascontiguousarray(image[..., ::-1] if rng.random() < 0.5 else image)


def mirrored(image: Array, rng: Rng) -> Array:
    """An image of four channels, the last of them a mask: perhaps mirrored, lighter or darker."""
    image = image[..., ::-1].copy() if rng.random() < 0.5 else image.copy()
    image[:3] *= rng.uniform(0.8, 1.2)
    return image


def shifted(image: Array, rng: Rng) -> Array:
    """An image moved by some pixels, lighter or darker."""
    return np.roll(image, rng.integers(-6, 7, 2), (-2, -1)) * np.float32(rng.uniform(0.85, 1.1))


def delayed(wave: Array, rng: Rng) -> Array:
    """A recording [time, channels] that begins elsewhere, louder or softer."""
    return np.roll(wave, int(rng.integers(len(wave))), 0) * np.float32(rng.uniform(0.5, 2))


def tones(part: Part, count: int) -> Sample:
    """Harmonic tones of random pitch, with noise."""
    rng, time = np.random.default_rng(1 if part == "calib" else 2), np.arange(1024) / RATE
    pitch = 60 * 2 ** rng.uniform(0, 4, (count, 1))
    waves = sum(np.sin(2 * np.pi * k * pitch * time + rng.uniform(0, 6, (count, 1))) / k for k in range(1, 6))
    waves = np.asarray(waves) + rng.normal(0, 0.1, (count, len(time)))
    return {"x": ((waves - waves.mean(1, keepdims=True)) / waves.std(1, keepdims=True)).astype(np.float32)}


def makers(material: Material) -> dict[tuple[str, Part], Callable[[], Sample]]:
    """The data that are made, by network and part."""
    copies = partial(write_copies, material)
    found: dict[tuple[str, Part], Callable[[], Sample]] = {
        ("squeezenet_fp16", "calib"): partial(write_views, material, "calib", caffe, 5),
        ("effnet_lite0", "calib"): partial(write_views, material, "calib", torch_like, 5),
        ("ppocr_mobile_v2_cls", "calib"): partial(copies, "ppocr_mobile_v2_cls", shifted, 5),
        ("msd_cs", "calib"): partial(copies, "msd_cs", turned, 8),
        ("carvana_unet_simp", "calib"): partial(copies, "carvana_unet_simp", mirrored, 8),
        ("seis_unet", "calib"): partial(copies, "seis_unet", delayed, 16),
    }
    for part in ("calib", "score"):
        found["super_resolution_10", part] = partial(write_whole, material, part, luminance, 100)
        found["yolox_nano", part] = partial(write_whole, material, part, letterboxed, 100)
        found["crepe_full", part] = partial(tones, part, 600 if part == "calib" else 200)
    return found


def prepare(material: Material, name: str) -> None:
    """Write what is made for a network, where it is not there yet; the scored part of the others is the zoo's."""
    for (network, part), make in makers(material).items():
        path = material.work / f"{network}_{part}.npz"
        if network == name and not path.exists():
            sample = make()
            np.savez(path, allow_pickle=False, **sample)
