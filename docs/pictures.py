"""Draws the pictures of docs/lean.md and docs/architecture.md from what leanonnx itself finds in two networks.

python -m docs.pictures            write them
python -m docs.pictures --check    exit 1 if they are not what is drawn now
"""

from __future__ import annotations

import runpy
import string
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap

import numpy as np
import onnx

from docs.drawing import Point, badge, box, cells, disc, line, picture, plate, text
from docs.written import main
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.model import load
from leanonnx.numeric.chains import best_chain, best_through, extract_chains, normalise_rows
from leanonnx.numeric.norms import kernel_norms
from leanonnx.ranking.criteria import EXTRACTED, Chains
from leanonnx.ranking.pathmass import kernel_groups, path_masses
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.runtime.observation import observe
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, Selector
from leanonnx.statistics.moments import Statistics, measure_statistics

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "pictures"
UNET, LAYER = HERE.parent / "models" / "cs_unet.onnx", "node_Conv_206"
TABLE = HERE.parent / "tests" / "test_layers.py"
PACKAGE = HERE.parent / "leanonnx"
HANDED = {
    "rules": "→ Effect",
    "analysis": "→ ChannelDag",
    "ranking": "→ Ranking",
    "selection": "→ Selection",
    "surgery": "→ Patch, Plan",
    "proof": "→ Proof",
    "commands.compress": "→ Candidate",
}
"""The values that rooms hand on to those above."""
MODULES = 66
"""Characters in a line of modules."""
SMALL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[1, 1, 16, 16] x) => (float[1, 2, 16, 16] y)
<float[4, 1, 3, 3] first, float[4, 4, 3, 3] second, float[4, 4, 3, 3] third, float[2, 4, 1, 1] last>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    r = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (r, second)
    s = Add (r, b)
    c = Conv <pads = [1, 1, 1, 1]> (s, third)
    t = Relu (c)
    y = Conv (t, last)
}
"""
SEED, SCALE = 7, 0.55
"""Of the small network's random weights; as in trained networks most gains are below 1."""
COLUMNS = {"x": "input", "a": "Conv 1", "b": "Conv 2", "s": "Add", "c": "Conv 3", "y": "Conv 4"}
"""Tensors of the small network that are drawn, and what stands above them."""
WIDTH, LEFT, COLUMN, ROW, RADIUS = 760.0, 50.0, 132.0, 50.0, 13.0
CHOICES: dict[Chains, str] = {
    "cover": "the best chain through a channel not yet covered, from the input to an output",
    "through": "the best chain from the input to an output; its kernels are used up; the next",
    "free": "the best chain that starts and ends anywhere; its kernels are used up; the next",
}
SHOWN = 5
"""Chains of each kind."""
Step = tuple[int, int]


def analysed(path: Path) -> ChannelDag:
    """The channel DAG of a model file."""
    model = load(path, ())
    return build_channel_dag(model, observe(model, {}))


@dataclass(frozen=True)
class Network:
    """The small network: gains of its kernels by source and target, and its fixed edges."""

    dag: ChannelDag
    weights: WeightedDag
    gains: dict[Step, float]
    fixed: tuple[Step, ...]


@cache
def network() -> Network:
    """The small network, analysed."""
    proto = onnx.parser.parse_model(SMALL)
    rng = np.random.default_rng(SEED)
    for value in proto.graph.value_info:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) * SCALE / np.sqrt(np.prod(shape[1:]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), value.name))
    del proto.graph.value_info[:]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        path.write_bytes(proto.SerializeToString())
        dag = analysed(path)
    weights = WeightedDag(dag)
    gains = {
        (source, target): float(block.gains[0, o, i])
        for block in weights.blocks
        if block.is_counted
        for i, source in enumerate(block.sources[0].tolist())
        for o, target in enumerate(block.destinations[0].tolist())
    }
    fixed = [
        pair
        for _, link in dag.fixed_edges
        for pair in zip(link.sources.tolist(), link.destinations.tolist(), strict=True)
    ]
    return Network(dag, weights, gains, tuple(fixed))


