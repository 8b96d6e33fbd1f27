"""Sessions to be timed: on the provider that was asked for and no other, set as a deployed model would be.

What is set: a fixed number of threads for each operator, one operator at a time, all optimisations, onnxruntime's own
arena and memory pattern, denormal numbers flushed to zero.  Threads spin within a run, as they do by default, but not
after it: two sessions of one process would otherwise take the processor from each other.
"""

from __future__ import annotations

import ctypes
import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from leanonnx.checks import check_choice, check_least
from leanonnx.errors import ProviderMissing
from leanonnx.graph.model import first_line
from leanonnx.runtime.sessions import QUIET, Feed, Session, failing, finished
from leanonnx.spelling import option
from leanonnx.system.cores import available_cores

Provider = Literal["cpu", "cuda", "tensorrt"]
ALGORITHMS = "EXHAUSTIVE"
"""How cuDNN's convolution algorithms are chosen: all are tried when the session is warmed up."""
NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
DEVICE = "cuda"
CAPTURE, NO_CAPTURE = "gpu_graph_id", "-1"
"""A run's own setting that keeps it out of the CUDA graph."""
SMALL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[1, 8, 16, 16] x, float[8, 8, 3, 3] w) => (float[1, 8, 14, 14] y) { y = Conv (x, w) }
"""
ADVICE = {
    "cuda": "install it with `pip install 'leanonnx[cuda]'` and see that nvidia-smi lists a GPU",
    "tensorrt": "install `pip install 'leanonnx[cuda]'` and TensorRT, put TensorRT's libraries on the loader's path "
    "(LD_LIBRARY_PATH), and see that nvidia-smi lists a GPU",
}


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        provider: where the model runs; a session that falls back to another one is refused.
        threads: threads within an operator; 0 is the number of physical cores available.
        cuda_graph: replay the model's GPU work as one CUDA graph.
        tf32: let the GPU multiply float32 in TF32 (10 bits of mantissa).
        libraries: of custom operators.

    Raises:
        OptionError: there is no such provider or choice, or the number of threads is negative.
    """

    provider: Provider = "cpu"
    threads: int = 0
    cuda_graph: bool = False
    tf32: bool = True
    libraries: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_choice("provider", self.provider, Provider)
        check_least("threads", self.threads, 0)

    @property
    def resolved(self) -> Setting:
        """The same with the number of threads that 0 stands for."""
        return replace(self, threads=self.threads or available_cores())

    @property
    def on_device(self) -> bool:
        """Inputs and outputs lie on the GPU, bound once."""
        return self.provider != "cpu"


def runtime_version() -> str:
    """Version of onnxruntime."""
    return str(ort.__version__)


def available_providers() -> tuple[str, ...]:
    """Execution providers that this onnxruntime was built with, by its own names."""
    return tuple(ort.get_available_providers())


def session_options(setting: Setting) -> ort.SessionOptions:
    """Options of a session to be timed (the module's docstring says which, and why)."""
    result = ort.SessionOptions()
    result.log_severity_level = QUIET
    result.intra_op_num_threads = setting.resolved.threads
    result.inter_op_num_threads = 1
    result.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    result.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    result.add_session_config_entry("session.set_denormal_as_zero", "1")
    result.add_session_config_entry("session.force_spinning_stop", "1")
    for library in setting.libraries:
        result.register_custom_ops_library(str(library))
    return result


def provider_list(setting: Setting) -> list[Any]:
    """Providers of a session, with the options of each; what the first cannot run goes to the next."""
    cuda = {
        "cudnn_conv_algo_search": ALGORITHMS,
        "use_tf32": str(int(setting.tf32)),
        "enable_cuda_graph": str(int(setting.cuda_graph and setting.provider == "cuda")),
    }
    chosen: dict[str, list[Any]] = {
        "cpu": [],
        "cuda": [(NAMES["cuda"], cuda)],
        "tensorrt": [
            (NAMES["tensorrt"], {"trt_cuda_graph_enable": str(setting.cuda_graph)}),
            (NAMES["cuda"], cuda),
        ],
    }
    return [*chosen[setting.provider], NAMES["cpu"]]


