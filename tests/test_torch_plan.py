"""Plans for torch modules: cut as the file was cut, computing what it computes, or left as they are."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import leanonnx

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'leanonnx[finetune]'")

from torch import nn
from torch.nn import functional as F

import leanonnx.torch as transfer
from leanonnx.errors import OptionError, PlanError, ProofFailed, UserError
from leanonnx.torch import matching, modules
from leanonnx.torch.modules import living_groups
from tests.torch_networks import EXPORTERS, NETWORKS, SIZE, Flattened, Plain, Residual, Shared, UNet, export, network

WAYS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "dynamo" and importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed"
        ),
    )
    for name in EXPORTERS
]


def compressed(path: Path, keep: float = 0.5, **options: Any) -> leanonnx.Compressed:
    return leanonnx.compress(path, keep=keep, align=1, measure=False, **options)


def state(module: nn.Module) -> dict[str, Any]:
    """All that a plan might change: tensors, their identities, attributes and modes."""
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in matching.named_tensors(module).items()}
    attributes = {name: str({k: v for k, v in vars(m).items() if k[0] != "_"}) for name, m in module.named_modules()}
    return {"tensors": tensors, "attributes": attributes}


def assert_untouched(module: nn.Module, before: dict[str, Any]) -> None:
    after = state(module)
    assert after["attributes"] == before["attributes"]
    assert {n: i for n, (i, _) in after["tensors"].items()} == {n: i for n, (i, _) in before["tensors"].items()}
    assert all(torch.equal(after["tensors"][name][1], tensor) for name, (_, tensor) in before["tensors"].items())
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())


def assert_attributes_fit(module: nn.Module) -> None:
    """A fresh layer made from the attributes holds the tensors that the layer holds."""
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
def test_module_computes_what_the_compressed_file_computes(
    name: str, exporter: str, trained: bool, tmp_path: Path
) -> None:
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


# what does not fit leaves the module as it is


def refused(module: nn.Module, says: str, *args: Any, kind: type[Exception] = PlanError, **options: Any) -> None:
    before = state(module)
    with pytest.raises(kind, match=says or None):
        transfer.apply_plan(module, *args, **options)
    assert_untouched(module, before)


@pytest.mark.parametrize("exporter", WAYS)
def test_folded_norms_need_the_model(exporter: str, tmp_path: Path) -> None:
    module = network(Residual)
    path = export(module, tmp_path / "net.onnx", exporter)
    plan = compressed(path).plan
    if exporter == "preserve":
        transfer.apply_plan(module, plan)
        return
    refused(module, r"not tell of 'bn', 'first_bn', 'second_bn', which the exporter has folded \(give model=", plan)


def test_other_weights_than_the_model_has(tmp_path: Path) -> None:
    module = network(Residual)
    path = export(module, tmp_path / "net.onnx")
    plan = compressed(path).plan
    refused(network(Residual, seed=1), "does not compute what .*net.onnx computes", plan, path)
    refused(network(UNet), "does not compute what|cannot be run", plan, path)
    other = export(network(Residual, seed=1), tmp_path / "other.onnx")
    refused(module, "made for another model", plan, other)


def test_plans_of_exact(tmp_path: Path) -> None:
    module = network(Plain)
    with torch.no_grad():
        module[0].weight[:4] = 0
        module[0].bias[:4] = 0
    path = export(module, tmp_path / "net.onnx")
    plan = leanonnx.compress(path, exact=True, measure=False).plan
    refused(module, "made with --exact", plan, path)


class Literal(Plain):
    """A channel number in forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self
        x = first(x).reshape(-1, 12, SIZE * SIZE).reshape(-1, 12, SIZE, SIZE)
        return nn.Sequential(*others)(x)


def test_numbers_of_channels_in_forward(tmp_path: Path) -> None:
    module = network(Literal)
    path = export(module, tmp_path / "net.onnx")
    refused(module, "cannot be run: .* forward may hold numbers of channels", compressed(path).plan, path)


class Halves(Plain):
    """Half of the channels, by a number, are scaled: it runs on whatever there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self
        x = first(x)
        return nn.Sequential(*others)(torch.cat([x[:, :6] * 2, x[:, 6:]], 1))


def test_numbers_of_channels_in_forward_that_raise_no_error(tmp_path: Path) -> None:
    module = network(Halves)
    path = export(module, tmp_path / "net.onnx")
    refused(module, r"off by .* forward may hold numbers", compressed(path, 0.3).plan, path, kind=ProofFailed)


def test_channels_that_only_some_read(tmp_path: Path) -> None:
    """Kernel by kernel, a layer may read a part of a Concat; in a module it reads all of it."""
    module = network(UNet)
    path = export(module, tmp_path / "net.onnx")
    for seed in range(4):
        result = compressed(path, 0.2, method="lean", chains="free", seed=seed, best_effort=True)
        if any("_read" in tensor.name for tensor in result.model.graph.initializer):
            break
    refused(module, "would join only some of the channels that it reads", result.plan, path)


class OnlyOne(nn.Module):
    """One norm or one slope behind two layers that have nothing else in common."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 4, 1)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.between(self.two(self.between(self.one(x)))))


