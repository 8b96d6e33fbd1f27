"""The pictures of the page against plain counting: kernels, brackets, chains, times of layers."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.numeric.channel_ids import Mask
from leanonnx.page import chains as page_chains
from leanonnx.page.chains import ChainPicture, chain_picture
from leanonnx.page.kernels import FINEST, LEVELS, heats, kept_shares
from leanonnx.page.network import LANE_HEIGHT, abridged_numbers, network_picture
from leanonnx.page.times import compare_profiles, layer_times
from leanonnx.reporting.builders import layer_rows
from leanonnx.rules.call import KernelBlock
from leanonnx.runtime.fastpath import FLOAT_CONVOLUTIONS, convolution_layouts
from leanonnx.runtime.profiling import NodeTime, middle_mean, origin_tensor
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import profile_in_subprocess
from leanonnx.runtime.timing import Timing, TimingComparison
from tests.calibrated import analysed, keep, net
from tests.helpers import build, compressed, saved
from tests.pages import RESIDUAL, page_of, parsed, residual

ONE = Setting(threads=1)
CONCAT = (
    "(float[1, 2, 6, 6] x) => (float[1, 3, 6, 6] y)",
    "float[4, 2, 3, 3] w1, float[5, 6, 1, 1] w2, float[3, 11, 1, 1] w3",
    "a = Conv <pads = [1, 1, 1, 1]> (x, w1) b = Concat <axis = 1> (x, a) c = Conv (b, w2) d = Concat <axis = 1> (b, c) "
    "y = Conv (d, w3)",
)


@pytest.fixture(scope="module")
def dag() -> ChannelDag:
    return analysed(residual())


@pytest.fixture(scope="module")
def alive(dag: ChannelDag) -> Mask:
    """Half of the stage, and a third of the layer between."""
    return keep(dag, "a", range(0, 16, 2)) & keep(dag, "d", range(0, 24, 3))


# Kernels


def counted(mix: KernelBlock, alive: Mask, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernels before and after in each cell, one by one."""
    groups, outs = mix.destinations.shape
    ins = mix.sources.shape[1]
    rows, columns = min(side, groups * outs), min(side, groups * ins)
    before, after = np.zeros((rows, columns)), np.zeros((rows, columns))
    for g in range(groups):
        for o in range(outs):
            for i in range(ins):
                cell = (g * outs + o) * rows // (groups * outs), (g * ins + i) * columns // (groups * ins)
                before[cell] += 1
                after[cell] += alive[mix.destinations[g, o]] and alive[mix.sources[g, i]]
    return before, after


@pytest.mark.parametrize("side", [1, 3, 7, 32])
def test_shares_of_cells(dag: ChannelDag, alive: Mask, side: int) -> None:
    for _, mix in dag.kernel_blocks:
        before, after = counted(mix, alive, side)
        found = kept_shares(mix, alive, side)
        assert np.array_equal(np.isnan(found), before == 0)
        assert np.allclose(found[before > 0], after[before > 0] / before[before > 0])


