"""The process that fuzzes one target: ``python -m benchmarks.fuzz.worker TARGET FOLDER [OPTIONS OF LIBFUZZER]``."""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

INSTRUMENTED = (
    *("leanonnx", "numpy.lib", "zipfile", "tomllib", "PIL"),
    *("torch.serialization", "torch._weights_only_unpickler"),
)
"""Modules whose code guides the fuzzer: leanonnx, and readers written in Python that it uses."""
FORMAT_SHARE = 0.7
"""Share of the changes that keep the format of an input; the others are of bytes."""

with atheris.instrument_imports(include=list(INSTRUMENTED)):
    import numpy as np

    from benchmarks.fuzz.formats import Change
    from benchmarks.fuzz.targets import TARGETS, empty_folder
    from leanonnx.errors import LeanOnnxError


def place_of(error: BaseException) -> str:
    """Place in leanonnx where an exception was raised, and its type: the identity of a finding."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "leanonnx" in frame.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, {last.name}"


def guarded(read: Callable[[bytes, Path], None], findings: Path) -> Callable[[bytes], None]:
    """The function that a fuzzer calls: one input in a folder of its own; findings are stored, and it goes on."""
    seen = {path.name.rpartition("-")[0] for path in findings.iterdir()}

    def one_input(content: bytes) -> None:
        with empty_folder() as folder:
            try:
                read(content, folder)
            except (LeanOnnxError, MemoryError):  # the command line tells both
                return
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
                place = re.sub(r"\W+", "_", place_of(error))
                if place not in seen:
                    seen.add(place)
                    digest = hashlib.sha256(content).hexdigest()[:8]
                    (findings / f"{place}-{digest}").write_bytes(content)
                    print(f"FINDING {place}: {str(error)[:300]!r}", file=sys.stderr, flush=True)

    return one_input


def changing(change: Change) -> Callable[[bytes, int, int], bytes]:
    """The function that a fuzzer calls for a new input: by format, or by bytes."""

    def mutated(content: bytes, max_bytes: int, seed: int) -> bytes:
        rng = np.random.default_rng(seed)

        def of_bytes(given: bytes) -> bytes:
            return bytes(atheris.Mutate(given, max(max_bytes, len(given) + 1)))

        if rng.random() < FORMAT_SHARE:
            try:
                return change(content, rng, of_bytes)[:max_bytes]
            except ValueError:
                pass
        return bytes(atheris.Mutate(content, max_bytes))

    return mutated


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz one target in this process, which ends with it; all that is imported meanwhile is instrumented."""
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        target = TARGETS[name]()
        read = guarded(target.read, folder / f"{name}-findings")
        for seed, content in enumerate(target.seeds):
            (folder / name / f"seed-{seed}").write_bytes(content)
            with empty_folder() as empty:
                target.read(content, empty)  # a seed that is refused would reach nothing
    atheris.Setup([name, *options, str(folder / name)], read, custom_mutator=changing(target.change))
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
