"""Timing in a fresh Python process, undisturbed by threads, caches and settings of earlier work.

The two processes share a folder with the request as JSON, each input as an ONNX tensor (which, unlike numpy's files,
also holds strings and bfloat16), and the answer as JSON.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import numpy_helper

from leanonnx.errors import ProviderMissing
from leanonnx.runtime.profiling import NodeTime, profile_models
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import MAX_RUN_SECONDS, Feed, RunFailed, claim_process
from leanonnx.runtime.timing import TIMING_PATIENCE, Timing, TimingComparison, compare_latency, time_models
from leanonnx.spelling import current_spelling, spelled_for
from leanonnx.system import processes

TIMING_ENTRY = "leanonnx.runtime.subprocess_timing:answer_timing_request"
REQUEST_FILE, ANSWER_FILE, INPUT_FILE = "request.json", "answer.json", "input-{}.pb"
START_SECONDS = 10 * MAX_RUN_SECONDS
"""Time limit for loading the models and their first runs, in seconds."""


def compare_in_subprocess(
    before: Path, after: Path, feed: Feed, setting: Setting, seconds: float, seed: int = 0
) -> TimingComparison:
    """Run ``timing.compare_latency`` in a fresh process.

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run one of the models, or the process dies.
    """
    row = _request("compare", [before, after], [feed], setting, seconds, seed)
    before_timing, after_timing = (Timing.from_row(row.pop(name)) for name in ("before", "after"))
    return TimingComparison(before=before_timing, after=after_timing, interval=tuple(row.pop("interval")), **row)


def time_in_subprocess(path: Path, feed: Feed, setting: Setting, seconds: float) -> Timing:
    """Run ``timing.time_model`` in a fresh process.

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run the model, or the process dies.
    """
    return time_all_in_subprocess([path], [feed], setting, seconds)[0]


def time_all_in_subprocess(
    paths: Sequence[Path], feeds: Sequence[Feed], setting: Setting, seconds: float
) -> tuple[Timing, ...]:
    """Run ``timing.time_models`` in a fresh process.

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run one of the models, or the process dies.
    """
    return tuple(Timing.from_row(row) for row in _request("several", paths, feeds, setting, seconds)["timings"])


def profile_in_subprocess(
    paths: Sequence[Path], feed: Feed, setting: Setting, seconds: float
) -> tuple[tuple[NodeTime, ...], ...]:
    """Run ``profiling.profile_models`` in a fresh process.

    Raises:
        ProviderMissing: the provider is not available.
        RunFailed: onnxruntime cannot load or run one of the models, or the process dies.
    """
    models = _request("profile", paths, [feed], setting, seconds)["works"]
    return tuple(tuple(NodeTime(**node) for node in nodes) for nodes in models)


def _request(
    task: Literal["compare", "several", "profile"],
    paths: Sequence[Path],
    feeds: Sequence[Feed],
    setting: Setting,
    seconds: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Start a fresh process for a task and return its answer."""
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as name:
        folder = Path(name)
        request = {
            "task": task,
            "paths": [str(path.resolve()) for path in paths],
            "setting": {**asdict(setting), "libraries": [str(path) for path in setting.libraries]},
            "inputs": [len(feed) for feed in feeds],
            "seconds": seconds,
            "seed": seed,
            "caller": current_spelling(),
        }
        (folder / REQUEST_FILE).write_text(json.dumps(request))
        for index, (key, array) in enumerate(pair for feed in feeds for pair in feed.items()):
            (folder / INPUT_FILE.format(index)).write_bytes(numpy_helper.from_array(array, key).SerializeToString())
        ending = processes.run_process(TIMING_ENTRY, folder, START_SECONDS + 2 * TIMING_PATIENCE * seconds)
        if not (folder / ANSWER_FILE).is_file():
            raise RunFailed(f"the process that measures {ending}")
        response: dict[str, Any] = json.loads((folder / ANSWER_FILE).read_text())
    if "missing" in response:
        raise ProviderMissing(response["missing"])
    if "failed" in response:
        raise RunFailed(response["failed"])
    return response


def answer_timing_request(folder: Path) -> None:
    """Carry out the request in a folder and write the answer into it (runs in the fresh process).

    Temporary files are kept there too: the parent process removes them, even if it kills this one.
    """
    tempfile.tempdir = str(folder)
    claim_process()
    request = json.loads((folder / REQUEST_FILE).read_text())
    feeds = _inputs(folder, request["inputs"])
    setting = Setting(**{**request["setting"], "libraries": tuple(map(Path, request["setting"]["libraries"]))})
    paths, seconds = [Path(path) for path in request["paths"]], request["seconds"]
    result: dict[str, Any]
    try:
        with spelled_for(request["caller"]):
            if request["task"] == "compare":
                result = asdict(compare_latency(paths[0], paths[1], feeds[0], setting, seconds, request["seed"]))
            elif request["task"] == "several":
                result = {"timings": [asdict(timing) for timing in time_models(paths, feeds, setting, seconds)]}
            else:
                works = profile_models(paths, feeds[0], setting, seconds)
                result = {"works": [[asdict(work) for work in each] for each in works]}
    except ProviderMissing as error:
        result = {"missing": str(error)}
    except RunFailed as error:
        result = {"failed": str(error)}
    (folder / ANSWER_FILE).write_text(json.dumps(result))


def _inputs(folder: Path, counts: Sequence[int]) -> list[Feed]:
    """Read feeds from a folder; ``counts`` are their numbers of inputs."""
    files = [folder / INPUT_FILE.format(index) for index in range(sum(counts))]
    tensors = iter([onnx.TensorProto.FromString(file.read_bytes()) for file in files])
    feeds = [list(itertools.islice(tensors, count)) for count in counts]
    return [{tensor.name: numpy_helper.to_array(tensor) for tensor in feed} for feed in feeds]
