"""Channel moments on real inputs, compared with numpy on the tensors of onnxruntime."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import DataError
from leanonnx.statistics import moments
from leanonnx.statistics.moments import Accumulator, Moments, Statistics, joined_repeats, measure_statistics
from tests.calibrated import Array, Feed, analysed, dag_of, net, normal_feeds, values

IMAGE = "(float[N,3,6,5] x) => (float[N,4] y)"
CONV = dag_of(
    IMAGE,
    "float[7,3,3,3] a, float[7] b, float[4,7,4,3] c",
    "h = Conv (x, a, b) r = Relu (h) m = Conv (r, c) y = Flatten (m)",
)
TOKENS = dag_of(
    "(float[N,6,5] x) => (float[N,6,4] y)",
    "float[5,7] a, float[7] b, float[7,4] c",
    "h = MatMul (x, a) i = Add (h, b) r = Relu (i) y = MatMul (r, c)",
)
FLAT = dag_of(
    IMAGE,
    "float[7,3,3,3] a, float[84,4] c, float[4] d",
    "h = Conv (x, a) r = Relu (h) f = Flatten (r) y = Gemm (f, c, d)",
)
CONCAT = dag_of(
    IMAGE,
    "float[4,3,3,3] a, float[3,3,3,3] b, float[4,7,4,3] c",
    "h = Conv (x, a) i = Conv (x, b) r = Concat <axis = 1> (h, i) m = Conv (r, c) y = Flatten (m)",
)
DEPTHWISE = dag_of(
    IMAGE,
    "float[7,3,1,1] a, float[7,1,3,3] b, float[4,7,4,3] c",
    "h = Conv (x, a) r = Conv <group = 7> (h, b) m = Conv (r, c) y = Flatten (m)",
)
GROUPED = dag_of(
    IMAGE,
    "float[6,3,1,1] a, float[4,3,3,3] b, float[4,4,4,3] c",
    "r = Conv (x, a) h = Conv <group = 2> (r, b) m = Conv (h, c) y = Flatten (m)",
)
ADD = dag_of(
    IMAGE,
    "float[6,3,3,3] a, float[6,3,3,3] b, float[4,6,4,3] c",
    "h = Conv (x, a) i = Conv (x, b) r = Add (h, i) m = Conv (r, c) y = Flatten (m)",
)


def taken(dag: ChannelDag, feeds: list[Feed]) -> Statistics:
    return measure_statistics(dag, feeds, len(feeds))


def stacked(dag: ChannelDag, tensor: str, axis: int, feeds: list[Feed]) -> Array:
    """Rows [n, positions on the axis] of a tensor in float64."""
    (value,) = values(dag.model.proto, [tensor], feeds)
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).astype(np.float64)


def judge(found: Moments, rows: Array, channel_ids: Array) -> None:
    """Each channel's rows are those of all its positions on the axis."""
    unique = np.unique(channel_ids)
    columns = np.concatenate([rows[:, channel_ids == one].T.reshape(1, -1) for one in unique])
    np.testing.assert_array_equal(found.channel_ids, unique)
    np.testing.assert_allclose(found.covariance, np.cov(columns, bias=True), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("dag", "tensor", "axis"),
    [(CONV, "r", 1), (TOKENS, "r", 2), (CONCAT, "r", 1), (DEPTHWISE, "r", 1), (GROUPED, "r", 1)],
)
def test_moments_are_those_of_the_tensor_that_kernels_read(dag: ChannelDag, tensor: str, axis: int) -> None:
    feeds = normal_feeds(dag, 5, batch=3)
    found = taken(dag, feeds)
    rows = stacked(dag, tensor, axis, feeds)
    judge(found.moments[tensor, axis], rows, dag.channel_ids[tensor].reshape(-1))


def test_a_channel_that_a_flatten_repeats_has_a_row_for_each_position() -> None:
    feeds = normal_feeds(FLAT, 5, batch=3)
    found = taken(FLAT, feeds).moments["f", 1]
    assert found.channel_ids.size == 7
    judge(found, stacked(FLAT, "f", 1, feeds), FLAT.channel_ids["f"].reshape(-1))
    judge(found, stacked(FLAT, "r", 1, feeds), FLAT.channel_ids["r"].reshape(-1))