def covered(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Number of times that each cell lies within a path of rectangles."""
    found = np.zeros(shape, int)
    parts = re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)H(\d+)z", path)
    assert "".join(f"M{a} {b}h{c}v{d}H{e}z" for a, b, c, d, e in parts) == path
    for x, y, width, height, back in ([int(n) for n in part] for part in parts):
        assert back == x
        found[y : y + height, x : x + width] += 1
    return found


def test_paths_cover_the_cells(dag: ChannelDag, alive: Mask) -> None:
    """Each cell in one shade, by the share that is left: none, up to a quarter, half, three quarters, all."""
    found = heats(dag, alive, layer_rows(dag, alive))
    assert len(found.layers) == len(dag.kernel_blocks)
    assert found.gaps
    for heat in found.layers:
        before, after = counted(dag.kernel_blocks[heat.number - 1][1], alive, FINEST)
        drawn = [covered(path, before.shape) for path in heat.paths]
        assert np.array_equal(sum(drawn), (before > 0).astype(int))
        level = np.argmax(np.stack(drawn), 0)
        assert np.array_equal(level[before > 0], np.ceil(LEVELS * after[before > 0] / before[before > 0]))
        assert heat.share == after.sum() / before.sum()


# The network


def test_bars_and_brackets(dag: ChannelDag, alive: Mask) -> None:
    rows = layer_rows(dag, alive)
    found = network_picture(dag, rows)
    tallest = max(row.outputs.before for row in rows)
    for bar, row in zip(found.bars, rows, strict=True):
        assert [bar.before, bar.after] == pytest.approx([found.height * width / tallest for width in row.outputs])
    assert [round(bar.x) for bar in found.bars] == sorted(round(bar.x) for bar in found.bars)
    names = [row.name for row in rows]
    (bracket,) = found.brackets
    assert [names[n - 1] for n in bracket.numbers] == ["A", "F", "H"]
    assert (bracket.letter, bracket.channels) == ("A", "16 → 8")


def test_brackets_do_not_cross() -> None:
    """In one lane no two brackets overlap; channels that cannot be removed have none."""
    stages = " ".join(
        f"p{k} = Conv (s{k - 1}, w{k}) d{k} = Conv <group = 8> (p{k}, g{k}) q{k} = Conv (d{k}, v{k}) "
        f"s{k} = Add (s{k - 1}, q{k})"
        for k in range(1, 5)
    )
    weights = ", ".join(f"float[8, 4, 1, 1] w{k}, float[8, 1, 1, 1] g{k}, float[4, 8, 1, 1] v{k}" for k in range(1, 5))
    proto = net(
        "(float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)",
        f"float[4, 3, 1, 1] w0, {weights}, float[2, 4, 1, 1] last",
        f"s0 = Conv (x, w0) {stages} y = Conv (s4, last)",
    )
    dag = analysed(proto)
    found = network_picture(dag, layer_rows(dag, np.ones(dag.count, bool)))
    assert sorted(bracket.numbers for bracket in found.brackets) == [
        (1, 4, 7, 10, 13),
        (2, 3),
        (5, 6),
        (8, 9),
        (11, 12),
    ]
    assert [bracket.letter for bracket in found.brackets if len(bracket.numbers) > 2] == ["A"]
    for lane in {bracket.y for bracket in found.brackets}:
        spans = sorted((b.numbers[0], b.numbers[-1]) for b in found.brackets if b.y == lane)
        assert all(first[1] < second[0] for first, second in pairwise(spans))
    assert found.depth == 2 * LANE_HEIGHT


def test_very_wide_layers_are_drawn_by_roots() -> None:
    proto = net(
        "(float[1, 3, 4, 4] x) => (float[1, 900, 4, 4] y)",
        "float[4, 3, 1, 1] w1, float[4, 4, 1, 1] w2, float[900, 4, 1, 1] w3",
        "a = Conv (x, w1) b = Conv (a, w2) y = Conv (b, w3)",
    )
    dag = analysed(proto)
    found = network_picture(dag, layer_rows(dag, np.ones(dag.count, bool)))
    assert found.rooted
    assert found.bars[0].before == pytest.approx(found.height * (4 / 900) ** 0.5)


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [((1,), "1"), ((1, 2, 5), "1, 2, 5"), (tuple(range(1, 31)), "1, 2, 3, 4, 5, 6, …, 26, 27, 28, 29, 30")],
)
def test_listed(numbers: tuple[int, ...], wanted: str) -> None:
    assert abridged_numbers(numbers) == wanted


# Chains


def edges(dag: ChannelDag, alive: Mask, reads: dict[int, int]) -> dict[tuple[int, int], bool]:
    """Connections between channels, and True for kept ones; a concat slot stands for the channel that it reads."""
    found: dict[tuple[int, int], bool] = {}
    for _, mix in dag.kernel_blocks:
        for sources, targets in zip(mix.sources.tolist(), mix.destinations.tolist(), strict=True):
            for u, v in product(sources, targets):
                pair = reads.get(u, u), v
                found[pair] = found.get(pair, False) or bool(alive[u] and alive[v])
    return found


def test_chains_of_a_concat() -> None:
    """Readers of a Concat are no channels of their own, and a kernel that is dropped by its reader is removed."""
    dag = analysed(net(*CONCAT))
    alive = keep(dag, "a", [0, 2]) & keep(dag, "c", [1])
    found = chain_picture(dag, alive)
    assert isinstance(found, ChainPicture)
    reads: dict[int, int] = {}
    for _, (channels, readers) in dag.concat_slots:
        for u, v in zip(*np.broadcast_arrays(channels, readers), strict=True):
            reads[int(v)] = reads.get(int(u), int(u))
    wanted = edges(dag, alive, reads)
    assert found.channels == (1 + 4 + 5 + 3, 1 + 2 + 1 + 3)
    assert found.edges == (len(wanted), sum(wanted.values()))
    assert found.kept_edges.count("M") == sum(wanted.values())
    assert found.removed_edges.count("M") == len(wanted) - sum(wanted.values())
    assert found.kept_channels.count("M") == found.channels[1]
    assert found.removed_channels.count("M") == found.channels[0] - found.channels[1]


def test_best_chain_is_the_best() -> None:
    """Of a network with two ways, the one with the larger product of gains."""
    proto = net(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)",
        "float[2, 1, 1, 1] w1, float[1, 2, 1, 1] w2",
        "a = Conv (x, w1) y = Conv (a, w2)",
    )
    for name, values in (("w1", [3, 2]), ("w2", [1, 2])):
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        tensor.raw_data = np.array(values, np.float32).tobytes()
    dag = analysed(proto)
    found = chain_picture(dag, keep(dag, "a", [0]))
    assert isinstance(found, ChainPicture)
    ((line, stops, count, left),) = found.best
    assert (count, left) == (3, 2)
    removed = found.removed_channels
    assert removed in stops
    assert line.count("M") == 2


def test_large_networks_are_not_drawn(dag: ChannelDag, alive: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_chains, "MAX_DRAWN_CHANNELS", 50)
    found = chain_picture(dag, alive)
    assert isinstance(found, int)
    assert found > 50


def test_thinned(dag: ChannelDag, alive: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many edges the strongest into each channel are drawn, none is left without."""
    monkeypatch.setattr(page_chains, "MAX_DRAWN_EDGES", 300)
    found = chain_picture(dag, alive)
    assert isinstance(found, ChainPicture)
    assert found.thinned
    drawn = found.kept_edges.count("M") + found.removed_edges.count("M")
    assert found.channels[0] - 1 <= drawn <= 300


# Times


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a", "a"),
        ("a_nchwc", "a"),
        ("fused a", "a"),
        ("InsertedPrecisionFreeCast_a_nchwc", "a"),
        ("a_nchwc_token_7", "a"),
        ("a/MatMulScaleFusion/", "a"),
        ("b_nchwc", "b_nchwc"),
        ("c_nchwc", None),
        ("ReorderOutput", None),
    ],
)
def test_origin(name: str, wanted: str | None) -> None:
    assert origin_tensor(name, {"a", "b_nchwc"}) == wanted


