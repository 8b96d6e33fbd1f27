"""Every operator that torch runs agrees with onnxruntime; every other one is refused by name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.operators.call import TorchCall
from leanonnx.commands.finetune.operators.table import TORCH_OPERATORS
from leanonnx.commands.finetune.parity import round_trip
from leanonnx.commands.finetune.weights import trainable_constants
from leanonnx.errors import ModelError
from leanonnx.graph.model import Model, load
from leanonnx.proof.proof import random_inputs
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import RunFailed, run
from tests.helpers import build
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
    zoo, below = {"AffineGrid", "OneHot", "If"}, {"STFT"}
    tried = {node for _, node in TORCH_OPERATORS if node in names | zoo | below}
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


def spectral(body: str, output: str, opset: int = 17) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[2, 24, PARTS] x) => ({output})
        <int64 step = {{5}}, int64 length = {{8}}, int64 axis = {{1}}, float[8] window = {{0, 1, 2, 3, 3, 2, 1, 0.5}},
        float[24, 24] w> {{ h = MatMul (w, x) {body} }}"""


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("opset", "body", "output"),
    [
        (17, "y = STFT <onesided = 0> (h, step, window)", "float[2, M, 8, 2] y"),
        (17, "y = STFT <onesided = 0> (h, step, , length)", "float[2, M, 8, 2] y"),
        (17, "y = STFT <onesided = 1> (h, step, window, length)", "float[2, M, 5, 2] y"),
        (17, "y = DFT <onesided = 1> (h, length)", "float[2, M, 2] y"),
        (20, "y = DFT <inverse = 1> (h, , axis)", "float[2, 24, 2] y"),
    ],
)
def test_spectra_agree_with_onnxruntime(parts: int, opset: int, body: str, output: str) -> None:
    if parts == 2 and "onesided = 1" in body:
        pytest.skip("one half of a complex spectrum is not all of it")
    with loaded(build(spectral(body, output, opset).replace("PARTS", str(parts)))) as model:
        assert trainable_constants(model) == ("w",)
        assert agreement(model) is not None


def test_a_real_signal_comes_back_from_half_of_its_spectrum() -> None:
    """onnxruntime does not run this form in all versions."""
    x = torch.randn(2, 9, 3, 1)
    node = onnx.helper.make_node("DFT", ["x"], ["y"], onesided=1)
    run_node = TORCH_OPERATORS["", "DFT"]

    def call(value: torch.Tensor, length: int | None, **attributes: int) -> torch.Tensor:
        given = {"axis": 1, "onesided": 1, **attributes}
        inputs = (value, None if length is None else torch.tensor(length))
        return run_node(TorchCall(node=node, opset=17, attributes=given, inputs=inputs))  # type: ignore[return-value]

    half = call(x, None)
    assert half.shape == (2, 5, 3, 2)
    assert torch.allclose(call(half, 9, inverse=1), x, atol=1e-6)
    assert call(half, None, inverse=1).shape == (2, 8, 3, 1)


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
