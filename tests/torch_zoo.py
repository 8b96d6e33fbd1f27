"""Thirty small torch modules of the kinds that people export with a free batch and free sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

IMAGE = ((2, 3, 16, 24), (1, 3, 16, 24), (3, 3, 32, 16), (2, 3, 24, 40))
BATCH = ((2, 3, 16, 16), (1, 3, 16, 16), (3, 3, 16, 16), (5, 3, 16, 16))
SIGNAL = ((2, 3, 40), (1, 3, 40), (3, 3, 64), (2, 3, 51))
VOLUME = ((2, 2, 6, 8, 10), (1, 2, 6, 8, 10), (3, 2, 8, 6, 12), (2, 2, 10, 10, 6))


class Spec(NamedTuple):
    """A module, and shapes of its input: the one of the export, the one to observe at, and two more."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = IMAGE

    @property
    def free(self) -> tuple[int, ...]:
        """Axes on which the shapes differ."""
        return tuple(k for k, sizes in enumerate(zip(*self.shapes, strict=True)) if len(set(sizes)) > 1)


class Applied(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x)


def conv(inputs: int, out: int, kernel: int = 3, **more: Any) -> nn.Module:
    """A convolution that keeps the size, with BatchNormalization and ReLU."""
    pad = more.pop("padding", kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, out, kernel, padding=pad, bias=False, **more), nn.BatchNorm2d(out), nn.ReLU()
    )


def stem(out: int = 16, stride: int = 2) -> nn.Module:
    return nn.Sequential(conv(3, out, stride=stride), conv(out, out))


def plain() -> nn.Module:
    return nn.Sequential(stem(), conv(16, 24), nn.Conv2d(24, 4, 1))


def residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = F.relu(x + m.first(x))
        return m.head(F.relu(m.skip(x) + m.second(x)).mean((2, 3)))

    return Applied(
        forward,
        stem=stem(),
        first=conv(16, 16),
        skip=nn.Conv2d(16, 24, 1, stride=2),
        second=conv(16, 24, stride=2),
        head=nn.Linear(24, 5),
    )


def squeeze_excite() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        gate = torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3))))))
        return m.head(x * gate.view(x.shape[0], x.shape[1], 1, 1))

    return Applied(forward, stem=stem(), down=nn.Linear(16, 6), up=nn.Linear(6, 16), head=nn.Conv2d(16, 4, 1))


def inverted_residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(x + m.narrow(m.depthwise(m.wide(x))))

    return Applied(
        forward,
        stem=stem(8),
        wide=conv(8, 32, 1),
        depthwise=conv(32, 32, groups=32),
        narrow=nn.Conv2d(32, 8, 1),
        head=nn.Conv2d(8, 4, 1),
    )


def grouped() -> nn.Module:
    return nn.Sequential(stem(), conv(16, 32, groups=4), conv(32, 32, groups=8), nn.Conv2d(32, 4, 1))


def shuffled() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(m.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.head(m.second(x))

    groups = {"first": conv(16, 16, 1, groups=4), "second": conv(16, 16, 1, groups=4)}
    return Applied(forward, stem=stem(), **groups, head=nn.Conv2d(16, 4, 1))


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        stem(16, 1), nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(8, 3, 3, padding=1)
    )


def transposed() -> nn.Module:
    up = [nn.ConvTranspose2d(24, 16, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)]
    return nn.Sequential(stem(), conv(16, 24, stride=2), *up, nn.ReLU(), nn.Conv2d(8, 3, 1))


def unet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        skip = m.first(x)
        deep = F.interpolate(m.second(F.max_pool2d(skip, 2)), size=skip.shape[2:], mode="bilinear", align_corners=False)
        return m.head(torch.cat([deep, skip], 1))

    return Applied(forward, first=conv(3, 12), second=conv(12, 24), head=nn.Conv2d(36, 2, 3, padding=1))


def feature_pyramid() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        fine = m.stem(x)
        coarse = m.deep(fine)
        top = m.side_coarse(coarse)
        joined = m.side_fine(fine) + F.interpolate(top, size=fine.shape[-2:], mode="nearest")
        return m.head(joined)

    sides = {"side_coarse": nn.Conv2d(24, 16, 1), "side_fine": nn.Conv2d(16, 16, 1)}
    return Applied(forward, stem=stem(), deep=conv(16, 24, stride=2), **sides, head=nn.Conv2d(16, 5, 3, padding=1))