@dataclass(frozen=True)
class Drawn:
    """The small network on a sheet, from ``top`` downwards."""

    top: float

    @property
    def places(self) -> dict[int, Point]:
        """Centre of each channel."""
        found = {}
        for column, name in enumerate(COLUMNS):
            channel_ids = network().dag.channel_ids[name].reshape(-1).tolist()
            for row, channel_id in enumerate(channel_ids):
                found[channel_id] = (LEFT + COLUMN * column, self.top + ROW * (row + (4 - len(channel_ids)) / 2))
        return found

    def titles(self) -> Iterator[str]:
        """Names of the layers above their columns."""
        for column, words in enumerate(COLUMNS.values()):
            yield text((LEFT + COLUMN * column, self.top - 34), words, "ink", 13, "middle")

    def edges(
        self, widths: dict[Step, float], marked: Collection[Step] = (), pale: Collection[int] = ()
    ) -> Iterator[str]:
        """Kernels as wide as asked for and fixed edges; some are marked, those of ``pale`` channels are faint."""
        places = self.places

        def kind(step: Step) -> str:
            return "mark" if step in marked else "pale" if set(step) & set(pale) else "weak"

        for step, width in widths.items():
            yield line([places[end] for end in step], kind(step), width)
        for step in network().fixed:
            ends = [places[end] for end in step]
            yield line(ends, kind(step), 1.3, "2 4", 18 if ends[1][0] - ends[0][0] > COLUMN else 0)

    def nodes(self, alive: Collection[int] | None = None) -> Iterator[str]:
        """Channels: pinned ones are squares, tied ones share a letter; those that are not alive are struck out."""
        dag = network().dag
        letters = dict(zip(np.flatnonzero(~dag.pinned_groups).tolist(), string.ascii_uppercase, strict=False))
        for channel_id, (x, y) in self.places.items():
            kind = "node" if alive is None else "kept" if channel_id in alive else "gone"
            letter = letters.get(int(dag.groups[channel_id]))
            square = box((x - RADIUS, y - RADIUS), (2 * RADIUS, 2 * RADIUS), kind)
            yield square if letter is None else disc((x, y), RADIUS, kind)
            yield text((x, y + 4.5), letter or "", "faint" if kind == "gone" else "ink", 13, "middle")
            if kind == "gone":
                yield line(((x - 9, y + 9), (x + 9, y - 9)), "weak")


def by_gain() -> dict[Step, float]:
    """Widths of the kernels in the order of their gains."""
    gains = network().gains
    return {step: 0.3 + 3.4 * gain / max(gains.values()) for step, gain in gains.items()}


def notes(top: float, words: Sequence[str]) -> Iterator[str]:
    """Lines below a drawing."""
    for k, each in enumerate(words):
        yield text((20, top + 18 * k), each, "faint", 12)


def channels() -> str:
    """The channel DAG with its best chain."""
    found, drawn = network(), Drawn(70)
    steps = list(pairwise(best_chain(found.dag.count, found.weights.blocks, found.dag.starts, found.dag.ends)))
    gains = {step: found.gains[step] for step in steps if step in found.gains}
    parts = [*drawn.titles(), *drawn.edges(by_gain(), steps), *drawn.nodes()]
    for step, gain in gains.items():
        x, y = np.mean([drawn.places[end] for end in step], axis=0)
        parts.append(plate((x, y - 11), f"{gain:.2f}"))
    product = " × ".join(f"{gain:.2f}" for gain in gains.values())
    words = (
        f"Marked, with its gains: the best chain, {product} = {np.prod(list(gains.values())):.2f}.",
        "Lines: kernels, as wide as their gain. Dotted: what the Add passes on unchanged.",
        "Squares: pinned. Same letter: tied; these channels can only be removed together.",
    )
    parts += notes(272, words)
    return picture((WIDTH, 322), "The channels of a small network and the best chain through them", parts)


