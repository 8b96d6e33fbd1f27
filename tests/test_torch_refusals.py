"""A plan that does not fit a torch module leaves it unchanged, and wrong cuts are caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import leanonnx

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from torch import nn
from torch.nn import functional as F

import leanonnx.torch as transfer
from leanonnx.errors import PlanError, ProofFailed, UserError
from leanonnx.torch import matching, modules
from leanonnx.torch.modules import kept_conv_groups
from tests.torch_cuts import WAYS, assert_untouched, compressed, state
from tests.torch_networks import SIZE, Plain, Residual, UNet, export, network

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
    refused(module, r"not mention 'bn', 'first_bn', 'second_bn', which the exporter has folded \(give model=", plan)


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
    plan = leanonnx.compress(path, exact=True).plan
    refused(module, "made with exact=True", plan, path)


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
    """One norm or one slope after two otherwise unrelated layers."""

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
    monkeypatch.setattr(modules, "MODULE_KINDS", modules.MODULE_KINDS[2:])
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
    plan = leanonnx.Plan(schema=1, leanonnx="", input_sha256="", options={}, tensors={"0.weight": broken})
    refused(network(Plain), "the entry of '0.weight' is broken", plan)


# internal errors are raised


def test_wrong_slices_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other channels than planned, consistently in all tensors: every shape fits, and every sum is wrong."""
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

    monkeypatch.setattr(transfer, "_describe_result", failing)
    refused(module, "", compressed(path).plan, path, kind=KeyboardInterrupt)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kept", "groups", "living"),
    [((0, 1, 4, 5), 4, [0, 2]), ((0, 2, 4, 6), 4, [0, 1, 2, 3]), (tuple(range(8)), 2, [0, 1]), ((3,), 8, [3])],
)
def test_kept_groups(kept: tuple[int, ...], groups: int, living: list[int]) -> None:
    assert kept_conv_groups(kept, 8, groups) == living


def test_groups_that_keep_different_numbers() -> None:
    with pytest.raises(PlanError, match="4 groups keep different numbers"):
        kept_conv_groups((0, 1, 2), 8, 4)


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(PlanError, UserError)
    assert not issubclass(ProofFailed, UserError)
