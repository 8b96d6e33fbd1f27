"""Spoiled models: a seed names a model, what is done to it, and so its bytes.

python -m tests.corruption FOLDER SEED …        write the cases of some seeds, and say what each is
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

from tests.mutators import NOT_TEXT, SPOILERS, Spoiler, Void
from tests.seed_models import DATA, MODEL, VICTIMS, Files


def spoiled_bytes(raw: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Bytes flipped, lost, doubled, zeroed or inserted; text that is no text."""
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
"""How often a case is drawn that the checker shall not refuse."""


@dataclass(frozen=True)
class Case:
    """A spoiled model: what was done to what, and its files."""

    seed: int
    what: str
    files: Files


@cache
def _victim(name: str) -> Files:
    return VICTIMS[name]()


def case(seed: int) -> Case:
    """The case of a seed; half of them are drawn until the checker sees nothing wrong, which lets them get further."""
    rng = np.random.default_rng(seed)
    tries = TRIES if rng.random() < 0.5 else 1
    for _ in range(tries):
        found = _drawn(seed, rng)
        if tries == 1 or _plausible(found.files[MODEL]):
            break
    return found


def _drawn(seed: int, rng: np.random.Generator) -> Case:
    """One to three corruptions of the structure, or of the bytes, or both."""
    handmade = [name for name in VICTIMS if not name.startswith("random")]
    names = handmade if rng.random() < 0.6 else list(VICTIMS)
    name = names[int(rng.integers(len(names)))]
    files = dict(_victim(name))
    done = []
    if rng.random() < 0.8:
        proto = onnx.ModelProto.FromString(files[MODEL])
        done += [_spoil(proto, rng) for _ in range(int(rng.choice([1, 1, 1, 2, 3])))]
        files[MODEL] = proto.SerializeToString(deterministic=True)
    if not done or rng.random() < 0.1:
        part = DATA if DATA in files and rng.random() < 0.3 else MODEL
        kind, files[part] = spoiled_bytes(files[part], rng)
        done.append(f"bytes {kind}")
    return Case(seed, f"{name}: {', '.join(done)}", files)


def _plausible(raw: bytes) -> bool:
    try:
        onnx.checker.check_model(raw, full_check=True)
    except Exception:  # the checker raises several unrelated types
        return False
    return True


def _spoil(proto: onnx.ModelProto, rng: np.random.Generator) -> str:
    while True:
        spoil = SPOILERS[int(rng.integers(len(SPOILERS)))]
        try:
            spoil(Spoiler(proto, rng))
        except (Void, ValueError, DecodeError):
            continue
        return spoil.__name__


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
