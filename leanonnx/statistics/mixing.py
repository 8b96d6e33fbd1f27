"""Covariance of the outputs of channel-mixing kernels, from that of their inputs."""

from __future__ import annotations

import numpy as np
import onnx

from leanonnx.graph.nodes import standard_name
from leanonnx.numeric.arrays import Floats

MAX_COVARIANCE_WORK = 4e10
"""Multiply-adds of a covariance above which the output channels of a node are assumed independent."""
MAX_COVARIANCE_CHANNELS = 4096
"""Number of output channels above which they are assumed independent."""
NEIGHBOUR_CORRELATION = 0.7
"""Correlation of a channel between adjacent positions."""


def output_covariance(kernels: Floats, covariance: Floats) -> Floats:
    """Σ_t K_t Σ K_tᵀ [O, O] for kernels [O, C, taps]; only its diagonal if the full matrix is too much work."""
    out, width, taps = kernels.shape
    if out > MAX_COVARIANCE_CHANNELS or taps * out * width * (out + width) > MAX_COVARIANCE_WORK:
        diagonal: Floats = np.diag(np.square(kernels).sum(2) @ np.diag(covariance))
        return diagonal
    total: Floats = np.zeros((out, out))
    for tap in range(taps):
        part = np.ascontiguousarray(kernels[:, :, tap])
        product = part @ covariance @ part.T
        product += total
        total = product
    return total


def correlation_root(node: onnx.NodeProto, kernel: tuple[int, ...]) -> Floats:
    """Cholesky factor of the correlation between the positions under the taps of a kernel [taps, taps].

    Taps of a transposed convolution that meet at one output position lie far apart and count as uncorrelated.
    """
    if standard_name(node) != "Conv":
        return np.eye(1)
    places = np.indices(kernel).reshape(len(kernel), -1)
    apart = np.abs(places[:, :, None] - places[:, None]).sum(0)
    return np.linalg.cholesky(NEIGHBOUR_CORRELATION**apart)


def decorrelate_taps(kernels: Floats, root: Floats) -> Floats:
    """Kernels [..., positions · taps] over correlated taps, rewritten for independent taps."""
    parts = kernels.reshape(*kernels.shape[:-1], -1, len(root)) @ root
    return np.asarray(parts.reshape(kernels.shape))
