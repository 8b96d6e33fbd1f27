"""Versions of leanonnx and of the packages that it runs on, for bug reports."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import onnx

from leanonnx.runtime.providers import available_providers, runtime_version
from leanonnx.version import __version__


def versions() -> dict[str, Any]:
    """Return the JSON object of ``leanonnx --version``; ``providers`` are those that onnxruntime was built with."""
    return {
        "schema": 1,
        "leanonnx": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": runtime_version(),
        "providers": list(available_providers()),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def versions_text(row: dict[str, Any]) -> str:
    """Format the same as text, leanonnx first."""
    names = {"onnxruntime": f"onnxruntime {row['onnxruntime']} ({', '.join(row['providers'])})"}
    names["python"] = f"Python {row['python']}"
    rows = ("leanonnx", "onnx", "onnxruntime", "numpy", "python")
    return "\n".join(names.get(name, f"{name} {row[name]}") for name in rows)
