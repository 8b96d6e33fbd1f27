"""Latency: statistics of given times, the order of timing, and the actual settings of sessions.

Nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from leanonnx.errors import OptionError
from leanonnx.numeric.intervals import RunTimes, median_interval, noise_floor, time_in_turns, time_ratios
from leanonnx.runtime import subprocess_timing as fresh
from leanonnx.runtime import timing
from leanonnx.runtime.fastpath import ConvolutionLayouts, convolution_layouts
from leanonnx.runtime.machine import channel_block
from leanonnx.runtime.providers import Setting, open_timed_session, prepare_provider, provider_list, session_options
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.runtime.timing import (
    MAX_LOTS,
    MIN_MARGIN,
    MIN_ROUNDS,
    TIMING_PATIENCE,
    WANTED_ROUNDS,
    Timing,
    TimingComparison,
    block_sizes,
    compare_latency,
    is_settled,
    lot_count,
    stopping_rule,
    time_model,
)
from leanonnx.system import cores, processes
from tests.helpers import SHORT, build, saved

ONE = Setting(threads=1)
NO_GPU = not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists()


def network(width: int, path: Path) -> Path:
    """Three convolutions of one width."""
    middle = f"float[{width}, {width}, 3, 3]"
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 8, 8] x) => (float[N, 5] y)
    <float[{width}, 3, 3, 3] w1, {middle} w2, {middle} w3, float[5, {width}] w4>
    {{
        c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
        c2 = Conv <pads = [1, 1, 1, 1]> (c1, w2)
        c3 = Conv <pads = [1, 1, 1, 1]> (c2, w3)
        p = GlobalAveragePool (c3)
        f = Flatten (p)
        y = Gemm <transB = 1> (f, w4)
    }}
    """
    return saved(build(text), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("timing")


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    return network(32, folder / "wide.onnx")


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Path:
    return network(16, folder / "narrow.onnx")


FEED: Feed = {"x": np.ones((2, 3, 8, 8), np.float32)}


def drawn(count: int, median: float, spread: float, seed: int = 0) -> np.ndarray:
    return median * np.exp(spread * np.random.default_rng(seed).standard_normal(count))


def test_interval_holds_the_median_and_shrinks_with_more_values() -> None:
    few, many = (median_interval([drawn(count, 2.0, 0.05)]) for count in (20, 500))
    assert few[0] < 2.0 < few[1]
    assert many[0] < 2.0 < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_interval_is_as_sure_as_it_says() -> None:
    """Of 95 % intervals on values with a known median, about 95 % contain it."""
    held = 0
    for seed in range(200):
        low, high = median_interval([drawn(31, 1.0, 0.1, seed)], seed, draws=300)
        held += low <= 1 <= high
    assert 0.88 <= held / 200 <= 0.995


def test_interval_is_wide_where_lots_disagree() -> None:
    """Each lot alone is sure of itself; what differs between lots has to show."""
    lots = [drawn(50, median, 0.001, seed) for seed, median in enumerate((0.98, 1.0, 1.01, 1.03))]
    low, high = median_interval(lots)
    assert low < 0.995
    assert high > 1.015
    pooled = median_interval([np.concatenate(lots)])
    assert high - low > pooled[1] - pooled[0]


def test_interval_depends_on_values_and_seed_alone() -> None:
    values = [drawn(40, 1.5, 0.1), drawn(30, 1.6, 0.1, 1)]
    assert median_interval(values, 3) == median_interval(values, 3)
    assert median_interval(values, 3) != median_interval(values, 4)


def test_interval_of_one_value_says_nothing() -> None:
    assert median_interval([np.array([1.2])]) == (0.0, math.inf)


def test_noise_is_the_spread_of_a_model_against_itself() -> None:
    calm = np.array([[1.0, 3.0]] * 20)
    assert noise_floor([calm]) == 0.0
    shaken = np.stack([drawn(40, 1.0, 0.2), drawn(40, 3.0, 0.2, 1)], axis=1)
    assert 0.01 < noise_floor([shaken]) < 0.5
    assert noise_floor([calm[:1]]) == math.inf


def test_ratio_is_before_over_after() -> None:
    (found,) = time_ratios([np.array([[3.0, 1.5], [4.0, 1.0]])])
    assert found.tolist() == [2.0, 4.0]


def test_models_take_turns_in_swapped_order() -> None:
    order: list[str] = []

    def block(name: str, value: float) -> float:
        order.append(name)
        return value

    times = time_in_turns([lambda: block("A", 1.0), lambda: block("B", 2.0)], lambda times: len(times) == 4)
    assert "".join(order) == "ABBAABBA"
    assert times.tolist() == [[1.0, 2.0]] * 4


def compared(interval: tuple[float, float], floor: float = 0.0) -> TimingComparison:
    one = Timing(p10=1, median=1, p90=1, session=1, first=1, runs=1, memory=0, layouts=None)
    return TimingComparison(
        before=one, after=one, speedup=sum(interval) / 2, interval=interval, noise=floor, rounds=20, lots=1
    )


@pytest.mark.parametrize(
    ("interval", "floor", "words"),
    [
        ((1.2, 1.3), 0.0, "faster"),
        ((0.8, 0.9), 0.0, "slower"),
        ((0.9, 1.1), 0.0, "no difference shown"),
        ((1 + MIN_MARGIN / 4, 1 + MIN_MARGIN / 2), 0.0, "no difference shown"),
        ((1.2, 1.3), 0.25, "no difference shown"),
        ((0.85, 0.9), 0.25, "no difference shown"),
        ((1.2, 1.3), 0.1, "faster"),
    ],
)
def test_words(interval: tuple[float, float], floor: float, words: str) -> None:
    found = compared(interval, floor)
    assert found.verdict == words
    assert [found.is_faster, found.is_slower] == [words == each for each in ("faster", "slower")]


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [([0.01], [1]), ([1e-4], [10]), ([1e-4, 2e-4], [10, 10]), ([1e-4, 1.0], [10, 1]), ([0.5, 0.4], [1, 1])],
)
def test_blocks_last_a_millisecond(seconds: list[float], sizes: list[int]) -> None:
    assert block_sizes(seconds) == sizes


