"""Refusals of the Python interface, and the errors that it raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.errors import (
    BudgetUnreachable,
    DataError,
    ModelError,
    OptionError,
    OutputError,
    PlanError,
    Refusal,
    UserError,
)
from tests.helpers import ANY, CALIBRATION, CNN, build, saved, tree


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


# what is refused


WRONG: dict[str, tuple[dict[str, Any], type[UserError], str]] = {
    "nothing asked": ({}, OptionError, "exactly one of keep, macs"),
    "two things asked": ({"keep": 0.5, "exact": True}, OptionError, "exactly one of keep, macs"),
    "fraction": ({"keep": 1.5}, OptionError, "keep=1.5: expected a fraction"),
    "method": ({"keep": 0.5, "method": "magic"}, OptionError, "method='magic': expected one of auto, lean"),
    "chains": ({"keep": 0.5, "chains": "golden"}, OptionError, "chains='golden'"),
    "recover": ({"keep": 0.5, "recover": "magic"}, OptionError, "recover='magic'"),
    "provider": ({"keep": 0.5, "provider": "tpu"}, OptionError, "provider='tpu'"),
    "threads": ({"keep": 0.5, "threads": -1}, OptionError, "threads=-1"),
    "seed": ({"keep": 0.5, "seed": -1}, OptionError, "seed=-1"),
    "align": ({"keep": 0.5, "align": 0}, OptionError, "align=0"),
    "align text": ({"keep": 0.5, "align": "wide"}, OptionError, "align='wide'"),
    "target": ({"keep": 0.5, "target": "abacus"}, OptionError, "target='abacus'"),
    "shape": ({"keep": 0.5, "shape": {"z": (1,)}}, OptionError, "shape z: no such graph input"),
    "pin": ({"keep": 0.5, "pin": "ghost"}, OptionError, "pin='ghost'"),
    "library": ({"keep": 0.5, "library": "none.so"}, OptionError, "library='none.so': no such file"),
    "rules": ({"keep": 0.5, "rules": "none.py"}, OptionError, "rules='none.py'"),
    "plan": ({"plan": "none.json"}, PlanError, "none.json: the plan cannot be read"),
    "plan and pins": ({"plan": "plan", "pin": "c1"}, OptionError, "pin and ignore"),
    "exact and calib": ({"exact": True, "calib": CALIBRATION}, OptionError, "calib has nothing to do with exact=True"),
    "calib name": ({"keep": 0.5, "calib": {"z": CALIBRATION, "w": CALIBRATION}}, DataError, "no array for input 'x'"),
    "calib shape": ({"keep": 0.5, "calib": CALIBRATION[:, :2]}, DataError, "calib: array 'calib' has the shape"),
    "calib number": ({"keep": 0.5, "calib": {"x": 1.0}}, DataError, "calib: array 'x' has the shape"),
    "no calib": ({"keep": 0.5, "calib": {}}, DataError, "calib: no array for input 'x'"),
    "calib NaN": ({"keep": 0.5, "calib": CALIBRATION * np.nan}, DataError, "calib: sample 0 of input 'x': NaN"),
    "images": (
        {"keep": 0.5, "calib": CALIBRATION, "images": leanonnx.ImageFormat(mean=(0.5,))},
        DataError,
        "calib: no images",
    ),
    "no folder": ({"keep": 0.5, "out": "none/out.onnx"}, OutputError, "does not exist"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("in_memory", [False, True], ids=["path", "model"])
def test_wrong_requests(model: Path, case: str, in_memory: bool) -> None:
    given, kind, says = WRONG[case]
    if given.get("plan") == "plan":
        given = {**given, "plan": leanonnx.compress(model, keep=0.5, **ANY).plan}
    before = tree(model.parent)
    with pytest.raises(kind) as caught:
        leanonnx.compress(onnx.load(model) if in_memory else model, **given)
    assert says in str(caught.value)
    assert tree(model.parent) == before


@pytest.mark.parametrize(
    "wrong", [{"mean": ()}, {"std": (0.0,)}, {"scale": 0.0}, {"layout": "chw"}, {"size": (0, 3)}], ids=str
)
def test_wrong_image_formats(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(wrong))}="):
        leanonnx.ImageFormat(**wrong)


def test_no_is_a_refusal(model: Path) -> None:
    with pytest.raises(BudgetUnreachable, match="at least"):
        leanonnx.compress(model, keep=0.001, **ANY)
    assert issubclass(BudgetUnreachable, Refusal) and issubclass(Refusal, leanonnx.LeanOnnxError)


def test_errors_of_models_in_memory_name_no_file(model: Path) -> None:
    broken = onnx.load(model)
    broken.graph.node[0].op_type = "Cnov"
    with pytest.raises(ModelError, match=r"^the model: the ONNX checker refuses the model") as caught:
        leanonnx.compress(broken, keep=0.5)
    assert "/" not in str(caught.value).split(":")[0]
    with pytest.raises(ModelError, match=r"^the model: "):
        leanonnx.analyse(onnx.ModelProto())
    with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
        leanonnx.analyse("none.onnx")
