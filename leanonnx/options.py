"""What ``compress`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from leanonnx.criteria import Chains, Method
from leanonnx.images import ImageFormat
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Setting
from leanonnx.selection import Budget

Recover = Literal["none", "auto"]


@dataclass(frozen=True)
class Options:
    """What ``compress`` was asked to do.

    ``align``: widths are multiples of this (None: what the target wants); ``target``: a table of ``targets.toml``
    ("auto": the one of this machine and provider), those in the file ``targets`` coming first; ``exact``: remove only
    what contributes nothing; ``freeze``: weights that are listed as graph inputs become constants; ``calib``: real
    inputs, ``images``: how photographs among them become tensors; ``recover``: whether weights are changed (None: with
    ``calib`` only).
    """

    budget: Budget = field(default_factory=lambda: Budget("kernels", 1.0))
    method: Method = "auto"
    chains: Chains = "cover"
    shapes: Shapes = field(default_factory=dict)
    pin: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    plan: Path | None = None
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
    calib: Path | None = None
    images: ImageFormat = field(default_factory=ImageFormat)
    recover: Recover | None = None

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
            **({"calib": self.calib.name, "recover": "auto" if self.recovers else "none"} if self.calib else {}),
        }