@pytest.mark.parametrize(("opening", "seconds", "lots"), [(0.0, 3, MAX_LOTS), (0.5, 3, 3), (2, 3, 1), (60, 3, 1)])
def test_sessions_are_reopened_where_it_is_cheap(opening: float, seconds: float, lots: int) -> None:
    assert lot_count(opening, seconds) == lots


def rounds_until(stop_after: float, step: float, ratio: float = 1.0, spread: float = 0.5) -> int:
    """Rounds of ``step`` seconds each until it is enough."""
    now = 0.0
    stop = stopping_rule(stop_after, WANTED_ROUNDS, seed=0, clock=lambda: now)
    noisy = drawn(1000, ratio, spread)
    times: RunTimes = np.stack([noisy, np.ones(1000)], axis=1)
    for count in range(1, 1001):
        now = count * step
        if stop(times[:count]):
            return count
    return 1000


def test_stops_when_time_is_up() -> None:
    assert rounds_until(3.0, 0.1) == 30
    assert rounds_until(3.0, 0.1, ratio=1.005, spread=1e-4) == 30


def test_slow_models_get_some_rounds_more_than_time_allows() -> None:
    assert rounds_until(3.0, 0.5) == WANTED_ROUNDS
    assert rounds_until(3.0, 100.0) == MIN_ROUNDS
    assert rounds_until(3.0, TIMING_PATIENCE * 3.0 / 10) == 10


def test_stops_early_when_the_ratio_is_known() -> None:
    assert rounds_until(300.0, 0.1, ratio=2.0, spread=1e-4) == WANTED_ROUNDS
    assert rounds_until(300.0, 0.1, ratio=0.5, spread=1e-4) == WANTED_ROUNDS
    assert not is_settled(np.ones((100, 1)), 0)


