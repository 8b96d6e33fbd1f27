"""Options of ``compress``: one table for the command line, Python and the plan file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from leanonnx.checks import check_choice, check_least, check_positive, exactly_one, likely_share
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import SampleSource
from leanonnx.effort import DEFAULT_EFFORT, EFFORTS, EffortName
from leanonnx.errors import OptionError
from leanonnx.evaluation.tolerances import Tolerances
from leanonnx.evaluation.user_scores import ScoreFunction, score_name
from leanonnx.quantization.formats import check_int8_options
from leanonnx.ranking.criteria import METHODS, Chains, Importance, Method, meaning, method_name
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.selection.metrics import Budget, Limit
from leanonnx.spelling import option
from leanonnx.surgery.plan import Plan
from leanonnx.surgery.recipe import ARRAYS_NAME
from leanonnx.system.gpu import Device

Recover = Literal["none", "auto"]
Blocks = Literal["auto", "never"]
Minimise = Literal["latency", "macs", "bytes"]
TOLERANCES = "min_agreement", "max_deviation", "min_psnr", "score", "max_drop"
"""Options that say what loss may be borne."""
METHOD_HELP = " ".join(f"{each}: {meaning(each)}" for each in METHODS)

EFFORT_LIMITS = ", ".join(f"{effort.max_samples} ({name})" for name, effort in EFFORTS.items())


def asked_budget(given: Mapping[str, Limit | None], plan: object, exact: bool, alone: Any = ()) -> Budget:
    """The budget of an option; the whole model for a plan, a lossless reduction, and what needs no budget.

    Args:
        given: limits by the names of their options; None for those not given.
        plan: None for no plan.
        exact: True for a lossless reduction.
        alone: values of the options that need no budget, tolerances and a teacher; None for those not given.

    Raises:
        OptionError: not exactly one of these is given.
    """
    ways: dict[str, Any] = {**given, "plan": plan, "exact": exact or None}
    if all(value is None for value in ways.values()) and any(value is not None for value in alone):
        return Budget("kernels", 1.0)
    need_none = f"tolerances such as {option('min_agreement', 0.97)}, and {option('int8', True)}, need none"
    name, value = exactly_one(ways, f"{option('keep', 0.25)} ({need_none})")
    return Budget.of_option(name, value) if name in given else Budget("kernels", 1.0)


def alignment(given: str | int) -> int | None:
    """The value of ``--align auto|N``: None for auto.

    Raises:
        OptionError: neither auto nor a number of at least 1.
    """
    if given == "auto":
        return None
    text = str(given)
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(
            f"{option('align', given)}: expected auto or a number of channels of at least 1, for example "
            f"{option('align', 8)}"
        )
    return int(text)


class Described(NamedTuple):
    """Description of an option for the command line and for plans; see ``described_options``.

    ``help`` names other options in backquotes, as ``calib`` or ``method=random``; ``least`` is the smallest number that
    is allowed; ``keyword`` the name of the option, where the field has another; ``recorded`` is True for options that
    every plan records, and False for those that no plan does (None: if not the default).
    """

    help: str
    metavar: str | None = None
    least: int | None = None
    keyword: str | None = None
    recorded: bool | None = False


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Options of a compression, by field: what each does, its type and its default.

    The command line makes its options from the described fields, and Python's ``compress`` passes its keywords on. The
    others: ``budget``, or ``plan`` or ``exact`` in its place; ``targets``, a file of hardware targets that come before
    the built-in ones; ``images``, the format of photographs in ``calib``; ``removed``, channels of the caller's choice
    that ``plan`` removes; ``points``, the number of budgets of a sweep that tolerances are told for (0: the tolerances
    are looked for); ``measure``, True to time the result (a latency budget always does).

    Raises:
        OptionError: there is no such choice, or two of them contradict each other.
    """

    budget: Budget = field(default_factory=lambda: Budget("kernels", 1.0))
    method: Annotated[
        Method | Importance,
        Described(f"How channels are ranked. {METHOD_HELP}", recorded=True),
    ] = "auto"
    chains: Annotated[Chains, Described("Which chains lean extracts.", recorded=True)] = "cover"
    shapes: Annotated[
        Shapes, Described("Size of a free graph input.", "NAME=1,3,224,224", keyword="shape", recorded=True)
    ] = field(default_factory=dict)
    pin: Annotated[
        tuple[str, ...], Described("Tensor or node whose channels are all kept.", "NAME", recorded=True)
    ] = ()
    ignore: Annotated[
        tuple[str, ...], Described("Layer that is not counted and keeps all its outputs.", "LAYER", recorded=True)
    ] = ()
    calib: Annotated[
        SampleSource | None,
        Described(
            "Real inputs: an .npz file keyed by graph input (axis 0 = samples), a folder of them, or of images.", "DATA"
        ),
    ] = None
    images: ImageFormat = field(default_factory=ImageFormat)
    teacher: Annotated[
        Path | None,
        Described(
            "The network that IN was cut from: `calib` data fit the weights to it, and the deviation is that from it. "
            "Needs no budget.",
            "ORIGINAL.onnx",
            recorded=None,
        ),
    ] = None
    recover: Annotated[
        Recover | None,
        Described(
            "How to update the remaining weights: auto fits them to `calib` data or, without data, uses the model's "
            "own statistics; none keeps them. Default: auto with `calib`, else none."
        ),
    ] = None
    effort: Annotated[
        EffortName,
        Described(
            f"How much work `calib` data may take: the number of samples is limited to {EFFORT_LIMITS}.",
            recorded=True,
        ),
    ] = DEFAULT_EFFORT
    minutes: Annotated[
        float | None,
        Described("Calibrate no longer than this: less is tried, and a warning says what was left out.", recorded=None),
    ] = None
    blocks: Annotated[
        Blocks,
        Described(
            "Whole residual branches and gates: auto replaces one by a matrix, fitted to `calib` data, where that is "
            "better than removing more channels; never keeps them.",
            recorded=True,
        ),
    ] = "auto"
    device: Annotated[
        Device,
        Described("Where products of the activations on `calib` data are summed; cuda needs torch."),
    ] = "cpu"
    min_agreement: Annotated[
        float | None,
        Described(
            "Tolerance: least share of decisions that equal the original's on held-out `calib` samples, by a "
            "confidence bound. What is kept is the least of the model that meets all tolerances.",
            "F",
            recorded=None,
        ),
    ] = None
    max_deviation: Annotated[
        float | None,
        Described(
            "Tolerance: largest ‖difference‖ / ‖original‖ of the worst channel of the worst output.",
            "F",
            recorded=None,
        ),
    ] = None
    min_psnr: Annotated[
        float | None, Described("Tolerance: least PSNR of images that the model puts out.", "DB", recorded=None)
    ] = None
    score: Annotated[
        str | ScoreFunction | None,
        Described(
            "Tolerance: a function of a model's path and of the samples, higher is better; it is run.",
            "MODULE:FUNCTION",
            recorded=None,
        ),
    ] = None
    max_drop: Annotated[
        float | None, Described("With `score`: the most that it may fall below the original's.", "F", recorded=None)
    ] = None
    minimise: Annotated[
        Minimise | None,
        Described(
            "With a tolerance: what to make small. Default: what is budgeted, or else latency if it is measured, or "
            "else macs.",
            recorded=None,
        ),
    ] = None
    align: Annotated[
        int | None,
        Described(
            "Width multiple: auto for the hardware's, or N channels; 1 allows any width.",
            "auto|N",
            recorded=True,
        ),
    ] = None
    target: Annotated[
        str, Described("Hardware to fit widths to, for example cpu-avx2; auto is this machine.", "NAME", recorded=True)
    ] = "auto"
    targets: Path | None = None
    provider: Annotated[Provider, Described("Where the result is to run, and is measured.")] = "cpu"
    threads: Annotated[int, Described("Threads to measure with; 0 is all physical cores.", least=0)] = 0
    libraries: Annotated[
        tuple[Path, ...], Described("Library of custom operators for onnxruntime.", "L.so", keyword="library")
    ] = ()
    freeze: Annotated[
        bool, Described("Turn weights that are listed as graph inputs into constants.", recorded=None)
    ] = False
    unshare: Annotated[
        bool,
        Described(
            "Copy the pruned weights that several layers share, one for each: with `calib`, every layer is then fitted "
            "on its own, and the file grows.",
            recorded=None,
        ),
    ] = False
    int8: Annotated[
        bool,
        Described(
            "Compute in 8-bit integers, layer by layer, where that is faster and near enough; needs `calib`, but no "
            "budget.",
            recorded=None,
        ),
    ] = False
    best_effort: Annotated[
        bool, Described("Write the closest result even if it misses the budget or is not faster.", recorded=True)
    ] = False
    prove_twice: Annotated[
        bool, Described("Run the result without onnxruntime's optimisations and, if small, in ONNX's evaluator too.")
    ] = False
    measure: bool = False
    seed: Annotated[int, Described("Seed of random inputs and of `method=random`.", least=0, recorded=True)] = 0
    plan: Plan | None = None
    exact: bool = False
    removed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    points: int = 0

    def __post_init__(self) -> None:
        if not callable(self.method):
            check_choice("method", self.method, Method)
        check_choice("chains", self.chains, Chains)
        if self.recover is not None:
            check_choice("recover", self.recover, Recover)
        check_choice("effort", self.effort, EffortName)
        if self.minutes is not None:
            check_positive("minutes", self.minutes, 10)
        check_choice("device", self.device, Device)
        check_choice("blocks", self.blocks, Blocks)
        check_least("seed", self.seed, 0)
        check_choice("provider", self.provider, Provider)
        check_least("threads", self.threads, 0)
        if self.exact and self.calib is not None:
            raise OptionError(
                f"{option('calib')} has nothing to do with {option('exact', True)}, which leaves the output as it is; "
                "leave out one"
            )
        if self.exact and self.unshare:
            raise OptionError(
                f"{option('unshare', True)} has nothing to do with {option('exact', True)}, after which no weights are "
                "fitted; leave out one"
            )
        if self.teacher is not None and not (self.recovers and self.calib is not None):
            raise OptionError(
                f"{option('teacher', self.teacher)}: weights are fitted to it on data, and none are; "
                + (f"leave out {option('recover', 'none')}" if self.calib is not None else f"add {option('calib')}")
            )
        if self.device != "cpu" and self.calib is None:
            raise OptionError(
                f"{option('device', self.device)}: speeds up calibration, and there are no data for it; add "
                f"{option('calib')}, or leave it out"
            )
        if self.minutes is not None and self.calib is None:
            raise OptionError(
                f"{option('minutes', self.minutes)}: limits the time of calibration, and there are no data for it; add "
                f"{option('calib')}, or leave it out"
            )
        check_int8_options(self.int8, self.exact, self.calib is not None)
        self._check_tolerances()

    def _check_tolerances(self) -> None:
        """Refuse tolerances that are out of range, lack what they need, or have nothing to do.

        Raises:
            OptionError: they are one of these.
        """
        if self.min_agreement is not None and not 0 < self.min_agreement < 1:
            raise OptionError(
                f"{option('min_agreement', float(self.min_agreement))}: expected a share above 0 and below 1, for "
                f"example {option('min_agreement', likely_share(self.min_agreement, 0.99))}"
            )
        for name, example in (("max_deviation", 0.02), ("min_psnr", 40), ("max_drop", 0.01)):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), example)
        if (self.score is None) != (self.max_drop is None):
            given, other = ("score", "max_drop") if self.max_drop is None else ("max_drop", "score")
            remedy = option("max_drop", 0.01) if other == "max_drop" else option("score", "scores.py:accuracy")
            raise OptionError(f"{option(given)} needs {option(other)}; add it, for example {remedy}")
        if self.minimise is not None:
            check_choice("minimise", self.minimise, Minimise)
        asked = [name for name in TOLERANCES if getattr(self, name) is not None]
        if not asked and self.minimise is not None:
            raise OptionError(
                f"{option('minimise', self.minimise)} belongs to a tolerance; add one, for example "
                f"{option('min_agreement', 0.99)}, or leave it out"
            )
        if asked and (self.plan is not None or self.exact):
            rival = option("plan") if self.plan is not None else option("exact", True)
            raise OptionError(f"{option(asked[0])} looks for how much to remove, and {rival} says it; leave out one")
        if asked and self.calib is None:
            raise OptionError(f"{option(asked[0])} is met on real inputs, and there are none; add {option('calib')}")

    @property
    def tolerances(self) -> Tolerances:
        """The loss that may be borne."""
        return Tolerances(
            min_agreement=self.min_agreement,
            max_deviation=self.max_deviation,
            min_psnr=self.min_psnr,
            max_drop=self.max_drop,
        )

    @property
    def least_metric(self) -> str:
        """The metric that is made small within the tolerances: by default that of the budget, if there is one.

        A budget in another metric would be met by an order of removal that is not made for it.
        """
        if self.minimise is not None:
            return self.minimise
        return self.budget.unit if self.budget.fraction < 1 else "latency" if self.measure else "macs"

    @property
    def setting(self) -> Setting:
        """Provider and threads of the result."""
        return Setting(self.provider, self.threads)

    @property
    def measures(self) -> bool:
        """True if latency is measured, because that was asked for, is to be small or has a budget."""
        return self.measure or self.budget.metric.measured or self.minimise == "latency"

    @property
    def recovers(self) -> bool:
        """True if weights are to be changed to make up for what was removed."""
        return self.calib is not None if self.recover is None else self.recover == "auto"

    def record(self) -> dict[str, Any]:
        """The options that shaped the plan, for the plan file."""
        row: dict[str, Any] = {self.budget.unit: self.budget.fraction}
        for each, described in described_options():
            value = getattr(self, each.name)
            if described.recorded or (described.recorded is None and value):
                row[each.name] = RECORDED[each.name](value) if each.name in RECORDED else value
        if self.exact:
            row["exact"] = True
        if self.removed:
            row["removed"] = {name: list(indices) for name, indices in sorted(self.removed.items())}
        if self.calib is not None:
            row |= {"calib": calib_name(self.calib), "recover": "none"}
        return row | ({"recover": "auto"} if self.recovers else {})


@lru_cache
def described_options() -> tuple[tuple[Field[Any], Described], ...]:
    """The fields of ``CompressOptions`` that are options of their own, with their descriptions."""
    hints = get_type_hints(CompressOptions, include_extras=True)
    described = ((each, getattr(hints[each.name], "__metadata__", ())) for each in fields(CompressOptions))
    return tuple((each, metadata[0]) for each, metadata in described if metadata)


RECORDED: Mapping[str, Callable[[Any], Any]] = {
    "method": method_name,
    "shapes": lambda shapes: {name: list(shape) for name, shape in sorted(shapes.items())},
    "pin": sorted,
    "ignore": sorted,
    "align": lambda align: "auto" if align is None else align,
    "teacher": str,
    "score": score_name,
}
"""Options that a plan records in another form than their value."""


def calib_name(calib: SampleSource) -> str:
    """Name of calibration data in a plan: their path as given."""
    return str(calib) if isinstance(calib, Path) else ARRAYS_NAME
