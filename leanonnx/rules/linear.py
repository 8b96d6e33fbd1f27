"""Matrix products: Gemm, MatMul and their fused or quantised forms.

The weight may be either operand.  Input channels lie on the contracted axis of the data, output channels on the axis
of the output that replaces it: the last for a weight on the right, the second to last for a weight on the left.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import on_axis, varied_axes
from leanonnx.rules import advice, products
from leanonnx.rules.call import Call, Effect, KernelBlock, Slice, TiePairs, Unsupported
from leanonnx.rules.joins import broadcast_factor
from leanonnx.rules.weights import per_channel_slices, require_static_weight, unprunable_block

ROW, COLUMN = -2, -1
TRANSPOSE_ATTRIBUTES = ("transA", "transB")


def gemm(call: Call) -> Effect:
    """Matrix product with a constant operand and a bias; after a Flatten each channel repeats over its pixels.

    Flow: every element of the constant is a kernel from an input to an output channel.
    Ties: none; a bias with one value per row ties the channels that share it.
    Pins: inputs and outputs if the weight or C is computed.
    Limits: A or B is a constant or computed from constants, transposed or not; C is a constant.
    Specification: ONNX Gemm-13, com.microsoft.FusedGemm-1.
    """
    weight, bias = (0 if call.is_constant(0) else 1), 2
    effect = _product(call, 1 - weight, weight, *(bool(call.attribute(name, 0)) for name in TRANSPOSE_ATTRIBUTES))
    bias_slices: tuple[Slice, ...] = ()
    ties: list[TiePairs] = []
    if call.is_constant(bias):
        factor, ties = broadcast_factor(effect.outputs[0], call.shape(bias))
        bias_slices = (Slice(bias, (factor,)),) if varied_axes(factor) else ()
    elif call.has_input(bias):
        raise Unsupported("it adds a computed tensor", "export the addition as a node of its own")
    return Effect(
        effect.outputs, (*effect.ties, *ties), kernel_blocks=effect.kernel_blocks, slices=(*effect.slices, *bias_slices)
    )


def qgemm(call: Call) -> Effect:
    """Quantised matrix product with an optional scale.

    Flow: none.
    Ties: none.
    Pins: all inputs and outputs.
    Limits: it is not pruned.
    Specification: com.microsoft.QGemm-1.
    """
    raise Unsupported("a quantised Gemm is not pruned", advice.COMPRESS_FLOAT)


def matmul(call: Call) -> Effect:
    """Matrix product with a constant matrix on either side, or of two computed tensors.

    Flow: every element of the matrix is a kernel.  A matrix on the right acts along the last axis of the data, one on
        the left along the second to last.  If the channels lie on other axes, the product acts within each channel.
    Ties: of two computed tensors: all channels of one head, in both (queries, keys and values are pruned by heads);
        values that are weighted by a tensor without channels lose the same positions in all heads.
    Pins: contracted channels of two computed tensors without heads.
    Limits: the matrix is a constant or computed from constants, the same one for all stacked matrices of the data.
    Specification: ONNX MatMul-13.
    """
    weight = 0 if call.is_constant(0) else 1
    if not call.is_constant(weight):
        return products.computed_matmul(call, 0, 1)
    return _product(call, 1 - weight, weight)


def fused_matmul(call: Call) -> Effect:
    """Matrix product with a scale and transposed operands.

    Flow: as MatMul.
    Ties: as MatMul.
    Pins: as MatMul.
    Limits: no transposed batch axes; of two computed operands the left one is not transposed.
    Specification: com.microsoft.FusedMatMul-1.
    """
    if any(call.attribute(name, 0) for name in ("transBatchA", "transBatchB")):
        raise Unsupported("it transposes its batch axes", advice.EXPORT_AGAIN)
    left, right = (bool(call.attribute(name, 0)) for name in TRANSPOSE_ATTRIBUTES)
    weight = 0 if call.is_constant(0) else 1
    if call.is_constant(weight):
        return _product(call, 1 - weight, weight, left, right)
    if left:
        raise Unsupported("it transposes its left operand", advice.EXPORT_AGAIN)
    return products.computed_matmul(call, 0, 1, right)


def qlinear_matmul(call: Call) -> Effect:
    """Quantised matrix product: a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero.

    Flow: as MatMul.
    Ties: as MatMul; scales and zero points per output channel are sliced with it.
    Pins: as MatMul.
    Limits: as MatMul.
    Specification: ONNX QLinearMatMul-21.
    """
    return _quantised_product(call, 0, 3, (4, 5))


def matmul_integer(call: Call) -> Effect:
    """Integer matrix product without scales: a, b, a_zero, b_zero.

    Flow: as MatMul.
    Ties: as MatMul; zero points per output channel are sliced with it.
    Pins: as MatMul.
    Limits: as MatMul; the zero point of the input is a scalar.
    Specification: ONNX MatMulInteger-10.
    """
    return _quantised_product(call, 0, 1, (3,))


def _quantised_product(call: Call, left: int, right: int, per_column: tuple[int, ...]) -> Effect:
    """Effect of a quantised product; ``per_column``: slots of the right operand's scale and zero point.

    Those of the left operand are one number: onnxruntime runs no other.
    """
    weight = left if call.is_constant(left) else right
    if not call.is_constant(weight):
        return products.computed_matmul(call, left, right)
    effect = _product(call, left + right - weight, weight)
    if weight == left:
        return effect
    (block,) = effect.kernel_blocks
    (destinations,) = block.destinations
    return replace(effect, slices=(*effect.slices, *per_channel_slices(call, per_column, destinations)))


def _product(call: Call, data: int, weight: int, left_turned: bool = False, right_turned: bool = False) -> Effect:
    """Effect of a constant matrix applied to the data; the operand in the lower slot is the left one."""
    require_static_weight(call, weight)
    if len(call.shape(weight)) < -ROW:
        raise Unsupported("its constant is a vector", "export it as a matrix of one row or column")
    *stack, rows, columns = call.shape(weight)
    if any(size != 1 for size in stack):
        raise Unsupported("its constant is a stack of matrices", "export one product per matrix, or a grouped Conv")
    contracted = (ROW if left_turned else COLUMN, COLUMN if right_turned else ROW)
    stored, axis = contracted if weight < data else contracted[::-1]
    onto = ROW if weight < data else COLUMN
    if len(call.shape(data)) < -ROW:
        axis = onto = COLUMN
    width, out = (columns, rows) if stored == COLUMN else (rows, columns)
    channel_ids, result = call.channel_ids(data), len(call.output_shape())
    if channel_ids.shape[axis] == 1 and varied_axes(channel_ids):
        turned = channel_ids.swapaxes(ROW, COLUMN) if axis != onto else channel_ids
        block = unprunable_block(weight, (out, width), taps=0)
        return Effect((turned.reshape((1,) * (result - turned.ndim) + turned.shape),), kernel_blocks=(block,))
    sources, ties = call.channel_ids_along(data, axis)
    destinations, rank = call.mint(out), len(call.shape(weight))
    inward = on_axis(sources, rank + stored, rank)
    outward = on_axis(destinations, rank + (ROW + COLUMN - stored), rank)
    block = KernelBlock(
        sources=sources.reshape(1, width),
        destinations=destinations.reshape(1, out),
        slot=weight,
        kernels=lambda: _kernels(call.array(weight), stored),
        input_channel_ids=inward,
        positions=math.prod(call.shape(data)) // max(width, 1),
        input_axis=axis,
        output_axis=onto,
    )
    output = on_axis(destinations, result + onto, result)
    return Effect((output,), tuple(ties), kernel_blocks=(block,), slices=(Slice(weight, (outward, inward)),))


def _kernels(array: Array, stored: int) -> Array:
    """Kernels [1, O, I] of a matrix."""
    matrix = array.reshape(array.shape[ROW:])
    return np.asarray(matrix if stored == COLUMN else matrix.T)[None]


LINEAR_RULES = {
    ("", "Gemm"): gemm,
    ("", "MatMul"): matmul,
    ("", "MatMulInteger"): matmul_integer,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("com.microsoft", "FusedGemm"): gemm,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
    ("com.microsoft", "QGemm"): qgemm,
}
