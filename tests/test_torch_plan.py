"""A torch module, cut by a plan, computes what the compressed file computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from torch import nn
from torch.nn import functional as F

import leanonnx.torch as transfer
from leanonnx.errors import OptionError, PlanError, ProofFailed
from leanonnx.torch import matching
from tests.torch_cuts import WAYS, assert_untouched, compressed, state
from tests.torch_networks import NETWORKS, SIZE, Flattened, Plain, Residual, Shared, UNet, export, network


def assert_attributes_fit(module: nn.Module) -> None:
    """Check that a new layer built from the attributes has tensors of the layer's shapes."""
    for inner in module.modules():
        if isinstance(inner, nn.Conv2d | nn.ConvTranspose2d):
            fresh: nn.Module = type(inner)(
                inner.in_channels,
                inner.out_channels,
                inner.kernel_size,
                groups=inner.groups,
                bias=inner.bias is not None,
            )
        elif isinstance(inner, nn.Linear):
            fresh = nn.Linear(inner.in_features, inner.out_features, bias=inner.bias is not None)
        elif isinstance(inner, nn.BatchNorm2d | nn.BatchNorm1d | nn.InstanceNorm2d):
            fresh = type(inner)(inner.num_features, affine=inner.affine, track_running_stats=inner.track_running_stats)
        elif isinstance(inner, nn.GroupNorm):
            fresh = nn.GroupNorm(inner.num_groups, inner.num_channels)
        elif isinstance(inner, nn.PReLU):
            fresh = nn.PReLU(inner.num_parameters)
        else:
            continue
        fresh.load_state_dict(inner.state_dict())


def outputs(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: feed})[0])


def assert_equal(module: nn.Module, model: onnx.ModelProto, seed: int = 7) -> None:
    """On inputs that nothing else has seen."""
    feed = np.random.default_rng(seed).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    with torch.no_grad():
        found = module(torch.from_numpy(feed)).numpy()
    wanted = outputs(model, feed)
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)


def step(module: nn.Module) -> None:
    """One step of an optimizer, which changes every parameter that takes part."""
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.randn(4, 3, SIZE, SIZE)).square().mean().backward()
    optimizer.step()
    module.eval()
    assert all(tensor.shape == before[name].shape for name, tensor in module.named_parameters())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in module.named_parameters())