def pyramid_pooling() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        pooled = F.interpolate(m.pooled(x.mean((2, 3), keepdim=True)), size=x.shape[2:], mode="bilinear")
        return m.head(torch.cat([m.near(x), m.far(x), pooled], 1))

    branches = {"near": conv(16, 12, 1), "far": conv(16, 12, padding=3, dilation=3), "pooled": conv(16, 8, 1)}
    return Applied(forward, stem=stem(), **branches, head=nn.Conv2d(32, 4, 1))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def multihead() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        t = tokens(m.stem(x))
        n = m.norm(t)
        t = t + m.attention(n, n, n, need_weights=False)[0]
        return m.head((t + m.mlp(t)).mean(1))

    mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    return Applied(forward, stem=stem(), norm=nn.LayerNorm(16), attention=attention, mlp=mlp, head=nn.Linear(16, 5))


def heads_in_batch() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        t = tokens(m.stem(x))
        n, length, _ = t.shape

        def apart(part: Tensor) -> Tensor:
            return part.view(n, length, 4, 4).permute(0, 2, 1, 3).reshape(n * 4, length, 4)

        q, k, v = apart(m.q(t)), apart(m.k(t)), apart(m.v(t))
        mixed = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, -1), v)
        joined = mixed.view(n, 4, length, 4).permute(0, 2, 1, 3).reshape(n, length, 16)
        return m.head((t + m.out(joined)).mean(1))

    parts = {name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")}
    return Applied(forward, stem=stem(), **parts, head=nn.Linear(16, 5))


def windowed() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        n, c, h, w = x.shape
        parts = x.permute(0, 2, 3, 1).view(n, h // 4, 4, w // 4, 4, c)
        t = parts.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = m.qkv(t).view(-1, 16, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / 3, -1) @ v
        t = t + m.out(mixed.transpose(1, 2).reshape(-1, 16, 16))
        parts = t.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5)
        return m.head(parts.reshape(n, h, w, c).permute(0, 3, 1, 2))

    layers = {"qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16), "head": nn.Conv2d(16, 4, 1)}
    return Applied(forward, stem=stem(16, 1), **layers)


class VisionTransformer(nn.Module):
    """Patches, a class token, a table of positions and one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        t = tokens(self.patch(x))
        t = torch.cat([self.token.expand(x.shape[0], -1, -1), t], 1) + self.positions
        return self.head(self.block(t)[:, 0])


def recurrent() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        rows = m.stem(x).mean(2).transpose(1, 2)
        return m.head(m.lstm(rows)[0])

    return Applied(
        forward, stem=stem(), lstm=nn.LSTM(16, 8, batch_first=True, bidirectional=True), head=nn.Linear(16, 5)
    )


def group_norm() -> nn.Module:
    middle = [nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(6, 24), nn.SiLU()]
    return nn.Sequential(stem(), *middle, nn.Conv2d(24, 4, 1))


def instance_norm() -> nn.Module:
    middle = [nn.Conv2d(16, 24, 3, padding=1), nn.InstanceNorm2d(24, affine=True), nn.ReLU()]
    return nn.Sequential(stem(), *middle, nn.Conv2d(24, 4, 1))


def channels_last() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.norm(m.depthwise(x).permute(0, 2, 3, 1))
        return m.head(x + m.down(F.gelu(m.up(y))).permute(0, 3, 1, 2))

    layers = {"norm": nn.LayerNorm(16), "up": nn.Linear(16, 48), "down": nn.Linear(48, 16)}
    depthwise = nn.Conv2d(16, 16, 5, padding=2, groups=16)
    return Applied(forward, stem=stem(), depthwise=depthwise, **layers, head=nn.Conv2d(16, 4, 1))


def gated_signal() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        value, gate = m.both(x).chunk(2, 1)
        return m.head(x + m.out(torch.tanh(value) * torch.sigmoid(gate)))

    first = nn.Sequential(nn.Conv1d(3, 16, 5, padding=2), nn.ReLU())
    both = nn.Conv1d(16, 32, 3, padding=2, dilation=2)
    return Applied(forward, stem=first, both=both, out=nn.Conv1d(16, 16, 1), head=nn.Conv1d(16, 3, 1))


def volume() -> nn.Module:
    first = [nn.Conv3d(2, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2)]
    return nn.Sequential(*first, nn.Conv3d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 3, 1))


def adaptive_pooling() -> nn.Module:
    return nn.Sequential(
        stem(), conv(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
    )


class Contracted(nn.Module):
    """Einsum with a matrix, and between two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem()
        self.matrix = nn.Parameter(torch.randn(16, 24) / 4)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.einsum("nchw,co->nohw", self.stem(x), self.matrix)))


