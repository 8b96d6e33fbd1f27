"""Sessions for timing: on the requested provider and no other, configured as in deployment.

The configuration: a fixed number of threads within each operator, one operator at a time, all optimisations,
onnxruntime's own arena and memory pattern, denormal numbers flushed to zero.  Threads spin within a run, as they do by
default, but not after it: otherwise two sessions of one process would compete for the processor.
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
from leanonnx.graph.model import first_line, raise_if_machine_failed
from leanonnx.runtime.sessions import QUIET, Feed, Session, run_session, translate_errors
from leanonnx.spelling import option
from leanonnx.system.cores import available_cores

Provider = Literal["cpu", "cuda", "tensorrt"]
CUDNN_ALGORITHM_SEARCH = "EXHAUSTIVE"
"""Search mode for cuDNN's convolution algorithms: all are tried when the session is warmed up."""
PROVIDER_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
GPU_DEVICE = "cuda"
GRAPH_ID_ENTRY, NO_GRAPH_ID = "gpu_graph_id", "-1"
"""Run option, and its value that keeps a run out of the CUDA graph."""
WARM_UP_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[1, 8, 16, 16] x, float[8, 8, 3, 3] w) => (float[1, 8, 14, 14] y) { y = Conv (x, w) }
"""
GPU_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
PROVIDER_ADVICE = {
    "cuda": f"install it with `{GPU_INSTALL}` and see that nvidia-smi lists a GPU",
    "tensorrt": f"install `{GPU_INSTALL}` and TensorRT, put TensorRT's libraries on the loader's path "
    "(LD_LIBRARY_PATH), and see that nvidia-smi lists a GPU",
}


@dataclass(frozen=True)
class Setting:
    """Provider and options with which a model is timed.

    Attributes:
        provider: execution provider; a session that falls back to another one is refused.
        threads: threads within an operator; 0 stands for the number of available physical cores.
        cuda_graph: replay the model's GPU work as one CUDA graph.
        tf32: let the GPU multiply float32 in TF32 (10 bits of mantissa).
        libraries: libraries of custom operators.

    Raises:
        OptionError: there is no such provider, or the number of threads is negative.
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
    def with_thread_count(self) -> Setting:
        """The same setting with 0 threads replaced by the number of available cores."""
        return replace(self, threads=self.threads or available_cores())

    @property
    def uses_gpu(self) -> bool:
        """True if inputs and outputs are bound to GPU memory."""
        return self.provider != "cpu"


def runtime_version() -> str:
    """Return the version of onnxruntime."""
    return str(ort.__version__)


def available_providers() -> tuple[str, ...]:
    """Return onnxruntime's names of the execution providers that it was built with."""
    return tuple(ort.get_available_providers())


def session_options(setting: Setting) -> ort.SessionOptions:
    """Return the options of a session for timing; the module docstring explains them."""
    result = ort.SessionOptions()
    result.log_severity_level = QUIET
    result.intra_op_num_threads = setting.with_thread_count.threads
    result.inter_op_num_threads = 1
    result.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    result.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    result.add_session_config_entry("session.set_denormal_as_zero", "1")
    result.add_session_config_entry("session.force_spinning_stop", "1")
    for library in setting.libraries:
        result.register_custom_ops_library(str(library))
    return result


def provider_list(setting: Setting) -> list[Any]:
    """Return the providers of a session with their options; each runs what those before it cannot."""
    cuda = {
        "cudnn_conv_algo_search": CUDNN_ALGORITHM_SEARCH,
        "use_tf32": str(int(setting.tf32)),
        "enable_cuda_graph": str(int(setting.cuda_graph and setting.provider == "cuda")),
    }
    chosen: dict[str, list[Any]] = {
        "cpu": [],
        "cuda": [(PROVIDER_NAMES["cuda"], cuda)],
        "tensorrt": [
            (PROVIDER_NAMES["tensorrt"], {"trt_cuda_graph_enable": str(setting.cuda_graph)}),
            (PROVIDER_NAMES["cuda"], cuda),
        ],
    }
    return [*chosen[setting.provider], PROVIDER_NAMES["cpu"]]