def test_shared_tensors_are_measured_once_and_inputs_are_not() -> None:
    assert set(taken(CONCAT, normal_feeds(CONCAT, 1)).moments) == {("r", 1)}


def test_rows_of_a_channel_that_stands_more_often_than_another_are_means() -> None:
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = joined_repeats(value, np.array([5, 2, 5, 5]))
    np.testing.assert_allclose(found, np.stack([value[:, 1], value[:, [0, 2, 3]].mean(1)], 1))


def test_rows_of_interleaved_channels() -> None:
    value = np.arange(12, dtype=np.float32).reshape(2, 6)
    found = joined_repeats(value, np.array([8, 3, 8, 3, 8, 3]))
    wanted = np.concatenate([value[:, [k + 1, k]] for k in (0, 2, 4)])
    assert sorted(map(tuple, found)) == sorted(map(tuple, wanted))


def test_variances_of_operands_of_an_addition() -> None:
    feeds = normal_feeds(ADD, 5, batch=3)
    found = taken(ADD, feeds)
    for tensor in ("h", "i"):
        variance = found.variance[ADD.channel_ids[tensor].reshape(-1)]
        np.testing.assert_allclose(variance, stacked(ADD, tensor, 1, feeds).var(0), rtol=1e-3)
    assert np.isnan(found.variance[ADD.channel_ids["r"]]).all()


def test_variance_of_a_channel_far_from_zero() -> None:
    rows = np.random.default_rng(0).standard_normal((5000, 3)) + 1000
    sums = Accumulator(3)
    for part in np.array_split(rows.astype(np.float32), 7):
        sums.add(part)
    np.testing.assert_allclose(sums.take_products(sums.mean()) / sums.rows, np.cov(rows.T, bias=True), atol=1e-3)


def test_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = normal_feeds(CONV, 8, batch=2)
    whole = taken(CONV, [{"x": np.concatenate([feed["x"] for feed in feeds])}])
    monkeypatch.setattr(moments, "BUFFERED_ROWS", 7)
    pieces = taken(CONV, feeds)
    for place, one in whole.moments.items():
        np.testing.assert_allclose(one.covariance, pieces.moments[place].covariance, rtol=1e-3, atol=1e-6)


def test_tensors_that_only_depthwise_kernels_read_are_not_measured() -> None:
    assert taken(DEPTHWISE, normal_feeds(DEPTHWISE, 2)).moments.keys() == {("r", 1)}


def test_parts_are_the_covariances_of_some_runs_about_the_common_mean() -> None:
    feeds = normal_feeds(CONV, 10, batch=3)
    one = taken(CONV, feeds).moments["r", 1]
    assert one.parts is not None
    rows = [stacked(CONV, "r", 1, [feed]) for feed in feeds]
    mean = np.concatenate(rows).mean(0)
    apart = np.concatenate([part for k, part in enumerate(rows, 1) if k % moments.HELD_OUT_RUN_STRIDE == 0]) - mean
    fitted = np.concatenate([part for k, part in enumerate(rows, 1) if k % moments.HELD_OUT_RUN_STRIDE]) - mean
    for measured, expected in zip(one.parts, (fitted, apart), strict=True):
        np.testing.assert_allclose(measured, expected.T @ expected / len(expected), rtol=1e-3, atol=1e-4)


