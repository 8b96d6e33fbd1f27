"""``leanonnx check``: pairs of models, the exit code that each gets and the gates that it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leanonnx.commands.check.gates import GATES, LIMITED_GATES
from tests.helpers import CNN, SHORT, build, called, saved

FREE = CNN.replace("float[1, 3, 8, 8] x", "float[N, 3, 8, 8] x").replace("float[1, 5] y", "float[N, 5] y")
HEAVY = FREE.replace("8, 3, 3, 3]", "256, 3, 3, 3]").replace("[8] b1", "[256] b1").replace("12, 8,", "256, 256,")
HEAVY = HEAVY.replace("[5, 12]", "[5, 256]")
"""Hundreds of times the work of ``FREE``."""
CHOICE = FREE.replace("float[N, 5] y", "int64[N] y").replace("y = Gemm", "g = Gemm")
CHOICE = CHOICE.replace("(f2, w3, b3)\n", "(f2, w3, b3)\n    y = ArgMax <axis = 1, keepdims = 0> (g)\n")
TWO = FREE.replace("(float[N, 5] y)", "(float[N, 5] y, float[N, 12] f2)")
IMAGE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, H, W] x) => (float[N, 3, H, W] y)
<float[3, 3, 3, 3] w>
{ y = Conv <pads = [1, 1, 1, 1]> (x, w) }
"""
ALWAYS = {name for name in GATES if name not in LIMITED_GATES}
QUICK = ("--seconds", SHORT, "--threads", 1)
Change = Callable[[onnx.ModelProto], object]


def scaled(text: str, factor: str) -> str:
    """The network, its output multiplied by a constant."""
    return text.replace("y = Gemm", "g = Gemm").replace(
        "(f2, w3, b3)\n", f"(f2, w3, b3)\n    k = Constant <value = float {{{factor}}}> ()\n    y = Mul (g, k)\n"
    )


NOISE = "    y0 = RandomNormalLike <scale = 0.1> (g)\n    y = Add (g, y0)\n"
RANDOM = FREE.replace("y = Gemm", "g = Gemm").replace("(f2, w3, b3)\n", f"(f2, w3, b3)\n{NOISE}")


def infinite(proto: onnx.ModelProto) -> None:
    """A weight that makes outputs infinite."""
    replace(proto, "b3", lambda array: np.full_like(array, np.inf))


