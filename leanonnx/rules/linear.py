"""Matrix products: Gemm, MatMul and their fused or quantised forms."""

from __future__ import annotations

import math

from leanonnx.numeric.labels import on_axis, varied
from leanonnx.rules import advice, products
from leanonnx.rules.call import Call, Effect, Mix, Pairs, Slice, Unsupported, broadcast_factor
from leanonnx.rules.weights import require_held, vectors, with_whole_weight


def gemm(call: Call) -> Effect:
    """Matrix product with a constant B, and a bias; a Flatten before it repeats each channel over its pixels.

    Flow: every number of B is a kernel from an input to an output channel.
    Ties: none; a bias that is one number per row ties what shares it.
    Pins: nothing but what a computed weight, a computed C or a transposed A touches.
    Limits: ``transA`` = 0; B is a constant of the file, C a constant.
    Specification: ONNX Gemm-13, com.microsoft.FusedGemm-1.
    """
    weight, bias = 1, 2
    require_held(call, weight)
    if call.attribute("transA", 0):
        raise Unsupported("it transposes its input", advice.EXPORT)
    turned = bool(call.attribute("transB", 0))
    shape = call.shape(weight)
    effect = _dense(call, 1, weight, shape[::-1] if turned else shape, turned)
    bias_slices: tuple[Slice, ...] = ()
    ties: list[Pairs] = []
    if call.is_constant(bias):
        factor, ties = broadcast_factor(effect.outputs[0], call.shape(bias))
        bias_slices = (Slice(bias, (factor,)),) if varied(factor) else ()
    elif call.has(bias):
        raise Unsupported("it adds a computed tensor", "export the addition as a node of its own")
    return Effect(effect.outputs, (*effect.ties, *ties), mixes=effect.mixes, slices=(*effect.slices, *bias_slices))


def qgemm(call: Call) -> Effect:
    """Matrix product of integers: A, a_scale, a_zero, B, b_scale, b_zero, C, y_scale, y_zero.

    Flow: its kernels are counted.
    Ties: none.
    Pins: its input and output channels.
    Limits: never pruned; a quantised network ends in one, and gains more from being pruned before it is quantised.
    Specification: com.microsoft.QGemm-1.
    """
    raise Unsupported("a quantised Gemm is not pruned", advice.FLOAT)


def matmul(
    call: Call, weight: int = 1, per_channel: tuple[int, ...] = (), left: int = 0, turned: bool = False
) -> Effect:
    """Matrix product with a constant matrix on the right, or of two computed tensors.

    Flow: every number of the matrix is a kernel.  Where the channels lie on other axes than the last, the product
        acts inside each channel and moves no channel.
    Ties: of two computed tensors: all channels of one head, in both (queries, keys and values live and die by heads);
        values that are weighted by a tensor without channels lose the same positions in all heads.
    Pins: contracted channels of two computed tensors without heads.
    Limits: the matrix is a constant of the file, of rank 2, and on the right.
    Specification: ONNX MatMul-13.
    """
    if call.is_constant(left):
        raise Unsupported("it has its constant on the left", "export x·Wᵀ instead of W·x")
    if not call.is_constant(weight):
        return products.matmul(call, left, weight, turned)
    require_held(call, weight)
    shape, labels = call.shape(weight), call.labels(left)
    if len(shape) != 2:
        raise Unsupported("its constant is a stack of matrices", "export one product per matrix, or a grouped Conv")
    if labels.shape[-1] == 1 and varied(labels):
        return with_whole_weight(call, Effect((labels,)), weight)
    effect = _dense(call, len(call.shape(left)) - 1, weight, shape[::-1] if turned else shape, turned)
    extra = vectors(call, per_channel, effect.mixes[0].targets[0])
    return Effect(effect.outputs, effect.ties, mixes=effect.mixes, slices=(*effect.slices, *extra))


def fused_matmul(call: Call) -> Effect:
    """Matrix product with a scale and transposed operands.

    Flow: as MatMul.
    Ties: as MatMul.
    Pins: as MatMul.
    Limits: the left operand is not transposed, and no batch axes are.
    Specification: com.microsoft.FusedMatMul-1.
    """
    if any(call.attribute(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        raise Unsupported("it transposes its left operand or its batch axes", advice.EXPORT)
    return matmul(call, turned=bool(call.attribute("transB", 0)))


def qlinear_matmul(call: Call) -> Effect:
    """Matrix product of integers: a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero.

    Flow: as MatMul.
    Ties: as MatMul; scales and zero points per output channel are sliced with it.
    Pins: as MatMul.
    Limits: as MatMul.
    Specification: ONNX QLinearMatMul-21.
    """
    return matmul(call, weight=3, per_channel=(4, 5))


def matmul_integer(call: Call) -> Effect:
    """Matrix product of integers without scales: a, b, a_zero, b_zero.

    Flow: as MatMul.
    Ties: as MatMul; zero points per output channel are sliced with it.
    Pins: as MatMul.
    Limits: as MatMul; the zero point of the input is one number.
    Specification: ONNX MatMulInteger-10.
    """
    return matmul(call, weight=1, per_channel=(3,))


def _dense(call: Call, axis: int, weight: int, shape: tuple[int, ...], turned: bool) -> Effect:
    """A matrix ``[I, O]`` (stored ``[O, I]`` if turned) applied along one axis."""
    width, out = shape
    sources, ties = call.slices(0, axis)
    targets = call.mint(out)
    inward, outward = on_axis(sources, int(turned), 2), on_axis(targets, 1 - int(turned), 2)
    mix = Mix(
        sources.reshape(1, width),
        targets.reshape(1, out),
        weight,
        lambda: (call.array(weight) if turned else call.array(weight).T)[None],
        inward,
        positions=math.prod(call.shape(0)) // width,
    )
    output = on_axis(targets, len(call.output_shape()) - 1, len(call.output_shape()))
    return Effect((output,), tuple(ties), mixes=(mix,), slices=(Slice(weight, (outward, inward)),))


RULES = {
    ("", "Gemm"): gemm,
    ("", "MatMul"): matmul,
    ("", "MatMulInteger"): matmul_integer,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("com.microsoft", "FusedGemm"): gemm,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
    ("com.microsoft", "QGemm"): qgemm,
}
COUNTED = {
    ("", "Gemm"): 1,
    ("", "MatMul"): 1,
    ("", "MatMulInteger"): 1,
    ("", "QLinearMatMul"): 3,
    ("com.microsoft", "FusedGemm"): 1,
    ("com.microsoft", "FusedMatMul"): 1,
    ("com.microsoft", "QGemm"): 3,
}
