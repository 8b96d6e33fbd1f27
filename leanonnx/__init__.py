"""Prune deployed ONNX networks by LEAN: smaller and faster without their training code, and proven.

    from pathlib import Path
    import leanonnx

    options = leanonnx.Options(budget=leanonnx.Budget("kernels", 0.25))
    result = leanonnx.compress(Path("in.onnx"), Path("out.onnx"), options)

The channel analysis, the surgery and the proof are ours; the selection follows LEAN (Schoonhoven, Hendriksen, Pelt,
Batenburg, arXiv 2011.06923).
"""

from leanonnx.analysis import ChannelDag, analyse
from leanonnx.errors import LeanOnnxError, Refusal, UserError
from leanonnx.options import Options
from leanonnx.pipeline import Result, compress, inspect
from leanonnx.rules.table import DEFAULT
from leanonnx.selection import Budget
from leanonnx.version import __version__

__all__ = [
    "DEFAULT",
    "Budget",
    "ChannelDag",
    "LeanOnnxError",
    "Options",
    "Refusal",
    "Result",
    "UserError",
    "__version__",
    "analyse",
    "compress",
    "inspect",
]
