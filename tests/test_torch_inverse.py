"""The recipe for unrolled networks: its Python exports what its commands then compress."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.graph.model import load
from tests.documented import PAGES
from tests.helpers import called

PAGE = PAGES["docs/inverse.md"].read_text(encoding="utf-8")


def test_recipe_exports_a_network_that_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    indented = PAGE.partition("```py\n")[2].partition("```")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("\n".join(line.removeprefix("    ") for line in indented.splitlines()), {"__name__": "recipe"})
    rng = np.random.default_rng(0)
    mask = (rng.random((12, 1, 16, 16)) < 0.3).astype(np.float32)
    np.savez("scans.npz", y=mask * rng.standard_normal((12, 2, 16, 16)).astype(np.float32), mask=mask)
    done = called("compress", "unrolled.onnx", "small.onnx", "--macs", "0.3", "--calib", "scans.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["macs"]["fraction"] <= 0.3
    before, after = (
        {each.name: each for each in load(Path(name)).proto.graph.initializer}
        for name in ("unrolled.onnx", "small.onnx")
    )
    assert all(before[name].raw_data == after[name].raw_data for name in ("dft_real", "dft_imag"))
    assert [value.name for value in load(Path("operator.onnx")).inputs] == ["image", "mask"]
