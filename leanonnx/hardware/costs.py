"""Milliseconds of convolutions and matrix products by the cost table of the hardware, in floats and in integers.

Floats are computed in whole blocks of channels (outside the fast kernels: those of their own channels alone, at a lower
rate).  Integers are computed in whole blocks of the channels that each conv group writes, whatever it reads: there
is no width that leaves their kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from leanonnx.hardware.targets import Hardware

MS_PER_GIGA = 1e-6
"""ms per multiply-add at 10⁹ of them per second."""
MS_PER_NS, MS_PER_US = 1e-6, 1e-3


@dataclass(frozen=True, kw_only=True)
class KernelSize:
    """Kernels of a layer: conv groups, channels that each writes and reads, taps, and positions that are computed."""

    groups: int
    wide: int
    deep: int
    taps: int
    positions: int

    @property
    def is_depthwise(self) -> bool:
        """True if each conv group reads and writes one channel."""
        return self.groups > 1 and self.wide == self.deep == 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds, nothing filled up."""
        return self.groups * self.wide * self.deep * self.taps * self.positions


def convolution_ms(target: Hardware, size: KernelSize) -> float:
    """Predicted ms of a convolution in floats."""
    rate, slow, kernels = _float_kernels(target, size)
    return kernels * slow * size.taps * size.positions / rate * MS_PER_GIGA


def product_ms(target: Hardware, multiply_adds: int) -> float:
    """Predicted ms of a matrix product in floats."""
    return multiply_adds / target.gemm * MS_PER_GIGA


def integer_convolution_ms(target: Hardware, size: KernelSize) -> float:
    """Predicted ms of a convolution in integers."""
    if size.is_depthwise:
        return size.multiply_adds / target.int8_depthwise * MS_PER_GIGA
    dense = target.int8_pointwise if size.taps == 1 else target.int8_conv
    return _whole_blocks(target, size) / (dense if size.groups == 1 else target.int8_grouped) * MS_PER_GIGA


def integer_product_ms(target: Hardware, size: KernelSize) -> float:
    """Predicted ms of a matrix product in integers."""
    return _whole_blocks(target, size) / target.int8_gemm * MS_PER_GIGA


def conversion_ms(target: Hardware, count: int) -> float:
    """Predicted ms of a node that converts so many numbers between floats and integers."""
    return count * target.int8_convert * MS_PER_NS + target.node * MS_PER_US


def _whole_blocks(target: Hardware, size: KernelSize) -> int:
    """Multiply-adds in integers, the blocks of channels that are written filled up."""
    wide = -(-size.wide // target.int8_block) * target.int8_block
    return size.groups * wide * size.deep * size.taps * size.positions


def _float_kernels(target: Hardware, size: KernelSize) -> tuple[float, float, int]:
    """Rate, slowdown outside the fast kernels, and number of kernels computed (inside them, blocks are filled up)."""
    block, groups, wide, deep = target.block, size.groups, size.wide, size.deep
    if groups == 1:
        rate = target.pointwise if size.taps == 1 else target.conv
        if deep < block:
            return rate, 1.0, target.fill_block(wide) * deep
        if deep % target.multiple:
            return rate, target.slow, wide * deep
        return rate, 1.0, target.fill_block(wide) * target.fill_block(deep)
    if size.is_depthwise:
        off = groups % target.multiple
        return target.depthwise, target.slow_depthwise if off else 1.0, groups if off else target.fill_block(groups)
    off = wide % target.grouped or deep % target.grouped
    return target.conv, target.slow if off else 1.0, groups * wide * deep
