"""The rule table: (domain, operator) → rule.  A value, not a registry: pass your own, joined to this one.

analyse(model, rules=DEFAULT | {("com.acme", "FusedConv"): my_rule})
"""

from __future__ import annotations

from collections.abc import Mapping

from leanonnx.rules import (
    assembly,
    convolution,
    indexing,
    linear,
    movement,
    normalization,
    pointwise,
    products,
    quantization,
    recurrent,
    reduction,
    spatial,
    windows,
)
from leanonnx.rules.call import Rule

Rules = Mapping[tuple[str, str], Rule]

_STANDARD: dict[str, Rule] = {
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "ConvInteger": convolution.conv_integer,
    "QLinearConv": convolution.qlinear_conv,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "DeformConv": convolution.deform_conv,
    "Einsum": products.einsum,
    "LSTM": recurrent.recurrent,
    "GRU": recurrent.recurrent,
    "RNN": recurrent.recurrent,
    "MatMulInteger": linear.matmul_integer,
    "QLinearMatMul": linear.qlinear_matmul,
    "BatchNormalization": normalization.batch_normalization,
    "InstanceNormalization": normalization.instance_normalization,
    "GroupNormalization": normalization.group_normalization,
    "LayerNormalization": normalization.layer_normalization,
    "RMSNormalization": normalization.layer_normalization,
    "LRN": normalization.across,
    "MeanVarianceNormalization": normalization.over_axes,
    "LpNormalization": normalization.over_axes,
    "PRelu": pointwise.prelu,
    "ImageScaler": pointwise.image_scaler,
    "Reshape": movement.reshaped,
    "Flatten": movement.reshaped,
    "Squeeze": movement.reshaped,
    "Unsqueeze": movement.reshaped,
    "Transpose": movement.transpose,
    "Expand": movement.expand,
    "Tile": movement.tile,
    "Concat": assembly.concat,
    "Split": assembly.split,
    "Slice": windows.slice_,
    "Gather": indexing.gather,
    "GatherElements": indexing.gather_elements,
    "GatherND": indexing.gather_nd,
    "ScatterElements": indexing.scatter_elements,
    "Scatter": indexing.scatter_elements,
    "ScatterND": indexing.scatter_nd,
    "TopK": indexing.top_k,
    "ReverseSequence": indexing.reverse_sequence,
    "Trilu": indexing.trilu,
    "Pad": windows.pad,
    "DepthToSpace": movement.depth_to_space,
    "SpaceToDepth": movement.space_to_depth,
    "Shape": movement.shape_of,
    "Size": movement.shape_of,
    "Crop": movement.crop,
    "Resize": spatial.resize,
    "Upsample": spatial.resize,
    "ArgMax": reduction.arg_extremum,
    "ArgMin": reduction.arg_extremum,
    "Softmax": reduction.softmax,
    "LogSoftmax": reduction.softmax,
    "Hardmax": reduction.softmax,
    "CumSum": reduction.cumulative,
    "QuantizeLinear": quantization.linear,
    "DequantizeLinear": quantization.linear,
    "DynamicQuantizeLinear": quantization.dynamic,
}
_CHANNELWISE = ["AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "GridSample"]
_CHANNELWISE += ["RoiAlign", "MaxRoiPool"]
_REDUCTIONS = ["Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]
_MICROSOFT: dict[str, Rule] = {
    "FusedConv": convolution.fused_conv,
    "FusedGemm": linear.gemm,
    "FusedMatMul": linear.fused_matmul,
    "QGemm": linear.qgemm,
    "QLinearConcat": assembly.qlinear_concat,
    "QLinearAdd": pointwise.qlinear_join,
    "QLinearMul": pointwise.qlinear_join,
    "QLinearSigmoid": pointwise.unary,
    "QLinearLeakyRelu": pointwise.unary,
    "QLinearGlobalAveragePool": spatial.channelwise,
    "QLinearAveragePool": spatial.channelwise,
    "SkipLayerNormalization": normalization.skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": normalization.skip_layer_normalization,
    "QuickGelu": pointwise.unary,
    "Gelu": pointwise.unary,
    "BiasGelu": pointwise.bias_gelu,
}

DEFAULT: Rules = {
    **{("", op): pointwise.unary for op in pointwise.UNARY},
    **{("", op): pointwise.join for op in pointwise.JOINS},
    **{("", op): spatial.channelwise for op in _CHANNELWISE},
    **{("", f"Reduce{kind}"): reduction.reduce for kind in _REDUCTIONS},
    **{("", op): rule for op, rule in _STANDARD.items()},
    **{("com.microsoft", op): rule for op, rule in _MICROSOFT.items()},
}
