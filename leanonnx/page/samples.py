"""What both networks make of a few real images, side by side, as PNGs within the page; needs pillow."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.data.images import MODES, pillow
from leanonnx.data.samples import Data
from leanonnx.errors import DataError
from leanonnx.evaluation.deviation import side_by_side
from leanonnx.evaluation.kinds import IMAGE, channels_last, kind_of, rows_of
from leanonnx.evaluation.tally import PROBABILITY
from leanonnx.formatting import BLANK
from leanonnx.numeric.arrays import Array
from leanonnx.recovery.draft import parts

MOST = 4
SIDES = (320, 256, 192, 128)
"""Pixels of the longer side, tried in turn."""
BYTES = 1_200_000
"""Of all pictures together."""
WHITES = (1.0, 255.0)
MARGIN = 0.1
"""How far, as a share of white, nearly all numbers may lie outside of black and white."""


@dataclass(frozen=True)
class Pair:
    """What both networks put out for one sample [height, width, channels]; 0 is black."""

    wanted: Array
    found: Array

    def scaled(self, white: float) -> Pair:
        """The same with 1 for white."""
        return Pair(self.wanted / white, self.found / white)

    @property
    def words(self) -> str:
        """The PSNR, white being 1."""
        error = float(np.mean((self.wanted - self.found) ** 2))
        return f"PSNR {-10 * np.log10(error):.1f}{BLANK}dB" if error else "equal"


@dataclass(frozen=True)
class Sample:
    """Three pictures as data URIs: of the original, of the result, and their difference, whose size in ``words``."""

    original: str
    compressed: str
    difference: str
    words: str


@dataclass(frozen=True)
class Samples:
    """Samples of one ``output``; differences are drawn ``factor`` times as large."""

    output: str
    samples: tuple[Sample, ...]
    factor: int
    held_out: bool


def samples(result: CompressResult, draft: Path, data: Data | None) -> Samples | str | None:
    """Up to ``MOST`` samples of the first output that is an image; why there are none, None where none is an image."""
    if data is None:
        return None
    fitted, held = parts(result.dag, data)
    found = _pairs(result, draft, (held or fitted).first(MOST * (data.fixed or 1)))
    if found is None:
        return None
    try:
        maker = pillow()
    except DataError as error:
        return f"{error}."
    name, pairs = found
    factor = _factor(pairs)
    for side in SIDES:
        drawn = tuple(_drawn(maker, pair, side, factor) for pair in pairs)
        if sum(len(uri) for one in drawn for uri in (one.original, one.compressed, one.difference)) <= BYTES:
            break
    return Samples(name, drawn, factor, held is not None)


def _pairs(result: CompressResult, draft: Path, data: Data) -> tuple[str, list[Pair]] | None:
    """The first samples of the first output that holds images on all of them, white being 1."""
    model = result.dag.model
    runs = side_by_side(model, model.path, [draft], data, 1, result.dag.observation.replaced)
    found: list[list[list[Pair]]] = []
    for feed, _, wanted, (other,) in runs:
        rows, last = rows_of(feed), channels_last(feed)
        found.append([_images(a, b, kind_of(a, rows, last)) for a, b in zip(wanted, other, strict=True)])
    for value, each in zip(model.proto.graph.output, zip(*found, strict=True), strict=True):
        pairs = list(islice(chain.from_iterable(each), MOST))
        white = _white(pairs) if all(each) else None
        if white:
            return value.name, [pair.scaled(white) for pair in pairs]
    return None


def _images(wanted: Array, found: Array, kind: tuple[str, int]) -> list[Pair]:
    """What two outputs hold for each sample where these have the shape of images of 1 or 3 channels."""
    name, axis = kind
    if name != IMAGE or wanted.shape != found.shape or wanted.shape[axis] not in MODES:
        return []
    a, b = (np.moveaxis(value.astype(np.float64), axis, -1) for value in (wanted, found))
    probabilities = a.shape[-1] > 1 and bool((np.abs(a.sum(-1) - 1) <= PROBABILITY).all())
    if probabilities or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return []
    return [Pair(x, y) for x, y in zip(a, b, strict=True)]


def _white(pairs: list[Pair]) -> float | None:
    """The number that stands for white; None where the outputs of the original reach from 0 neither to 1 nor 255."""
    low, high = np.quantile(np.concatenate([pair.wanted.reshape(-1) for pair in pairs]), [0.01, 0.99])
    fits = (white for white in WHITES if -MARGIN * white <= low and MARGIN * white < high <= (1 + MARGIN) * white)
    return next(fits, None)


def _factor(pairs: list[Pair]) -> int:
    """The power of two that makes all but the largest differences fill the range from black to white."""
    large = max(float(np.quantile(np.abs(pair.wanted - pair.found), 0.995)) for pair in pairs)
    return int(2 ** np.clip(np.floor(-np.log2(max(large, 1e-9))), 0, 10))


def _drawn(maker: Any, pair: Pair, side: int, factor: int) -> Sample:
    difference = factor * np.abs(pair.wanted - pair.found).mean(-1, keepdims=True)
    original, compressed, changed = (_picture(maker, each, side) for each in (pair.wanted, pair.found, difference))
    return Sample(original, compressed, changed, pair.words)


def _picture(maker: Any, array: Array, side: int) -> str:
    """A PNG as data URI; small ones are enlarged without smoothing by the page."""
    pixels = np.round(255 * np.clip(array, 0, 1)).astype(np.uint8)
    image = maker.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((side, side), maker.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
