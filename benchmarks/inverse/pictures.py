"""Pictures of one object of the score data: reconstructions above, their errors below; needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import DOCS
from benchmarks.inverse.experiment import Lab, images
from benchmarks.inverse.page import ORIGINAL, PLAIN, PRUNED, RECOVERED
from benchmarks.inverse.problems import psnr
from leanonnx.numeric.arrays import Array

SHOWN = 5
"""Place of the object: an odd one, which is a phantom, so that no photograph is published."""
RATIO = 0.1
ERRORS = 0.25
"""Error that is shown as white."""
COLUMN_INCHES, DOTS_PER_INCH = 1.5, 90


def magnitude(image: Array) -> Array:
    """An image [C, H, W] of one or two channels as one of grey values."""
    return np.asarray(image[0] if len(image) == 1 else np.hypot(*image))


def picture(lab: Lab, problem: str, methods: tuple[str, ...]) -> Path:
    """``docs/inverse_PROBLEM.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = slice(SHOWN, SHOWN + 1)
    with np.load(lab.data(problem, "score")) as file:
        target, plain = file["labels"][rows], file["plain"][rows]
    made = {PLAIN: plain, ORIGINAL: images(lab, problem, lab.network(problem), rows)}
    for method in (PRUNED, RECOVERED, *methods):
        path = lab.network(problem, method, RATIO)
        if path.exists():
            made[method] = images(lab, problem, path, rows)
    figure = Figure(figsize=(COLUMN_INCHES * (len(made) + 1), 2 * COLUMN_INCHES + 0.4), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(made) + 1)
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].imshow(magnitude(target[0]), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("object", fontsize=8)
    for column, (method, image) in enumerate(made.items(), 1):
        axes[0, column].imshow(magnitude(image[0]), cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(f"{method}\n{psnr(image, target):.1f} dB", fontsize=8)
        error = np.sqrt(((image[0] - target[0]) ** 2).sum(0))
        axes[1, column].imshow(error, cmap="inferno", vmin=0, vmax=ERRORS)
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.9, 0.03, 0.03)
    path = DOCS / f"inverse_{problem}.png"
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return path
