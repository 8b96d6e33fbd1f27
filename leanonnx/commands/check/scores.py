"""The gate on a score of the user's own: how far NEW scores below BASE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leanonnx.commands.check.gates import DROP, GateLimit
from leanonnx.commands.check.verdicts import Verdict, status_of
from leanonnx.data.files import further_arrays
from leanonnx.data.samples import ImageFormat, open_data
from leanonnx.errors import OptionError
from leanonnx.evaluation.tolerances import ERROR_PROBABILITY
from leanonnx.evaluation.user_scores import ScoreFunction, UserScore, gather_arrays, score_function, score_name
from leanonnx.graph.model import Model
from leanonnx.runtime.free_axes import InputShapes
from leanonnx.spelling import option


def check_score(limits: Mapping[str, GateLimit], score: str | ScoreFunction | None, data: Path | None) -> None:
    """Refuse a score without its gate, the gate without a score, and both without data.

    Raises:
        OptionError: it is one of these.
    """
    if (DROP in limits) != (score is not None):
        given, other = (DROP, "score") if score is None else ("score", DROP)
        example = option("score", "scores.py:accuracy") if score is None else option(DROP, 0.01)
        raise OptionError(f"{option(given)} needs {option(other)}; add it, for example {example}")
    if score is not None and data is None:
        raise OptionError(f"{option('score')} is a number of real inputs, and there are none; add {option('data')}")


def score_verdicts(
    limits: Mapping[str, GateLimit],
    score: str | ScoreFunction | None,
    source: Path | None,
    images: ImageFormat,
    models: tuple[Model, Model],
    shapes: InputShapes,
) -> list[Verdict]:
    """The verdict on the fall of a score from BASE to NEW; none without a score.

    Args:
        limits: by gate.
        score: the function, or its name.
        source: real inputs.
        images: conversion of photographs among them.
        models: BASE and NEW.
        shapes: sizes of BASE's inputs.

    Raises:
        DataError: the samples do not fit.
        OptionError: there is no such function, or it fails.
    """
    if score is None or source is None:
        return []
    base, new = models
    extras = further_arrays(source, [value.name for value in base.inputs])
    arrays = gather_arrays(open_data(source, base, shapes, images, extras))
    user = UserScore(option("score", score_name(score)), score_function(score), arrays, base.path)
    reading = user.fall(new.path, limits[DROP].number, ERROR_PROBABILITY)
    return [
        Verdict(
            gate=DROP,
            status=status_of(reading.value <= reading.limit),
            detail=f"at most {reading.bound:.4g} with {1 - ERROR_PROBABILITY:.0%} certainty, {user.count} samples",
            measured=reading.value,
            limit=reading.limit,
        )
    ]