def unfolded() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        blocks = F.unfold(x, 3, padding=1).view(x.shape[0], 16, 9, -1)
        return m.head((blocks * m.weight.weight.view(1, 1, 9, 1)).sum(2).view_as(x))

    return Applied(forward, stem=stem(), weight=nn.Linear(9, 1, bias=False), head=nn.Conv2d(16, 4, 1))


def partial_stages() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        first, second = m.stem(x).chunk(2, 1)
        third = m.inner(second) + second
        a, b, c = torch.split(m.mix(torch.cat([first, second, third], 1)), [8, 12, 4], 1)
        return m.head(torch.cat([c, a, b], 1))

    return Applied(forward, stem=stem(), inner=conv(8, 8), mix=conv(24, 24, 1), head=nn.Conv2d(24, 4, 1))


def detector() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        fine = m.stem(x)
        found = []
        for head, feature in ((m.fine, fine), (m.coarse, m.deep(fine))):
            y = head(feature)
            n, _, h, w = y.shape
            found.append(y.view(n, 3, 7, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 7))
        return torch.cat(found, 1)

    heads = {"fine": nn.Conv2d(16, 21, 1), "coarse": nn.Conv2d(24, 21, 1)}
    return Applied(forward, stem=stem(), deep=conv(16, 24, stride=2), **heads)


def weight_normed() -> nn.Module:
    middle = [weight_norm(nn.Conv2d(16, 24, 3, padding=1)), nn.LeakyReLU(0.1), weight_norm(nn.Conv2d(24, 4, 1))]
    return nn.Sequential(stem(), *middle)


def axial() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        n, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n * h, w, c)
        q, k, v = m.qkv(rows).chunk(3, -1)
        rows = rows + torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return m.head(rows.view(n, h, w, c).permute(0, 3, 1, 2))

    return Applied(forward, stem=stem(), qkv=nn.Linear(16, 48), head=nn.Conv2d(16, 4, 1))


def non_local() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        n, _, h, w = x.shape
        q, k, v = (layer(x).view(n, 8, -1) for layer in (m.q, m.k, m.v))
        mixed = v @ torch.softmax(k.transpose(1, 2) @ q, 1)
        return m.head(x + m.out(mixed.view(n, 8, h, w)))

    parts = {name: nn.Conv2d(16, 8, 1) for name in ("q", "k", "v")}
    return Applied(forward, stem=stem(), **parts, out=nn.Conv2d(8, 16, 1), head=nn.Conv2d(16, 4, 1))


def space_to_depth() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        return m.head(m.mix(x))

    return Applied(forward, stem=stem(), mix=conv(64, 24, 1), head=nn.Conv2d(24, 4, 1))


ZOO: dict[str, Spec] = {
    **{make.__name__: Spec(make) for make in (plain, residual, squeeze_excite, inverted_residual, grouped, shuffled)},
    **{make.__name__: Spec(make) for make in (pixel_shuffle, transposed, unet, feature_pyramid, pyramid_pooling)},
    **{make.__name__: Spec(make) for make in (multihead, heads_in_batch, windowed, recurrent, group_norm)},
    **{make.__name__: Spec(make) for make in (instance_norm, channels_last, adaptive_pooling, partial_stages)},
    **{make.__name__: Spec(make) for make in (detector, weight_normed, axial, non_local, space_to_depth)},
    "contracted": Spec(Contracted),
    "transformer": Spec(VisionTransformer, BATCH),
    "unfolded": Spec(unfolded, BATCH),
    "gated_signal": Spec(gated_signal, SIGNAL),
    "volume": Spec(volume, VOLUME),
}
