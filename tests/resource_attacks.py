"""Small files that demand terabytes or years: the files of one folder each, the model under ``MODEL``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers import CNN, build
from tests.seed_models import BRANCHED, DATA, MODEL, Files, external, raw

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
HUGE = 1 << 40
GIANT = 1 << 15
"""An image of GIANT x GIANT floats takes 4 GB: it could be allocated, but must not be."""
ENDLESS = "Loop without end"
LONG = "n" * 100_000


def declared(place: str, dims: list[int], data: bytes) -> Files:
    """A constant that declares more data than it has: an initializer, in a Constant node, in a subgraph or sparse."""
    proto = build(BRANCHED if place == "subgraph" else CNN)
    graph = proto.graph
    lie = TensorProto(name="lie", data_type=TensorProto.FLOAT, dims=dims, raw_data=data)
    if place == "weight":
        lie.name = graph.initializer[2].name
        graph.initializer[2].CopyFrom(lie)
    elif place == "unread":
        graph.initializer.append(lie)
    elif place == "node":
        graph.node.insert(0, helper.make_node("Constant", [], ["lie"], value=lie))
        graph.node[1].input[2] = "lie"
    elif place == "subgraph":
        inner = graph.node[1].attribute[0].g
        inner.initializer.append(lie)
        inner.node[0].input[1] = "lie"
    else:
        sparse = graph.sparse_initializer.add(dims=dims)
        sparse.values.CopyFrom(helper.make_tensor("lie", TensorProto.FLOAT, [1], [1.0]))
        sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [1], [5]))
        graph.node[0].input[2] = "lie"
    return raw(proto)


def fed(*sizes: int) -> Files:
    """A graph input of these sizes."""
    return raw(build(CNN.replace("float[1, 3, 8, 8]", f"float[{', '.join(map(str, sizes))}]")))


def grown(node: str, constants: str) -> Files:
    """A convolution, and a node that computes a huge tensor from its output or from constants."""
    text = f"""{HEAD} grown (float[1, 3, 8, 8] x) => (float[a, b, c, d] y)
    <float[8, 3, 3, 3] w1, float[4, 8, 1, 1] w2, {constants}>
    {{ a = Conv <pads = [1, 1, 1, 1]> (x, w1) {node} y = Conv (big, w2) }}"""
    return raw(build(text))


def ints(*values: int) -> str:
    return f"int64[{len(values)}] sizes = {{{', '.join(map(str, values))}}}"


def doubled(count: int) -> Files:
    """A tensor joined to itself, again and again."""
    names = ["a", *(f"a{k}" for k in range(count)), "big"]
    nodes = " ".join(f"{n} = Concat <axis = 2> ({v}, {v})" for v, n in itertools.pairwise(names))
    return grown(nodes, "float unused = {1.0}")


def looped(trips: int) -> Files:
    """A Loop that never ends."""
    return raw(build(BRANCHED.replace("trips = {2}", f"trips = {{{trips}}}")))


def laughing(levels: int) -> Files:
    """Functions that call each other twice per level."""
    calls = "".join(
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F{k} (v) => (o) {{ c = f.F{k - 1} (v) o = f.F{k - 1} (c) }}\n'
        for k in range(1, levels + 1)
    )
    return raw(
        build(f"""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    laughing (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) <float[8, 3, 3, 3] w1, float[4, 8, 1, 1] w2>
    {{ a = Conv <pads = [1, 1, 1, 1]> (x, w1) b = f.F{levels} (a) y = Conv (b, w2) }}
    <domain: "f", opset_import: ["" : 17]> F0 (v) => (o) {{ o = Relu (v) }}
    {calls}""")
    )


def nested(levels: int) -> Files:
    """If within If: the innermost branches are Relu and Neg."""
    first = onnx.parser.parse_graph("g () => (float[1, 8, 8, 8] r0) { r0 = Relu (c1) }")
    node = first.node[0]
    for level in range(1, levels + 1):
        graphs = [
            onnx.parser.parse_graph(f"g () => (float[1, 8, 8, 8] {name}) {{ {name} = Neg (c1) }}")
            for name in (f"r{level - 1}", f"e{level}")
        ]
        graphs[0].node[0].CopyFrom(node)
        node = helper.make_node("If", ["yes"], [f"r{level}"], then_branch=graphs[0], else_branch=graphs[1])
    proto = build(CNN)
    node.output[0] = "r1"
    proto.graph.node[1].CopyFrom(node)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return raw(proto)


def named(place: str) -> Files:
    """A name of 100,000 letters."""
    proto = build(CNN)
    if place == "tensor":
        text = proto.SerializeToString()
        proto = build(CNN.replace("c1", LONG))
        assert len(proto.SerializeToString()) > len(text)
    elif place == "node":
        proto.graph.node[0].name = LONG
    elif place == "weight":
        proto = build(CNN.replace("w2", LONG))
    else:
        proto = build(CNN.replace("float[1, 3, 8, 8] x", f"float[{LONG}, 3, 8, 8] x"))
    return raw(proto)


def placed(**changes: str) -> Files:
    """External data with a wrong location."""
    files = external()
    proto = onnx.ModelProto.FromString(files[MODEL])
    for entry in proto.graph.initializer[2].external_data:
        entry.value = changes.get(entry.key, entry.value)
    return {MODEL: proto.SerializeToString(), DATA: files[DATA]}


ATTACKS: dict[str, Callable[[], Files]] = {
    **{
        f"{place} declares {dims}": (lambda place=place, dims=dims: declared(place, dims, b"\0" * 8))
        for place in ("weight", "unread", "node", "subgraph", "sparse")
        for dims in ([HUGE], [1 << 32, 1 << 32], [GIANT, GIANT], [-1, 4], [8, HUGE, 3, 3])
    },
    "weight declares much and holds nothing": lambda: declared("weight", [12, 8, 1 << 20, 1 << 20], b""),
    "input of terabytes": lambda: fed(1, 3, 1_000_000, 1_000_000),
    "input of gigabytes": lambda: fed(1, 3, GIANT, GIANT),
    "batch of gigabytes": lambda: fed(1 << 22, 3, 8, 8),
    "input beyond 64 bits": lambda: fed(1 << 40, 3, 1 << 40, 8),
    **{
        f"{op} to {name}": (lambda make=make, size=size: make(size))
        for name, size in (("terabytes", 1 << 22), ("gigabytes", GIANT))
        for op, make in {
            "Expand": lambda n: grown(
                "p = ReduceMean <axes = [2, 3]> (a) big = Expand (p, sizes)", ints(1, 8, n, n // 8)
            ),
            "Tile": lambda n: grown("big = Tile (a, sizes)", ints(1, 1, n // 8, n // 64)),
            "Pad": lambda n: grown("big = Pad (a, sizes)", ints(0, 0, 0, 0, 0, 0, n, n // 8)),
            "Resize": lambda n: grown("big = Resize (a, , , sizes)", ints(1, 8, n, n // 8)),
            "ConstantOfShape": lambda n: grown(
                "z = ConstantOfShape (sizes) m = ReduceMax <keepdims = 0> (z) big = Add (a, m)", ints(1, 8, n, n // 8)
            ),
            "padded Conv": lambda n: grown(
                f"q = Conv <pads = [{n}, {n // 16}, 1, 1]> (a, w3) big = Relu (q)", "float[8, 8, 3, 3] w3"
            ),
        }.items()
    },
    "Range without end": lambda: grown(
        "r = Range (start, stop, step) m = ReduceMax <keepdims = 0> (r) big = Add (a, m)",
        "float start = {0.0}, float stop = {4e9}, float step = {1.0}",
    ),
    "doubled 25 times": lambda: doubled(25),
    "doubled 40 times": lambda: doubled(40),
    ENDLESS: lambda: looped((1 << 63) - 1),
    "functions 2^22": lambda: laughing(22),
    "functions 2^40": lambda: laughing(40),
    "nested 10": lambda: nested(10),
    "nested 25": lambda: nested(25),
    **{f"long name of a {place}": (lambda place=place: named(place)) for place in ("tensor", "node", "weight", "size")},
    "data far behind the end": lambda: placed(offset=str(HUGE)),
    "data longer than the file": lambda: placed(length=str(HUGE)),
    "data before the start": lambda: placed(offset="-4096"),
    "data of a long name": lambda: placed(location=LONG),
    "data of no name": lambda: placed(location=""),
    "data in the folder above": lambda: placed(location=f"../in/../{DATA}"),
    "data of an absolute path": lambda: placed(location="/etc/passwd"),
    "data of a device": lambda: placed(location="/dev/zero"),
}

HARMLESS = {
    *(f"long name of a {place}" for place in ("tensor", "node", "weight", "size")),
    *("nested 10", "nested 25"),
}
"""Harmless attacks: they can be carried out."""

PLANS: dict[str, bytes] = {
    "deep lists": b'{"tensors": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "a number of 100,000 digits": b'{"schema": ' + b"9" * 100_000 + b"}",
    "not a number": b'{"schema": NaN, "leanonnx": Infinity, "input_sha256": "", "options": {}, "tensors": {}}',
}
ENTRIES: dict[str, object] = {
    "huge sizes": {"before": [HUGE] * 4, "after": [HUGE] * 4, "kept": [[HUGE], None, None, None]},
    "beyond 64 bits": {"before": [1 << 70] * 4, "after": [1] * 4, "kept": [[1 << 70], None, None, None]},
    "negative": {"before": [12, 8, 3, 3], "after": [12, 8, 3, 3], "kept": [[-1], [-8], None, None]},
    "fractions": {"before": [12, 8, 3, 3], "after": [1, 8, 3, 3], "kept": [[0.5], None, None, None]},
    "texts": {"before": "12", "after": "34", "kept": "56"},
    "numbers": {"before": 12, "after": 12, "kept": 12},
    "nested lists": {"before": [12, 8, 3, 3], "after": [1, 8, 3, 3], "kept": [[[[0]]], None, None, None]},
    "a million indices": {"before": [12, 8, 3, 3], "after": [12, 8, 3, 3], "kept": [[0] * 1_000_000, None, None, None]},
    "an object": {"before": {"0": 1}, "after": {"0": 1}, "kept": {"0": [0]}},
    "booleans": {"before": [True] * 4, "after": [True] * 4, "kept": [True, False, True, False]},
}


def plan(digest: str, entry: object) -> bytes:
    """A plan for ``CNN`` with one impossible entry."""
    found = {"schema": 1, "leanonnx": "0", "input_sha256": digest, "options": {}, "tensors": {"w2": entry}}
    return json.dumps(found).encode()