def test_session_is_set_as_the_docstring_says() -> None:
    options = session_options(Setting(threads=3))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.enable_mem_pattern
    assert options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_providers_get_their_options() -> None:
    assert provider_list(ONE) == ["CPUExecutionProvider"]
    (name, found), last = provider_list(Setting("cuda", cuda_graph=True, tf32=False))
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert found == {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0", "enable_cuda_graph": "1"}
    first, second, last = provider_list(Setting("tensorrt", cuda_graph=True))
    assert (first[0], second[0], last) == ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert (first[1]["trt_cuda_graph_enable"], second[1]["enable_cuda_graph"]) == ("True", "0")


def test_no_threads_given_means_all_cores() -> None:
    assert Setting().with_thread_count.threads == cores.available_cores() >= 1
    assert Setting(threads=3).with_thread_count.threads == 3


def test_cores_are_counted_once_and_within_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    monkeypatch.setattr(cores, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(cores, "GROUP_QUOTA", tmp_path / "cpu.max")
    assert cores.available_cores() == 2
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert cores.available_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores.available_cores() == 2


@pytest.mark.skipif(not NO_GPU, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_refused(provider: str, wide: Path) -> None:
    """onnxruntime would fall back to the CPU without a word."""
    setting = Setting(provider, threads=1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=rf"provider='{provider}'.*onnxruntime-gpu\[cuda,cudnn\].*nvidia-smi"):
        prepare_provider(setting)
    with pytest.raises(OptionError, match=rf"provider='{provider}'"):
        fresh.time_in_subprocess(wide, FEED, setting, SHORT)


def blocked(path: Path) -> ConvolutionLayouts:
    """Layouts on the CPU; skips where onnxruntime has no blocked layout for this processor."""
    found = convolution_layouts(path, ONE)
    assert found is not None
    return found


def test_convolutions_are_counted_by_layout(wide: Path, tmp_path: Path) -> None:
    fast = blocked(wide)
    if not fast.fast:
        pytest.skip("onnxruntime has no blocked layout (NCHWc) for this processor")
    assert (fast.fast, fast.plain) == (3, 0)
    odd = blocked(network(33, tmp_path / "odd.onnx"))
    assert odd.fast + odd.plain == 3
    assert odd.plain >= 2


BLOCK_OF_AVX2 = 8
"""Channels of a block of onnxruntime's kernels for AVX2."""


def test_narrow_convolutions_off_the_step_are_reordered(narrow: Path, tmp_path: Path) -> None:
    """15 channels come out of the blocked layout after every convolution; with blocks of 8 they do without it."""
    even, odd = blocked(narrow), blocked(network(15, tmp_path / "odd.onnx"))
    if not even.fast:
        pytest.skip("onnxruntime has no blocked layout (NCHWc) for this processor")
    assert even.plain == 0
    if channel_block() == BLOCK_OF_AVX2:
        assert (odd.plain, odd.reorders) == (2, even.reorders)
    else:
        assert odd.reorders > even.reorders


def check_timing(found: Timing) -> None:
    assert 0 < found.p10 <= found.median <= found.p90
    assert found.session > 0
    assert found.first > 0
    assert found.runs >= MIN_ROUNDS
    assert found.memory >= 0
    assert found.layouts is not None
    assert found.layouts.fast + found.layouts.plain == 3


def check_comparison(found: TimingComparison) -> None:
    check_timing(found.before)
    check_timing(found.after)
    assert found.interval[0] <= found.speedup <= found.interval[1]
    assert found.rounds >= MIN_ROUNDS
    assert 1 <= found.lots <= MAX_LOTS
    assert found.noise >= 0
    assert found.verdict in ("faster", "slower", "no difference shown")


def test_two_models_in_this_process_and_in_a_fresh_one(wide: Path, narrow: Path) -> None:
    here = compare_latency(wide, narrow, FEED, ONE, SHORT)
    there = fresh.compare_in_subprocess(wide, narrow, FEED, ONE, SHORT)
    for found in (here, there):
        check_comparison(found)
    assert [type(value) for value in vars(here).values()] == [type(value) for value in vars(there).values()]
    assert asdict(here).keys() == asdict(there).keys()


def test_one_model_in_this_process_and_in_a_fresh_one(wide: Path) -> None:
    check_timing(time_model(wide, FEED, ONE, SHORT))
    check_timing(fresh.time_in_subprocess(wide, FEED, replace(ONE, threads=2), SHORT))


def test_each_model_is_first_as_often_as_the_other(wide: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are opened in swapped order from lot to lot."""
    opened: list[str] = []

    def noted(path: Path, setting: Setting) -> ort.InferenceSession:
        opened.append(path.stem)
        return open_timed_session(path, setting)

    monkeypatch.setattr(timing, "open_timed_session", noted)
    monkeypatch.setattr(timing, "lot_count", lambda opening, seconds: 4)
    found = compare_latency(wide, narrow, FEED, ONE, SHORT)
    assert opened == ["wide", "narrow", "narrow", "wide"] * 2
    assert found.lots == 4


def test_inputs_of_every_type_reach_the_fresh_process(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float16[2] h, string[2] s, bool[2] b, int64[2] i) => (float16[2] a, string[2] t, bool[2] c, int64[2] j)
    { a = Relu (h) t = Identity (s) c = Not (b) j = Neg (i) }
    """
    feed = {
        "h": np.ones(2, np.float16),
        "s": np.array(["one", "two"], object),
        "b": np.array([True, False]),
        "i": np.arange(2),
    }
    found = fresh.time_in_subprocess(saved(build(text), tmp_path / "types.onnx"), feed, ONE, SHORT)
    assert found.runs >= MIN_ROUNDS
    assert found.layouts == ConvolutionLayouts(0, 0, 0)


def test_a_model_that_cannot_run_is_refused(wide: Path) -> None:
    with pytest.raises(RunFailed, match="x"):
        fresh.time_in_subprocess(wide, {"x": np.ones((1, 4, 8, 8), np.float32)}, ONE, SHORT)


def test_a_process_that_dies_is_reported(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CHILD_CODE", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunFailed, match="SIGKILL"):
        fresh.time_in_subprocess(wide, FEED, ONE, SHORT)
    monkeypatch.setattr(processes, "CHILD_CODE", "raise SystemExit('no such thing')")
    with pytest.raises(RunFailed, match="exit code 1: no such thing"):
        fresh.time_in_subprocess(wide, FEED, ONE, SHORT)
    monkeypatch.setattr(processes, "CHILD_CODE", "import time; time.sleep(60)")
    monkeypatch.setattr(fresh, "START_SECONDS", 0.2)
    with pytest.raises(RunFailed, match="did not end"):
        fresh.time_in_subprocess(wide, FEED, ONE, SHORT)
