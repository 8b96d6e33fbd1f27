"""Time per node of a run, from onnxruntime's own profiler."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from leanonnx.runtime.providers import Setting, open_timed_session, prepare_provider, session_options, start_runner
from leanonnx.runtime.sessions import Feed, Session

WEIGHTS_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"
KERNEL_EVENT = "_kernel_time"
MIN_PROFILES, MAX_PROFILES = 20, 200
"""Range of the number of profiled runs; slow models stop below it after ``PATIENCE_FACTOR`` times the time."""
PATIENCE_FACTOR = 3
RUNS_PER_TURN = 4
"""Consecutive runs of one model: the first wakes its threads, which is among the slowest quarter of all runs."""
DECORATION = re.compile(r"^(?:fused |InsertedPrecisionFreeCast_)|(?:_nchwc|_token_\d+|/\w+Fusion/?)$")
"""Prefixes and suffixes that onnxruntime adds to the name of a tensor or node to name a node that it creates."""
NCHWC_SUFFIX = "_nchwc"


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """One node as onnxruntime runs it.

    Attributes:
        tensor: first output of the file's node that it was made from; None if its name does not tell.
        operator: its operator type.
        ms: milliseconds of one run, the mean of the middle half of all runs.
        blocked: True if it computes in the blocked layout (NCHWc), onnxruntime's fast path.
    """

    tensor: str | None
    operator: str
    ms: float
    blocked: bool


def profile_models(
    paths: Sequence[Path], feed: Feed, setting: Setting, seconds: float
) -> tuple[tuple[NodeTime, ...], ...]:
    """Profile models that take turns on one input for about ``seconds``.

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run one of them.
    """
    prepare_provider(setting)
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        opened = [_open_profiled(path, setting, Path(folder) / f"profile-{k}") for k, path in enumerate(paths)]
        ready = [start_runner(session, feed, setting) for session, _ in opened]
        start, runs, elapsed = time.perf_counter(), 1, 0.0
        while elapsed < seconds * (PATIENCE_FACTOR if runs < MIN_PROFILES else 1 if runs < MAX_PROFILES else 0):
            for each in ready:
                for _ in range(RUNS_PER_TURN):
                    each.run()
            runs, elapsed = runs + RUNS_PER_TURN, time.perf_counter() - start
        profiles = [Path(session.end_profiling()).read_text("utf-8", "replace") for session, _ in opened]
    return tuple(_node_times(json.loads(text), runs, names) for text, (_, names) in zip(profiles, opened, strict=True))


def _open_profiled(path: Path, setting: Setting, prefix: Path) -> tuple[Session, frozenset[str]]:
    """Open a session that writes a profile; also return the names of the nodes of its main graph.

    Every node is named after its first output, so that the names in a profile lead back to it.
    """
    proto = onnx.load(path, load_external_data=False)
    for node in proto.graph.node:
        node.name = next((name for name in node.output if name), node.name)
    options = session_options(setting)
    options.add_session_config_entry(WEIGHTS_FOLDER_ENTRY, str(path.parent.resolve()))
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    names = frozenset(node.name for node in proto.graph.node)
    return open_timed_session(proto.SerializeToString(), setting, options), names


def _node_times(events: list[dict[str, Any]], runs: int, tensors: Collection[str]) -> tuple[NodeTime, ...]:
    """Return the nodes of a profile in the order of their first runs; the times of a node in a loop are summed."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(KERNEL_EVENT):
            key = name.removesuffix(KERNEL_EVENT), str(event["args"].get("op_name", ""))
            times.setdefault(key, []).append(event["dur"] / 1e3)
    result = []
    for (name, operator), each in times.items():
        tensor = origin_tensor(name, tensors)
        blocked = name not in tensors and NCHWC_SUFFIX in name.removeprefix(tensor or "")
        result.append(
            NodeTime(tensor=tensor, operator=operator, ms=middle_mean(each) * len(each) / runs, blocked=blocked)
        )
    return tuple(result)


def middle_mean(times: Sequence[float]) -> float:
    """Mean of the middle half: as robust as the median, and finer than the µs in which the profiler counts."""
    quarter = len(times) // 4
    middle = sorted(times)[quarter : len(times) - quarter]
    return sum(middle) / len(middle)


def origin_tensor(name: str, tensors: Collection[str]) -> str | None:
    """Return the one of ``tensors`` that onnxruntime derived a node's name from; None if there is none."""
    while name not in tensors:
        shorter = DECORATION.sub("", name, count=1)
        if shorter == name:
            return None
        name = shorter
    return name
