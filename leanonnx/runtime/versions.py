"""Versions of leanonnx and of the packages that it runs on, for bug reports."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.runtime.providers import available_providers, runtime_version
from leanonnx.version import __version__

VERSIONS_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The versions that ``leanonnx --version`` prints; ``providers`` are those that onnxruntime was built with."""

    schema: int = VERSIONS_SCHEMA
    leanonnx: str
    onnx: str
    onnxruntime: str
    providers: tuple[str, ...]
    numpy: str
    python: str


def installed_versions() -> Versions:
    """The versions of leanonnx and of what it runs on."""
    return Versions(
        leanonnx=__version__,
        onnx=onnx.__version__,
        onnxruntime=runtime_version(),
        providers=tuple(available_providers()),
        numpy=np.__version__,
        python=platform.python_version(),
    )


def versions_text(row: Versions) -> str:
    """Format the same as text, leanonnx first."""
    runtime = f"onnxruntime {row.onnxruntime} ({', '.join(row.providers)})"
    return f"leanonnx {row.leanonnx}\nonnx {row.onnx}\n{runtime}\nnumpy {row.numpy}\nPython {row.python}"
