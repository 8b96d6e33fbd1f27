"""Public names; each is imported when it is used first."""

from .analysis.dag import ChannelDag
from .api.channels import remove_channels
from .api.checking import CheckResult, check
from .api.curves import SweepPoint, SweepResult, sweep
from .api.device import calibrate_device
from .api.results import Analysis, Compressed, Timings
from .api.training import TrainingResult, finetune
from .api.verbs import analyse, bench, compress, prove
from .commands.calibrate.calibrate import DeviceCalibration
from .data.images import ImageFormat
from .data.preprocessor import read_preprocessor
from .errors import BudgetUnreachable, CouldNotTell, LeanOnnxError, NotFaster, ProofFailed, Refusal, UserError
from .evaluation.deviation import Fidelity
from .proof.proof import Proof
from .reporting.costs import CostChange
from .reporting.schemas import json_schema
from .rules.table import DEFAULT_RULES
from .runtime.timing import Timing, TimingComparison
from .surgery.plan import Plan, load_plan
from .version import __version__

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
