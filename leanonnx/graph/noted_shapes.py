"""Shapes that a file notes, where exporters write what onnxruntime does not take literally."""

from __future__ import annotations

import onnx

from leanonnx.graph.formats import graphs


def free_negative_sizes(proto: onnx.ModelProto) -> None:
    """Leave out sizes below zero, in place: some exporters mean free axes by them."""
    values = (value for graph in graphs(proto.graph) for value in (*graph.input, *graph.output, *graph.value_info))
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if dim.dim_value < 0:
            dim.ClearField("dim_value")


def drop_inner_shapes(proto: onnx.ModelProto) -> None:
    """Leave out what is noted of values inside, in place; the interface of the model stays as it is declared.

    Of the outputs of inner graphs, the shapes go and the types stay; onnxruntime needs those of their inputs.
    """
    for graph in graphs(proto.graph):
        del graph.value_info[:]
        for value in () if graph is proto.graph else graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