def replace(proto: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def denormal(proto: onnx.ModelProto) -> None:
    def change(array: Any) -> Any:
        array = array.copy()
        array.reshape(-1)[:7] = 1e-40
        return array

    replace(proto, "w2", change)


def wordy(proto: onnx.ModelProto) -> None:
    proto.doc_string = "x" * 10_000


def older(proto: onnx.ModelProto) -> None:
    proto.ir_version = 7


def newer(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 18


def listed(proto: onnx.ModelProto) -> None:
    """A weight that callers may replace."""
    tensor = proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def another(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def dangling(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].input[0] = "nowhere"


def unknown(proto: onnx.ModelProto) -> None:
    """An operator that no runtime has."""
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    proto.graph.node[1].domain = "com.acme"


def swapped(proto: onnx.ModelProto) -> None:
    outputs = [value.SerializeToString() for value in proto.graph.output][::-1]
    del proto.graph.output[:]
    proto.graph.output.extend([onnx.ValueInfoProto.FromString(raw) for raw in outputs])


def no_change(proto: onnx.ModelProto) -> None:
    """The model as it is."""


@dataclass(frozen=True)
class Pair:
    """BASE and NEW as text, what is changed in NEW, what is asked, and what comes of it."""

    new: str = FREE
    change: Change = no_change
    options: tuple[object, ...] = ()
    fails: tuple[str, ...] = ()
    says: str = ""
    base: str = FREE
    seed: int = 0
    skips: tuple[str, ...] = ()


AFTER_INTERFACE = ("runs", "batches", "finite", "deterministic")
"""Skipped where the interface is another."""
PAIRS = {
    "the same": Pair(options=("--max-deviation", 0, "--min-agreement", 1, "--max-bytes", "1x", "--max-macs", "1x")),
    "slower": Pair(HEAVY, options=("--min-speedup", 0.5, *QUICK), fails=("min-speedup",), says="95 % interval"),
    "faster": Pair(base=HEAVY, options=("--min-speedup", 2, *QUICK), says="95 % interval"),
    "too slow": Pair(HEAVY, options=("--max-latency-ms", 1e-6, *QUICK), fails=("max-latency-ms",), says="1 thread"),
    "quick enough": Pair(options=("--max-latency-ms", 1e6, *QUICK)),
    "batches": Pair(options=("--max-latency-ms", 1e-6, *QUICK, "--batch", "1,64"), fails=("max-latency-ms",)),
    "deviating": Pair(seed=1, options=("--max-deviation", 0.01), fails=("max-deviation",), says="'y' on random"),
    "deviating, not asked": Pair(seed=1),
    "other classes": Pair(seed=1, options=("--min-agreement", 0.9), fails=("min-agreement",), says="4 samples"),
    "other choice": Pair(
        CHOICE, base=CHOICE, seed=1, options=("--min-agreement", 0.9), fails=("min-agreement",), says="'y'"
    ),
    "renamed input": Pair(
        FREE.replace(" x)", " image)").replace("(x,", "(image,"),
        fails=("interface",),
        says="input 'x' is gone; input 'image' is new",
        skips=AFTER_INTERFACE,
    ),
    "renamed output": Pair(
        FREE.replace(" y)", " z)").replace("y = ", "z = "),
        fails=("interface",),
        says="output 'y' is gone; output 'z' is new",
        skips=AFTER_INTERFACE,
    ),
    "outputs swapped": Pair(
        TWO, swapped, base=TWO, fails=("interface",), says="the outputs come in another order", skips=AFTER_INTERFACE
    ),
    "other output shape": Pair(
        FREE.replace("float[N, 5] y", "float[N, 6] y").replace("[5, 12]", "[6, 12]").replace("[5] b3", "[6] b3"),
        fails=("interface",),
        says="output 'y' is [N, 6], was [N, 5]",
        skips=AFTER_INTERFACE,
    ),
    "other input shape": Pair(
        FREE.replace("8, 8] x", "9, 8] x"), fails=("interface",), says="[N, 3, 9, 8]", skips=AFTER_INTERFACE
    ),
    "other type": Pair(
        FREE.replace("float[", "float16["),
        fails=("interface",),
        says="input 'x' is float16, was float",
        skips=AFTER_INTERFACE,
    ),
    "axis made fixed": Pair(
        CNN, fails=("interface",), says="input 'x' is [1, 3, 8, 8], was [N, 3, 8, 8]", skips=AFTER_INTERFACE
    ),
    "output axis made free": Pair(
        CNN.replace("float[1, 5] y", "float[N, 5] y"),
        base=CNN,
        fails=("interface",),
        says="output 'y' is [N, 5], was [1, 5]",
        skips=AFTER_INTERFACE,
    ),
    "input axis made free": Pair(
        IMAGE, base=IMAGE.replace("3, H, W] x", "3, 8, W] x"), says="Note: input 'x' is [N, 3, H, W], was [N, 3, 8, W]"
    ),
    "output axis declared at last": Pair(
        FREE,
        base=FREE.replace("float[N, 5] y", "float[?, ?] y"),
        says="Note: output 'y' is [N, 5], was [?, ?]",
    ),
    "axis renamed": Pair(FREE.replace("[N, ", "[batch, "), says="Note: output 'y' is [batch, 5], was [N, 5]"),
    "another input": Pair(change=another, fails=("interface",), says="input 'mask' is new", skips=AFTER_INTERFACE),
    "another input with a default": Pair(change=listed, says="Note: 1 weight can now be fed"),
    "other operator set": Pair(change=newer, says="Note: operator set of ai.onnx: 18, was 17"),
    "other IR version": Pair(change=older, says="Note: IR version 7, was 8"),
    "other size when run": Pair(
        IMAGE.replace("kernel", "").replace("pads = [1, 1, 1, 1]", "pads = [0, 0, 0, 0]"),
        base=IMAGE,
        says="Note: output 'y' had another shape than BASE's",
    ),
    "NaN": Pair(scaled(FREE, "nan"), fails=("finite",), says="'y': 60 values of NaN or infinity"),
    "infinity": Pair(change=infinite, fails=("finite",)),
    "infinity deviates": Pair(
        change=infinite, options=("--max-deviation", 10), fails=("finite", "max-deviation"), says="NaN or infinite"
    ),
    "NaN in both": Pair(scaled(FREE, "nan"), base=scaled(FREE, "nan")),
    "NaN in both tells nothing": Pair(
        scaled(FREE, "nan"),
        base=scaled(FREE, "nan"),
        options=("--max-deviation", 10),
        fails=("max-deviation",),
        says="its deviation is undefined",
    ),
    "bigger file": Pair(change=wordy, options=("--max-bytes", "1.1x"), fails=("max-bytes",), says="1.1 times BASE's"),
    "too many bytes": Pair(options=("--max-bytes", "1kB"), fails=("max-bytes",), says="≤ 1,000"),
    "more parameters": Pair(HEAVY, options=("--max-params", "1x"), fails=("max-params",), says="1 times BASE's 1,153"),
    "few enough parameters": Pair(options=("--max-params", "1.2k")),
    "more multiply-adds": Pair(HEAVY, options=("--max-macs", "1x"), fails=("max-macs",), says="BASE's"),
    "half the multiply-adds": Pair(base=HEAVY, options=("--max-macs", "0.5x", "--max-params", "0.5x")),
    "denormal weights": Pair(change=denormal, fails=("denormals",), says="7 in 'w2'"),
    "random": Pair(RANDOM, fails=("deterministic",), says="different bytes", skips=("batches",)),
    "both random": Pair(RANDOM, base=RANDOM, skips=("batches", "deterministic"), says="BASE does not"),
    "invalid": Pair(
        change=dangling,
        options=("--max-macs", "1x"),
        fails=("valid",),
        says="the ONNX checker refuses the model",
        skips=(*(ALWAYS - {"valid"}), "max-macs"),
    ),
    "does not run": Pair(
        change=unknown,
        fails=("runs",),
        says="is not a registered function/op",
        skips=("batches", "finite", "deterministic"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, tmp_path: Path) -> None:
    """The exit code, the gates that fail and those that are skipped are just those expected."""
    pair = PAIRS[name]
    saved(build(pair.base), tmp_path / "base.onnx")
    proto = build(pair.new, pair.seed)
    pair.change(proto)
    saved(proto, tmp_path / "new.onnx")
    row = checked(tmp_path, *pair.options, code=1 if pair.fails else 0)
    assert status(row, "failed") == set(pair.fails) == set(row["failed"])
    assert status(row, "skipped") == set(pair.skips)
    assert row["passed"] == (not pair.fails)
    texts = [f"Note: {note}" for note in row["notes"]]
    texts += [f"{each['detail']} ≤ {each['limit'] or 0:,.0f}" for each in row["gates"]]
    assert any(pair.says in text for text in texts), texts


def checked(folder: Path, *options: object, code: int = 0) -> dict[str, Any]:
    """The JSON object of a check of two files in a folder, with an exit code and gates in their order."""
    done = called("check", "base.onnx", "new.onnx", *options, "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("leanonnx: ") == bool(code)
    row = json.loads(done.stdout)
    assert row.keys() == {
        "schema",
        "base",
        "new",
        "passed",
        "failed",
        "gates",
        "notes",
        "seed",
        "deviation",
        "sizes",
        "latency",
        "seconds",
    }
    asked = {option.removeprefix("--") for option in options if isinstance(option, str)} & set(LIMITED_GATES)
    assert [gate["gate"] for gate in row["gates"]] == [name for name in GATES if name in ALWAYS | asked]
    return row


def status(row: dict[str, Any], wanted: str) -> set[str]:
    return {gate["gate"] for gate in row["gates"] if gate["status"] == wanted}


def gate(row: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in row["gates"] if each["gate"] == name)
