"""The GPU and its libraries: what they are, whether they load, and what the GPU did while it was timed."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from statistics import median

from benchmarks.common import Row

LIBRARIES = ("nvidia-", "onnxruntime", "torch", "tensorrt")
SMI = "nvidia-smi"
FACTS = "name,driver_version,memory.total,clocks.max.sm,power.limit"
SAMPLED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
REASONS = "clocks_throttle_reasons.active"
PERIOD_MS = 200
"""Milliseconds between two samples of the log."""
THROTTLING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of nvidia-smi's reasons that slow a GPU down; others, such as being idle, do not."""
STEADY_SHARE = 0.02
"""Spread of the clock, as a share of its median, up to which it counts as locked."""
PINS = {"libnvinfer": "tensorrt", "libcudnn": "nvidia-cudnn", "libcudart": "nvidia-cuda-runtime"}
"""Package that has a library, by its name; the number after ``.so`` is the major version to install."""
SONAME = re.compile(r"(lib\w+)\.so\.(\d+)")


def device() -> Row:
    """The GPU, its driver, and the libraries that serve it."""
    query = [SMI, f"--query-gpu={FACTS}", "--format=csv,noheader"]
    text = subprocess.run(query, capture_output=True, text=True, check=False).stdout if which(SMI) else ""
    names = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "gpus": [line.strip() for line in text.splitlines() if line.strip()],
        "libraries": {name: names[name] for name in sorted(names) if name.startswith(LIBRARIES)},
    }


def provider_libraries(provider: str, folder: Path | None = None) -> list[Path]:
    """onnxruntime's libraries of a provider; TensorRT needs those of CUDA as well, the CPU none."""
    if provider == "cpu":
        return []
    if folder is None:
        spec = find_spec("onnxruntime")
        assert spec is not None and spec.origin is not None  # leanonnx depends on it
        folder = Path(spec.origin).parent / "capi"
    names = ["cuda", "tensorrt"] if provider == "tensorrt" else [provider]
    return [path for name in names for path in sorted(folder.glob(f"*onnxruntime_providers_{name}.*"))]


def abi_fault(provider: str, folder: Path | None = None) -> str:
    """The reason why the libraries of a provider do not load, with the package to install; empty if they do."""
    libraries = provider_libraries(provider, folder)
    if provider != "cpu" and not libraries:
        return f"this onnxruntime has no library of the {provider} provider"
    for library in libraries:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return f"{library.name} does not load: {error}{pin_text(str(error))}"
    return ""


def pin_text(message: str) -> str:
    """The version that a loader's message asks for, as something to install; empty if it names none."""
    match = SONAME.search(message)
    if not match or match[1] not in PINS:
        return ""
    number = int(match[2])
    return f"; install {PINS[match[1]]} >={number},<{number + 1}"


@dataclass(frozen=True)
class GpuLog:
    """Samples of the GPU while something was timed: numbers by what they are of, and reasons of lower clocks."""

    numbers: Mapping[str, Sequence[float]]
    reasons: frozenset[str] = frozenset()

    @property
    def is_throttled(self) -> bool:
        """True if the GPU was slowed down."""
        return bool(self.reasons)

    @property
    def row(self) -> Row:
        """Smallest, median and largest of each number, and the reasons."""
        ranges = {name: [min(values), median(values), max(values)] for name, values in self.numbers.items() if values}
        return {**ranges, "throttled_by": sorted(self.reasons)}


def is_locked(row: Row) -> bool:
    """True if the clock stayed the same during a measurement."""
    low, middle, high = row.get(SAMPLED[0], (0.0, 0.0, 0.0))
    return bool(middle) and high - low <= STEADY_SHARE * middle


def parse_log(text: str) -> GpuLog:
    """The log that nvidia-smi wrote; numbers that a GPU does not tell are left out."""
    numbers: dict[str, list[float]] = {name: [] for name in SAMPLED}
    bits = 0
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(SAMPLED) + 1:
            continue
        for name, cell in zip(SAMPLED, cells, strict=False):
            with suppress(ValueError):
                numbers[name].append(float(cell))
        with suppress(ValueError):
            bits |= int(cells[-1], 16)
    return GpuLog(numbers, frozenset(text for bit, text in THROTTLING.items() if bits & bit))


@contextmanager
def logged() -> Iterator[list[GpuLog]]:
    """Sample the GPU meanwhile; the list holds the log afterwards, and stays empty without nvidia-smi."""
    logs: list[GpuLog] = []
    if not which(SMI):
        yield logs
        return
    query = [SMI, f"--query-gpu={','.join((*SAMPLED, REASONS))}", "--format=csv,noheader,nounits", f"-lms={PERIOD_MS}"]
    child = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    try:
        yield logs
    finally:
        child.terminate()
        logs.append(parse_log(child.communicate()[0]))
