"""Recipe of a recovery: the options and files a plan records, so that the changed weights can be reproduced."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from leanonnx.data.images import IMAGE_OPTIONS
from leanonnx.spelling import option

ARRAYS_NAME = "arrays"
"""Name of calibration data that are arrays in memory."""


@dataclass(frozen=True)
class WeightsFile:
    """The file of changed weights; ``biases`` maps each added bias constant to the output tensor of its node."""

    path: Path
    sha256: str
    biases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of a recovery: ``calib`` is the path of the data as given (None: without data).

    ``calib_sha256`` is the digest of the samples as fed, ``images`` the image options (None: no images, or the
    defaults), ``weights`` the weights file, if one was written.
    """

    calib: str | None
    calib_sha256: str | None
    seed: int
    images: Mapping[str, Any] | None = None
    weights: WeightsFile | None = None

    def row(self, folder: Path | None) -> dict[str, Any]:
        """Return the recipe as plain data; the weights file is given relative to ``folder`` (None: by its name)."""
        row = {"recover": "auto", **asdict(self)}
        if self.weights is not None:
            file = self.weights.path.name if folder is None else _relative_path(folder, self.weights.path)
            row["weights"] = {"file": file, "sha256": self.weights.sha256, "biases": dict(self.weights.biases)}
        return row

    def as_options(self) -> str:
        """Return the options that refit the weights, as the caller writes them."""
        if self.calib is None:
            words = [option("recover", "auto")]
        elif self.calib == ARRAYS_NAME:
            words = [f"{option('calib')} with the same arrays"]
        else:
            words = [option("calib", self.calib, shlex.quote(self.calib))]
        if self.images is not None:
            words += [option(name, self.images[name], text) for name, text in image_words(self.images).items()]
        return " ".join([*words, *([option("seed", self.seed)] if self.seed else [])])


def read_recipe(row: Mapping[str, Any] | None, folder: Path) -> Recipe | None:
    """Read a recipe from plain data; ``folder`` is that of the plan.

    Raises:
        KeyError, TypeError, ValueError: the data are not a valid recipe.
    """
    if row is None:
        return None
    file = row["weights"]
    weights = None
    if file is not None:
        biases = {str(name): str(tensor) for name, tensor in file["biases"].items()}
        weights = WeightsFile(Path(os.path.abspath(folder / file["file"])), str(file["sha256"]), biases)
    images = row["images"] if row["images"] is None else dict(row["images"])
    return Recipe(
        calib=_optional_text(row["calib"]),
        calib_sha256=_optional_text(row["calib_sha256"]),
        seed=int(row["seed"]),
        images=images,
        weights=weights,
    )


def earlier_recipe(options: Mapping[str, Any]) -> Recipe | None:
    """Derive the recipe of an older plan without one from its options; the digest of the data is unknown."""
    calib = options.get("calib")
    return (
        Recipe(calib=str(calib), calib_sha256=None, seed=int(options.get("seed", 0)))
        if calib and options.get("recover") == "auto"
        else None
    )


def _relative_path(folder: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # pragma: no cover - on Windows alone, where the file is on another drive
        return path.as_posix()


def image_words(images: Mapping[str, Any]) -> dict[str, str]:
    """The options that say how images become inputs, as typed."""
    names = ("preprocessor", "layout") if images.get("preprocessor") else IMAGE_OPTIONS
    return {name: _option_text(name, images) for name in names if images.get(name) is not None}


def _option_text(name: str, images: Mapping[str, Any]) -> str:
    value = images[name]
    if name == "layout":
        return f"{value},bgr" if images.get("order") == "bgr" else str(value)
    separator = "x" if name == "size" else ","
    return separator.join(
        repr(number).removesuffix(".0") for number in (value if isinstance(value, list | tuple) else [value])
    )


def _optional_text(value: object) -> str | None:
    return None if value is None else str(value)
