"""Detect the hardware table of this machine (see ``targets.toml``) from the graphs that onnxruntime optimises."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

import onnx

from leanonnx.graph.formats import HALF_TYPES, ElementTypes
from leanonnx.runtime.fastpath import convolution_layouts
from leanonnx.runtime.providers import Setting

PROBE_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
probe (float[1, {width}, 8, 8] x, float[{width}, {depth}, 3, 3] w) => (float y) {{ y = Conv <group = {groups}> (x, w) }}
"""
PROBE_BLOCKS = 4
"""Number of whole blocks that a probe reads besides the channels whose step is measured."""
HARDWARE_BY_BLOCK = {8: "cpu-avx2", 16: "cpu-avx512"}
"""Names of hardware tables by the block size of onnxruntime's convolution kernels, in channels."""


def detect_hardware(setting: Setting, kinds: ElementTypes = frozenset()) -> str:
    """Return the name of the hardware table for a model with these number formats on the provider of a setting."""
    if setting.provider == "tensorrt":
        return "tensorrt"
    if setting.provider == "cuda":
        return "cuda-fp16" if kinds & HALF_TYPES else "cuda-tf32" if setting.tf32 else "cuda-fp32"
    block = channel_block()
    if block:
        return HARDWARE_BY_BLOCK[block]
    return "cpu-arm" if platform.machine().lower() in ("arm64", "aarch64") else "cpu-plain"


def channel_block() -> int:
    """Return the block size of onnxruntime's convolution kernels on this CPU, in channels; 0 if they are not blocked.

    A grouped convolution is computed in blocks only if the channels of each conv group fill whole blocks.
    """
    return next((block for block in sorted(HARDWARE_BY_BLOCK) if is_blocked(block, groups=2)), 0)


def channel_steps() -> tuple[int, int, int] | None:
    """Return the block size of the kernels, and the steps in channels that dense and grouped convolutions need.

    None if onnxruntime's kernels are not blocked on this CPU.  All three are read from optimised graphs.
    """
    block = channel_block()
    if not block:
        return None
    steps = [1 << power for power in range(block.bit_length())]
    multiple = next((step for step in steps if is_blocked(PROBE_BLOCKS * block + step)), block)
    return block, multiple, next((step for step in steps if is_blocked(step, groups=2)), block)


def is_blocked(depth: int, groups: int = 1) -> bool:
    """Return True if a convolution that reads ``depth`` channels per conv group runs in the blocked kernels."""
    probe = onnx.parser.parse_model(PROBE_MODEL.format(width=depth * groups, depth=depth, groups=groups))
    weight = onnx.helper.make_tensor(
        "w", onnx.TensorProto.FLOAT, [depth * groups, depth, 3, 3], [1.0] * (depth * groups * depth * 9)
    )
    del probe.graph.input[1:]
    probe.graph.initializer.append(weight)
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(probe, path)
        counts = convolution_layouts(path, Setting(threads=1))
    return counts is not None and counts.fast > 0
