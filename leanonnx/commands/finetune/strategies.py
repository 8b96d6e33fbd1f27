"""Names and options of the strategies of a training, for callers that do not import torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from leanonnx.errors import OptionError
from leanonnx.spelling import option

Strategy = Literal["school", "supervised", "noise2self", "noise2inverse", "measurement"]
"""The source of the training signal: the original, labels, noisy images, splits of a measurement, or measurements."""
Pairing = Literal["X:1", "1:X"]
"""The number of splits whose mean is the input of Noise2Inverse, and whose mean is its target; X is all others."""


@dataclass(frozen=True, kw_only=True)
class SignalOptions:
    """Options of single strategies; None where not given.

    ``operator`` and ``adjoint``: an ONNX file, or two tensors of the network, ``FROM:TO``; ``mask`` and
    ``measurement``: names of inputs or arrays; ``loss_share``: the share of the measured locations that is kept from
    the network, and on which the loss is taken.
    """

    operator: str | None = None
    adjoint: str | None = None
    mask: str | None = None
    measurement: str | None = None
    loss_share: float | None = None
    pairing: Pairing | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files among the operators."""
        paths = [Path(each) for each in (self.operator, self.adjoint) if each is not None]
        return tuple(path for path in paths if path.is_file())


DEFAULT_LOSS_SHARE = 0.4
"""The share that Yaman et al. 2020 (arXiv 1912.07669) found best."""
STRATEGY_OF_OPTION: dict[str, Strategy] = {
    **dict.fromkeys((field.name for field in fields(SignalOptions)), "measurement"),
    "pairing": "noise2inverse",
}


def check_signal_options(strategy: Strategy, given: SignalOptions) -> None:
    """Refuse options of other strategies, and a measurement without an operator.

    Raises:
        OptionError: one of these is given, a share is out of range, or the operator is missing.
    """
    values: dict[str, Any] = {field.name: getattr(given, field.name) for field in fields(given)}
    for name, value in values.items():
        if value is not None and STRATEGY_OF_OPTION[name] != strategy:
            raise OptionError(
                f"{option(name)} goes with {option('strategy', STRATEGY_OF_OPTION[name])}; leave it out, or change the "
                "strategy"
            )
    if given.loss_share is not None and not 0 < given.loss_share < 1:
        raise OptionError(
            f"{option('loss_share', float(given.loss_share))}: expected a number above 0 and below 1, for example "
            f"{option('loss_share', DEFAULT_LOSS_SHARE)}"
        )
    if strategy == "measurement" and given.operator is None:
        raise OptionError(
            f"{option('strategy', strategy)} compares what would be measured of the output with the measurement; give "
            f"the operator from image to measurement with {option('operator', 'FILE.onnx')}"
        )
