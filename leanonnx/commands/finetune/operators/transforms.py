"""Torch functions of Fourier transforms; the last axis holds the real part, or real and imaginary parts."""

from __future__ import annotations

import torch

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall
from leanonnx.rules.transforms import INPUT_AXIS_OPSET

NUMBERS_PER_COMPLEX = 2


def _complex(x: Tensor) -> Tensor:
    """Complex numbers from their parts."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == NUMBERS_PER_COMPLEX else torch.zeros_like(x[..., 0]))


def _dft(call: TorchCall) -> Tensor:
    """Discrete Fourier transform along an axis, padded with zeros or cropped to a length."""
    x = call.value()
    length = call.required_ints(1)[0] if call.has(1) else None
    given = call.ints(2, "axis") if call.opset >= INPUT_AXIS_OPSET else [call.attribute("axis", 1)]
    axis = (given or [-2])[0] % x.ndim
    values, inverse = _complex(x), bool(call.attribute("inverse", 0))
    if not call.attribute("onesided", 0):
        return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(values, length, axis))
    if inverse:
        return torch.fft.irfft(values, length, axis).unsqueeze(-1)
    whole = torch.fft.fft(values, length, axis)
    return torch.view_as_real(whole.narrow(axis, 0, whole.shape[axis] // 2 + 1))


def _stft(call: TorchCall) -> Tensor:
    """Fourier transforms of windows of a signal [batch, length, parts]."""
    values, (step,) = _complex(call.value()), call.required_ints(1)
    window, given = call.get(2), call.ints(3, "frame_length")
    length = given[0] if given else values.shape[1] if window is None else window.numel()
    frames = values.unfold(1, length, step)
    frames = frames if window is None else frames * window.to(frames.real.dtype)
    spectrum = torch.fft.fft(frames, dim=-1)
    if call.attribute("onesided", 1):
        spectrum = spectrum[..., : length // 2 + 1]
    return torch.view_as_real(spectrum)


TRANSFORM_OPERATORS: dict[tuple[str, str], Operator] = {("", "DFT"): _dft, ("", "STFT"): _stft}