@pytest.mark.parametrize(
    ("times", "wanted"), [([3.0], 3.0), ([9.0, 2.0, 3.0, 4.0], 3.5), ([2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 90.0, 0.0], 2.5)]
)
def test_mean_of_the_middle_half(times: list[float], wanted: float) -> None:
    """Outliers of a quarter at either end do not count; whole numbers between two are told apart."""
    assert middle_mean(times) == pytest.approx(wanted)


def test_lines_by_layer(dag: ChannelDag, alive: Mask) -> None:
    """A fused layer keeps the layer's name, other nodes are named by operator, removed ones have no time."""
    before = [
        NodeTime(tensor="a", operator="Conv", ms=1.0, blocked=True),
        NodeTime(tensor="c", operator="FusedConv", ms=2.0, blocked=False),
        NodeTime(tensor="e", operator="Conv", ms=3.0, blocked=True),
        NodeTime(tensor="g", operator="Add", ms=0.5, blocked=False),
        NodeTime(tensor=None, operator="ReorderOutput", ms=0.25, blocked=False),
        NodeTime(tensor=None, operator="ReorderOutput", ms=0.25, blocked=False),
    ]
    after = [
        NodeTime(tensor="a", operator="Conv", ms=0.5, blocked=True),
        NodeTime(tensor="c", operator="FusedConv", ms=1.0, blocked=True),
        NodeTime(tensor="g", operator="Add", ms=0.25, blocked=False),
    ]
    found = compare_profiles(dag, layer_rows(dag, alive), before, after)
    lines = {line.name: (line.before, line.after, line.path) for line in (*found.layers, *found.others)}
    assert lines == {
        "A": (1.0, 0.5, "fast path"),
        "B": (2.0, 1.0, "now on the fast path"),
        "D": (3.0, None, ""),
        "Add": (0.5, 0.25, ""),
        "ReorderOutput": (0.5, None, ""),
    }
    assert [line.name for line in found.layers] == ["D", "B", "A"]
    assert (found.before, found.after) == (7.0, 1.75)
    scaled = found.scaled_to(14.0, 7.0)
    assert (scaled.before, scaled.after, scaled.factors) == (14.0, 7.0, (2.0, 4.0))
    lines = {line.name: (line.before, line.after, line.path) for line in (*scaled.layers, *scaled.others)}
    assert (lines["A"], lines["D"]) == ((2.0, 2.0, "fast path"), (6.0, None, ""))
    bars = (*scaled.layers, *scaled.others)
    assert [sum(getattr(line, side) or 0 for line in bars) for side in ("before", "after")] == [14.0, 7.0]


