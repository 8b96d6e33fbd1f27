"""Sessions of onnxruntime on the CPU: their options, and single runs of a model.

Settings of the whole process are changed by ``claim_process`` alone, which only programs of leanonnx's own call.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from leanonnx.errors import LeanOnnxError
from leanonnx.graph.exact_integers import has_integer_sums, with_exact_sums
from leanonnx.graph.formats import ElementTypes, Source, convert_feed, convert_to_float32
from leanonnx.graph.model import first_line, raise_if_machine_failed
from leanonnx.graph.storage import data_size, write_model
from leanonnx.graph.view import FREE_INITIALIZERS
from leanonnx.numeric.arrays import Array
from leanonnx.system.memory import available_memory, return_large_blocks

Feed = dict[str, Array]
Session: TypeAlias = ort.InferenceSession

MAX_IN_MEMORY_BYTES = 1 << 24
"""Bytes up to which a model is passed to onnxruntime in memory."""
MAX_RUN_SECONDS = 120
"""Seconds after which a run is stopped."""
CHECKS_PER_RUN = 60
"""Checks of a run within ``MAX_RUN_SECONDS``."""
TERMINATED_TEXT = "terminate flag"
"""What onnxruntime says of a run that was stopped."""
QUIET = 4
"""The log severity of fatal errors, which hides all others."""
_CAPPED = threading.Event()
"""Set once the memory of this process is capped; it stays capped until the process ends."""


@cache
def claim_process() -> None:
    """Silence onnxruntime in this process, and cap the memory of its CPU sessions.

    For processes that belong to leanonnx: the command line, and the processes that it starts.  In a process of others,
    sessions are silent by their own options, and their memory is not capped.
    """
    ort.set_default_logger_severity(QUIET)
    return_large_blocks()
    if _cap_memory():
        _CAPPED.set()


def _cap_memory() -> bool:
    """Make onnxruntime refuse what does not fit into half of the available memory, instead of being killed for it.

    Returns:
        True if a cap is set; False where the available memory is unknown.
    """
    memory = available_memory()
    if not memory:
        return False
    default = dict.fromkeys(
        ("initial_chunk_size_bytes", "max_dead_bytes_per_chunk", "initial_growth_chunk_size_bytes"), -1
    )
    limits = ort.OrtArenaCfg(
        {**default, "max_mem": memory // 2, "arena_extend_strategy": 1, "max_power_of_two_extend_bytes": -1}
    )
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, limits)
    return True


THREAD_LIMIT: ContextVar[int] = ContextVar("MOST_THREADS", default=0)
"""Threads of a session; 0: one for each core."""


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Limit the threads of sessions that are opened inside the context; 0: one for each core."""
    before = THREAD_LIMIT.set(threads)
    try:
        yield
    finally:
        THREAD_LIMIT.reset(before)


def cpu_options(optimise: bool, libraries: Sequence[Path]) -> ort.SessionOptions:
    """Session options: quiet, no spinning threads, no more threads than allowed, custom operators."""
    result = ort.SessionOptions()
    result.log_severity_level = QUIET
    result.intra_op_num_threads = THREAD_LIMIT.get()
    result.enable_mem_pattern = False  # its planning takes time quadratic in the number of nodes
    result.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        result.add_session_config_entry("session.disable_prepacking", "1")
        result.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if _CAPPED.is_set():
        result.add_session_config_entry("session.use_env_allocators", "1")
    for library in libraries:
        result.register_custom_ops_library(str(library))
    return result


@contextmanager
def open_session(
    model: Source, optimise: bool = True, libraries: Sequence[Path] = (), shapes_first: bool = False
) -> Iterator[Session]:
    """A CPU session on a file or on a model in memory.

    Large models go through a temporary file that onnxruntime maps, which saves it two copies of the weights.
    Without ``optimise``, products of integers are summed exactly, on any processor.
    With ``shapes_first``, a Shape node is run as soon as its input is there, which is then no longer kept for it.
    """
    with ExitStack() as stack:
        source: bytes | str
        model = model if optimise else _with_exact_sums(model)
        if isinstance(model, Path):
            source = str(model)
        elif data_size(model) < MAX_IN_MEMORY_BYTES:
            source = model.SerializeToString()
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="leanonnx-"))
            write_model(model, Path(folder) / "model.onnx", external=True)
            source = str(Path(folder) / "model.onnx")
        chosen = cpu_options(optimise, libraries)
        if shapes_first:
            chosen.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        yield Session(source, chosen, providers=["CPUExecutionProvider"], enable_fallback=0)