def test_large_tensors_are_sampled_over_all_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each input the same number of positions, as many as the channels ask for and no more."""
    monkeypatch.setattr(moments, "MAX_FREE_MOMENT_ROWS", 1)
    taken_rows: list[int] = []
    add = Accumulator.add

    def counted(sums: Accumulator, rows: Array) -> None:
        taken_rows.append(len(rows))
        add(sums, rows)

    monkeypatch.setattr(Accumulator, "add", counted)
    feeds = normal_feeds(CONV, 10, batch=8)
    found = measure_statistics(CONV, feeds, 10, rows_per_channel=100)
    assert taken_rows == [70] * 10
    rows = stacked(CONV, "r", 1, feeds)
    np.testing.assert_allclose(found.moments["r", 1].covariance, np.cov(rows.T, bias=True), atol=0.3 * rows.var())


def test_memory_does_not_grow_with_the_samples() -> None:
    def endless(count: int) -> Iterator[Feed]:
        for k in range(count):
            yield {"x": np.full((64, 3, 6, 5), k, np.float32)}

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            measure_statistics(CONV, endless(count), count)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    assert peak(120) < peak(4) + 10 * 64 * 3 * 6 * 5 * 4


def test_half_precision_is_seen_in_single() -> None:
    dag = analysed(
        net(
            "(float16[N,3,6,5] x) => (float16[N,4,4,3] y)",
            "float16[7,3,3,3] a, float16[4,7,1,1] c",
            "h = Conv (x, a) r = Relu (h) y = Conv (r, c)",
        )
    )
    feeds = normal_feeds(dag, 4, batch=2)
    found = taken(dag, feeds).moments["r", 1]
    np.testing.assert_allclose(found.covariance, np.cov(stacked(dag, "r", 1, feeds).T, bias=True), rtol=2e-2, atol=1e-3)


def test_the_network_is_left_as_it_was() -> None:
    before = CONV.model.proto.SerializeToString(deterministic=True)
    taken(CONV, normal_feeds(CONV, 2))
    with pytest.raises(DataError):
        taken(CONV, [{"x": np.zeros((1, 2, 6, 5), np.float32)}])
    assert CONV.model.proto.SerializeToString(deterministic=True) == before


def test_progress_is_reported() -> None:
    progress: list[float] = []
    measure_statistics(CONV, normal_feeds(CONV, 4), 4, progress.append)
    assert progress == [0.25, 0.5, 0.75, 1.0]


def test_values_that_are_not_finite_are_refused() -> None:
    feed = {"x": np.full((1, 3, 6, 5), np.nan, np.float32)}
    with pytest.raises(DataError, match="'r' holds NaN or infinite values"):
        taken(CONV, [feed])


def test_inputs_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be run on the calibration data"):
        taken(CONV, [{"x": np.zeros((1, 2, 6, 5), np.float32)}])


def test_faults_of_the_data_are_not_blamed_on_the_model() -> None:
    def broken() -> Iterator[Feed]:
        yield from normal_feeds(CONV, 1)
        raise DataError("sample 1 is torn")

    with pytest.raises(DataError) as caught:
        measure_statistics(CONV, broken(), 2)
    assert str(caught.value) == "sample 1 is torn"


def test_nothing_to_look_at() -> None:
    dag = dag_of("(float[N,3,6,5] x) => (float[N,4,4,3] y)", "float[4,3,3,3] a", "y = Conv (x, a)")
    found = taken(dag, normal_feeds(dag, 3))
    assert not found.moments
    assert isinstance(dag.model.proto, onnx.ModelProto)


def test_channels_on_another_axis_than_the_last() -> None:
    """As wide as they are many, so that sizes alone do not identify the axis."""
    dag = dag_of(
        "(float[N,3,5,7] x) => (float[N,4,5,7] y)",
        "float[7,3,1,1] a, float[4,7] c",
        'h = Conv (x, a) r = Relu (h) y = Einsum <equation = "bchw,oc->bohw"> (r, c)',
    )
    feeds = normal_feeds(dag, 4)
    found = taken(dag, feeds).moments
    assert ("r", 3) not in found
    for (tensor, axis), one in found.items():
        judge(one, stacked(dag, tensor, axis, feeds), dag.channel_ids[tensor].reshape(-1))


@pytest.mark.parametrize("runs", [2, 3])
def test_the_last_of_few_runs_is_summed_apart(runs: int) -> None:
    feeds = normal_feeds(CONV, runs, batch=3)
    one = taken(CONV, feeds).moments["r", 1]
    assert one.parts is not None
    rows = stacked(CONV, "r", 1, feeds[-1:]) - stacked(CONV, "r", 1, feeds).mean(0)
    np.testing.assert_allclose(one.parts[1], rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)
