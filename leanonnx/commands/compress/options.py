"""What ``compress`` is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from leanonnx.checks import check_choice, check_least, exactly_one
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import Samples
from leanonnx.errors import OptionError
from leanonnx.ranking.criteria import Chains, Method
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Setting
from leanonnx.selection.metrics import Budget, Limit
from leanonnx.surgery.plan import Plan
from leanonnx.surgery.recipe import ARRAYS

Recover = Literal["none", "auto"]


def asked_budget(given: Mapping[str, Limit | None], plan: object, exact: bool) -> Budget:
    """How far to go: a fraction, a plan or only what contributes nothing; the latter two have no budget of their own.

    Args:
        given: limits by the names of their options, None where not given.
        plan: None where no plan is to be carried out.
        exact: whether to remove only what contributes nothing.

    Raises:
        OptionError: none of these, or several.
    """
    ways: dict[str, Any] = {**given, "plan": plan, "exact": exact or None}
    name, value = exactly_one(ways, "--keep 0.25")
    return Budget.of_option(name, value) if name in given else Budget("kernels", 1.0)


def alignment(given: str | int) -> int | None:
    """``--align auto|N``: None for auto.

    Raises:
        OptionError: neither auto nor a number of at least 1.
    """
    if given == "auto":
        return None
    text = str(given)
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--align {text}: expected auto or a number of channels of at least 1, for example --align 8")
    return int(text)


@dataclass(frozen=True)
class CompressOptions:
    """What ``compress`` was asked to do.

    ``align``: widths are multiples of this (None: what the target wants); ``target``: a table of ``targets.toml``
    ("auto": the one of this machine and provider), those in the file ``targets`` coming first; ``exact``: remove only
    what contributes nothing; ``freeze``: weights that are listed as graph inputs become constants; ``calib``: real
    inputs, ``images``: how photographs among them become tensors; ``recover``: whether weights are changed (None: with
    ``calib`` only).

    Raises:
        OptionError: there is no such choice, or two of them contradict each other.
    """

    budget: Budget = field(default_factory=lambda: Budget("kernels", 1.0))
    method: Method = "auto"
    chains: Chains = "cover"
    shapes: Shapes = field(default_factory=dict)
    pin: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    plan: Plan | None = None
    libraries: tuple[Path, ...] = ()
    best_effort: bool = False
    align: int | None = None
    target: str = "auto"
    targets: Path | None = None
    setting: Setting = field(default_factory=Setting)
    measure: bool = True
    seed: int = 0
    exact: bool = False
    freeze: bool = False
    calib: Samples | None = None
    images: ImageFormat = field(default_factory=ImageFormat)
    recover: Recover | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, Method)
        check_choice("chains", self.chains, Chains)
        if self.recover is not None:
            check_choice("recover", self.recover, Recover)
        check_least("seed", self.seed, 0)
        if self.budget.metric.measured and not self.measure:
            raise OptionError("--latency is met by measuring; leave out --no-measure")
        if self.exact and self.calib is not None:
            raise OptionError("--calib has nothing to do with --exact, which leaves the output as it is; leave out one")

    @property
    def recovers(self) -> bool:
        """Whether weights are to be changed to make up for what was removed."""
        return self.calib is not None if self.recover is None else self.recover == "auto"

    def record(self) -> dict[str, Any]:
        """The options that shaped the plan, for the plan file."""
        return {
            self.budget.unit: self.budget.fraction,
            "method": self.method,
            "chains": self.chains,
            "shapes": {name: list(shape) for name, shape in sorted(self.shapes.items())},
            "pin": sorted(self.pin),
            "ignore": sorted(self.ignore),
            "best_effort": self.best_effort,
            "align": "auto" if self.align is None else self.align,
            "target": self.target,
            "seed": self.seed,
            **({"exact": True} if self.exact else {}),
            **({"freeze": True} if self.freeze else {}),
            **({} if self.calib is None else {"calib": calib_name(self.calib), "recover": "none"}),
            **({"recover": "auto"} if self.recovers else {}),
        }


def calib_name(calib: Samples) -> str:
    """Data as a plan calls them: their path as given."""
    return str(calib) if isinstance(calib, Path) else ARRAYS
