"""The benchmark networks are the published ones: valid, of the published size, and numerically tame."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.networks import ARCHITECTURES, build
from benchmarks.networks.__main__ import main

PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnext50_32x4d": 25_028_904,
    "vgg16_bn": 138_365_992,
    "googlenet": 6_624_904,
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "efficientnet_b0": 5_288_548,
    "regnet_y_400mf": 4_344_144,
    "shufflenet_v2": 2_278_604,
    "convnext_tiny": 28_589_128,
    "vit_b16": 86_567_656,
    "swin_t": 28_288_354,
}
"""Learned parameters as torchvision documents them."""

UNET = 482_466
"""No publication has these widths: counted on the same layers written in PyTorch."""

STATISTICS = ("running_mean", "running_var")
HEAVY = {"vgg16_bn", "vit_b16"}


def parameters(outline: onnx.ModelProto) -> dict[str, int]:
    """Length of every parameter that an outline declares."""
    return {
        value.name: math.prod(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in outline.graph.input
        if value.name != "input"
    }


def learned(outline: onnx.ModelProto) -> int:
    return sum(n for name, n in parameters(outline).items() if not name.endswith(STATISTICS))


def absorbed(outline: onnx.ModelProto) -> int:
    """Parameters that folding removes: the scale of each normalisation, and the bias of its convolution."""
    sizes = parameters(outline)
    producer = {output: node for node in outline.graph.node for output in node.output}
    total = 0
    for node in outline.graph.node:
        source = producer.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if source is not None and source.op_type == "Conv":
            total += sizes[node.input[1]] * (2 if len(source.input) == 3 else 1)
    return total


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_size_is_the_published_one(name: str) -> None:
    expected = {**PUBLISHED, "unet": UNET}[name]
    unfolded = build(name, False, outline=True)
    assert learned(unfolded) == expected
    assert learned(build(name, True, outline=True)) == expected - absorbed(unfolded)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_graph_is_valid_with_all_shapes_inferred(name: str, folded: bool) -> None:
    model = build(name, folded, outline=True)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        value.name: value.type.tensor_type.shape for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    produced = [output for node in model.graph.node for output in node.output]
    vague = [name for name in produced if not all(d.HasField("dim_value") for d in shapes[name].dim)]
    assert vague == []


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_folding_leaves_no_normalisation_behind_a_convolution(name: str) -> None:
    assert absorbed(build(name, True, outline=True)) == 0


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - HEAVY))
def test_output_is_finite_and_of_order_one(name: str, folded: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build(name, folded)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    (y,) = session.run(None, {"input": x})
    assert list(y.shape) == session.get_outputs()[0].shape
    assert np.isfinite(y).all()
    assert 0.2 < y.std() < 5


def test_drawn_model_has_the_outline_of_its_shapes() -> None:
    drawn, outline = ARCHITECTURES["shufflenet_v2"](False), build("shufflenet_v2", False, outline=True)
    assert {t.name: math.prod(t.dims) for t in drawn.graph.initializer} == parameters(outline)
    assert drawn.graph.node == outline.graph.node
    onnx.checker.check_model(drawn, full_check=True)


def test_weights_follow_the_seed() -> None:
    first = build("unet", True, 0).SerializeToString(deterministic=True)
    assert build("unet", True, 0).SerializeToString(deterministic=True) == first
    assert build("unet", True, 1).SerializeToString(deterministic=True) != first


def test_command_writes_the_network(tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    assert main(["unet", str(path), "--folded", "--seed", "2"]) == 0
    assert onnx.load(path) == build("unet", True, 2)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"'resnet19'.*resnet18"):
        build("resnet19", True)
