"""Integer formats of weights and activations, by the provider and the processor that a model is for."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from leanonnx.errors import OptionError
from leanonnx.hardware.targets import Hardware
from leanonnx.runtime.providers import Provider
from leanonnx.spelling import option
from leanonnx.system.cores import processor_flags

DOT_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni"}
"""Flags of x86 processors with instructions that sum products of 8-bit integers without saturating."""
X86_MACHINES = {"x86_64", "amd64", "i386", "i686"}
X86_TARGETS = {"cpu-avx2", "cpu-avx512", "cpu-plain"}
OTHER_TARGETS = {"cpu-arm"}
AUTO_TARGET = "auto"


@dataclass(frozen=True, kw_only=True)
class Int8Format:
    """Format of numbers in 8 bits.

    Attributes:
        signed_activations: activations are symmetric signed integers, as TensorRT needs; otherwise unsigned ones.
        reduced_weights: weights take 7 bits, so that sums of two products do not saturate in 16.
        table: costs of the hardware, by which layers stay float that run faster so; None to look at none.
    """

    signed_activations: bool = False
    reduced_weights: bool = False
    table: Hardware | None = None

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return 7 if self.reduced_weights else 8

    @property
    def text(self) -> str:
        """The formats of weights and activations in words."""
        sign = "signed" if self.signed_activations else "unsigned"
        return f"weights of {self.weight_bits} bits, {sign} activations of 8 bits"


def check_int8_options(int8: bool, exact: bool, has_data: bool) -> None:
    """Refuse integers without what they need, or beside what they contradict.

    Raises:
        OptionError: they are asked for so.
    """
    if int8 and exact:
        raise OptionError(
            f"{option('int8', True)} has nothing to do with {option('exact', True)}, which leaves the output as it is; "
            "leave out one"
        )
    if int8 and not has_data:
        raise OptionError(
            f"{option('int8', True)} needs real inputs, from which it takes the ranges of all activations; add "
            f"{option('calib')}, a few hundred samples without labels"
        )


def int8_format(provider: Provider, target: str, table: Hardware | None = None) -> Int8Format:
    """The format for a provider and a hardware target, whose costs are in a table.

    Raises:
        OptionError: the provider has no integer kernels.
    """
    if provider == "cuda":
        raise OptionError(
            f"{option('int8', True)}: onnxruntime's cuda provider has no integer kernels; use "
            f"{option('provider', 'tensorrt')}"
        )
    if provider == "tensorrt":
        return Int8Format(signed_activations=True, table=table)
    return Int8Format(reduced_weights=sums_saturate(target), table=table)


def sums_saturate(target: str = AUTO_TARGET) -> bool:
    """True if the integer kernels of a processor may saturate; those of another x86 processor are taken to."""
    if target in OTHER_TARGETS:
        return False
    if target in X86_TARGETS:
        return True
    return platform.machine().lower() in X86_MACHINES and not DOT_PRODUCT_FLAGS & processor_flags()
