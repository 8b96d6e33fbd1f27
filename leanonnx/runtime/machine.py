"""Which target of ``targets.toml`` the machine at hand is, asked of onnxruntime itself."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

import onnx

from leanonnx.graph.formats import HALVES, Kinds
from leanonnx.runtime.fastpath import layouts
from leanonnx.runtime.providers import Setting

PROBE = """
<ir_version: 8, opset_import: ["" : 17]>
probe (float[1, {width}, 8, 8] x, float[{width}, {depth}, 3, 3] w) => (float y) {{ y = Conv <group = {groups}> (x, w) }}
"""
DEEP = 4
"""Whole blocks that a convolution reads besides the channels whose step is looked for."""
BLOCKS = {8: "cpu-avx2", 16: "cpu-avx512"}
"""Blocks of onnxruntime's convolution kernels, and the targets that have them."""


def detected(setting: Setting, kinds: Kinds = frozenset()) -> str:
    """Name of the target that runs a model of these number formats on the provider of a setting."""
    if setting.provider == "tensorrt":
        return "tensorrt"
    if setting.provider == "cuda":
        return "cuda-fp16" if kinds & HALVES else "cuda-tf32" if setting.tf32 else "cuda-fp32"
    block = blocked_channels()
    if block:
        return BLOCKS[block]
    return "cpu-arm" if platform.machine().lower() in ("arm64", "aarch64") else "cpu-plain"


def blocked_channels() -> int:
    """Channels that onnxruntime's convolution kernels take together on this CPU; 0 if they take any number.

    A grouped convolution is computed in blocks only if the channels of a group fill whole blocks.
    """
    return next((block for block in sorted(BLOCKS) if is_blocked(block, groups=2)), 0)


def blocked_steps() -> tuple[int, int, int] | None:
    """Channels that the kernels take together, and the steps of the channels that dense and grouped ones want.

    None where onnxruntime does not block on this CPU.  Read from graphs as onnxruntime optimises them.
    """
    block = blocked_channels()
    if not block:
        return None
    steps = [1 << power for power in range(block.bit_length())]
    multiple = next((step for step in steps if is_blocked(DEEP * block + step)), block)
    return block, multiple, next((step for step in steps if is_blocked(step, groups=2)), block)


def is_blocked(depth: int, groups: int = 1) -> bool:
    """Whether a convolution that reads ``depth`` channels per group runs in the blocked kernels."""
    probe = onnx.parser.parse_model(PROBE.format(width=depth * groups, depth=depth, groups=groups))
    weight = onnx.helper.make_tensor(
        "w", onnx.TensorProto.FLOAT, [depth * groups, depth, 3, 3], [1.0] * (depth * groups * depth * 9)
    )
    del probe.graph.input[1:]
    probe.graph.initializer.append(weight)
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(probe, path)
        found = layouts(path, Setting(threads=1))
    return found is not None and found.fast > 0
