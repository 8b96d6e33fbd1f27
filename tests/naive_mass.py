"""Path mass by walking every chain of a network, from its nodes alone; and random networks small enough for that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from tests.calibrated import Array, Feed, net, values


class Walker:
    """Follows chains through Conv, Gemm, Relu, Flatten, Add and Concat to the outputs."""

    def __init__(self, proto: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
        self.proto = proto
        self.weights = {t.name: numpy_helper.to_array(t).astype(float) for t in proto.graph.initializer}
        names = [name for node in proto.graph.node for name in node.output]
        self.values: dict[str, Array] = dict(zip(names, values(proto, names, feeds), strict=True))
        self.values |= {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}

    def variances(self, tensor: str, channels: int) -> Array:
        """Variance of each channel; in a flattened tensor a channel covers neighbouring positions."""
        value = self.values[tensor].astype(float)
        rows = value.reshape(len(value), channels, -1).transpose(1, 0, 2).reshape(channels, -1)
        return rows.var(1)

    def mass(self, tensor: str, channel: int, channels: int) -> float:
        """Sum over all chains from a channel to the outputs of the products of their shares."""
        outputs = [value.name for value in self.proto.graph.output]
        total = 1 / len(outputs) / channels if tensor in outputs else 0.0
        for node in self.proto.graph.node:
            for slot, name in enumerate(node.input):
                if name == tensor:
                    total += self._through(node, slot, channel, channels)
        return total

    def _through(self, node: onnx.NodeProto, slot: int, channel: int, channels: int) -> float:
        out = node.output[0]
        if node.op_type in ("Conv", "Gemm"):
            weight = self.weights[node.input[1]]
            energy = np.square(weight.reshape(len(weight), channels, -1)).sum(2) * self.variances(
                node.input[0], channels
            )
            totals = energy.sum(1)
            shares = [energy[o, channel] / totals[o] if totals[o] else 0.0 for o in range(len(weight))]
            return sum(share * self.mass(out, o, len(weight)) for o, share in enumerate(shares) if share)
        if node.op_type == "Add":
            both = [self.variances(name, channels)[channel] for name in node.input]
            return both[slot] / sum(both) * self.mass(out, channel, channels)
        if node.op_type == "Concat":
            sizes = [self.values[name].shape[1] for name in node.input]
            return self.mass(out, sum(sizes[:slot]) + channel, sum(sizes))
        return self.mass(out, channel, channels)


def random_net(seed: int) -> onnx.ModelProto:
    """A DAG of a few convolutions, additions and concatenations, ended by a Gemm or a Conv."""
    rng = np.random.default_rng(seed)
    widths, body, constants = {"x": 2}, [], []
    maps = ["x"]

    def conv(source: str, width: int) -> str:
        k = len(constants)
        constants.append(f"float[{width},{widths[source]},3,3] w{k}, float[{width}] b{k}")
        body.append(f"c{k} = Conv <pads = [1, 1, 1, 1]> ({source}, w{k}, b{k})")
        widths[f"c{k}"] = width
        return f"c{k}"

    maps.append(conv("x", 3))
    for step in range(int(rng.integers(3, 6))):
        kind, name = rng.choice(["conv", "relu", "add", "concat"], p=[0.4, 0.2, 0.25, 0.15]), f"t{step}"
        first, second = (str(rng.choice(maps[1:])) for _ in range(2))
        if kind == "conv":
            name = conv(first, int(rng.integers(2, 4)))
        elif kind == "relu":
            body.append(f"{name} = Relu ({first})")
            widths[name] = widths[first]
        elif kind == "add":
            other = conv(second, widths[first])
            body.append(f"{name} = Add ({first}, {other})")
            widths[name] = widths[first]
        else:
            body.append(f"{name} = Concat <axis = 1> ({first}, {second})")
            widths[name] = widths[first] + widths[second]
        maps.append(name)
    last = maps[-1]
    constants.append(f"float[2,{widths[last] * 16}] g")
    body.append(f"f = Flatten ({last}) y = Gemm <transB = 1> (f, g)")
    extra = f", float[N,{widths[maps[1]]},4,4] {maps[1]}" if rng.random() < 0.3 else ""
    return net(f"(float[N,2,4,4] x) => (float[N,2] y{extra})", ", ".join(constants), " ".join(body), seed)