def opened_on(model: Path | bytes, setting: Setting, options: ort.SessionOptions | None = None) -> Session:
    """A session on the provider of the setting.

    Raises:
        ProviderMissing: the provider is not there.
        RunFailed: onnxruntime cannot load the model.
    """
    source = str(model) if isinstance(model, Path) else model
    with failing():
        session = ort.InferenceSession(
            source, options or session_options(setting), providers=provider_list(setting), enable_fallback=0
        )
    if NAMES[setting.provider] not in session.get_providers():
        raise _missing(setting.provider, "onnxruntime fell back to the CPU")
    return session


def prepare(setting: Setting) -> None:
    """Load the provider's libraries and run something small, so that no model pays for what is done once.

    Raises:
        ProviderMissing: the provider is not there.
    """
    if not setting.on_device:
        _run_small(setting)
        return
    preloaded = _preload()
    try:
        _run_small(replace(setting, cuda_graph=False))
    except Exception as error:  # a driver that is too old shows in the first run only
        raise _missing(setting.provider, _loader_says(setting.provider) or preloaded or first_line(error)) from error


def _run_small(setting: Setting) -> None:
    small = onnx.parser.parse_model(SMALL)
    session = opened_on(small.SerializeToString(), replace(setting, libraries=()))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in small.graph.input}
    session.run(None, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def _preload() -> str:
    """Load NVIDIA's libraries from their Python packages; the first complaint, if any."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    with redirect_stdout(io.StringIO()) as heard:
        ort.preload_dlls()
    return heard.getvalue().strip().partition("\n")[0]


def _loader_says(provider: Provider) -> str:
    """Why the system cannot load the library of a provider; empty if it can, or where there is none."""
    folder = Path(ort.__file__).parent / "capi"
    for library in sorted(folder.glob(f"*onnxruntime_providers_{provider}.*")):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return ""


def _missing(provider: Provider, reason: str) -> ProviderMissing:
    return ProviderMissing(
        f"{option('provider', provider)}: onnxruntime {ort.__version__} has none here ({reason}); {ADVICE[provider]}"
    )


@dataclass(frozen=True)
class Runner:
    """A session and its input: ``run`` computes once and waits for the end."""

    run: Callable[[], object]
    first: float
    """Seconds of the first run."""


def runner(session: Session, feed: Feed, setting: Setting) -> Runner:
    """A session that has run once on an input, ready to run again.

    On the CPU a run takes numpy arrays and gives them.  On a GPU inputs and outputs are bound to its memory
    beforehand, so that copies to and from it are not part of a run.

    Raises:
        RunFailed: onnxruntime cannot run the model.
    """
    with failing():
        return _bound(session, feed, setting) if setting.on_device else _plain(session, feed)


def _plain(session: Session, feed: Feed) -> Runner:
    start = time.perf_counter()
    finished(session, feed)
    return Runner(lambda: session.run(None, feed), time.perf_counter() - start)


def _bound(session: Session, feed: Feed, setting: Setting) -> Runner:
    """Outputs keep the memory of the first run, which a CUDA graph needs: it is captured in the second."""
    binding = session.io_binding()
    for name, array in feed.items():
        if array.dtype.kind == "O":
            binding.bind_cpu_input(name, array)
        else:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, DEVICE, 0))
    names = [value.name for value in session.get_outputs()]
    for name in names:
        binding.bind_output(name, DEVICE, 0)
    plainly = ort.RunOptions()
    if setting.cuda_graph:
        plainly.add_run_config_entry(CAPTURE, NO_CAPTURE)
    start = time.perf_counter()
    session.run_with_iobinding(binding, plainly)
    binding.synchronize_outputs()
    first = time.perf_counter() - start
    for name, value in zip(names, binding.get_outputs(), strict=True):
        if value.is_tensor():
            binding.bind_ortvalue_output(name, value)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return Runner(run, first)