def _with_exact_sums(model: Source) -> Source:
    if isinstance(model, onnx.ModelProto):
        return with_exact_sums(model)
    return with_exact_sums(onnx.load(model)) if has_integer_sums(onnx.load(model, load_external_data=False)) else model


class RunFailed(Exception):
    """onnxruntime cannot load or run a model."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn exceptions of onnxruntime into ``RunFailed``; errors of files, and our own, pass unchanged."""
    try:
        yield
    except (OSError, LeanOnnxError, RunFailed):
        raise
    except Exception as error:  # onnxruntime raises its own types, one per status code
        raise_if_machine_failed(error)
        text = first_line(error)
        late = TERMINATED_TEXT in text
        raise RunFailed(f"a run did not end within {MAX_RUN_SECONDS} seconds" if late else text) from error


def run(
    model: Source, feeds: Sequence[Feed], optimise: bool = True, libraries: Sequence[Path] = ()
) -> list[list[Array]]:
    """Outputs of a model for each feed; ``libraries`` hold its custom operators.

    Raises:
        RunFailed: onnxruntime cannot load or run it.
    """
    with translate_errors(), open_session(model, optimise, libraries) as session:
        return [[np.asarray(value) for value in run_session(session, feed)] for feed in feeds]


def run_node(
    node: onnx.NodeProto, feed: Feed, constants: Feed, like: onnx.ModelProto, replaced: ElementTypes
) -> Array | None:
    """The first output of one node run by itself; None if onnxruntime cannot run it.

    Args:
        node: the node.
        feed: its computed inputs.
        constants: its other inputs, which some operators require to be constants.
        like: the model of the node, for its operator sets.
        replaced: number formats that are run as float32.
    """
    alone = onnx.ModelProto(ir_version=max(like.ir_version, FREE_INITIALIZERS), opset_import=like.opset_import)
    alone.graph.name = "alone"
    alone.graph.node.add().CopyFrom(node)
    del alone.graph.node[0].output[1:]
    alone.graph.output.add(name=node.output[0])
    for name, array in feed.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        alone.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    alone.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    try:
        return run(convert_to_float32(alone, replaced), [convert_feed(feed, replaced)], optimise=False)[0][0]
    except RunFailed:
        return None


@contextmanager
def session_runner(session: Session) -> Iterator[Callable[[Feed], list[Array]]]:
    """A function that runs a session and returns its outputs; a run is stopped after ``MAX_RUN_SECONDS``.

    One thread watches all runs: to start one for each would take longer than a short run does.  It counts its checks
    instead of reading a clock, which goes on while the whole process is stopped (Ctrl-Z).
    """
    limits, over = ort.RunOptions(), threading.Event()
    numbers = itertools.count(1)
    current = 0  # number of the run that is going on; 0: none is

    def watch() -> None:
        seen = checks = 0
        while not over.wait(MAX_RUN_SECONDS / CHECKS_PER_RUN):
            checks = checks + 1 if current == seen else 0
            seen = current
            if seen and checks >= CHECKS_PER_RUN:
                limits.terminate = True
                return

    def run_once(feed: Feed) -> list[Array]:
        nonlocal current
        current = next(numbers)
        try:
            return list(session.run(None, feed, limits))
        finally:
            current = 0

    start_new_thread(watch, ())  # Thread.start would wait until it runs, often longer than a short run takes
    try:
        yield run_once
    finally:
        over.set()


def run_session(session: Session, feed: Feed) -> list[Array]:
    """Outputs of one run, which is stopped after ``MAX_RUN_SECONDS`` (an endless loop)."""
    with session_runner(session) as run_once:
        return run_once(feed)
