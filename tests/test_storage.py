"""Files of models: written piece by piece, they are the same bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from leanonnx.graph import storage
from leanonnx.graph.storage import write_model
from tests.helpers import CNN, build


def test_a_large_model_is_written_piece_by_piece_as_protobuf_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = build(CNN)
    proto.producer_name, proto.graph.doc_string = "maker", "text"
    proto.metadata_props.add(key="a", value="b")
    proto.graph.value_info.add(name="inner")
    proto.graph.quantization_annotation.add(tensor_name="inner")
    proto.graph.node.add(op_type="Constant", output=["unread"]).attribute.append(
        onnx.helper.make_attribute("value", numpy_helper.from_array(numpy_helper.to_array(proto.graph.initializer[0])))
    )
    monkeypatch.setattr(storage, "MIN_PIECEWISE_BYTES", 0)
    write_model(proto, tmp_path / "m.onnx", external=False)
    monkeypatch.undo()
    assert (tmp_path / "m.onnx").read_bytes() == proto.SerializeToString(deterministic=True)
