"""Small torch modules as people write them, and their exports."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

SIZE = 8


class Plain(nn.Sequential):
    """Convolutions and nothing else."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.PReLU(16)]
        super().__init__(*layers, nn.Conv2d(16, 16, 1), nn.PReLU(16), nn.Conv2d(16, 4, 1))


class Residual(nn.Module):
    """Two blocks with BatchNormalizations that an exporter folds, and one that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.first = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.first_bn = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.second_bn = nn.BatchNorm2d(12)
        self.last_bn = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(self.first_bn(self.first(x)))
        x = F.relu(self.last_bn(x + self.second_bn(self.second(y))))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """Depthwise convolutions, many groups and few."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 32, 1)
        self.many = nn.Conv2d(32, 32, 3, padding=1, groups=8)
        self.few = nn.Conv2d(32, 32, 3, padding=1, groups=2, bias=False)
        self.norm = nn.GroupNorm(8, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2, groups=8)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.mix(F.relu(self.depthwise(F.relu(self.wide(x))))))
        return self.out(F.relu(self.up(F.relu(self.norm(self.few(F.relu(self.many(x))))))))


class UNet(nn.Module):
    """Down, up by transposed convolution, and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.up_bn = nn.BatchNorm2d(8)
        self.join = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        up = self.up_bn(self.up(self.deep(F.max_pool2d(skip, 2))))
        return self.join(torch.cat([up, skip], 1))


class Flattened(nn.Module):
    """Channels that lie many times on the axis of a Linear, in a matrix product with a bias of its own too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * SIZE * SIZE, 24)
        self.norm = nn.BatchNorm1d(24)
        self.tokens = nn.Linear(24, 24, bias=False)
        self.out = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.hidden(F.relu(self.conv(x)).flatten(1))))
        return self.out(F.relu(self.tokens(x[:, None])))[:, 0]


class Shared(nn.Module):
    """One layer used twice, one parameter that two modules own, and a scale of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.twice = nn.Conv2d(12, 12, 3, padding=1)
        self.one = nn.Conv2d(12, 12, 1, bias=False)
        self.other = nn.Conv2d(12, 12, 1)
        self.other.weight = self.one.weight
        self.scale = nn.Parameter(torch.ones(12, 1, 1))
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.twice(F.relu(self.twice(x))) * self.scale)
        return self.out(x + self.other(F.relu(self.one(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "grouped": Grouped,
    "U-Net": UNet,
    "flattened": Flattened,
    "shared": Shared,
}


def network(make: Callable[[], nn.Module], trained: bool = True, seed: int = 0) -> nn.Module:
    """A module in evaluation; with ``trained`` its vectors and statistics are no longer those of the beginning."""
    torch.manual_seed(seed)
    module = make().eval()
    if trained:
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point() and tensor.ndim in (1, 3):
                    tensor.add_(0.3 * torch.rand_like(tensor))
    return module


EXPORTERS: dict[str, dict[str, object]] = {
    "legacy": {"dynamo": False},
    "preserve": {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE},
    "dynamo": {"dynamo": True},
}


def export(module: nn.Module, path: Path, exporter: str = "legacy", *inputs: torch.Tensor) -> Path:
    """The ONNX file of a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = inputs or (torch.randn(2, 3, SIZE, SIZE),)
        torch.onnx.export(module, given, path, verbose=False, **EXPORTERS[exporter])  # type: ignore[arg-type]
    return path