def covering() -> Iterator[tuple[int, ...]]:
    """Chains in the order of ``cover``."""
    dag = network().dag
    blocks = [normalise_rows(block) for block in network().weights.blocks]
    values = best_through(dag.count, blocks, dag.starts, dag.ends)
    covered = {0}
    for channel_id in np.argsort(-values, kind="stable").tolist():
        if channel_id not in covered:
            here = np.array([channel_id])
            head, tail = ((dag.starts, here), (here, dag.ends))
            chain = (*best_chain(dag.count, blocks, *head), *best_chain(dag.count, blocks, *tail)[1:])
            covered |= set(chain)
            yield chain


def found_chains(choice: Chains) -> list[tuple[int, ...]]:
    """The first chains of a kind, as labels."""
    if choice == "cover":
        return list(covering())[:SHOWN]
    dag = network().dag
    return [
        chain.channel_ids
        for chain in extract_chains(dag.count, network().weights.blocks, dag.starts, dag.ends, EXTRACTED[choice])
    ][:SHOWN]


def chains() -> str:
    """What the three kinds of chains take, and the channels that stay at half of the kernels."""
    parts, height = [], 262.0
    for panel, (choice, words) in enumerate(CHOICES.items()):
        top = height * panel
        drawn, found = Drawn(top + 70), found_chains(choice)
        selection = Selector(
            network().dag, SelectionRequest(budget=Budget("kernels", 0.5), method="lean", chains=choice)
        ).select()
        gone = set(np.flatnonzero(~selection.alive).tolist())
        steps = {step for chain in found for step in pairwise(chain)}
        count = f"The first {len(found)} chains. Left: {selection.after.kernels} of {selection.before.kernels} kernels."
        parts += [text((20, top + 30), f'<tspan font-weight="bold">{choice}</tspan>: {words}')]
        parts += [*drawn.edges(by_gain(), steps, gone), *_numbers(found, drawn)]
        parts += [*drawn.nodes(set(drawn.places) - gone), *notes(top + 258, [count])]
    parts += notes(3 * height + 18, ["Filled: stays. Dashed and struck out: goes, with its kernels (pale)."])
    return picture((WIDTH, 3 * height + 32), "Chains of the kinds cover, through and free in one network", parts)


def _numbers(found: list[tuple[int, ...]], drawn: Drawn) -> Iterator[str]:
    """The number of each chain on its first kernel that no earlier one has its number on."""
    taken = set[Step]()
    for number, chain in enumerate(found, 1):
        step = next(step for step in pairwise(chain) if step in network().gains and step not in taken)
        taken.add(step)
        (x, y), (to_x, to_y) = (drawn.places[end] for end in step)
        share = 0.42 if number % 2 else 0.58
        yield badge((x + share * (to_x - x), y + share * (to_y - y)), str(number))


def observed() -> Statistics:
    """Moments of the small network's activations on 64 random images."""
    rng = np.random.default_rng(0)
    feeds = ({"x": rng.standard_normal((1, 1, 16, 16)).astype(np.float32)} for _ in range(64))
    return measure_statistics(network().dag, feeds, 64)


def mass() -> str:
    """Path mass of each channel, and how it flows."""
    drawn, statistics = Drawn(70), observed()
    blocks = kernel_groups(network().dag, statistics)
    found = path_masses(network().dag, statistics, blocks)
    widths = {}
    for block in blocks:
        flows = block.energies / block.energies.sum(1, keepdims=True) * found[block.destinations][:, None]
        for (o, i), flow in np.ndenumerate(flows):
            widths[int(block.channel_ids[i]), int(block.destinations[o])] = 0.2 + 13 * float(flow)
    parts = [*drawn.titles(), *drawn.edges(widths), *drawn.nodes()]
    parts += [
        plate((x, y + RADIUS + 8), f"{100 * found[channel_id]:.0f} %") for channel_id, (x, y) in drawn.places.items()
    ]
    words = (
        "Read from right to left: each output has half of the mass; a channel hands its mass on to those that it",
        "is made of, in proportion to the energy they bring. Lines: as wide as the mass that they carry.",
    )
    return picture(
        (WIDTH, 318), "Path mass of the channels of a small network on 64 inputs", [*parts, *notes(282, words)]
    )


