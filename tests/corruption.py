"""Corrupted models: a seed determines the model and its corruptions, and so its bytes.

python -m tests.corruption FOLDER SEED …        write the cases of some seeds and print what each is
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from tests.mutators import MUTATORS, NOT_TEXT, NotApplicable, RandomChoices
from tests.seed_models import DATA, MODEL, SEED_MODELS, Files


def corrupted_bytes(raw: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Flip, drop, duplicate, zero or insert bytes, or insert bytes that are not UTF-8."""
    at, length = int(rng.integers(len(raw))), int(rng.integers(1, 64))
    forms: dict[str, Callable[[], bytes]] = {
        "flipped": lambda: _flipped(raw, rng),
        "cut": lambda: raw[:at],
        "inserted": lambda: raw[:at] + rng.bytes(length) + raw[at:],
        "lost": lambda: raw[:at] + raw[at + length :],
        "doubled": lambda: raw[: at + length] + raw[at:],
        "zeroed": lambda: raw[:at] + bytes(min(length, len(raw) - at)) + raw[at + length :],
        "no text": lambda: raw[:at] + NOT_TEXT[: len(raw) - at] + raw[at + len(NOT_TEXT) :],
        "behind": lambda: raw + rng.bytes(length),
    }
    kind = list(forms)[int(rng.integers(len(forms)))]
    return kind, forms[kind]()


def _flipped(raw: bytes, rng: np.random.Generator) -> bytes:
    array = np.frombuffer(raw, np.uint8).copy()
    head = max(min(len(raw), 600), 1) if rng.random() < 0.5 else len(raw)
    array[rng.integers(head, size=int(rng.integers(1, 5)))] ^= np.uint8(1 << int(rng.integers(8)))
    return array.tobytes()


TRIES = 20
"""Attempts to draw a case that the checker accepts."""


@dataclass(frozen=True)
class Case:
    """A corrupted model: the description of its corruptions, and its files."""

    seed: int
    what: str
    files: Files


@cache
def _seed_model(name: str) -> Files:
    return SEED_MODELS[name]()


def case(seed: int) -> Case:
    """The case of a seed; half of the cases are redrawn until the checker accepts them, so that they get further."""
    rng = np.random.default_rng(seed)
    tries = TRIES if rng.random() < 0.5 else 1
    for _ in range(tries):
        found = _draw_case(seed, rng)
        if tries == 1 or _plausible(found.files[MODEL]):
            break
    return found


def _draw_case(seed: int, rng: np.random.Generator) -> Case:
    """One to three corruptions of the structure, or of the bytes, or both."""
    handmade = [name for name in SEED_MODELS if not name.startswith("random")]
    names = handmade if rng.random() < 0.6 else list(SEED_MODELS)
    name = names[int(rng.integers(len(names)))]
    files = dict(_seed_model(name))
    done = []
    if rng.random() < 0.8:
        proto = onnx.ModelProto.FromString(files[MODEL])
        done += [mutate(proto, rng) for _ in range(int(rng.choice([1, 1, 1, 2, 3])))]
        files[MODEL] = proto.SerializeToString(deterministic=True)
    if not done or rng.random() < 0.1:
        part = DATA if DATA in files and rng.random() < 0.3 else MODEL
        kind, files[part] = corrupted_bytes(files[part], rng)
        done.append(f"bytes {kind}")
    return Case(seed, f"{name}: {', '.join(done)}", files)


def _plausible(raw: bytes) -> bool:
    try:
        onnx.checker.check_model(raw, full_check=True)
    except Exception:  # the checker raises several unrelated types
        return False
    return True


def mutate(proto: onnx.ModelProto, rng: np.random.Generator) -> str:
    """Corrupt the structure of a model in place by a random mutator that applies; returns its name."""
    while True:
        mutator = MUTATORS[int(rng.integers(len(MUTATORS)))]
        try:
            mutator(RandomChoices(proto, rng))
        except (NotApplicable, ValueError, DecodeError):
            continue
        return mutator.__name__


def main(folder: Path, seeds: list[int]) -> None:
    """Write some cases, each into a folder of its own."""
    for found in map(case, seeds):
        place = folder / str(found.seed)
        place.mkdir(parents=True, exist_ok=True)
        for name, content in found.files.items():
            (place / name).write_bytes(content)
        sys.stdout.write(f"{found.seed}: {found.what}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
