"""Where the time of a run goes, node by node, as onnxruntime's own profiler tells it."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from leanonnx.runtime.providers import Setting, opened_on, prepare, runner, session_options
from leanonnx.runtime.sessions import Feed, Session

FOLDER = "session.model_external_initializers_file_folder_path"
EVENT = "_kernel_time"
FEWEST, MOST = 20, 200
"""Runs that are profiled, fewer of models that take ``PATIENCE`` times the time for them."""
PATIENCE = 3
TURN = 4
"""Runs of a model in turn: the first wakes its threads, and a median does not see it."""
DECORATION = re.compile(r"^(?:fused |InsertedPrecisionFreeCast_)|(?:_nchwc|_token_\d+|/\w+Fusion/?)$")
"""What onnxruntime adds to the name of a tensor or node where it makes a node of its own."""
NCHWC = "_nchwc"


@dataclass(frozen=True)
class Work:
    """One node as onnxruntime runs it.

    Attributes:
        tensor: output of the file's node that it was made from; None where its name does not tell.
        operator: what it computes.
        ms: median milliseconds of one run.
        blocked: it computes in the blocked layout (NCHWc), onnxruntime's fast path.
    """

    tensor: str | None
    operator: str
    ms: float
    blocked: bool


def profiled(paths: Sequence[Path], feed: Feed, setting: Setting, seconds: float) -> tuple[tuple[Work, ...], ...]:
    """Run models in turns on one input for ``seconds`` under the profiler, each about ``FEWEST`` to ``MOST`` times.

    Raises:
        OptionError: the provider is not there.
        RunFailed: onnxruntime cannot load or run one of them.
    """
    prepare(setting)
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        opened = [_opened(path, setting, Path(folder) / f"profile-{k}") for k, path in enumerate(paths)]
        ready = [runner(session, feed, setting) for session, _ in opened]
        start, runs, elapsed = time.perf_counter(), 1, 0.0
        while elapsed < seconds * (PATIENCE if runs < FEWEST else 1 if runs < MOST else 0):
            for each in ready:
                for _ in range(TURN):
                    each.run()
            runs, elapsed = runs + TURN, time.perf_counter() - start
        profiles = [Path(session.end_profiling()).read_text("utf-8", "replace") for session, _ in opened]
    return tuple(_works(json.loads(text), runs, tensors) for text, (_, tensors) in zip(profiles, opened, strict=True))


def _opened(path: Path, setting: Setting, prefix: Path) -> tuple[Session, frozenset[str]]:
    """A session that writes a profile, and the names of the nodes of its main graph.

    Every node is called after its first output, so that names tell where a node of the profile came from.
    """
    proto = onnx.load(path, load_external_data=False)
    for node in proto.graph.node:
        node.name = next((name for name in node.output if name), node.name)
    options = session_options(setting)
    options.add_session_config_entry(FOLDER, str(path.parent.resolve()))
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    names = frozenset(node.name for node in proto.graph.node)
    return opened_on(proto.SerializeToString(), setting, options), names


def _works(events: list[dict[str, Any]], runs: int, tensors: Collection[str]) -> tuple[Work, ...]:
    """The nodes of a profile in the order in which they first ran; the times of a node that loops are added up."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(EVENT):
            key = name.removesuffix(EVENT), str(event["args"].get("op_name", ""))
            times.setdefault(key, []).append(event["dur"] / 1e3)
    found = []
    for (name, operator), each in times.items():
        tensor = origin(name, tensors)
        blocked = name not in tensors and NCHWC in name.removeprefix(tensor or "")
        found.append(Work(tensor, operator, statistics.median(each) * len(each) / runs, blocked))
    return tuple(found)


def origin(name: str, tensors: Collection[str]) -> str | None:
    """Which of the ``tensors`` a node of onnxruntime's was named after, less what it adds; None if none of them."""
    while name not in tensors:
        shorter = DECORATION.sub("", name, count=1)
        if shorter == name:
            return None
        name = shorter
    return name
