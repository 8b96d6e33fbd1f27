"""Well-known image networks as ONNX models with random weights, built without a training framework.

Shapes, parameter counts and graph idioms are those of the published networks as exporters write them; the
weights are random but scaled, so that activations stay finite and of order one. The models serve coverage and
speed measurements, where the values of the weights do not matter.

    model = ARCHITECTURES["resnet18"](True)     # batch normalisation folded into the convolutions
    model = build("resnet18", folded=False, seed=3)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from onnx import ModelProto

from . import classic, mobile, transformers
from .builder import Builder

__all__ = ["ARCHITECTURES", "build"]

_RECIPES: Final[dict[str, Callable[[Builder], None]]] = {
    **{name: partial(classic.resnet, spec=spec) for name, spec in classic.RESNETS.items()},
    "vgg16_bn": classic.vgg16,
    "googlenet": classic.googlenet,
    "densenet121": classic.densenet121,
    "unet": classic.unet,
    "mobilenet_v2": mobile.mobilenet_v2,
    "mobilenet_v3_large": mobile.mobilenet_v3_large,
    "efficientnet_b0": mobile.efficientnet_b0,
    "regnet_y_400mf": mobile.regnet_y_400mf,
    "shufflenet_v2": mobile.shufflenet_v2,
    "convnext_tiny": transformers.convnext_tiny,
    "vit_b16": transformers.vit_b16,
    "swin_t": transformers.swin_t,
}


def build(name: str, folded: bool, seed: int = 0, *, outline: bool = False) -> ModelProto:
    """The network of that name (a key of `ARCHITECTURES`) with weights drawn from `seed`.

    folded: batch normalisation after a convolution is that convolution's bias.
    outline: declare the parameters as graph inputs instead of drawing them, to look at shapes alone.
    """
    if name not in _RECIPES:
        raise KeyError(f"no network is named {name!r}; expected one of {', '.join(sorted(_RECIPES))}")
    builder = Builder(folded=folded, seed=seed, outline=outline)
    _RECIPES[name](builder)
    return builder.model(name)


ARCHITECTURES: Final[dict[str, Callable[[bool], ModelProto]]] = {name: partial(build, name) for name in _RECIPES}
"""Builder of each network; the argument is `folded`."""