def surgery() -> str:
    """One layer of the trained U-Net: as it is, as the proof masks it, as it is written."""
    dag = analysed(UNET)
    mix = next(mix for node, mix in dag.kernel_blocks if dag.model.proto.graph.node[node].name == LAYER)
    alive = Selector(dag, SelectionRequest(budget=Budget("kernels", 0.25), method="lean")).select().alive
    norms = kernel_norms(np.asarray(mix.kernels(), np.float32), strides=mix.strides)[0]
    rows, columns = alive[mix.destinations[0]], alive[mix.sources[0]]
    everything = np.ones_like(rows), np.ones_like(columns)
    sheets = (
        ("original", *everything, ("Marks: inputs (above) and outputs", "(left) that go.")),
        (
            "the proof's reference",
            everything[0],
            columns,
            ("Columns of inputs that go are zero;", "nothing else is touched."),
        ),
        ("compressed", rows, columns, ("Rows and columns are gone.",)),
    )
    side, top, parts = 6.4, 72.0, []
    for k, (title, outs, ins, words) in enumerate(sheets):
        x, small = 30.0 + 246 * k, k == len(sheets) - 1
        shown = norms[outs][:, ins] if small else norms
        squares = (
            ((x + side * i, top + side * o), norm / norms.max())
            for (o, i), norm in np.ndenumerate(shown)
            if small or ins[i]
        )
        parts += [
            text((x, 30), title, "ink", 14),
            text((x, 48), f"{shown.shape[0]} outputs × {shown.shape[1]} inputs", "faint", 12),
        ]
        parts += [
            *cells(squares, side - 0.8),
            box((x - 1, top - 1), (side * shown.shape[1] + 1, side * shown.shape[0] + 1), "weak"),
        ]
        parts += [text((x, top + 230 + 17 * n), each, "faint", 12) for n, each in enumerate(words)]
    parts += [
        line(((30 + side * i + 2.8, 62), (30 + side * i + 2.8, 69)), "mark", 2.5) for i in np.flatnonzero(~columns)
    ]
    parts += [
        line(((20, top + side * o + 2.8), (27, top + side * o + 2.8)), "mark", 2.5) for o in np.flatnonzero(~rows)
    ]
    return picture((WIDTH, 334), "One layer of the U-Net in models/ before, masked and after surgery", parts)


def floors() -> str:
    """The rooms of leanonnx on the floors that tests/test_layers.py enforces, the highest on top."""
    parts, y = [text((14, 26), "A room imports only from floors below its own, and from itself.", "faint", 12)], 38.0
    for floor in reversed(runpy.run_path(str(TABLE))["FLOORS"]):
        parts.append(line(((14, y), (WIDTH - 14, y)), "pale", 1))
        y += 6
        for room in sorted(floor):
            lines = wrap(" · ".join(modules(room)), MODULES) or [""]
            parts.append(box((14, y), (118, 20), "kept", ' rx="4"'))
            parts.append(mono((21, y + 14.5), room, "ink"))
            parts += [mono((142, y + 14.5 + 16 * n), each, "faint") for n, each in enumerate(lines)]
            parts.append(mono((WIDTH - 128, y + 14.5), HANDED.get(room, ""), "ink"))
            y += 8 + 16 * len(lines)
        y += 4
    return picture((WIDTH, y + 4), "The rooms of leanonnx, floor by floor, and the values that they hand on", parts)


def modules(room: str) -> list[str]:
    """What is in a room: its modules, a package within it by its name."""
    inside = (
        each for each in (PACKAGE / room).glob("[a-z]*") if each.suffix in ("", ".py") and each.name != "templates"
    )
    return sorted(each.stem + ("" if each.suffix else "/") for each in inside)


def mono(place: Point, words: str, kind: str) -> str:
    """Words as code."""
    return f'<g font-family="monospace">{text(place, words, kind, 11.6)}</g>'


PICTURES = {f.__name__: f for f in (channels, chains, mass, surgery, floors)}


if __name__ == "__main__":
    drawn = ((FOLDER / f"{name}.svg", draw()) for name, draw in PICTURES.items())
    raise SystemExit(main(drawn, "python -m docs.pictures", sys.argv[1:]))
