"""The instruments, in numpy: Fourier samples, blurring and thinning, line integrals and their back-projection."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from benchmarks.inverse.images import SIZE
from leanonnx.numeric.arrays import Array

FRACTION = 0.15
"""Share of the Fourier coefficients that a scan measures."""
CENTRE = 5
"""Half the side of the square of low frequencies that every scan measures."""
SCAN_NOISE = 0.02
"""Standard deviation of the noise of a Fourier coefficient, for objects in [0, 1] and an orthonormal transform."""
BLUR = 0.7
"""Standard deviation of the camera's blur in pixels of the fine image."""
TAPS = 5
CAMERA_NOISE = 0.01
ANGLES, SPLITS = 64, 4
"""Projections of a tomogram, and into how many parts they are split: part k has every fourth, from the k-th on."""
RAY_NOISE = 0.8
"""Standard deviation of the noise of a line integral, in pixels times brightness."""


def dft() -> tuple[Array, Array]:
    """Real and imaginary part [SIZE, SIZE] of the orthonormal DFT whose zero frequency is in the middle."""
    steps = np.arange(SIZE) - SIZE // 2
    matrix = np.exp(-2j * np.pi * np.outer(steps, steps) / SIZE) / np.sqrt(SIZE)
    return matrix.real.astype(np.float32), matrix.imag.astype(np.float32)


def with_phase(images: Array, rng: np.random.Generator) -> Array:
    """Objects [n, S, S] as complex images [n, 2, S, S], with a smooth phase as a scanner has."""
    axis = np.linspace(-1, 1, SIZE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    c = rng.uniform(-0.8, 0.8, (len(images), 5, 1, 1))
    phase = c[:, 0] + c[:, 1] * x + c[:, 2] * y + c[:, 3] * x * y + c[:, 4] * (x**2 - y**2)
    return np.stack([images * np.cos(phase), images * np.sin(phase)], 1).astype(np.float32)


def masks(count: int, rng: np.random.Generator) -> Array:
    """Where scans measure [count, 1, S, S]: all low frequencies, and others the rarer the higher they are."""
    steps = np.abs(np.arange(SIZE) - SIZE // 2 + 0.0)
    radius = np.hypot(*np.meshgrid(steps, steps, indexing="ij")) / (SIZE / 2)
    density = 1 / (1 + (radius / 0.35) ** 3)
    density *= FRACTION * SIZE**2 / density.sum()
    density[np.maximum(*np.meshgrid(steps, steps, indexing="ij")) < CENTRE] = 1
    return np.asarray(rng.random((count, 1, SIZE, SIZE)) < density, np.float32)


def scan(images: Array, mask: Array, rng: np.random.Generator) -> Array:
    """Noisy Fourier coefficients [n, 2, S, S] of complex images, zero where the mask is."""
    real, imag = dft()
    matrix = real + 1j * imag
    spectrum = matrix @ (images[:, 0] + 1j * images[:, 1]) @ matrix.T
    both = np.stack([spectrum.real, spectrum.imag], 1) + SCAN_NOISE * rng.standard_normal(images.shape)
    return (mask * both).astype(np.float32)


def zero_filled(y: Array) -> Array:
    """The image whose unmeasured coefficients are zero."""
    real, imag = dft()
    matrix = real - 1j * imag
    image = matrix @ (y[:, 0] + 1j * y[:, 1]) @ matrix.T
    return np.stack([image.real, image.imag], 1).astype(np.float32)


def kernel() -> Array:
    """The camera's blur [1, 1, TAPS + 1, TAPS + 1], whose middle is the middle of two by two pixels."""
    steps = np.arange(TAPS + 1) - TAPS / 2
    line = np.exp(-(steps**2) / (2 * BLUR**2))
    line /= line.sum()
    return np.outer(line, line)[None, None].astype(np.float32)


def camera(images: Array, rng: np.random.Generator) -> Array:
    """Photographs [n, 1, S / 2, S / 2] of objects: blurred, every second pixel of every second line, noisy."""
    low = np.stack([ndimage.correlate(image, kernel()[0, 0], mode="constant", origin=-1) for image in images])
    low = low[:, ::2, ::2]
    return (low + CAMERA_NOISE * rng.standard_normal(low.shape)).astype(np.float32)[:, None]


def enlarged(y: Array) -> Array:
    """Cubic interpolation to twice the size, the centres of the pixels where they belong."""
    axis = (np.arange(SIZE) - 0.5) / 2
    grid = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([ndimage.map_coordinates(image[0], grid, order=3, mode="nearest")[None] for image in y])


def _rotated_positions() -> list[tuple[Array, Array]]:
    """For each angle the row and column [S, S] that the pixels of the turned image have in the image."""
    middle = (SIZE - 1) / 2
    y, x = np.meshgrid(np.arange(SIZE) - middle, np.arange(SIZE) - middle, indexing="ij")
    turns = np.pi * np.arange(ANGLES) / ANGLES
    return [(np.cos(t) * y - np.sin(t) * x + middle, np.sin(t) * y + np.cos(t) * x + middle) for t in turns]


def line_integrals(images: Array) -> Array:
    """Line integrals [n, ANGLES, S] of objects [n, S, S]."""
    positions = _rotated_positions()
    return np.array(
        [[ndimage.map_coordinates(image, place, order=3).sum(0) for place in positions] for image in images]
    )


def sinograms(images: Array, rng: np.random.Generator) -> Array:
    """Noisy line integrals [n, ANGLES, S] of objects [n, S, S]."""
    lines = line_integrals(images)
    return (lines + RAY_NOISE * rng.standard_normal(lines.shape)).astype(np.float32)


def back_projections(lines: Array) -> Array:
    """Filtered back-projections [n, SPLITS, 1, S, S] of the parts of sinograms [n, ANGLES, S]."""
    padded = 2 * SIZE
    steps = np.fft.fftfreq(padded, 1 / padded)
    odd = np.where(steps % 2 != 0, -1 / (np.pi * np.where(steps == 0, 1, steps)) ** 2, 0)
    ramp = 2 * np.fft.fft(np.where(steps == 0, 0.25, odd)).real
    filtered = np.fft.ifft(np.fft.fft(lines, padded, axis=2) * ramp, axis=2).real[:, :, :SIZE]
    middle = (SIZE - 1) / 2
    y, x = np.meshgrid(np.arange(SIZE) - middle, np.arange(SIZE) - middle, indexing="ij")
    parts = np.zeros((len(lines), SPLITS, 1, SIZE, SIZE))
    for k in range(ANGLES):
        turn = np.pi * k / ANGLES
        place = np.cos(turn) * x - np.sin(turn) * y + middle
        low = np.clip(np.floor(place).astype(int), 0, SIZE - 2)
        share = np.clip(place - low, 0, 1)
        line = filtered[:, k]
        inside = (place >= 0) & (place <= SIZE - 1)
        values = line[:, low] * (1 - share) + line[:, low + 1] * share
        parts[:, k % SPLITS, 0] += values * inside
    return (parts * np.pi / 2 / (ANGLES // SPLITS)).astype(np.float32)
