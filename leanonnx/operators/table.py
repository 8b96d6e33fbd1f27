"""The table of operator facts, and the sets of operators that follow from it.

An operator that is missing has no known property.  A trait is a promise: where it is missing, the operator may have the
property all the same, but nothing relies on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from leanonnx.operators.facts import MICROSOFT, NCHWC, OperatorFacts
from leanonnx.operators.facts import Family as F
from leanonnx.operators.facts import Trait as T

STANDARD_FACTS: Mapping[str, OperatorFacts] = {
    "Conv": OperatorFacts(
        F.CONVOLUTION,
        T.LINEAR
        | T.KERNELS
        | T.NCHWC_KERNELS
        | T.BLOCK_WIDTHS
        | T.MIXES_CHANNELS
        | T.CAN_EMPTY
        | T.COMPARED_INSIDE
        | T.INTEGER_KERNELS
        | T.PUT_INTO_INTEGERS,
        weight=1,
        bias=2,
        learned=(1, 2),
    ),
    "ConvInteger": OperatorFacts(
        F.CONVOLUTION, T.KERNELS | T.BLOCK_WIDTHS | T.MIXES_CHANNELS | T.QUANTISED | T.INTEGER_DATA, weight=1
    ),
    "QLinearConv": OperatorFacts(
        F.CONVOLUTION, T.KERNELS | T.BLOCK_WIDTHS | T.MIXES_CHANNELS | T.QUANTISED | T.INTEGER_DATA, weight=3, bias=8
    ),
    "ConvTranspose": OperatorFacts(
        F.TRANSPOSED_CONVOLUTION,
        T.LINEAR | T.KERNELS | T.BLOCK_WIDTHS | T.MIXES_CHANNELS | T.COMPARED_INSIDE | T.PUT_INTO_INTEGERS,
        weight=1,
        bias=2,
        learned=(1, 2),
    ),
    "DeformConv": OperatorFacts(F.DEFORMABLE_CONVOLUTION, T.MIXES_CHANNELS, weight=1, bias=3),
    "Gemm": OperatorFacts(
        F.GEMM,
        T.LINEAR | T.KERNELS | T.MIXES_CHANNELS | T.COMPARED_INSIDE | T.INTEGER_KERNELS | T.PUT_INTO_INTEGERS,
        weight=1,
        bias=2,
        learned=(0, 1, 2),
    ),
    "MatMul": OperatorFacts(
        F.MATMUL,
        T.LINEAR | T.KERNELS | T.MIXES_CHANNELS | T.KEEPS_ZERO | T.COMPARED_INSIDE | T.INTEGER_KERNELS,
        weight=1,
        learned=(0, 1),
    ),
    "MatMulInteger": OperatorFacts(F.MATMUL, T.KERNELS | T.MIXES_CHANNELS | T.QUANTISED | T.INTEGER_DATA, weight=1),
    "QLinearMatMul": OperatorFacts(F.MATMUL, T.KERNELS | T.MIXES_CHANNELS | T.QUANTISED | T.INTEGER_DATA, weight=3),
    "Einsum": OperatorFacts(F.EINSUM, T.MIXES_CHANNELS | T.KEEPS_ZERO, learned=(0, 1)),
    "LSTM": OperatorFacts(F.RECURRENT, T.MIXES_CHANNELS, weight=1, learned=(1, 2, 3, 7)),
    "GRU": OperatorFacts(F.RECURRENT, T.MIXES_CHANNELS, weight=1, learned=(1, 2, 3, 7)),
    "RNN": OperatorFacts(F.RECURRENT, T.MIXES_CHANNELS, weight=1, learned=(1, 2, 3, 7)),
    "Attention": OperatorFacts(F.ATTENTION, T.MIXES_CHANNELS | T.KEEPS_ZERO),
    "LinearAttention": OperatorFacts(F.ATTENTION),
    "CausalConvWithState": OperatorFacts(F.ATTENTION),
    "BatchNormalization": OperatorFacts(
        F.NORMALIZATION, T.KEEPS_ZERO | T.SAME_SIZE | T.PER_CHANNEL | T.COMPARED_INSIDE, learned=(1, 2)
    ),
    "InstanceNormalization": OperatorFacts(F.NORMALIZATION, T.KEEPS_ZERO | T.SAME_SIZE | T.PER_CHANNEL, learned=(1, 2)),
    "GroupNormalization": OperatorFacts(F.NORMALIZATION, T.KEEPS_ZERO, learned=(1, 2)),
    "LayerNormalization": OperatorFacts(F.NORMALIZATION, learned=(1, 2)),
    "RMSNormalization": OperatorFacts(F.NORMALIZATION, T.KEEPS_ZERO, learned=(1, 2)),
    "LRN": OperatorFacts(F.NORMALIZATION),
    "MeanVarianceNormalization": OperatorFacts(F.NORMALIZATION),
    "LpNormalization": OperatorFacts(F.NORMALIZATION, T.KEEPS_ZERO),
    "SimplifiedLayerNormalization": OperatorFacts(F.NORMALIZATION, learned=(1, 2)),
    "Softmax": OperatorFacts(F.SOFTMAX, T.INJECTIVE | T.PROBABILITY),
    "LogSoftmax": OperatorFacts(F.SOFTMAX, T.INJECTIVE),
    "Relu": OperatorFacts(
        F.UNARY,
        T.POINTWISE | T.KEEPS_ZERO | T.CAN_EMPTY | T.SAME_SIZE | T.HOMOGENEOUS | T.PASSES_INTEGERS | T.BOUNDS_INTEGERS,
    ),
    "LeakyRelu": OperatorFacts(
        F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.CAN_EMPTY | T.SAME_SIZE | T.HOMOGENEOUS | T.PASSES_INTEGERS
    ),
    "Sigmoid": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE | T.INJECTIVE | T.PROBABILITY | T.PASSES_INTEGERS),
    "Tanh": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.INJECTIVE),
    "Elu": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.CAN_EMPTY | T.SAME_SIZE),
    "Selu": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Celu": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Softplus": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "Softsign": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "HardSigmoid": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE | T.PROBABILITY),
    "HardSwish": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Mish": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Gelu": OperatorFacts(F.UNARY, T.NO_WEIGHT | T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Swish": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "ThresholdedRelu": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Clip": OperatorFacts(F.UNARY, T.POINTWISE | T.CAN_EMPTY | T.SAME_SIZE | T.PASSES_INTEGERS | T.BOUNDS_INTEGERS),
    "Abs": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.HOMOGENEOUS),
    "Neg": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.INJECTIVE),
    "Exp": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE | T.INJECTIVE),
    "Log": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE | T.INJECTIVE),
    "Sqrt": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.INJECTIVE),
    "Reciprocal": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "Floor": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.STEP),
    "Ceil": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.STEP),
    "Round": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.STEP),
    "Sign": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.STEP),
    "Sin": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Cos": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "Tan": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Asin": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Acos": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "Atan": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Sinh": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Cosh": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "Asinh": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Acosh": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "Atanh": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Erf": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Not": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE | T.DISCRETE),
    "BitwiseNot": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "IsNaN": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE | T.DISCRETE),
    "IsInf": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE | T.DISCRETE),
    "Cast": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE | T.INJECTIVE | T.CARRIES),
    "CastLike": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Identity": OperatorFacts(
        F.UNARY,
        T.POINTWISE
        | T.KEEPS_ZERO
        | T.PASSES_FIRST
        | T.CAN_EMPTY
        | T.SAME_SIZE
        | T.INJECTIVE
        | T.MOVES
        | T.CARRIES
        | T.HOMOGENEOUS,
    ),
    "Dropout": OperatorFacts(F.UNARY, T.KEEPS_ZERO | T.PASSES_FIRST | T.SAME_SIZE),
    "Shrink": OperatorFacts(F.UNARY, T.POINTWISE | T.KEEPS_ZERO | T.SAME_SIZE),
    "Affine": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "ScaledTanh": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "ParametricSoftplus": OperatorFacts(F.UNARY, T.POINTWISE | T.SAME_SIZE),
    "PRelu": OperatorFacts(
        F.PARAMETRIC, T.POINTWISE | T.KEEPS_ZERO | T.CAN_EMPTY | T.SAME_SIZE | T.HOMOGENEOUS, learned=(1,)
    ),
    "ImageScaler": OperatorFacts(F.PARAMETRIC),
    "Add": OperatorFacts(
        F.JOIN,
        T.POINTWISE
        | T.JOINS_ZEROS
        | T.INJECTIVE
        | T.ADDS
        | T.ARITHMETIC
        | T.COMMUTES
        | T.COMPARED_INSIDE
        | T.PASSES_INTEGERS,
    ),
    "Sub": OperatorFacts(F.JOIN, T.POINTWISE | T.JOINS_ZEROS | T.INJECTIVE | T.ADDS | T.ARITHMETIC),
    "Mul": OperatorFacts(F.JOIN, T.POINTWISE | T.INJECTIVE | T.ARITHMETIC | T.COMMUTES | T.SCALES | T.PASSES_INTEGERS),
    "Div": OperatorFacts(F.JOIN, T.POINTWISE | T.ZERO_WITH_FIRST | T.INJECTIVE | T.ARITHMETIC | T.SCALES | T.DIVIDES),
    "Min": OperatorFacts(F.JOIN, T.POINTWISE | T.JOINS_ZEROS | T.EXTREME),
    "Max": OperatorFacts(F.JOIN, T.POINTWISE | T.JOINS_ZEROS | T.EXTREME),
    "Sum": OperatorFacts(F.JOIN, T.POINTWISE | T.JOINS_ZEROS | T.ADDS),
    "Mean": OperatorFacts(F.JOIN, T.POINTWISE | T.JOINS_ZEROS | T.ADDS),
    "Pow": OperatorFacts(F.JOIN, T.POINTWISE | T.ZERO_WITH_FIRST),
    "Mod": OperatorFacts(F.JOIN, T.POINTWISE | T.DIVIDES | T.STEP),
    "Where": OperatorFacts(F.JOIN, T.POINTWISE),
    "And": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "Or": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "Xor": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "Equal": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "Greater": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "Less": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "GreaterOrEqual": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "LessOrEqual": OperatorFacts(F.JOIN, T.POINTWISE | T.DISCRETE),
    "BitwiseAnd": OperatorFacts(F.JOIN, T.POINTWISE),
    "BitwiseOr": OperatorFacts(F.JOIN, T.POINTWISE),
    "BitwiseXor": OperatorFacts(F.JOIN, T.POINTWISE),
    "ReduceMean": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.WHOLE_SUM),
    "ReduceSum": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.ACCUMULATES | T.WHOLE_SUM),
    "ReduceMax": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.EXTREME),
    "ReduceMin": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.EXTREME),
    "ReduceProd": OperatorFacts(F.REDUCTION),
    "ReduceL1": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.ACCUMULATES | T.NORM | T.WHOLE_SUM),
    "ReduceL2": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.ACCUMULATES | T.NORM | T.WHOLE_SUM),
    "ReduceSumSquare": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.ACCUMULATES | T.NORM | T.WHOLE_SUM),
    "ReduceLogSum": OperatorFacts(F.REDUCTION),
    "ReduceLogSumExp": OperatorFacts(F.REDUCTION),
    "CumSum": OperatorFacts(F.REDUCTION, T.KEEPS_ZERO | T.ACCUMULATES),
    "AveragePool": OperatorFacts(F.POOLING, T.KEEPS_ZERO | T.ACCUMULATES | T.HOMOGENEOUS | T.PASSES_INTEGERS),
    "MaxPool": OperatorFacts(
        F.POOLING, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.EXTREME | T.HOMOGENEOUS | T.PASSES_INTEGERS
    ),
    "LpPool": OperatorFacts(F.POOLING, T.KEEPS_ZERO | T.ACCUMULATES | T.NORM),
    "GlobalAveragePool": OperatorFacts(
        F.POOLING, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.WHOLE_SUM | T.HOMOGENEOUS | T.PASSES_INTEGERS
    ),
    "GlobalMaxPool": OperatorFacts(F.POOLING, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.EXTREME | T.HOMOGENEOUS),
    "GlobalLpPool": OperatorFacts(F.POOLING, T.KEEPS_ZERO | T.ACCUMULATES | T.NORM | T.WHOLE_SUM),
    "MaxUnpool": OperatorFacts(F.POOLING, T.KEEPS_ZERO),
    "RoiAlign": OperatorFacts(F.POOLING, T.KEEPS_ZERO),
    "MaxRoiPool": OperatorFacts(F.POOLING, T.KEEPS_ZERO),
    "Resize": OperatorFacts(F.SAMPLING, T.KEEPS_ZERO | T.BORDERED | T.MOVES | T.PASSES_INTEGERS),
    "Upsample": OperatorFacts(F.SAMPLING, T.KEEPS_ZERO | T.MOVES),
    "GridSample": OperatorFacts(F.SAMPLING, T.KEEPS_ZERO),
    "Reshape": OperatorFacts(
        F.RESHAPE, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.INJECTIVE | T.MOVES | T.CARRIES | T.PASSES_INTEGERS
    ),
    "Flatten": OperatorFacts(
        F.RESHAPE, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.INJECTIVE | T.MOVES | T.CARRIES | T.PASSES_INTEGERS
    ),
    "Squeeze": OperatorFacts(
        F.RESHAPE, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.INJECTIVE | T.MOVES | T.CARRIES | T.PASSES_INTEGERS
    ),
    "Unsqueeze": OperatorFacts(
        F.RESHAPE, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.INJECTIVE | T.MOVES | T.CARRIES | T.PASSES_INTEGERS
    ),
    "Transpose": OperatorFacts(
        F.MOVEMENT, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.INJECTIVE | T.MOVES | T.CARRIES | T.PASSES_INTEGERS
    ),
    "Expand": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.MOVES),
    "Tile": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.MOVES),
    "DepthToSpace": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.MOVES),
    "SpaceToDepth": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.MOVES),
    "Col2Im": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO),
    "Crop": OperatorFacts(F.MOVEMENT),
    "Slice": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.MOVES | T.PASSES_INTEGERS),
    "Pad": OperatorFacts(F.MOVEMENT, T.BORDERED | T.CAN_EMPTY | T.MOVES),
    "Gather": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.MOVES),
    "GatherElements": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO),
    "GatherND": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO),
    "ReverseSequence": OperatorFacts(F.MOVEMENT),
    "Trilu": OperatorFacts(F.MOVEMENT),
    "RotaryEmbedding": OperatorFacts(F.MOVEMENT, T.KEEPS_ZERO),
    "Concat": OperatorFacts(
        F.ASSEMBLY,
        T.JOINS_ZEROS | T.PASSES_CONSTANT | T.CAN_EMPTY | T.INJECTIVE | T.COMPARED_INSIDE | T.PASSES_INTEGERS,
    ),
    "Split": OperatorFacts(F.ASSEMBLY, T.KEEPS_ZERO | T.PASSES_CONSTANT | T.MOVES | T.PASSES_INTEGERS),
    "ScatterElements": OperatorFacts(F.SCATTER),
    "Scatter": OperatorFacts(F.SCATTER),
    "ScatterND": OperatorFacts(F.SCATTER),
    "ArgMax": OperatorFacts(F.SELECTION, T.DISCRETE),
    "ArgMin": OperatorFacts(F.SELECTION, T.DISCRETE),
    "Hardmax": OperatorFacts(F.SELECTION, T.STEP),
    "TopK": OperatorFacts(F.SELECTION),
    "NonZero": OperatorFacts(F.SELECTION, T.DISCRETE),
    "NonMaxSuppression": OperatorFacts(F.SELECTION, T.DISCRETE),
    "QuantizeLinear": OperatorFacts(F.QUANTIZER, T.NO_WEIGHT | T.POINTWISE | T.KEEPS_ZERO | T.DISCRETE | T.QUANTISED),
    "DequantizeLinear": OperatorFacts(
        F.QUANTIZER, T.NO_WEIGHT | T.POINTWISE | T.KEEPS_ZERO | T.QUANTISED | T.INTEGER_DATA
    ),
    "DynamicQuantizeLinear": OperatorFacts(F.QUANTIZER, T.DISCRETE | T.QUANTISED),
    "RandomNormal": OperatorFacts(F.RANDOM),
    "RandomUniform": OperatorFacts(F.RANDOM),
    "RandomNormalLike": OperatorFacts(F.RANDOM),
    "RandomUniformLike": OperatorFacts(F.RANDOM),
    "Multinomial": OperatorFacts(F.RANDOM, T.STEP),
    "Bernoulli": OperatorFacts(F.RANDOM, T.STEP),
    "DFT": OperatorFacts(F.TRANSFORM, T.KEEPS_ZERO),
    "STFT": OperatorFacts(F.TRANSFORM, T.KEEPS_ZERO),
    "Shape": OperatorFacts(F.SHAPE),
    "Size": OperatorFacts(F.SHAPE),
    "SequenceConstruct": OperatorFacts(F.SEQUENCE),
    "SequenceEmpty": OperatorFacts(F.SEQUENCE),
    "SequenceInsert": OperatorFacts(F.SEQUENCE),
    "SequenceErase": OperatorFacts(F.SEQUENCE),
    "SplitToSequence": OperatorFacts(F.SEQUENCE),
    "Optional": OperatorFacts(F.SEQUENCE),
    "SequenceMap": OperatorFacts(F.SEQUENCE),
    "If": OperatorFacts(F.CONTROL, T.MIXES_CHANNELS),
    "Loop": OperatorFacts(F.CONTROL, T.MIXES_CHANNELS),
    "Scan": OperatorFacts(F.CONTROL, T.MIXES_CHANNELS),
    "BitShift": OperatorFacts(F.OTHER, T.STEP),
}
"""Operators of ONNX."""
CONTRIB: Mapping[str, OperatorFacts] = {
    "FusedConv": OperatorFacts(
        F.CONVOLUTION, T.KERNELS | T.NCHWC_KERNELS | T.BLOCK_WIDTHS | T.ADDS, weight=1, bias=2, learned=(1, 2)
    ),
    "NhwcConv": OperatorFacts(F.CONVOLUTION, weight=1, bias=2),
    "NhwcFusedConv": OperatorFacts(F.CONVOLUTION, weight=1, bias=2),
    "QLinearConv": OperatorFacts(F.CONVOLUTION, T.BLOCK_WIDTHS | T.QUANTISED, weight=3, bias=8),
    "ConvTransposeWithDynamicPads": OperatorFacts(F.TRANSPOSED_CONVOLUTION, weight=1, bias=3),
    "FusedGemm": OperatorFacts(F.GEMM, T.KERNELS, weight=1, bias=2, learned=(0, 1, 2)),
    "GemmFastGelu": OperatorFacts(F.GEMM, weight=1),
    "GemmFloat8": OperatorFacts(F.GEMM, weight=1),
    "QGemm": OperatorFacts(F.GEMM, T.KERNELS | T.QUANTISED, weight=3, bias=6),
    "FusedMatMul": OperatorFacts(F.MATMUL, T.KERNELS, weight=1, learned=(0, 1)),
    "FusedMatMulActivation": OperatorFacts(F.MATMUL),
    "TransposeMatMul": OperatorFacts(F.MATMUL),
    "SparseToDenseMatMul": OperatorFacts(F.MATMUL),
    "DynamicQuantizeMatMul": OperatorFacts(F.MATMUL, T.QUANTISED, weight=1),
    "MatMulInteger16": OperatorFacts(F.MATMUL, T.QUANTISED),
    "MatMulIntegerToFloat": OperatorFacts(F.MATMUL, T.QUANTISED, weight=1),
    "QOrderedMatMul": OperatorFacts(F.MATMUL, T.QUANTISED),
    "MatMulNBits": OperatorFacts(F.PACKED_MATMUL),
    "MatMulBnb4": OperatorFacts(F.PACKED_MATMUL),
    "MatMulFpQ4": OperatorFacts(F.PACKED_MATMUL),
    "MatMulNBitsMlp": OperatorFacts(F.PACKED_MATMUL),
    "MatMulNBitsQkv": OperatorFacts(F.PACKED_MATMUL),
    "MatMulBlockQuantizedFp4Weight": OperatorFacts(F.PACKED_MATMUL, T.QUANTISED),
    "MatMulBlockQuantizedFp8Weight": OperatorFacts(F.PACKED_MATMUL, T.QUANTISED),
    "DynamicQuantizeLSTM": OperatorFacts(F.RECURRENT, T.QUANTISED, weight=1),
    "AttnLSTM": OperatorFacts(F.RECURRENT),
    "Attention": OperatorFacts(F.ATTENTION),
    "QAttention": OperatorFacts(F.ATTENTION, T.QUANTISED),
    "MultiHeadAttention": OperatorFacts(F.ATTENTION),
    "DecoderAttention": OperatorFacts(F.ATTENTION),
    "DecoderMaskedMultiHeadAttention": OperatorFacts(F.ATTENTION),
    "DecoderMaskedSelfAttention": OperatorFacts(F.ATTENTION),
    "DynamicSparseAttention": OperatorFacts(F.ATTENTION),
    "GroupQueryAttention": OperatorFacts(F.ATTENTION),
    "LinearAttention": OperatorFacts(F.ATTENTION),
    "CausalConvWithState": OperatorFacts(F.ATTENTION),
    "VarlenCausalConvWithState": OperatorFacts(F.ATTENTION),
    "LongformerAttention": OperatorFacts(F.ATTENTION),
    "PackedAttention": OperatorFacts(F.ATTENTION),
    "PackedMultiHeadAttention": OperatorFacts(F.ATTENTION),
    "PagedAttention": OperatorFacts(F.ATTENTION),
    "QOrderedAttention": OperatorFacts(F.ATTENTION, T.QUANTISED),
    "QOrderedLongformerAttention": OperatorFacts(F.ATTENTION, T.QUANTISED),
    "SparseAttention": OperatorFacts(F.ATTENTION),
    "SparsePagedAttention": OperatorFacts(F.ATTENTION),
    "SkipLayerNormalization": OperatorFacts(F.NORMALIZATION, learned=(2, 3, 4)),
    "SkipSimplifiedLayerNormalization": OperatorFacts(F.NORMALIZATION, learned=(2, 3, 4)),
    "EmbedLayerNormalization": OperatorFacts(F.NORMALIZATION, T.NO_PRODUCTS),
    "QEmbedLayerNormalization": OperatorFacts(F.NORMALIZATION, T.QUANTISED),
    "QOrderedLayerNormalization": OperatorFacts(F.NORMALIZATION, T.QUANTISED),
    "GroupNorm": OperatorFacts(F.NORMALIZATION, T.NO_PRODUCTS),
    "SkipGroupNorm": OperatorFacts(F.NORMALIZATION, T.NO_PRODUCTS),
    "Gelu": OperatorFacts(F.UNARY, T.NO_WEIGHT),
    "QuickGelu": OperatorFacts(F.UNARY, T.NO_WEIGHT),
    "FastGelu": OperatorFacts(F.UNARY, T.NO_PRODUCTS),
    "QLinearSigmoid": OperatorFacts(F.UNARY, T.NO_WEIGHT | T.QUANTISED),
    "QLinearLeakyRelu": OperatorFacts(F.UNARY, T.NO_WEIGHT | T.QUANTISED),
    "QOrderedGelu": OperatorFacts(F.UNARY, T.QUANTISED),
    "BiasGelu": OperatorFacts(F.PARAMETRIC, T.NO_WEIGHT, learned=(1,)),
    "BiasAdd": OperatorFacts(F.PARAMETRIC, T.NO_PRODUCTS),
    "BiasDropout": OperatorFacts(F.PARAMETRIC, T.NO_PRODUCTS),
    "BiasSplitGelu": OperatorFacts(F.PARAMETRIC, T.NO_PRODUCTS),
    "QLinearAdd": OperatorFacts(F.JOIN, T.NO_WEIGHT | T.QUANTISED),
    "QLinearMul": OperatorFacts(F.JOIN, T.NO_WEIGHT | T.QUANTISED),
    "QLinearWhere": OperatorFacts(F.JOIN, T.NO_PRODUCTS | T.QUANTISED),
    "MulInteger": OperatorFacts(F.JOIN, T.QUANTISED),
    "QLinearReduceMean": OperatorFacts(F.REDUCTION, T.NO_PRODUCTS | T.QUANTISED),
    "ReduceSumInteger": OperatorFacts(F.REDUCTION, T.QUANTISED),
    "QLinearAveragePool": OperatorFacts(F.POOLING, T.NO_WEIGHT | T.QUANTISED),
    "QLinearGlobalAveragePool": OperatorFacts(F.POOLING, T.NO_WEIGHT | T.QUANTISED),
    "NhwcMaxPool": OperatorFacts(F.POOLING, T.NO_PRODUCTS),
    "CropAndResize": OperatorFacts(F.POOLING, T.NO_PRODUCTS),
    "RotaryEmbedding": OperatorFacts(F.MOVEMENT, T.NO_PRODUCTS),
    "Trilu": OperatorFacts(F.MOVEMENT, T.NO_PRODUCTS),
    "GatherBlockQuantized": OperatorFacts(F.MOVEMENT, T.QUANTISED),
    "ExpandDims": OperatorFacts(F.MOVEMENT, T.NO_PRODUCTS),
    "QLinearConcat": OperatorFacts(F.ASSEMBLY, T.NO_WEIGHT | T.QUANTISED),
    "QuantizeLinear": OperatorFacts(F.QUANTIZER, T.NO_WEIGHT | T.NO_PRODUCTS | T.QUANTISED),
    "DequantizeLinear": OperatorFacts(F.QUANTIZER, T.NO_WEIGHT | T.NO_PRODUCTS | T.QUANTISED),
    "QuantizeBFP": OperatorFacts(F.QUANTIZER, T.QUANTISED),
    "DequantizeBFP": OperatorFacts(F.QUANTIZER, T.QUANTISED),
    "QuantizeWithOrder": OperatorFacts(F.QUANTIZER, T.QUANTISED),
    "DequantizeWithOrder": OperatorFacts(F.QUANTIZER, T.QUANTISED),
    "Inverse": OperatorFacts(F.OTHER, T.NO_PRODUCTS),
    "Rfft": OperatorFacts(F.TRANSFORM, T.NO_PRODUCTS),
    "Irfft": OperatorFacts(F.TRANSFORM, T.NO_PRODUCTS),
    "QMoE": OperatorFacts(F.OTHER, T.QUANTISED),
    "BiasSoftmax": OperatorFacts(F.OTHER, T.NO_PRODUCTS),
    "QLinearSoftmax": OperatorFacts(F.OTHER, T.NO_PRODUCTS | T.QUANTISED),
}
"""Operators of onnxruntime's own domain."""

