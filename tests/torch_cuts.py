"""Modules cut by plans: what tests of them share; needs torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import leanonnx
from leanonnx.torch import matching
from tests.torch_networks import EXPORTERS

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
    return leanonnx.compress(path, keep=keep, align=1, **options)


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
