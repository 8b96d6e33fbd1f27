"""Prune deployed ONNX networks by LEAN: smaller and faster without their training code, and proven.

    import leanonnx

    result = leanonnx.compress("in.onnx", keep=0.25)
    result.save("out.onnx")

The channel analysis, the surgery and the proof are ours; the selection follows LEAN (Schoonhoven, Hendriksen, Pelt,
Batenburg, arXiv 2011.06923).
"""

from leanonnx.analysis.dag import ChannelDag
from leanonnx.api.results import Analysis, Compressed, Timings
from leanonnx.api.verbs import analyse, bench, compress, prove
from leanonnx.data.images import ImageFormat
from leanonnx.errors import LeanOnnxError, Refusal, UserError
from leanonnx.proof.proof import Proof
from leanonnx.reporting.costs import CostChange
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.surgery.plan import Plan, load_plan
from leanonnx.version import __version__

__all__ = [
    "DEFAULT_RULES",
    "Analysis",
    "ChannelDag",
    "Compressed",
    "CostChange",
    "ImageFormat",
    "LeanOnnxError",
    "Plan",
    "Proof",
    "Refusal",
    "Timings",
    "UserError",
    "__version__",
    "analyse",
    "bench",
    "compress",
    "load_plan",
    "prove",
]