@pytest.mark.parametrize("exporter", WAYS)
@pytest.mark.parametrize("kind", ["norm", "slope"])
def test_vector_that_is_cut_in_two_ways(kind: str, exporter: str, tmp_path: Path) -> None:
    module = network(lambda: OnlyOne(nn.InstanceNorm2d(12, affine=True) if kind == "norm" else nn.PReLU(12)))
    path = export(module, tmp_path / "net.onnx", exporter)
    plan = compressed(path).plan
    refused(module, "'between.weight' is used at several places, which need different slices of it", plan, path)
    if kind == "norm":
        assert plan.tensors["between.weight"]["others"]
        refused(module, "'between.weight' is used at several places", plan)
    else:
        refused(module, "no parameters are known for", plan)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 12, 3, padding=1)
        self.lstm = nn.LSTM(12, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(F.relu(self.conv(x)).transpose(1, 2))[0]


def test_weights_that_the_exporter_rearranged(tmp_path: Path) -> None:
    module = network(Recurrent)
    path = export(module, tmp_path / "net.onnx", "legacy", torch.randn(1, 3, 9))
    refused(module, r"no parameters are known for 'onnx::LSTM_\d+' \[1, 32, 12\]", compressed(path, 0.8).plan, path)


def test_modules_that_nothing_is_known_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network(UNet)
    path = export(module, tmp_path / "net.onnx", "preserve")
    plan = compressed(path).plan
    monkeypatch.setattr(modules, "KINDS", modules.KINDS[2:])
    refused(module, r"'deep.0.weight', 'deep.0.bias': nothing is known of Conv2d", plan, path)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


def test_weights_behind_a_parametrization(tmp_path: Path) -> None:
    module = network(Plain)
    nn.utils.parametrize.register_parametrization(module[2], "weight", Doubled())
    path = export(module, tmp_path / "net.onnx")
    refused(module, r"no parameters are known for .* \[16, 12, 3, 3\]", compressed(path).plan, path)


@pytest.mark.parametrize(
    "broken", [{}, {"before": [12]}, {"before": [2], "kept": [[5]]}, {"before": [2], "kept": ["a"]}]
)
def test_broken_plans(broken: dict[str, Any], tmp_path: Path) -> None:
    plan = leanonnx.Plan(1, "", "", {}, {"0.weight": broken})
    refused(network(Plain), "the entry of '0.weight' is broken", plan)


# what goes wrong inside shows


def test_wrong_slices_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other channels than planned, in all tensors alike: every shape fits, and every sum is wrong."""
    module = network(Plain)
    path = export(module, tmp_path / "net.onnx")
    plan = compressed(path).plan
    right = matching._match

    def wrong(cut: Any, name: str, order: tuple[int, ...]) -> matching.Match:
        found = right(cut, name, order)
        kept = zip(found.kept, (cut.shape[axis] for axis in order), strict=True)
        return matching.Match(name, tuple(tuple(size - 1 - k for k in places[::-1]) for places, size in kept))

    monkeypatch.setattr(matching, "_match", wrong)
    refused(module, "once cut as planned, the module is off", plan, path, kind=ProofFailed)


def test_an_error_on_the_way_leaves_the_module_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network(Residual)
    path = export(module, tmp_path / "net.onnx")

    def failing(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "_applied", failing)
    refused(module, "", compressed(path).plan, path, kind=KeyboardInterrupt)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kept", "groups", "living"),
    [((0, 1, 4, 5), 4, [0, 2]), ((0, 2, 4, 6), 4, [0, 1, 2, 3]), (tuple(range(8)), 2, [0, 1]), ((3,), 8, [3])],
)
def test_groups_that_live(kept: tuple[int, ...], groups: int, living: list[int]) -> None:
    assert living_groups(kept, 8, groups) == living


def test_groups_that_keep_different_numbers() -> None:
    with pytest.raises(PlanError, match="4 groups keep different numbers"):
        living_groups((0, 1, 2), 8, 4)


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(PlanError, UserError)
    assert not issubclass(ProofFailed, UserError)
