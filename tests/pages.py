"""Pages of ``compress --report`` for tests, and what a parser finds in one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanonnx import formatting as words
from tests.helpers import brief, build, called, saved

VOID = {"meta", "link", "img", "br", "line", "rect", "circle", "path"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "</title></style><b>",
    "x" * 500,
    "слой/層/🔥 é\u202ereversed\u0007bell",
    "{{ 7 * 7 }}{% raw %}",
]
"""Names that a page must show without harm."""
RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
images (float[N, 3, 16, 16] x) => (float[N, 3, 16, 16] y)
<float[16, 3, 3, 3] w1, float[16, 16, 3, 3] w2, float[24, 16, 1, 1] w3, float[16, 24, 1, 1] w4, float[16, 1, 3, 3] w5,
 float[3, 16, 3, 3] w6>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Conv <pads = [1, 1, 1, 1]> (a, w2)
    c = Relu (b)
    d = Conv (c, w3)
    e = Relu (d)
    f = Conv (e, w4)
    g = Add (a, f)
    h = Conv <pads = [1, 1, 1, 1], group = 16> (g, w5)
    i = Relu (h)
    j = Conv <pads = [1, 1, 1, 1]> (i, w6)
    y = Sigmoid (j)
}
"""
"""Images to images, with a residual stage and a depthwise layer."""


@dataclass
class Found(HTMLParser):
    """Elements with their attributes, and the text in each."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(dict(attrs).get("id") or tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for each in self.open:
            self.texts.setdefault(each, []).append(data)

    def text(self, name: str) -> str:
        """All text within the elements of an id or, without one, of a tag; white space as one blank."""
        return " ".join("".join(self.texts.get(name, [])).split())

    def json(self, name: str) -> Any:
        """The JSON content of an element."""
        return json.loads("".join(self.texts[name]))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a kind."""
        return [attributes for found, attributes in self.tags if found == tag]


def parsed(page: str) -> Found:
    """A page as html.parser reads it; every element must be closed."""
    found = Found()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


def hostile(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with tensors and nodes between the interface called by what a page must not believe."""
    fixed = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    renamed: dict[str, str] = {}
    names = iter(HOSTILE)
    for k, node in enumerate(proto.graph.node):
        node.name = next(names) if node.op_type == "Conv" else f"{HOSTILE[k % len(HOSTILE)]}{k}"
        renamed |= {name: f"{HOSTILE[-k % len(HOSTILE)]}{k}" for name in node.output if name not in fixed}
    for node in proto.graph.node:
        for slots in (node.input, node.output):
            slots[:] = [renamed.get(name, name) for name in slots]
    return proto


def images(path: Path, count: int = 20, white: float = 1.0, side: int = 16) -> Path:
    """Smooth images as calibration data for ``x``."""
    rng = np.random.default_rng(0)
    waves = rng.uniform(0, 0.6, (count, 3, 1, 1, 2))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)
    np.savez(path, x=(white * (0.5 + 0.5 * np.sin((waves * grid).sum(-1)))).astype(np.float32))
    return path


def page_of(folder: Path, proto: onnx.ModelProto, *args: object, measure: bool = False) -> tuple[str, dict[str, Any]]:
    """The page that ``compress`` writes, and the JSON that it prints."""
    source = saved(proto, folder / "model.onnx")
    names = (folder / "out.onnx", "--report", folder / "page.html")
    with brief():
        done = called("compress", source, *names, "--align", 1, "--json", *args, measure=measure)
    assert done.returncode == 0, done.stderr
    return (folder / "page.html").read_text(encoding="utf-8"), json.loads(done.stdout)


def residual(seed: int = 0) -> onnx.ModelProto:
    """``RESIDUAL`` with random weights."""
    return build(RESIDUAL, seed)


def plain(text: str) -> str:
    """With blanks at which a line may break, as the parser gives all text."""
    return text.replace(words.UNIT_SPACE, " ")


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    """The JSON object but for how long it took, which the page itself adds to."""
    return {key: value for key, value in row.items() if key != "seconds"}