OPERATORS: Mapping[tuple[str, str], OperatorFacts] = {
    **{("", name): facts for name, facts in STANDARD_FACTS.items()},
    **{(MICROSOFT, name): facts for name, facts in CONTRIB.items()},
    (NCHWC, "Conv"): OperatorFacts(F.CONVOLUTION, T.NCHWC_KERNELS, weight=1, bias=2),
}
"""Facts by domain and operator."""


def names_with(trait: T) -> frozenset[str]:
    """Names of the operators that have a trait, of whatever domain."""
    return frozenset(name for (_, name), facts in OPERATORS.items() if trait in facts.traits)


def names_of(*families: F) -> frozenset[str]:
    """Names of the operators of some families, of whatever domain."""
    return frozenset(name for (_, name), facts in OPERATORS.items() if facts.family in families)


CONVOLUTIONS = names_of(F.CONVOLUTION, F.TRANSPOSED_CONVOLUTION, F.DEFORMABLE_CONVOLUTION)
"""Operators that move a window over positions, and mix channels."""
TRANSPOSED_CONVOLUTIONS = names_of(F.TRANSPOSED_CONVOLUTION)


def standard_keys(family: F) -> tuple[tuple[str, str], ...]:
    """Domain and name of ONNX's own operators of a family, in the order of the table."""
    return tuple(("", name) for name, facts in STANDARD_FACTS.items() if facts.family is family)
