"""Plan files that are broken, made for another model or contradicted are refused, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import CNN, build, called, called_json, refused, saved


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def test_plan_of_another_model(model: Path) -> None:
    folder = model.parent
    other = saved(build(CNN, seed=1), folder / "other.onnx")
    called_json("compress", other, folder / "small.onnx", "--keep", "0.5", "--plan-out", folder / "plan.json")
    refused(folder, "compress", model, "out.onnx", "--plan", "plan.json", says=("plan.json", "another model"))


@pytest.mark.parametrize("option", ["--pin", "--ignore"])
def test_plan_with_another_choice(model: Path, option: str) -> None:
    """A plan determines what is kept: options that contradict it are refused, not ignored."""
    called("compress", model, "out.onnx", "--keep", "0.5", "--plan-out", "plan.json", cwd=model.parent)
    args = ("compress", model, "new.onnx", "--plan", "plan.json", option, "C1")
    refused(model.parent, *args, says=(option, "--plan"))


EARLIER = b'"options": {"calib": "x", "recover": "auto", "seed": "x"}'
NOT_PLANS = {
    "missing": None,
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "text": b"keep everything",
    "list": b"[]",
    "null": b"null",
    "object": b"{}",
    "another schema": b'{"schema": 2, "leanonnx": "", "input_sha256": "", "options": {}, "tensors": {}}',
    "a seed of text in an earlier one": b'{"schema": 1, "leanonnx": "", "input_sha256": "", "tensors": {}, %s}'
    % EARLIER,
    "no digest": b'{"schema": 1, "leanonnx": "", "input_sha256": null, "options": {}, "tensors": {}}',
}

WHOLE = {"schema": 1, "leanonnx": "", "input_sha256": "", "options": {}, "tensors": {}}
RECIPE = {"recover": "auto", "calib": None, "calib_sha256": None, "seed": 0, "images": None, "weights": None}
NO_RECIPES: dict[str, object] = {
    "recovery is text": "auto",
    "recovery is empty": {},
    "recovery has a seed of text": RECIPE | {"seed": "x"},
    "recovery has a seed without end": RECIPE | {"seed": float("inf")},
    "images are a number": RECIPE | {"images": 3},
    "weights are text": RECIPE | {"weights": "w.npz"},
    "weights have no digest": RECIPE | {"weights": {"file": "w.npz", "biases": {}}},
    "biases are a list": RECIPE | {"weights": {"file": "w.npz", "sha256": "", "biases": []}},
}


@pytest.mark.parametrize("kind", NOT_PLANS)
def test_no_plan(model: Path, kind: str) -> None:
    content = NOT_PLANS[kind]
    if content is not None:
        (model.parent / "plan.json").write_bytes(content)
    refused(model.parent, "compress", model, "out.onnx", "--plan", "plan.json", says=("plan.json",))


@pytest.mark.parametrize("kind", NO_RECIPES)
def test_no_recipe(model: Path, kind: str) -> None:
    (model.parent / "plan.json").write_text(json.dumps(WHOLE | {"recovery": NO_RECIPES[kind]}))
    says = ("plan.json", "not a plan of leanonnx")
    refused(model.parent, "compress", model, "out.onnx", "--plan", "plan.json", says=says)


BROKEN_PLANS: dict[str, Callable[[dict[str, Any]], object]] = {
    "entry is null": lambda tensors: tensors.update(w2=None),
    "entry is empty": lambda tensors: tensors.update(w2={}),
    "index out of range": lambda tensors: tensors["w2"].update(kept=[[0, 99], None, None, None]),
    "index is text": lambda tensors: tensors["w2"].update(kept=[["a"], None, None, None]),
    "nothing kept": lambda tensors: tensors["w2"].update(kept=[[], None, None, None]),
    "axes missing": lambda tensors: tensors["w2"].update(kept=[[0]]),
    "kernel taps removed": lambda tensors: tensors["w2"].update(kept=[None, None, [0], None]),
    "other sizes": lambda tensors: tensors["w2"].update(before=[1, 2, 3, 4]),
    "outputs removed": lambda tensors: tensors["w3"].update(kept=[[0], None]),
    "layers disagree": lambda tensors: tensors["w1"].update(kept=[[0], None, None, None]),
    "tensors missing": lambda tensors: tensors.clear(),
    "unknown tensor": lambda tensors: tensors.update(ghost=tensors.pop("w2")),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plan")
    source = saved(build(CNN), folder / "model.onnx")
    called_json("compress", source, folder / "out.onnx", "--keep", "0.5", "--plan-out", folder / "plan.json")
    found = json.loads((folder / "plan.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("kind", BROKEN_PLANS)
def test_broken_plan(model: Path, plan: dict[str, Any], kind: str) -> None:
    broken = json.loads(json.dumps(plan))
    BROKEN_PLANS[kind](broken["tensors"])
    (model.parent / "plan.json").write_text(json.dumps(broken))
    refused(model.parent, "compress", model, "out.onnx", "--plan", "plan.json", says=("plan.json",))
