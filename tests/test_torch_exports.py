"""Thirty modules through torch's two exporters: the compressed file equals the masked original at every size."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.graph.model import load
from leanonnx.runtime.trials import declared_sizes
from leanonnx.selection.metrics import Budget
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import masking_patch
from tests.at_sizes import Pair, Shapes, runs_at
from tests.helpers import Options
from tests.torch_networks import network
from tests.torch_zoo import ZOO, Spec

EXPORTERS = [
    "legacy",
    pytest.param(
        "dynamo",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed: pip install onnxscript"
        ),
    ),
]
COUNT = 30
LEAST = 3
"""Sizes at which each export is compared at least."""


def exported(spec: Spec, exporter: str, path: Path) -> Path:
    """The ONNX file of a module with free axes."""
    module = network(spec.make)
    if exporter == "dynamo":
        axes = {k: torch.export.Dim.DYNAMIC if k == 0 else torch.export.Dim.AUTO for k in spec.free}
        free = {"dynamic_shapes": (axes,), "dynamo": True}
    else:
        free = {"dynamic_axes": {"x": {k: f"axis_{k}" for k in spec.free}}, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["x"], "output_names": ["y"]}
        torch.onnx.export(module, (torch.randn(spec.shapes[0]),), path, verbose=False, **names, **free)
    return path


def sizes_of(path: Path, spec: Spec) -> list[Shapes]:
    """Sizes at which the file can be run; an exporter may have written some of the first shape into it."""
    model = load(path)
    batches = [(n, *spec.shapes[0][1:]) for n in (1, 2, 3)]
    axes = declared_sizes(model.inputs[0])
    shapes = [
        tuple(a if isinstance(a, int) else n for a, n in zip(axes, given, strict=True))
        for given in (*spec.shapes[1:], *batches)
    ]
    return runs_at(model.proto, model.inputs, [{"x": shape} for shape in dict.fromkeys(shapes)])


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ZOO)
def test_export_is_right_at_every_size(name: str, exporter: str, tmp_path: Path) -> None:
    source, target = exported(ZOO[name], exporter, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    sizes = sizes_of(source, ZOO[name])
    assert len(sizes) >= LEAST
    options = Options(Budget("kernels", 0.5), shapes=sizes[0], recover="none", best_effort=True)
    result = compress_file(source, target, options)
    assert result.after.kernels < result.before.kernels
    model = result.dag.model
    pair = Pair(apply_patch(model.as_read, masking_patch(result.dag, result.alive)), onnx.load(target), model.inputs)
    for shapes in sizes:
        pair.assert_equal(shapes)
    pair.assert_samples_alone(next(s for s in sizes if s["x"][0] > 1))


def test_there_are_thirty() -> None:
    assert len(ZOO) == COUNT
