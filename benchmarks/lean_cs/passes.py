"""The forward and backward pass of a ``Stack`` as one differentiable torch function, in compiled C (``msd.c``).

torch's own convolutions of one output channel use a small share of a processor; this is the same function, some ten
times as fast.  The compiler is the machine's ``cc``.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lean_cs.stack import Stack

BORDER = 10
BLOCK = 32
Tensor = Any


class _Net(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("layers", "size", "stride", "rows")),
        *((name, ctypes.c_void_p) for name in ("first", "source", "dilation", "weight", "bias")),
    )


@cache
def library() -> ctypes.CDLL:
    """``msd.c``, compiled for this machine."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "msd.so"
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, str(Path(__file__).with_name("msd.c")), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))


def _net(stack: Stack, size: int, weight: Tensor, bias: Tensor) -> _Net:
    stride = -(-(size + 2 * BORDER) // BLOCK) * BLOCK
    places = [array.ctypes.data for array in (stack.first, stack.source, stack.dilation)]
    return _Net(len(stack.dilation), size, stride, size + 2 * BORDER, *places, weight.data_ptr(), bias.data_ptr())


class Hidden(torch.autograd.Function):  # type: ignore[misc] # torch is not seen by the type checker
    """The maps that the last layer reads."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, stack: Stack) -> Tensor:
        """Image [S, S], S a multiple of 64, weights [K, 9] and biases [L] to maps [F, S, S]."""
        size = image.shape[-1]
        net = _net(stack, size, weight, bias)
        maps = torch.empty(net.layers + 1, net.rows, net.stride)
        inside = slice(BORDER, BORDER + size)
        maps[0, inside, inside] = image
        library().forward(ctypes.byref(net), ctypes.c_void_p(maps.data_ptr()))
        ctx.stack, ctx.size = stack, size
        ctx.save_for_backward(weight, bias, maps)
        return maps[torch.from_numpy(stack.final).long(), inside, inside]

    @staticmethod
    def backward(ctx: Any, top: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of weights and biases."""
        weight, bias, maps = ctx.saved_tensors
        net = _net(ctx.stack, ctx.size, weight, bias)
        inside = slice(BORDER, BORDER + ctx.size)
        grads = torch.zeros_like(maps)
        for one, gradient in zip(ctx.stack.final, top, strict=True):
            grads[one, inside, inside] += gradient
        found = torch.zeros_like(weight), torch.zeros_like(bias)
        places = [ctypes.c_void_p(t.data_ptr()) for t in (maps, grads, *found)]
        library().backward(ctypes.byref(net), *places)
        return None, *found, None


class Network(torch.nn.Module):  # type: ignore[misc] # torch is not seen by the type checker
    """A ``Stack`` with its weights as parameters."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.parts = torch.nn.ParameterList(torch.nn.Parameter(torch.from_numpy(a.copy())) for a in stack.trained())

    def forward(self, image: Tensor) -> Tensor:
        """Image [S, S] to logits [classes, S * S]."""
        weight, bias, last, last_bias = self.parts
        scale, shift = self.stack.scale
        hidden = Hidden.apply(image * scale + shift, weight, bias, self.stack)
        return last @ hidden.flatten(1) + last_bias[:, None]

    def state(self) -> tuple[np.ndarray[Any, Any], ...]:
        """The weights, in the order of ``Stack.trained``."""
        return tuple(part.detach().numpy().copy() for part in self.parts)

    def restore(self, values: tuple[np.ndarray[Any, Any], ...]) -> None:
        """Set the weights."""
        with torch.no_grad():
            for part, value in zip(self.parts, values, strict=True):
                part.copy_(torch.from_numpy(value))
