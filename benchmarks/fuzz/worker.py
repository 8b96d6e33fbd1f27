"""The process that fuzzes one target: ``python -m benchmarks.fuzz.worker TARGET FOLDER [OPTIONS OF LIBFUZZER]``."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["leanonnx"]):
    from benchmarks.fuzz.targets import TARGETS
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
        with tempfile.TemporaryDirectory() as folder:
            try:
                read(content, Path(folder))
            except LeanOnnxError:
                return
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
                place = re.sub(r"\W+", "_", place_of(error))
                if place not in seen:
                    seen.add(place)
                    digest = hashlib.sha256(content).hexdigest()[:8]
                    (findings / f"{place}-{digest}").write_bytes(content)
                    print(f"FINDING {place}: {str(error)[:300]!r}", file=sys.stderr, flush=True)

    return one_input


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz one target in this process, which ends with it."""
    target = TARGETS[name]()
    for seed, content in enumerate(target.seeds):
        (folder / name / f"seed-{seed}").write_bytes(content)
    atheris.Setup([name, *options, str(folder / name)], guarded(target.read, folder / f"{name}-findings"))
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
