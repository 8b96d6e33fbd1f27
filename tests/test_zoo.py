"""Real networks of every kind at half their kernels; skipped where the collection is not at hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from leanonnx.commands.compress import pipeline
from leanonnx.errors import UserError
from leanonnx.selection.metrics import Budget
from tests.helpers import Options, refused

MODELS = Path(__file__).parents[2] / "shared" / "zoo" / "models"
KEEP = 0.5
SMALL = [
    "cifar_resnet_4b",
    "nanodet_m_b",
    "msd_cs",
    "mnist_cntk",
    "carvana_unet_simp",
    "nanodet_m_extdata",
    "cifar_resnet_4b_int8_qdq",
    "squeezenet_fp16",
]
REFUSED = ["lprnet", "espcn_x3_nnresize_quant"]
"""Files that onnx's checker or onnxruntime does not take."""

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="the collection of real models is not beside the repository"
)


def interface(path: Path) -> list[object]:
    proto = onnx.load(path, load_external_data=False)
    fixed = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in fixed]
    return [inputs, list(proto.graph.output), list(proto.opset_import), proto.ir_version, list(proto.metadata_props)]


@pytest.mark.parametrize("name", SMALL)
def test_half_the_kernels(name: str, tmp_path: Path) -> None:
    source, target = MODELS / f"{name}.onnx", tmp_path / "out.onnx"
    result = pipeline.compress_file(source, target, Options(Budget("kernels", KEEP), best_effort=True))
    assert result.proof.passed
    assert result.warnings == ()
    assert 0 < result.after.kernels <= KEEP * result.before.kernels
    assert result.after.kernels > 0.8 * KEEP * result.before.kernels
    assert result.after.bytes < result.before.bytes
    assert interface(target) == interface(source)


@pytest.mark.parametrize("name", REFUSED)
def test_not_models_of_onnxruntime(name: str, tmp_path: Path) -> None:
    source = MODELS / f"{name}.onnx"
    with pytest.raises(UserError, match=f"{name}.onnx"):
        pipeline.load_dag(source)
    refused(tmp_path, "compress", source, "out.onnx", "--keep", KEEP, says=(str(source),))
