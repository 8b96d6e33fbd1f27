"""Pictures of one object of the score data: reconstructions above, their errors below; needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import DOCS
from benchmarks.inverse.experiment import Lab, images
from benchmarks.inverse.images import SIZE
from benchmarks.inverse.page import ORIGINAL, PLAIN, PRUNED, RECOVERED, WITHOUT
from benchmarks.inverse.problems import psnr
from leanonnx.numeric.arrays import Array

SHOWN = 5
"""Place of the object: an odd one, which is a phantom, so that no photograph is published."""
RATIO = 0.1
ERRORS = 0.25
"""Error that is shown as white."""
PIXEL, GAP, TITLE = 2, 6, 34
"""Dots of a pixel's side, between images, and of the titles' height."""
DOTS_PER_INCH = 100
COLOURS = 64
"""Number of colours of the file, so that it is small."""


def magnitude(image: Array) -> Array:
    """An image [C, H, W] of one or two channels as one of grey values."""
    return np.asarray(image[0] if len(image) == 1 else np.hypot(*image))


def reconstructions(lab: Lab, problem: str, methods: tuple[str, ...]) -> tuple[Array, dict[str, Array]]:
    """An object [C, H, W], and what is made of it by method; methods without a network are left out."""
    rows = slice(SHOWN, SHOWN + 1)
    with np.load(lab.data(problem, "score")) as file:
        target, plain = file["labels"][rows], file["plain"][rows]
    made = {PLAIN: plain, ORIGINAL: images(lab, problem, lab.network(problem), rows)}
    for method in (PRUNED, RECOVERED, *methods):
        path = lab.network(problem, method, RATIO)
        if path.exists():
            made[method] = images(lab, problem, path, rows)
    return target[0], {method: image[0] for method, image in made.items()}


def picture(lab: Lab, problem: str, methods: tuple[str, ...]) -> Path:
    """``docs/inverse_PROBLEM.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    target, made = reconstructions(lab, problem, methods)
    side = PIXEL * SIZE
    width, height = (len(made) + 1) * (side + GAP), 2 * (side + GAP) + TITLE
    figure = Figure(figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def show(column: int, row: int, image: Array, colours: str, brightest: float) -> None:
        bottom = (1 - row) * (side + GAP)
        axis = figure.add_axes((column * (side + GAP) / width, bottom / height, side / width, side / height))
        axis.imshow(image, cmap=colours, vmin=0, vmax=brightest, interpolation="nearest")
        axis.axis("off")

    def title(column: int, text: str) -> None:
        middle = (column * (side + GAP) + side / 2) / width
        figure.text(middle, 1 - 0.5 * TITLE / height, text, fontsize=7, ha="center", va="center")

    show(0, 0, magnitude(target), "gray", 1)
    title(0, "object")
    for column, (method, image) in enumerate(made.items(), 1):
        show(column, 0, magnitude(image), "gray", 1)
        show(column, 1, np.sqrt(((image - target) ** 2).sum(0)), "inferno", ERRORS)
        title(column, f"{WITHOUT[problem] if method == PLAIN else method}\n{psnr(image[None], target[None]):.1f} dB")
    canvas.draw()
    path = DOCS / f"inverse_{problem}.png"
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
