"""Run a Python program with onnxruntime's optimisations off, so that no fused kernel has a say in what it computes.

python benchmarks/plain.py PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort


class PlainSession(ort.InferenceSession):  # type: ignore[misc]
    """A session that runs the nodes of the file as they are, whatever its options say."""

    def __init__(self, source: Any, sess_options: Any = None, *rest: Any, **named: Any) -> None:
        sess_options = sess_options or ort.SessionOptions()
        sess_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        super().__init__(source, sess_options, *rest, **named)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    ort.InferenceSession = PlainSession
    runpy.run_path(sys.argv[0], run_name="__main__")
