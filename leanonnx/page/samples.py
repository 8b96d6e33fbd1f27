"""Outputs of both networks for a few real images, side by side, as PNGs within the page; needs pillow."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.data.images import PILLOW_MODES, import_pillow
from leanonnx.data.samples import Dataset
from leanonnx.errors import DataError
from leanonnx.evaluation.deviation import run_side_by_side
from leanonnx.evaluation.kinds import IMAGE, channels_last, output_kind, sample_count
from leanonnx.evaluation.tally import PROBABILITY_TOLERANCE
from leanonnx.formatting import UNIT_SPACE
from leanonnx.numeric.arrays import Array
from leanonnx.recovery.draft import split_within_memory

MAX_DRAWN_SAMPLES = 4
PICTURE_SIDES = (320, 256, 192, 128)
"""Pixels of the longer side, tried in turn."""
MAX_PICTURE_BYTES = 1_200_000
"""Bytes of all pictures together."""
WHITES = (1.0, 255.0)
"""Numbers that may stand for white."""
WHITE_TOLERANCE = 0.1
"""Share of white by which nearly all numbers may lie outside of black and white."""


@dataclass(frozen=True)
class ImagePair:
    """Outputs of both networks for one sample [height, width, channels]; 0 is black."""

    original: Array
    compressed: Array

    def normalise(self, white: float) -> ImagePair:
        """The same with 1 for white."""
        return ImagePair(self.original / white, self.compressed / white)

    @property
    def psnr_text(self) -> str:
        """The PSNR, white being 1."""
        error = float(np.mean((self.original - self.compressed) ** 2))
        return f"PSNR {-10 * np.log10(error):.1f}{UNIT_SPACE}dB" if error else "equal"


@dataclass(frozen=True, kw_only=True)
class SamplePictures:
    """Three pictures as data URIs: of the original, of the result, of their difference; ``words``: its size."""

    original: str
    compressed: str
    difference: str
    words: str

    @property
    def size(self) -> int:
        """Bytes of all pictures."""
        return len(self.original) + len(self.compressed) + len(self.difference)


@dataclass(frozen=True, kw_only=True)
class OutputSamples:
    """Samples of one ``output``; differences are drawn ``factor`` times as large."""

    output: str
    samples: tuple[SamplePictures, ...]
    factor: int
    held_out: bool


def output_samples(result: CompressResult, draft: Path, data: Dataset | None) -> OutputSamples | str | None:
    """Samples of the first output that is an image; None where none is, the reason where they cannot be drawn."""
    if data is None:
        return None
    fitted, held = split_within_memory(result.dag, data)
    images = _pairs(result, draft, (held or fitted).subsample(MAX_DRAWN_SAMPLES * (data.fixed_batch or 1)))
    if images is None:
        return None
    try:
        maker = import_pillow()
    except DataError as error:
        return f"{error}."
    name, pairs = images
    factor = _factor(pairs)
    for side in PICTURE_SIDES:
        drawn = tuple(_sample_pictures(maker, pair, side, factor) for pair in pairs)
        if (
            sum(len(uri) for one in drawn for uri in (one.original, one.compressed, one.difference))
            <= MAX_PICTURE_BYTES
        ):
            break
    return OutputSamples(output=name, samples=drawn, factor=factor, held_out=held is not None)


def _pairs(result: CompressResult, draft: Path, data: Dataset) -> tuple[str, list[ImagePair]] | None:
    """The first samples of the first output that holds images on all of them, white being 1."""
    model = result.dag.taught_by
    runs = run_side_by_side(model, model.path, [draft], data, 1, result.dag.observation.replaced_formats)
    by_run: list[list[list[ImagePair]]] = []
    for feed, _, originals, (others,) in runs:
        rows, last = sample_count(feed), channels_last(feed)
        by_run.append([_image_pairs(a, b, output_kind(a, rows, last)) for a, b in zip(originals, others, strict=True)])
    for value, each in zip(model.proto.graph.output, zip(*by_run, strict=True), strict=True):
        pairs = list(islice(chain.from_iterable(each), MAX_DRAWN_SAMPLES))
        white = _white(pairs) if all(each) else None
        if white:
            return value.name, [pair.normalise(white) for pair in pairs]
    return None


def _image_pairs(original: Array, compressed: Array, kind: tuple[str, int]) -> list[ImagePair]:
    """Both outputs by sample; none unless they have the shape of images of 1 or 3 channels."""
    name, axis = kind
    if name != IMAGE or original.shape != compressed.shape or original.shape[axis] not in PILLOW_MODES:
        return []
    a, b = (np.moveaxis(value.astype(np.float64), axis, -1) for value in (original, compressed))
    probabilities = a.shape[-1] > 1 and bool((np.abs(a.sum(-1) - 1) <= PROBABILITY_TOLERANCE).all())
    if probabilities or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return []
    return [ImagePair(x, y) for x, y in zip(a, b, strict=True)]


def _white(pairs: list[ImagePair]) -> float | None:
    """The number that stands for white; None where the outputs of the original reach from 0 neither to 1 nor 255."""
    low, high = np.quantile(np.concatenate([pair.original.reshape(-1) for pair in pairs]), [0.01, 0.99])
    slack = WHITE_TOLERANCE
    fits = (white for white in WHITES if -slack * white <= low and slack * white < high <= (1 + slack) * white)
    return next(fits, None)


def _factor(pairs: list[ImagePair]) -> int:
    """The power of two that makes all but the largest differences fill the range from black to white."""
    large = max(float(np.quantile(np.abs(pair.original - pair.compressed), 0.995)) for pair in pairs)
    return int(2 ** np.clip(np.floor(-np.log2(max(large, 1e-9))), 0, 10))


def _sample_pictures(maker: Any, pair: ImagePair, side: int, factor: int) -> SamplePictures:
    difference = factor * np.abs(pair.original - pair.compressed).mean(-1, keepdims=True)
    first, second, third = (_picture(maker, each, side) for each in (pair.original, pair.compressed, difference))
    return SamplePictures(original=first, compressed=second, difference=third, words=pair.psnr_text)


def _picture(maker: Any, array: Array, side: int) -> str:
    """A PNG as data URI; small ones are enlarged without smoothing by the page."""
    pixels = np.round(255 * np.clip(array, 0, 1)).astype(np.uint8)
    image = maker.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((side, side), maker.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
