"""How a run changed the weights that were left: what a plan records of it, so that they can be had again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from leanonnx.data.images import IMAGE_OPTIONS
from leanonnx.spelling import option

ARRAYS = "arrays"
"""What data in memory are called."""


@dataclass(frozen=True)
class WeightsFile:
    """The file of changed weights; ``biases`` names the tensor at which each constant that was added is the bias."""

    path: Path
    sha256: str
    biases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """The options that changed weights: data by their path as given (None: without data), and what they held.

    ``calib_sha256`` is the digest of the samples as they are fed, ``images`` how photographs among them became tensors
    (None: there were none, or as by default), ``weights`` the file that holds the weights, where one was written.
    """

    calib: str | None
    calib_sha256: str | None
    seed: int
    images: Mapping[str, Any] | None = None
    weights: WeightsFile | None = None

    def row(self, folder: Path | None) -> dict[str, Any]:
        """The recipe as plain data, the file of weights by its place as seen from ``folder`` (None: by its name)."""
        row = {"recover": "auto", **asdict(self)}
        if self.weights is not None:
            file = self.weights.path.name if folder is None else _seen_from(folder, self.weights.path)
            row["weights"] = {"file": file, "sha256": self.weights.sha256, "biases": dict(self.weights.biases)}
        return row

    def again(self) -> str:
        """The options that fit the weights anew, as they are typed."""
        if self.calib is None:
            words = [option("recover", "auto")]
        elif self.calib == ARRAYS:
            words = [f"{option('calib')} with the same arrays"]
        else:
            words = [option("calib", self.calib, shlex.quote(self.calib))]
        if self.images is not None:
            given = [name for name in IMAGE_OPTIONS if self.images.get(name) is not None]
            words += [option(name, self.images[name], _typed(name, self.images)) for name in given]
        return " ".join([*words, *([option("seed", self.seed)] if self.seed else [])])


def read_recipe(row: Mapping[str, Any] | None, folder: Path) -> Recipe | None:
    """A recipe from plain data; ``folder`` is that of the plan.

    Raises:
        KeyError, TypeError, ValueError: it is no recipe.
    """
    if row is None:
        return None
    file = row["weights"]
    weights = None
    if file is not None:
        biases = {str(name): str(tensor) for name, tensor in file["biases"].items()}
        weights = WeightsFile(Path(os.path.abspath(folder / file["file"])), str(file["sha256"]), biases)
    images = row["images"] if row["images"] is None else dict(row["images"])
    return Recipe(_text(row["calib"]), _text(row["calib_sha256"]), int(row["seed"]), images, weights)


def earlier_recipe(options: Mapping[str, Any]) -> Recipe | None:
    """The recipe of a plan that does not hold one, from its options; what the data held is not known."""
    calib = options.get("calib")
    return Recipe(str(calib), None, int(options.get("seed", 0))) if calib and options.get("recover") == "auto" else None


def _seen_from(folder: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on Windows, another drive
        return path.as_posix()


def _typed(name: str, images: Mapping[str, Any]) -> str:
    value = images[name]
    if name == "layout":
        return f"{value},bgr" if images.get("order") == "bgr" else str(value)
    separator = "x" if name == "size" else ","
    return separator.join(
        repr(number).removesuffix(".0") for number in (value if isinstance(value, list | tuple) else [value])
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
