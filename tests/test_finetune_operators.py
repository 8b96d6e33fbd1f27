"""Every operator that torch runs agrees with onnxruntime; every other one is refused by name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'leanonnx[finetune]'")

from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.operators.table import TORCH_OPERATORS
from leanonnx.commands.finetune.parity import round_trip
from leanonnx.commands.finetune.weights import trainable_constants
from leanonnx.errors import ModelError
from leanonnx.graph.model import Model, load
from leanonnx.proof.proof import random_inputs
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import RunFailed, run
from tests.rules.case import Case
from tests.rules.harness import sampled, seeded
from tests.rules.table import CASES
from tests.test_zoo import MODELS

SEEDS = 2
REFUSED = {
    **{case.op: "not covered" for case in CASES if case.key not in TORCH_OPERATORS},
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "quantise"),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat", "QGemm"), "quantise"),
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool"), "quantise"),
    **dict.fromkeys(("QLinearAveragePool", "ConvInteger", "MatMulInteger"), "quantise"),
}
"""Operators that are refused in every form, and their messages."""
PARTLY = {
    "FusedMatMul": "transposes its batch axes",
    "BatchNormalization": "training mode",
    "MaxPool": "cannot be run in torch",
    "Col2Im": "its image has",
}
"""Operators that are refused in some forms."""


@contextmanager
def loaded(proto: onnx.ModelProto) -> Iterator[Model]:
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(proto.SerializeToString())
        file.flush()
        yield load(Path(file.name))


def agreement(model: Model) -> float | None:
    """Relative error of torch; None if onnxruntime does not run the model, or its outputs are not comparable."""
    try:
        shapes = observe(model, {}).shapes
        feeds = random_inputs(model, shapes)[:2]  # large numbers leave little of a variance
        run(model.proto, feeds, optimise=False)
    except (ModelError, RunFailed):
        return None
    return round_trip(model, model.proto, TorchNetwork(model, trainable_constants(model)).eval(), feeds).error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_operators_agree_with_onnxruntime(case: Case) -> None:
    ran = refused = 0
    for form in (*case.forms, *case.refusals):
        for seed in range(SEEDS):
            with loaded(sampled(form, seeded(seed)).proto) as model:
                try:
                    ran += agreement(model) is not None
                except ModelError as error:
                    refused += 1
                    assert "node '" in str(error)
                    assert (REFUSED | PARTLY)[case.op] in str(error)
    assert (ran == 0) == (case.op in REFUSED)
    assert (refused > 0) == (case.op in REFUSED or case.op in PARTLY)


def test_every_operator_of_the_table_is_tried() -> None:
    names = {case.op for case in CASES}
    zoo = {"AffineGrid", "OneHot", "If"}
    tried = {node for _, node in TORCH_OPERATORS if node in names | zoo}
    untried = {node for _, node in TORCH_OPERATORS} - tried
    assert untried == {
        "BitShift",
        "EyeLike",
        "NonZero",
        "FastGelu",
        "Range",
        "ConstantOfShape",
        "SimplifiedLayerNormalization",
    }


QUANTISED = {"cifar_resnet_4b_int8_qdq", "cifar_resnet_4b_int8_qop"}
UNLOADABLE = {"lprnet", "espcn_x3_nnresize_quant"}
LONG = {"seis_eqt": (6144, 3), "seis_unet": (6144, 3)}
"""Records of seismometers: at any shorter length nothing but rounding is left of random inputs."""


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_real_networks_make_the_round_trip(path: Path) -> None:
    if path.stem in UNLOADABLE:
        pytest.skip("the checker or onnxruntime does not take the file")
    model = load(path)
    if path.stem in QUANTISED:
        with pytest.raises(ModelError, match="cannot be run in torch"):
            TorchNetwork(model, trainable_constants(model))
        return
    given = {"wave": LONG[path.stem]} if path.stem in LONG else {}
    feeds = random_inputs(model, observe(model, given).shapes)
    network = TorchNetwork(model, trainable_constants(model)).eval()
    assert round_trip(model, model.proto, network, feeds).error < 3e-2
