"""A criterion of the caller's own: a function from kernels to scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanonnx
from leanonnx.errors import OptionError
from tests.helpers import ANY, CNN, build, saved


def sum_of_magnitudes(kernels: Any) -> Any:
    """The scores of ``method="l1"``."""
    return np.abs(kernels.reshape(*kernels.shape[:2], -1)).sum(-1)


def by_index(kernels: Any) -> Any:
    """The later, the better."""
    return np.broadcast_to(np.arange(kernels.shape[1]), kernels.shape[:2])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def test_a_function_ranks_as_the_method_it_repeats(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    own = leanonnx.compress(model, keep=0.5, method=sum_of_magnitudes, report=page, **ANY)
    assert own.model == leanonnx.compress(model, keep=0.5, method="l1", **ANY).model
    assert own.plan.options["method"] == "sum_of_magnitudes"
    assert "method=sum_of_magnitudes" in page.read_text()


def test_scores_decide(model: Path) -> None:
    kept = leanonnx.compress(model, keep=0.5, method=by_index, **ANY).plan.tensors["w1"]["kept"][0]
    assert kept == list(range(8))[-len(kept) :] and len(kept) < 8


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "fails": (lambda kernels: 1 / 0, "ZeroDivisionError: division by zero; correct the function"),
    "shape": (lambda kernels: np.zeros(3), r"returned the shape \[3\], expected \[1, 8\]"),
    "not finite": (lambda kernels: np.full(kernels.shape[:2], np.nan), "returned NaN or infinity"),
    "no numbers": (lambda kernels: "many", "ValueError"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_functions_are_described(model: Path, case: str) -> None:
    function, says = WRONG[case]
    with pytest.raises(OptionError, match=rf"^method='<lambda>' on kernels \[1, .*{says}"):
        leanonnx.compress(model, keep=0.5, method=function, **ANY)


def test_weights_cannot_be_changed(model: Path) -> None:
    def vandal(kernels: Any) -> Any:
        scores = sum_of_magnitudes(kernels)
        kernels[:] = 0
        return scores

    assert leanonnx.compress(model, keep=0.5, method=vandal, **ANY).proof.passed
