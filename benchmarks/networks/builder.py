"""A small builder of ONNX graphs with random weights, and of the idioms that exporters write.

A network is a *recipe*: a function that draws its graph on a `Builder`, one call an operator.
The builder names values, draws parameters and keeps what a recipe needs to know about a value (`Tensor`): its
channel count and the expected size of its entries.

Scale of the weights. He initialisation (He 2015, arXiv:1502.01852) keeps E[x²] through convolution and
rectifier. Here the same is done for all operators: a weight is drawn with variance 1 / (fan-in · E[x²]), x its
input, so that whatever came before (a rectifier, a gate, a sum of residuals) the output of each convolution and
of each linear layer has mean 0 and E[y²] near 1. E[x] and E[x²] are propagated as if entries were independent
and, before an activation, normal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import erf
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET: Final = 17
IR_VERSION: Final = 8

Points = npt.NDArray[np.float64]


class Tensor(NamedTuple):
    """A value of the graph.

    `width` is the length of its channel axis (axis 1 of N C H W, the last of N … C);
    `mean` and `power` are the expected E[x] and E[x²] over all entries.
    """

    name: str
    width: int
    mean: float = 0.0
    power: float = 1.0


class Builder:
    """Collects the nodes and parameters of one graph.

    `folded`: batch normalisation that follows a convolution becomes that convolution's bias;
    otherwise it is a BatchNormalization node. `outline`: parameters are declared as graph inputs instead of
    being drawn, which keeps all names and shapes and needs no memory.

    Constants of the graph (shapes, bounds, index tables) are Constant nodes; the initializers are exactly the
    learned parameters and the running statistics, whose names end in `running_mean` and `running_var`.
    """

    def __init__(self, *, folded: bool, seed: int = 0, outline: bool = False) -> None:
        self.folded = folded
        self._outline = outline
        self._rng = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []

    # Graph

    def input(self, *shape: int) -> Tensor:
        """The graph input `input`, standard normal, channels on axis 1."""
        self._inputs.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))
        return Tensor("input", shape[1])

    def output(self, x: Tensor, *shape: int) -> None:
        """Make the value made last the graph output `output`."""
        last = self._nodes[-1]
        if last.output[0] != x.name:
            raise ValueError(f"the output must be the value made last: got {x.name!r}, expected {last.output[0]!r}")
        last.output[0] = "output"
        self._outputs.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, shape))

    def model(self, name: str) -> ModelProto:
        """The finished model."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="leanonnx.benchmarks"
        )

    def op(self, op_type: str, *inputs: Tensor | str, **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        return self._append(op_type, inputs, 1, attributes)[0]

    def _append(
        self, op_type: str, inputs: Sequence[Tensor | str], outputs: int, attributes: dict[str, Any]
    ) -> list[str]:
        name = f"{op_type}_{len(self._nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        values = [x if isinstance(x, str) else x.name for x in inputs]
        self._nodes.append(helper.make_node(op_type, values, names, name=name, **attributes))
        return names

    # Parameters and constants

    def constant(self, value: npt.ArrayLike, dtype: type[np.float32 | np.int64] = np.int64) -> str:
        """A Constant node."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def scalar(self, value: float) -> str:
        """A Constant node with a float scalar."""
        return self.constant(value, np.float32)

    def normal(self, suffix: str, shape: Sequence[int], power: float, mean: float = 0.0) -> str:
        """A parameter with normal entries of variance `power`."""
        return self._parameter(
            suffix, shape, lambda: mean + np.float32(power**0.5) * self._rng.standard_normal(shape, np.float32)
        )

    def uniform(self, suffix: str, shape: Sequence[int], low: float, high: float) -> str:
        """A parameter with entries uniform in [low, high)."""
        return self._parameter(suffix, shape, lambda: self._rng.uniform(low, high, shape))

    def _parameter(self, suffix: str, shape: Sequence[int], draw: Callable[[], npt.NDArray[np.floating]]) -> str:
        name = f"p{len(self._initializers) + len(self._inputs)}.{suffix}"
        if self._outline:
            self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        else:
            self._initializers.append(numpy_helper.from_array(draw().astype(np.float32), name))
        return name

    def _bias(self, width: int) -> str:
        return self.normal("bias", (width,), 0.01)

    # Convolution and normalisation

    def conv(
        self,
        x: Tensor,
        out: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        pad: int | None = None,
        bias: bool = True,
    ) -> Tensor:
        """Square convolution, weight [out, in / groups, k, k]; `pad` defaults to k // 2."""
        weight = self.normal(
            "weight", (out, x.width // groups, kernel, kernel), groups / (x.width * kernel**2 * x.power)
        )
        biases = [self._bias(out)] if bias else []
        y = self.op(
            "Conv",
            x,
            weight,
            *biases,
            group=groups,
            dilations=[1, 1],
            **_window(kernel, stride, kernel // 2 if pad is None else pad),
        )
        return Tensor(y, out)

    def conv_bn(
        self, x: Tensor, out: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = False
    ) -> Tensor:
        """Convolution and batch normalisation; folded, a convolution with bias.

        `bias`: the unfolded convolution has one as well (VGG).
        """
        if self.folded:
            return self.conv(x, out, kernel, stride, groups=groups)
        return self.batch_norm(self.conv(x, out, kernel, stride, groups=groups, bias=bias))

    def conv_transpose(self, x: Tensor, out: int, kernel: int, stride: int) -> Tensor:
        """Transposed convolution without overlap (k = stride), weight [in, out, k, k]."""
        weight = self.normal("weight", (x.width, out, kernel, kernel), 1 / (x.width * x.power))
        y = self.op(
            "ConvTranspose", x, weight, self._bias(out), group=1, dilations=[1, 1], **_window(kernel, stride, 0)
        )
        return Tensor(y, out)

    def batch_norm(self, x: Tensor) -> Tensor:
        """BatchNormalization in inference form, whether or not the builder folds.

        The running statistics are those expected of the input, disturbed by a tenth or so. The scale is drawn a little
        below 1, which makes up for E[1 / running_var] and the biases: E[y²] does not grow with depth.
        """
        shape, variance = (x.width,), x.power - x.mean**2
        y = self.op(
            "BatchNormalization",
            x,
            self.uniform("weight", shape, 0.75, 1.15),
            self._bias(x.width),
            self.normal("running_mean", shape, 0.01 * variance, x.mean),
            self.uniform("running_var", shape, 0.8 * variance, 1.2 * variance),
            epsilon=1e-5,
        )
        return Tensor(y, x.width)

    def layer_norm(self, x: Tensor, epsilon: float = 1e-5) -> Tensor:
        """LayerNormalization over the last axis."""
        scale = self.uniform("weight", (x.width,), 0.8, 1.2)
        return Tensor(self.op("LayerNormalization", x, scale, self._bias(x.width), axis=-1, epsilon=epsilon), x.width)

    # Linear layers

    def gemm(self, x: Tensor, out: int) -> Tensor:
        """Linear layer on [N, in] as Gemm, weight [out, in]."""
        weight = self.normal("weight", (out, x.width), 1 / (x.width * x.power))
        return Tensor(self.op("Gemm", x, weight, self._bias(out), transB=1), out)

    def linear(self, x: Tensor, out: int, *, bias: bool = True) -> Tensor:
        """Linear layer on the last axis as MatMul and Add, weight [in, out]."""
        y = self.op("MatMul", x, self.normal("weight", (x.width, out), 1 / (x.width * x.power)))
        return Tensor(self.op("Add", self._bias(out), y) if bias else y, out)

    # Element-wise operators

    def act(self, x: Tensor, kind: str) -> Tensor:
        """Activation by name, a key of `ACTIVATIONS`."""
        write, function = ACTIVATIONS[kind]
        y = function(x.mean + (x.power - x.mean**2) ** 0.5 * _POINTS)
        return Tensor(write(self, x), x.width, float(_MASSES @ y), float(_MASSES @ y**2))

    def relu(self, x: Tensor) -> Tensor:
        """The rectifier."""
        return self.act(x, "Relu")

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of two values of one shape."""
        return Tensor(self.op("Add", x, y), x.width, x.mean + y.mean, x.power + y.power + 2 * x.mean * y.mean)

    def add_parameter(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Sum with a learned table that broadcasts (position embedding)."""
        return x._replace(name=self.op("Add", x, self.normal("weight", shape, 0.04)), power=x.power + 0.04)

    def scale(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Product with a learned vector in [0.2, 0.6) that broadcasts (layer scale)."""
        y = self.op("Mul", x, self.uniform("weight", shape, 0.2, 0.6))
        return Tensor(y, x.width, 0.4 * x.mean, 0.173 * x.power)

    def squeeze_excite(self, x: Tensor, squeeze: int, act: str, gate: str) -> Tensor:
        """The product x · gate(W₂ act(W₁ mean(x))) with 1×1 convolutions (Hu 2018, arXiv:1709.01507).

        Its power is bounded by that of gates which are open or closed, since large activations drive gates there.
        """
        hidden = self.act(self.conv(self.global_pool(x), squeeze, 1), act)
        gates = self.act(self.conv(hidden, x.width, 1), gate)
        return Tensor(self.op("Mul", gates, x), x.width, x.mean / 2, x.power / 2)

    # Pooling, shape and order

    def max_pool(self, x: Tensor, kernel: int, stride: int, pad: int = 0, *, ceil: bool = False) -> Tensor:
        """Square max pooling of rectified values, whose mean about doubles."""
        y = self.op("MaxPool", x, ceil_mode=int(ceil), **_window(kernel, stride, pad))
        return Tensor(y, x.width, 2 * x.mean, 3 * x.power)

    def average_pool(self, x: Tensor, kernel: int, stride: int) -> Tensor:
        """Square average pooling without padding."""
        return x._replace(name=self.op("AveragePool", x, count_include_pad=1, **_window(kernel, stride, 0)))

    def global_pool(self, x: Tensor) -> Tensor:
        """Mean over H and W; the axes stay.

        Of the variance about a quarter is between channels, and stays.
        """
        y = self.op("GlobalAveragePool", x)
        return Tensor(y, x.width, x.mean, x.mean**2 + (x.power - x.mean**2) / 4)

    def flatten(self, x: Tensor, width: int | None = None) -> Tensor:
        """[N, …] to [N, width]; the width defaults to the channel count (H = W = 1)."""
        return x._replace(name=self.op("Flatten", x, axis=1), width=width or x.width)

    def concat(self, *xs: Tensor, axis: int = 1) -> Tensor:
        """Concatenation along the channel axis (1, or -1 for N … C)."""
        width = sum(x.width for x in xs)
        mean = sum(x.width * x.mean for x in xs) / width
        power = sum(x.width * x.power for x in xs) / width
        return Tensor(self.op("Concat", *xs, axis=axis), width, mean, power)

    def chunk(self, x: Tensor, parts: int, axis: int = 1) -> list[Tensor]:
        """Split of the channel axis into equal parts."""
        width = x.width // parts
        sizes = self.constant([width] * parts)
        return [x._replace(name=y, width=width) for y in self._append("Split", (x, sizes), parts, {"axis": axis})]

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """Reshape to a constant shape; the channel count is taken to stay."""
        return x._replace(name=self.op("Reshape", x, self.constant(shape)))

    def transpose(self, x: Tensor, *perm: int) -> Tensor:
        """Transpose."""
        return x._replace(name=self.op("Transpose", x, perm=perm))

    def slice(self, x: Tensor, axis: int, start: int, end: int, step: int = 1) -> Tensor:
        """Slice of an axis that is not the channel axis."""
        bounds = (self.constant([i]) for i in (start, end, axis, step))
        return x._replace(name=self.op("Slice", x, *bounds))

    def classifier(self, x: Tensor, classes: int = 1000) -> None:
        """Flatten, Gemm and the graph output [1, classes]."""
        self.output(self.gemm(self.flatten(x), classes), 1, classes)


def _window(kernel: int, stride: int, pad: int) -> dict[str, list[int]]:
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}


def _relu6(b: Builder, x: Tensor) -> str:
    return b.op("Clip", x, b.scalar(0.0), b.scalar(6.0))


def _silu(b: Builder, x: Tensor) -> str:
    return b.op("Mul", x, b.op("Sigmoid", x))


def _gelu(b: Builder, x: Tensor) -> str:
    cdf = b.op("Add", b.op("Erf", b.op("Div", x, b.scalar(2**0.5))), b.scalar(1.0))
    return b.op("Mul", b.op("Mul", x, cdf), b.scalar(0.5))


def _logistic(x: Points) -> Points:
    return np.asarray(1 / (1 + np.exp(-x)))


def _hard(x: Points) -> Points:
    return np.clip(x / 6 + 0.5, 0, 1)


_POINTS, _MASSES = np.polynomial.hermite_e.hermegauss(64)
_MASSES /= _MASSES.sum()

ACTIVATIONS: Final[dict[str, tuple[Callable[[Builder, Tensor], str], Callable[[Points], Points]]]] = {
    "Relu": (lambda b, x: b.op("Relu", x), lambda x: np.maximum(x, 0)),
    "Relu6": (_relu6, lambda x: np.clip(x, 0, 6)),
    "SiLU": (_silu, lambda x: x * _logistic(x)),
    "HardSwish": (lambda b, x: b.op("HardSwish", x), lambda x: x * _hard(x)),
    "Gelu": (_gelu, lambda x: x / 2 * (1 + np.array([erf(t / 2**0.5) for t in x]))),
    "Sigmoid": (lambda b, x: b.op("Sigmoid", x), _logistic),
    "HardSigmoid": (lambda b, x: b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), _hard),
}
"""How each activation is written, and its function, of which E[f(x)] and E[f(x)²] are taken by Gauss quadrature."""
