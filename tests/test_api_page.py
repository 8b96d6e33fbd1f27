"""docs/api.md: its examples run and give the shown results, and it names the whole public interface."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
import warnings
from dataclasses import fields
from pathlib import Path

import pytest

import leanonnx
from leanonnx.api.results import Compressed

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
TORCH = importlib.util.find_spec("torch") is not None


def run(blocks: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run examples one after another, as a reader would type them, in a folder of their own."""
    monkeypatch.chdir(folder)
    (folder / "models").symlink_to(ROOT / "models")
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "docs/api.md", None, 0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of itself
        runner.run(examples)
    assert runner.summarize() == (0, len(examples.examples))


@pytest.mark.usefixtures("briefly")
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([block for block in BLOCKS if "import torch" not in block], tmp_path, monkeypatch)
    written = {"models", "small.onnx", "plan.json", "layers.csv", "costs.csv"}
    assert {path.name for path in tmp_path.iterdir()} == written


@pytest.mark.skipif(not TORCH, reason="torch is not installed: pip install torch")
def test_examples_of_torch_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in BLOCKS if "import torch" in block]
    run(["import leanonnx".join((">>> ", "\n")), block], tmp_path, monkeypatch)


def test_example_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    exec(code, {})
    assert leanonnx.prove("models/cs_unet.onnx", "small.onnx", "plan.json").passed


def test_the_page_shows_everything() -> None:
    public = {name for name in leanonnx.__all__ if inspect.isfunction(getattr(leanonnx, name))}
    members = {name for name, value in vars(Compressed).items() if name[0] != "_" and name != "of"}
    members |= {field.name for field in fields(Compressed) if field.name[0] != "_"}
    assert {name for name in public | members if f"{name}" not in PAGE} == set()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^#)]+)\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