# the module becomes what the file became


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "untrained"])
@pytest.mark.parametrize("exporter", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_module_agrees_with_the_compressed_file(name: str, exporter: str, trained: bool, tmp_path: Path) -> None:
    module = network(NETWORKS[name], trained)
    path = export(module, tmp_path / "net.onnx", exporter)
    whole = sum(tensor.numel() for tensor in module.parameters())
    result = compressed(path)
    applied = transfer.apply_plan(module, result.plan, path)
    assert applied.error is not None and applied.error <= 1e-5
    assert applied.tensors
    assert all(tuple(matching.named_tensors(module)[n].shape) == new for n, (_, new) in applied.tensors.items())
    assert sum(tensor.numel() for tensor in module.parameters()) < 0.75 * whole
    assert_equal(module, result.model)
    assert transfer.verify(module, result.model) <= 1e-5
    assert_attributes_fit(module)
    assert not any(inner.training for inner in module.modules())
    step(module)


def test_the_plan_may_be_a_file_and_the_model_in_memory(tmp_path: Path) -> None:
    module = network(Residual)
    path = export(module, tmp_path / "net.onnx")
    result = compressed(path)
    result.plan.save(tmp_path / "plan.json")
    transfer.apply_plan(module, tmp_path / "plan.json", onnx.load(path))
    assert_equal(module, result.model)


def test_cut_module_is_exported_and_cut_again(tmp_path: Path) -> None:
    module = network(UNet)
    for name in ("a", "b"):
        path = export(module, tmp_path / f"{name}.onnx")
        result = compressed(path, 0.6)
        transfer.apply_plan(module, result.plan, path)
    assert_equal(module, result.model)


def test_training_mode_and_frozen_parameters_stay(tmp_path: Path) -> None:
    module = network(Residual)
    path = export(module, tmp_path / "net.onnx")
    module.train()
    module.bn.eval()
    module.stem.weight.requires_grad_(False)
    transfer.apply_plan(module, compressed(path).plan, path)
    assert (module.training, module.bn.training, module.first.training) == (True, False, True)
    assert not module.stem.weight.requires_grad
    assert module.first.weight.requires_grad
    assert isinstance(module.stem.weight, nn.Parameter)


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    module = network(Shared)
    path = export(module, tmp_path / "net.onnx")
    transfer.apply_plan(module, compressed(path).plan, path)
    assert module.one.weight is module.other.weight
    assert module.one.weight.shape[0] < 12


@pytest.mark.parametrize("form", ["tensor", "array", "list", "dict"])
def test_inputs_in_any_form(form: str, tmp_path: Path) -> None:
    module = network(Plain)
    path = export(module, tmp_path / "net.onnx")
    result = compressed(path)
    tensor = torch.randn(2, 3, SIZE, SIZE)
    name = result.model.graph.input[0].name
    inputs = {"tensor": tensor, "array": tensor.numpy(), "list": [tensor], "dict": {name: tensor}}[form]
    assert transfer.verify(module, path, inputs) <= 1e-5
    assert transfer.apply_plan(module, result.plan, path, inputs=inputs).error is not None
    with pytest.raises(ProofFailed, match="off by"):
        transfer.verify(module, path, inputs)
    for wrong in ([tensor, tensor], {"z": tensor}, []):
        with pytest.raises(OptionError, match="the inputs do not fit"):
            transfer.verify(module, path, wrong)


class Packed(nn.Module):
    """Two inputs; outputs in a dict and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 16)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Conv1d(16, 16, 3, padding=1)
        self.out = nn.Conv1d(16, 6, 1)

    def forward(self, words: torch.Tensor, gain: torch.Tensor) -> Any:
        x = self.words(words).transpose(1, 2)
        y = self.out(F.relu(self.mix(x))) * gain
        return {"plain": y, "more": (self.norm(y.transpose(1, 2)), y.argmax(1))}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    module = network(Packed)
    inputs = (torch.randint(0, 10, (1, 7)), torch.rand(1, 6, 7))
    path = export(module, tmp_path / "net.onnx", "legacy", *inputs)
    result = compressed(path)
    applied = transfer.apply_plan(module, result.plan, path, inputs=inputs)
    assert module.words.embedding_dim == module.mix.in_channels == module.words.weight.shape[1] < 16
    assert applied.tensors["words.weight"] == ((10, 16), (10, module.words.embedding_dim))
    assert transfer.verify(module, result.model, inputs) <= 1e-5


# by names alone


def test_names_alone_are_enough_where_the_exporter_kept_them(tmp_path: Path) -> None:
    module = network(UNet)
    path = export(module, tmp_path / "net.onnx", "preserve")
    trained = copy.deepcopy(module)
    result = compressed(path)
    applied = transfer.apply_plan(module, result.plan)
    assert (applied.error, applied.missing, applied.renamed) == (None, (), {})
    assert_equal(module, result.model)
    with torch.no_grad():
        trained.up.weight.mul_(2)  # it has been trained since: other weights, the same plan
    transfer.apply_plan(trained, result.plan)
    assert torch.equal(trained.up.weight, 2 * module.up.weight)


def test_names_are_given_by_hand(tmp_path: Path) -> None:
    module = network(Flattened)
    path = export(module, tmp_path / "net.onnx", "preserve")
    result = compressed(path)
    before = state(module)
    with pytest.raises(PlanError, match=r"known for 'onnx::MatMul_\d+' \[24, 24\], .* \(give the exported model="):
        transfer.apply_plan(module, result.plan)
    name = min(name for name in result.plan.tensors if name.startswith("onnx::MatMul"))
    with pytest.raises(PlanError, match=r"is square: whether parameter 'tokens.weight' is transposed .* give model="):
        transfer.apply_plan(module, result.plan, names={name: "tokens.weight"})
    with pytest.raises(PlanError, match=r"there is no constant 'ghost' and no parameter 'phantom'"):
        transfer.apply_plan(module, result.plan, names={"ghost": "out.weight", name: "phantom"})
    with pytest.raises(PlanError, match=r"is \[24, 24\], but parameter 'out.bias' is \[5\]"):
        transfer.apply_plan(module, result.plan, names={name: "out.bias"})
    assert_untouched(module, before)
    transfer.apply_plan(module, result.plan, path, names={name: "tokens.weight"})
    assert_equal(module, result.model)


def test_a_name_by_hand_of_a_matrix_that_is_turned(tmp_path: Path) -> None:
    class Narrow(Flattened):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.out = nn.Linear(24, 20, bias=False), nn.Linear(20, 5)

    module = network(Narrow)
    path = export(module, tmp_path / "net.onnx", "preserve")
    result = compressed(path)
    names = {
        n: "tokens.weight" for n, e in result.plan.tensors.items() if n.startswith("onnx") and e["before"] == [24, 20]
    }
    names |= {
        n: "out.weight" for n, e in result.plan.tensors.items() if n.startswith("onnx") and e["before"] == [20, 5]
    }
    transfer.apply_plan(module, result.plan, names=names)
    assert_equal(module, result.model)
