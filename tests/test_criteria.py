"""The table of ranking criteria is complete, and the command line explains each."""

from __future__ import annotations

from typing import get_args

import pytest

from leanonnx.ranking.criteria import BY_ACTIVATIONS, METHODS, Method, meaning
from tests.helpers import called


def test_every_name_has_its_function() -> None:
    assert list(METHODS) == list(get_args(Method))
    assert len(set(METHODS.values())) == len(METHODS)
    assert set(BY_ACTIVATIONS) < set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_meaning_is_one_sentence_of_the_help(method: Method) -> None:
    text = " ".join(called("compress", "--help").stdout.replace("│", " ").split())
    assert f" {method}: {meaning(method)} " in text
    assert meaning(method).endswith(".")