def open_timed_session(model: Path | bytes, setting: Setting, options: ort.SessionOptions | None = None) -> Session:
    """Open a session on the provider of the setting.

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load the model.
    """
    source = str(model) if isinstance(model, Path) else model
    with translate_errors():
        session = ort.InferenceSession(
            source, options or session_options(setting), providers=provider_list(setting), enable_fallback=0
        )
    if PROVIDER_NAMES[setting.provider] not in session.get_providers():
        raise _provider_missing(setting.provider, "onnxruntime fell back to the CPU")
    return session


def prepare_provider(setting: Setting) -> None:
    """Load the provider's libraries and run a small model, so that no timing includes this one-off cost.

    Raises:
        ProviderMissing: the provider is not available.
    """
    if not setting.uses_gpu:
        _run_warm_up(setting)
        return
    preloaded = _preload()
    try:
        _run_warm_up(replace(setting, cuda_graph=False))
    except Exception as error:  # an outdated driver fails only in the first run
        raise_if_machine_failed(error)
        raise _provider_missing(
            setting.provider, _loader_error(setting.provider) or preloaded or first_line(error)
        ) from error


def _run_warm_up(setting: Setting) -> None:
    small = onnx.parser.parse_model(WARM_UP_MODEL)
    session = open_timed_session(small.SerializeToString(), replace(setting, libraries=()))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in small.graph.input}
    session.run(None, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def _preload() -> str:
    """Load NVIDIA's libraries from their Python packages and return the first message of the loader, if any."""
    if not hasattr(ort, "preload_dlls"):
        return ""
    with redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls()
    return printed.getvalue().strip().partition("\n")[0]


def _loader_error(provider: Provider) -> str:
    """Return the reason why the system cannot load a provider's library; empty if it can, or if there is none."""
    folder = Path(ort.__file__).parent / "capi"
    for library in sorted(folder.glob(f"*onnxruntime_providers_{provider}.*")):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return ""


def _provider_missing(provider: Provider, reason: str) -> ProviderMissing:
    return ProviderMissing(
        f"{option('provider', provider)}: onnxruntime {ort.__version__} has none here ({reason}); "
        f"{PROVIDER_ADVICE[provider]}"
    )


@dataclass(frozen=True)
class Runner:
    """A session bound to its input: ``run`` computes once and waits for the end."""

    run: Callable[[], object]
    first_seconds: float
    """Seconds of the first run."""


def start_runner(session: Session, feed: Feed, setting: Setting) -> Runner:
    """Run a session once on an input and return a runner for further runs.

    On the CPU, a run reads and returns numpy arrays.  On a GPU, inputs and outputs are bound to its memory beforehand,
    so that a run includes no copies to and from it.

    Raises:
        RunFailed: onnxruntime cannot run the model.
    """
    with translate_errors():
        return _gpu_runner(session, feed, setting) if setting.uses_gpu else _cpu_runner(session, feed)


def _cpu_runner(session: Session, feed: Feed) -> Runner:
    start = time.perf_counter()
    run_session(session, feed)
    return Runner(lambda: session.run(None, feed), time.perf_counter() - start)


def _gpu_runner(session: Session, feed: Feed, setting: Setting) -> Runner:
    """Return a runner that reuses the output memory of its first run, as a CUDA graph (captured by the next) needs."""
    binding = session.io_binding()
    for name, array in feed.items():
        if array.dtype.kind == "O":
            binding.bind_cpu_input(name, array)
        else:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, GPU_DEVICE, 0))
    names = [value.name for value in session.get_outputs()]
    for name in names:
        binding.bind_output(name, GPU_DEVICE, 0)
    run_options = ort.RunOptions()
    if setting.cuda_graph:
        run_options.add_run_config_entry(GRAPH_ID_ENTRY, NO_GRAPH_ID)
    start = time.perf_counter()
    session.run_with_iobinding(binding, run_options)
    binding.synchronize_outputs()
    first = time.perf_counter() - start
    for name, value in zip(names, binding.get_outputs(), strict=True):
        if value.is_tensor():
            binding.bind_ortvalue_output(name, value)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return Runner(run, first)