def test_profile(tmp_path: Path) -> None:
    """Every layer is found again by its output, those on the fast path as the optimised graph has them."""
    proto = build(RESIDUAL)
    for node in proto.graph.node:
        node.name = ""
    path = saved(proto, tmp_path / "nameless.onnx")
    feed = load_dag(path).observation.feeds
    first, second = profile_in_subprocess([path, path], feed, ONE, 0.05)
    assert {work.tensor for work in first} == {work.tensor for work in second}
    convolutions = [work for work in first if work.operator in FLOAT_CONVOLUTIONS]
    expected = convolution_layouts(path, ONE)
    assert expected is not None
    assert len(convolutions) == expected.fast + expected.plain == 6
    assert sum(work.blocked for work in convolutions) == expected.fast
    assert all(work.ms >= 0 and work.tensor for work in convolutions)
    rows = layer_rows(load_dag(path), np.ones(load_dag(path).count, bool))
    found = compare_profiles(load_dag(path), rows, first, second)
    assert sorted(line.number or 0 for line in found.layers) == [1, 2, 3, 4, 5, 6]


def test_untimed_layers_have_a_reason(tmp_path: Path) -> None:
    """Not measured, on a GPU, or not runnable: the page says so instead of failing."""
    source = saved(residual(), tmp_path / "a.onnx")
    result = compressed(source, tmp_path / "b.onnx")
    rows = layer_rows(result.dag, result.alive)
    lot = Timing(p10=1.0, median=1.0, p90=1.0, session=1.0, first=1.0, runs=1, memory=0, layouts=None)
    measured = replace(
        result,
        latency=TimingComparison(before=lot, after=lot, speedup=1.0, interval=(1.0, 1.0), noise=0.0, rounds=1, lots=1),
        setting=ONE,
    )
    assert "not measured" in str(layer_times(result, tmp_path / "b.onnx", rows))
    assert "CPU only" in str(layer_times(replace(measured, setting=Setting("cuda")), tmp_path / "b.onnx", rows))
    (tmp_path / "c.onnx").write_bytes(b"no model")
    assert "could not be timed" in str(layer_times(measured, tmp_path / "c.onnx", rows))


def test_profile_of_a_model_that_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    proto = build(RESIDUAL)
    proto.graph.node[0].op_type = "NoSuchOperator"
    saved(proto, path)
    with pytest.raises(RunFailed):
        profile_in_subprocess([path], {"x": np.zeros((1, 3, 16, 16), np.float32)}, ONE, 0.05)


# Its size


BLOCKS = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))
"""Blocks, inner and outer channels of the stages of a ResNet-50."""


def resnet50() -> tuple[str, str]:
    """Constants and body of a network with the channels of a ResNet-50, its kernels being 1×1."""
    constants, body, last, width = ["float[64, 3, 1, 1] stem"], ["t0 = Conv (x, stem)"], "t0", 64
    for stage, (count, inner, outer) in enumerate(BLOCKS):
        for block in range(count):
            n = f"{stage}{block}"
            sizes = [("a", inner, width), ("b", inner, inner), ("c", outer, inner)]
            sizes += [("s", outer, width)] if block == 0 else []
            constants += [f"float[{o}, {i}, 1, 1] w{k}{n}" for k, o, i in sizes]
            body += [f"a{n} = Conv ({last}, wa{n}) e{n} = Relu (a{n}) b{n} = Conv (e{n}, wb{n}) f{n} = Relu (b{n})"]
            body += [f"c{n} = Conv (f{n}, wc{n})", f"s{n} = Conv ({last}, ws{n})" if block == 0 else ""]
            body += [f"g{n} = Add (c{n}, {'s' + n if block == 0 else last}) h{n} = Relu (g{n})"]
            last, width = f"h{n}", outer
    body += [f"p = GlobalAveragePool ({last}) q = Flatten (p) y = Gemm <transB = 1> (q, head)"]
    return ", ".join([*constants, "float[1000, 2048] head"]), " ".join(body)


def test_size_of_a_large_page(tmp_path: Path) -> None:
    constants, body = resnet50()
    proto = net("(float[1, 3, 4, 4] x) => (float[1, 1000] y)", constants, body)
    page, row = page_of(tmp_path, proto, "--keep", 0.5, "--method", "random")
    assert len(row["layers"]) == 54
    assert len(page.encode()) < 2e6
    found = parsed(page)
    assert len([svg for svg in found.all("svg") if svg.get("class") == "heat"]) == 54
    stages = dict(re.findall(r"([A-Z]) layers ([\d, ]+):", found.text("network")))
    assert [len(numbers.split(", ")) for numbers in stages.values()] == [count + 1 for count, _, _ in BLOCKS]
