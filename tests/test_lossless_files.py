"""``--exact`` on files of every kind, its report and its plans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import OptionError, PlanError
from leanonnx.surgery.plan import load_plan
from tests.helpers import Options, called, called_json, constant_shapes, saved
from tests.soft_pruned import edited, framed, gone, minimal, put, residual, sizes, soft_pruned

# files


@pytest.mark.parametrize("listed", ["w", "b", "v", "vb"])
def test_overridable_constants_are_no_zeros(listed: str, tmp_path: Path) -> None:
    proto = edited(soft_pruned(framed("d = Relu (c)"), 1), v=put(0, slice(None), 4))
    dims = sizes(proto)[listed]
    proto.graph.input.append(helper.make_tensor_value_info(listed, TensorProto.FLOAT, dims))
    result, after = minimal(proto, tmp_path)
    assert list(after.graph.input) == list(proto.graph.input)
    assert gone(result) == {"w": (0, 0), "b": (0, 0), "v": (0, 0), "vb": (1, 1)}[listed]
    assert sizes(after)[listed] == dims


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_other_number_formats(kind: int, tmp_path: Path) -> None:
    """In half precision a bias is too coarse to absorb a constant."""
    proto = framed("d = Relu (c)", pad=0, opset=22)
    proto.ir_version = 10
    proto = edited(proto, w=put(0, [0, 1, 2]), b=put(0, [0, 1]), v=put(0, slice(None), 7))
    proto = edited(proto, b=put(0.5, 2))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.elem_type = kind
    source, target = saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = compress_file(source, target, Options(exact=True))
    assert constant_shapes(target)["w"] == [4 if kind == TensorProto.DOUBLE else 5, 2, 3, 3]
    assert {t.data_type for t in onnx.load(target).graph.initializer} == {kind}
    assert result.proof.passed


def test_a_minimal_model_is_copied(tmp_path: Path) -> None:
    source = saved(framed("d = Relu (c)"), tmp_path / "in.onnx")
    done = called("compress", source, tmp_path / "out.onnx", "--exact")
    assert done.returncode == 0
    assert "nothing could be removed" in done.stdout
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_pinned_and_ignored_channels_stay(tmp_path: Path) -> None:
    proto = soft_pruned(framed("d = Relu (c)"), 1, 2)
    assert gone(minimal(proto, tmp_path, pin=("d",))[0]) == (0, 0)
    assert gone(minimal(proto, tmp_path, ignore=("C",))[0]) == (0, 0)
    kept = edited(residual(), r=put(0, slice(None)))
    assert minimal(kept, tmp_path, pin=("a",))[0].tidied == {}
    with pytest.raises(OptionError):
        minimal(proto, tmp_path, pin=("nothing",))


def test_the_report_lists_removed_channels_with_reasons(tmp_path: Path) -> None:
    proto = edited(residual(), r=put(0, slice(None)), v=put(0, slice(None), 3), w=put(0, 4), b=put(0, 4))
    source = saved(proto, tmp_path / "in.onnx")
    row = called_json("compress", source, tmp_path / "out.onnx", "--exact")
    assert row["exact"] == {"channels": {"unread": 1, "constant": 1}, "layers": ["E", "G", "A"]}
    assert row["tidied"] == {"branch": 1, "unread": 5}
    assert row["kernels"]["before"] == 16 + 32 + 16 + 32 + 24
    assert row["kernels"]["after"] == 12 + 18
    assert row["params"]["after"] == sum(np.prod(dims) for dims in constant_shapes(tmp_path / "out.onnx").values())
    text = called("compress", source, tmp_path / "out.onnx", "--exact").stdout
    assert "equal to the original" in text
    assert "1 that nothing reads, 1 that are constant whatever the input" in text
    assert "Removed layers: E, G, A" in text


def test_plans_replay(tmp_path: Path) -> None:
    proto = edited(soft_pruned(framed("r = Relu (c) i = Identity (r) d = Clip (i)", pad=0), 1, 2, bias=0.5))
    source = saved(proto, tmp_path / "in.onnx")
    names = [tmp_path / name for name in ("a.onnx", "a.json", "b.onnx", "b.json")]
    row = called_json("compress", source, names[0], "--exact", "--plan-out", names[1], "--pin", "x")
    again = called_json("compress", source, names[2], "--plan", names[1], "--plan-out", names[3])
    assert names[0].read_bytes() == names[2].read_bytes()
    assert names[1].read_bytes() == names[3].read_bytes()
    assert row["exact"] == again["exact"]
    plan = json.loads(names[1].read_text())
    assert plan["tensors"]["w"]["kept"][0] == [0, 3, 4, 5, 6, 7]
    plan["tensors"]["w"]["kept"][0] = [0, 1, 3, 4, 5, 6]
    names[1].write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="make it again"):
        compress_file(source, names[2], Options(plan=load_plan(names[1])))


@pytest.mark.parametrize("other", ["--keep=0.5", "--macs=0.5", "--params=0.5", "--plan=p.json", "--latency=0.5"])
def test_exact_excludes_budgets(other: str, tmp_path: Path) -> None:
    source = saved(framed("d = Relu (c)"), tmp_path / "in.onnx")
    done = called("compress", source, tmp_path / "out.onnx", "--exact", other)
    assert done.returncode == 2
    assert "--plan or --exact, for example" in done.stderr
