"""Metrics: what budgets limit and reports count.

A metric is one ``Metric`` value in ``METRICS``; the command line, the Python API, reports and pages iterate over that
table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Literal

import numpy as np

from leanonnx.analysis.cost import Cost, CostModel, Rate, kernel_rate, mac_rate, param_rate
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.file_size import weight_bits
from leanonnx.checks import DECIMAL_COMMA, check_fraction, read_fraction
from leanonnx.errors import OptionError
from leanonnx.graph.nodes import BIAS, BIASED, standard_name
from leanonnx.graph.storage import BITS_PER_BYTE
from leanonnx.hardware.targets import Hardware
from leanonnx.numeric.channel_ids import Mask
from leanonnx.rules.call import KernelBlock
from leanonnx.runtime.profiling import NodeTime
from leanonnx.selection.latency import latency_model, latency_rate
from leanonnx.spelling import option, verb

Price = Callable[[Mask], float]
"""Cost of a keep set [channels], in the unit of a metric."""
MIN_BIAS_BITS = 32
"""Bits of one element of a bias that a layer gets; more where its weight has more."""
BIAS_FRAME_BYTES = 128
"""Bytes that are written with such a bias, but for its name, at most."""
NAMINGS = 3
"""Times that its name is written, at most."""
SIZE_PATTERN = re.compile(r"(\d{1,18})B?|(\d{1,18}(?:\.\d+)?) ?([kMG]i?)B?", re.IGNORECASE)
"""A file size: a whole number of bytes, or a number and a unit."""
BYTES_PER_UNIT = {"k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}
"""Bytes of each unit of a file size."""
Limit = float | str
"""Value of the option of a budget: a fraction, or a text that the metric parses."""


@dataclass(frozen=True, kw_only=True)
class PricingInputs:
    """A network to price.

    ``cost`` counts its layers but for the ``ignored`` ones (node indices); ``hardware``: where it is to run, which
    latency needs, and ``profile``: times of its nodes there, if they were measured; ``refits``: weights are refitted
    after pruning, and layers without a bias get one.
    """

    dag: ChannelDag
    cost: CostModel
    ignored: frozenset[int] = frozenset()
    hardware: Hardware | None = None
    profile: tuple[NodeTime, ...] = ()
    refits: bool = False

    def bias_sizes(self, alive: Mask) -> list[int]:
        """Sizes of the biases that layers without one get; none where nothing is removed."""
        return [] if alive.all() else [int(np.count_nonzero(alive[mix.destinations])) for _, mix in self.unbiased]

    @cached_property
    def unbiased(self) -> tuple[tuple[int, KernelBlock], ...]:
        """The layers that get a bias: their nodes and kernel blocks."""
        nodes = self.dag.model.proto.graph.node
        return tuple(
            (node, mix)
            for node, mix in self.dag.kernel_blocks
            if self.refits
            and node not in self.ignored
            and standard_name(nodes[node]) in BIASED
            and not any(nodes[node].input[BIAS:])
        )


def _price_kernels(inputs: PricingInputs) -> Price:
    return lambda alive: float(inputs.cost(alive).kernels)


def _price_macs(inputs: PricingInputs) -> Price:
    return lambda alive: float(inputs.cost(alive).macs)


def _price_params(inputs: PricingInputs) -> Price:
    return lambda alive: float(inputs.cost(alive).params + sum(inputs.bias_sizes(alive)))


def _price_latency(inputs: PricingInputs) -> Price:
    """Predicted ms of one run."""
    return latency_model(inputs.dag, _hardware(inputs), inputs.profile)


def _rate_latency(inputs: PricingInputs) -> Rate:
    return latency_rate(inputs.dag, _hardware(inputs))


def _price_bytes(inputs: PricingInputs) -> Price:
    return lambda alive: float(inputs.cost(alive).bytes + bias_bytes(inputs, alive))


def bias_bytes(inputs: PricingInputs, alive: Mask) -> int:
    """Bytes of the biases that refitting adds to the file of a keep set, at most."""
    total, nodes, file = 0, inputs.dag.model.proto.graph.node, inputs.cost.file
    for (node, mix), size in zip(inputs.unbiased, inputs.bias_sizes(alive), strict=False):
        bits = max(weight_bits(inputs.dag, node, mix.slot), MIN_BIAS_BITS)
        total += file.data_bytes(bits, size) + BIAS_FRAME_BYTES + NAMINGS * len(nodes[node].output[0])
    return total


def _rate_bytes(inputs: PricingInputs) -> Rate:
    bits, numbers = cache(partial(weight_bits, inputs.dag)), param_rate(inputs.dag)
    return lambda node, mix: numbers(node, mix) * bits(node, mix.slot) / BITS_PER_BYTE


def _hardware(inputs: PricingInputs) -> Hardware:
    if inputs.hardware is None:
        raise ValueError("latency is predicted for given hardware, and none is given")
    return inputs.hardware


def _fraction(metric: Metric, limit: Limit) -> Budget:
    """A budget from a fraction."""
    return Budget(metric.name, read_fraction(metric.option, limit, metric.advice.format(bench=verb("bench"))))


def _fraction_or_size(metric: Metric, limit: Limit) -> Budget:
    """A budget from a fraction or a size; whole numbers above 1 are bytes."""
    text = str(limit).strip()
    match = SIZE_PATTERN.fullmatch(text)
    if DECIMAL_COMMA.fullmatch(text) or text.endswith("%"):
        return _fraction(metric, text)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if 0 < number <= 1:
        return Budget(metric.name, number)
    size = 0
    if match:
        size = int(match[1]) if match[1] else math.floor(float(match[2]) * BYTES_PER_UNIT[match[3].lower()])
    if size < 1:
        raise OptionError(
            f"{option(metric.option, limit)}: expected a fraction above 0 and at most 1, or a file size, for example "
            f"{option(metric.option, 0.5)} or {option(metric.option, '5MB')}"
        )
    return Budget(metric.name, 1.0, size)


@dataclass(frozen=True)
class Metric:
    """A number that a budget limits, or a report counts.

    Attributes:
        name: its key in JSON, and in tables.
        option: the option that limits it; empty where there is none.
        noun: its unit in sentences.
        title: its name as a heading.
        meaning: its definition in tables.
        help: help of the option of ``compress``.
        sweep_help: help of the option of ``sweep``.
        price: prices the keep sets of a network.
        rate: cost of a single kernel, in the same unit; rankings by path mass weigh it.
        parse: parses the value of the option.
        advice: what the error about a value that is no fraction adds.
        metavar: what stands for the value in the help.
        confirm: what confirms that a budget is met: the predicted price, a measurement, or the written file.
        counts_macs: what keeps a network from shrinking is reported in multiply-adds, not in kernels.
        symbol: symbol of the unit behind a number.
    """

    name: str
    option: str
    noun: str
    title: str
    meaning: str
    help: str
    sweep_help: str
    price: Callable[[PricingInputs], Price]
    rate: Callable[[PricingInputs], Rate]
    parse: Callable[[Metric, Limit], Budget] = _fraction
    advice: str = ""
    metavar: str = "F"
    confirm: Literal["predicted", "measured", "written"] = "predicted"
    counts_macs: bool = False
    symbol: str = ""

    @property
    def measured(self) -> bool:
        """True if a budget is met by measuring."""
        return self.confirm == "measured"

    def count(self, cost: Cost) -> int:
        """The number of a metric that is counted."""
        return int(getattr(cost, self.name))


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="kernels",
            option="keep",
            noun="kernels",
            title="Kernels",
            meaning="input-output channel pairs of Conv, ConvTranspose, Gemm and MatMul",
            help="Keep at most this fraction of the kernels (0 to 1).",
            sweep_help="Fractions of the kernels: 0.75,0.5,0.25.",
            price=_price_kernels,
            rate=lambda _: kernel_rate,
        ),
        Metric(
            name="macs",
            option="macs",
            noun="multiply-adds",
            title="Multiply-adds",
            meaning="multiply-adds of one run at the input sizes shown",
            help="Keep at most this fraction of the multiply-adds.",
            sweep_help="Fractions of the multiply-adds.",
            price=_price_macs,
            rate=lambda _: mac_rate,
            counts_macs=True,
        ),
        Metric(
            name="params",
            option="params",
            noun="parameters",
            title="Parameters",
            meaning="numbers stored as weights",
            help="Keep at most this fraction of the parameters.",
            sweep_help="Fractions of the parameters.",
            price=_price_params,
            rate=lambda inputs: param_rate(inputs.dag),
        ),
        Metric(
            name="latency",
            option="latency",
            noun="time",
            title="Time",
            meaning="median ms of one run in onnxruntime, measured in turns; fraction: median of the ratios",
            help="Take at most this fraction of the original's measured time.",
            sweep_help="Fractions of the measured time; searched one by one.",
            price=_price_latency,
            rate=_rate_latency,
            advice=" of the original's time, which `{bench}` measures",
            confirm="measured",
        ),
        Metric(
            name="bytes",
            option="bytes",
            noun="bytes",
            title="File size",
            meaning="size of the file with its external data",
            help="Write a file of at most this fraction of the original's bytes, or of at most this size: 5MB, 800kB, "
            "3MiB.",
            sweep_help="Fractions of the bytes of the file.",
            price=_price_bytes,
            rate=_rate_bytes,
            parse=_fraction_or_size,
            metavar="F|SIZE",
            confirm="written",
            symbol="B",
        ),
    )
}
"""All metrics by name, in the order of options and tables."""
LATENCY = "latency"
"""Name of the metric of time, which is measured."""
COUNTED_METRICS = tuple(metric for metric in METRICS.values() if not metric.measured)
"""Metrics that are counted, without a measurement."""
BUDGETS: Mapping[str, Metric] = {metric.option: metric for metric in METRICS.values() if metric.option}
"""Metrics that an option limits, by that option."""


def metric_named(name: str) -> Metric:
    """The metric of a name.

    Raises:
        OptionError: there is none.
    """
    if name not in METRICS:
        raise OptionError(f"'{name}' is no metric; expected one of {', '.join(METRICS)}")
    return METRICS[name]


@dataclass(frozen=True)
class Budget:
    """At most ``fraction`` of the original's cost in a metric, whose name is ``unit``; or at most an ``amount`` of it.

    Raises:
        OptionError: there is no such metric, or the fraction is not above 0 and at most 1.
    """

    unit: str
    fraction: float
    amount: int | None = None

    def __post_init__(self) -> None:
        check_fraction(metric_named(self.unit).option, self.fraction)

    @classmethod
    def of_option(cls, name: str, limit: Limit) -> Budget:
        """The budget that an option sets.

        Raises:
            OptionError: the limit is not of its form.
        """
        metric = BUDGETS[name]
        return metric.parse(metric, limit)

    def of_total(self, total: int) -> Budget:
        """The same with the fraction that an amount is of the original's total, at most 1."""
        return self if self.amount is None else replace(self, fraction=min(self.amount / max(total, 1), 1.0))

    def limit(self, total: int) -> float:
        """The highest cost within the budget, for the original's total."""
        return self.fraction * total if self.amount is None else float(self.amount)

    @property
    def metric(self) -> Metric:
        """The metric that is limited."""
        return METRICS[self.unit]

    @property
    def option(self) -> str:
        """The option that sets it."""
        return self.metric.option
