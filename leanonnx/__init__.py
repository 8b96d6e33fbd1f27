"""Prune deployed ONNX networks by LEAN: smaller and faster without their training code, and proven.

    import leanonnx

    result = leanonnx.compress("in.onnx", keep=0.25)
    result.save("out.onnx")

The channel analysis, the surgery and the proof are ours; the selection follows LEAN (Schoonhoven, Hendriksen, Pelt,
Batenburg, arXiv 2011.06923).
"""

from leanonnx.analysis.dag import ChannelDag
from leanonnx.api.channels import remove_channels
from leanonnx.api.checking import CheckResult, check
from leanonnx.api.curves import SweepPoint, SweepResult, sweep
from leanonnx.api.device import calibrate_device
from leanonnx.api.results import Analysis, Compressed, Timings
from leanonnx.api.training import TrainingResult, finetune
from leanonnx.api.verbs import analyse, bench, compress, prove
from leanonnx.commands.calibrate.calibrate import DeviceCalibration
from leanonnx.data.images import ImageFormat
from leanonnx.data.preprocessor import read_preprocessor
from leanonnx.errors import BudgetUnreachable, CouldNotTell, LeanOnnxError, NotFaster, ProofFailed, Refusal, UserError
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.proof.proof import Proof
from leanonnx.reporting.costs import CostChange
from leanonnx.reporting.schemas import json_schema
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.runtime.timing import Timing, TimingComparison
from leanonnx.surgery.plan import Plan, load_plan
from leanonnx.version import __version__

__all__ = [
    "DEFAULT_RULES",
    "Analysis",
    "BudgetUnreachable",
    "ChannelDag",
    "CheckResult",
    "Compressed",
    "CostChange",
    "CouldNotTell",
    "DeviceCalibration",
    "Fidelity",
    "ImageFormat",
    "LeanOnnxError",
    "NotFaster",
    "Plan",
    "Proof",
    "ProofFailed",
    "Refusal",
    "SweepPoint",
    "SweepResult",
    "Timing",
    "TimingComparison",
    "Timings",
    "TrainingResult",
    "UserError",
    "__version__",
    "analyse",
    "bench",
    "calibrate_device",
    "check",
    "compress",
    "finetune",
    "json_schema",
    "load_plan",
    "prove",
    "read_preprocessor",
    "remove_channels",
    "sweep",
]
