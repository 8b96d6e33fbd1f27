"""Scores of the user's own: a function of a model file and of samples, and the bound of how far it falls.

The function returns one number, or an array of one number for each sample; higher is better.  Numbers of the original
and of a candidate on the same samples are compared in pairs.  With one number, it is asked for on parts of the samples,
whose differences take the place of those of the samples.
"""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.data.samples import Dataset
from leanonnx.errors import DataError, OptionError
from leanonnx.evaluation.tolerances import ToleranceReading
from leanonnx.graph.model import first_line
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.bounds import ratio_upper_bounds
from leanonnx.spelling import option

ScoreFunction = Callable[[str, Mapping[str, Array]], Any]
"""From the path of a model and arrays of samples, by the names of the graph inputs and of further arrays, to a score
or to the scores of the samples."""
SCORE_PARTS = 12
"""Number of parts of the samples that a score of one number is asked for on."""
MAX_SCORED_BYTES = 1 << 30
"""Bytes of samples in memory at once for a score; samples beyond that are left out."""


def score_function(given: str | ScoreFunction) -> ScoreFunction:
    """The function that ``module:function`` or ``file.py:function`` names; one that is given as it is.

    Raises:
        OptionError: there is no such function.
    """
    if callable(given):
        return given
    module, colon, name = given.rpartition(":")
    if not colon or not module or not name.isidentifier():
        raise OptionError(
            f"{option('score', given)}: expected a module or a Python file and a function in it, for example "
            f"{option('score', 'scores.py:accuracy')}"
        )
    try:
        members = runpy.run_path(module) if module.endswith(".py") else vars(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise OptionError(
            f"{option('score', given)}: {module} cannot be read: {type(error).__name__}: {first_line(error)}; "
            "correct the name or the file"
        ) from error
    function = members.get(name)
    if not callable(function):
        raise OptionError(f"{option('score', given)}: {module} has no function '{name}'; correct the name")
    return function  # type: ignore[no-any-return]


def score_name(given: str | ScoreFunction) -> str:
    """The name of a score in messages and plans."""
    return str(getattr(given, "__name__", type(given).__name__)) if callable(given) else given


@dataclass(frozen=True)
class UserScore:
    """A score on samples.

    Attributes:
        title: the option that names it, for messages.
        function: the function.
        arrays: the samples, by name of their array [samples, ...].
        original: path of the original.
    """

    title: str
    function: ScoreFunction
    arrays: Mapping[str, Array]
    original: Path

    def fall(self, candidate: Path, limit: float, doubt: float) -> ToleranceReading:
        """The drop of a candidate's score below the original's, with an upper bound.

        Args:
            candidate: its file.
            limit: the largest fall that is allowed.
            doubt: error probability of the bound.

        Raises:
            OptionError: the function fails, or returns no score.
        """
        before, after = self._before, self._scores(candidate)
        if before.shape != after.shape:
            raise OptionError(f"{self.title}: one number for one model, several for the other; return always the same")
        if before.size > 1:
            value = float((before - after).mean())
            return ToleranceReading("max_drop", value, fall_bound(before, after, doubt), limit)
        value, parts = float(before[0] - after[0]), (self._parts_before, self._part_scores(candidate))
        bound = value + fall_bound(*parts, doubt) - float((parts[0] - parts[1]).mean())
        return ToleranceReading("max_drop", value, bound, limit)

    @cached_property
    def _before(self) -> Floats:
        return self._scores(self.original)

    @cached_property
    def _parts_before(self) -> Floats:
        return self._part_scores(self.original)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.arrays.values())))

    def _part_scores(self, model: Path) -> Floats:
        """The score on each part of the samples; every part has samples from everywhere."""
        parts = min(SCORE_PARTS, self.count)
        chosen = ({name: array[k::parts] for name, array in self.arrays.items()} for k in range(parts))
        return np.array([self._call(model, arrays)[0] for arrays in chosen])

    def _scores(self, model: Path) -> Floats:
        scores = self._call(model, self.arrays)
        if scores.size not in (1, self.count):
            raise OptionError(
                f"{self.title}: {scores.size} numbers for {self.count} samples; return one number, or one for each"
            )
        return scores

    def _call(self, model: Path, arrays: Mapping[str, Array]) -> Floats:
        try:
            scores = np.asarray(self.function(str(model), dict(arrays)), np.float64)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise OptionError(
                f"{self.title} failed on {model.name}: {type(error).__name__}: {first_line(error)}; "
                "correct the function"
            ) from error
        if scores.ndim > 1 or not scores.size or not np.isfinite(scores).all():
            raise OptionError(
                f"{self.title} returned {'numbers that are not finite' if scores.size else 'nothing'} or more than one "
                f"axis for {model.name}; return one number, or one for each sample"
            )
        return scores.reshape(-1)


def fall_bound(before: Floats, after: Floats, doubt: float) -> float:
    """Upper bound of the mean of paired differences.

    Where all are equal, a difference as large as the original's largest score may yet be rare enough to be missing
    among so many samples.
    """
    falls = before - after
    if np.ptp(falls):
        return float(ratio_upper_bounds(falls[:, None], np.ones((falls.size, 1)), doubt)[0])
    return float(falls[0] + np.abs(before).max() * (1 - doubt ** (1 / falls.size)))


def gather_arrays(data: Dataset) -> dict[str, Array]:
    """All samples in memory, by the name of their array, the labels among them; fewer if they take too much.

    Raises:
        DataError: they cannot be read, or differ in shape.
    """
    whole = {slot.name for slot in data.inputs if slot.is_whole}
    feed, label = next(data.labelled_feeds(1))
    each = sum(value.nbytes for value in feed.values()) + (0 if label is None else label.nbytes)
    runs = max(1, MAX_SCORED_BYTES // max(each, 1)) * (data.fixed_batch or 1)
    rows: dict[str, list[Array]] = {}
    for feed, label in data.subsample(max(1, runs)).labelled_feeds(1):
        for name, value in feed.items():
            rows.setdefault(name, []).append(value[None] if name in whole else value)
        if label is not None and data.label_name:
            rows.setdefault(data.label_name, []).append(label)
    if any(len({value.shape[1:] for value in values}) > 1 for values in rows.values()):
        raise DataError(f"{data.files[0].title}: samples of a score are of one shape; give them in one size")
    return {name: np.concatenate(values) for name, values in rows.items()}
