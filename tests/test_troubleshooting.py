"""docs/troubleshooting.md quotes messages verbatim: each is in the source, and the common ones are provoked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx import errors
from tests.documented import PAGES
from tests.helpers import CNN, build, called, saved, saved_external
from tests.messages import evened, raised, said

PAGE = PAGES["docs/troubleshooting.md"].read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| (.*) \|$", PAGE, re.MULTILINE)
QUOTED = [message for message, _ in ROWS]


def pattern(message: str) -> str:
    """A message as a regular expression."""
    return ".*".join(re.escape(part) for part in message.split("…"))


def in_source(message: str, templates: set[str]) -> bool:
    """True if a quoted message is one of the templates, in which names of commands are in backticks."""
    return evened(message) in {template.replace("`", "") for template in templates}


def test_page_quotes_messages() -> None:
    assert len(QUOTED) > 60
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("message", QUOTED)
def test_message_stands_in_the_source(message: str) -> None:
    assert in_source(message, set(raised()) | said())


def test_altered_message_is_found() -> None:
    assert not in_source(QUOTED[0].replace("cut short", "cut"), set(raised()) | said())


def test_section_names_the_exit_code() -> None:
    """Messages of user errors are listed under 2, those of refusals under 1, warnings under 0."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        code = re.search(r"[Ee]xit code (\d)\)?$", section.splitlines()[0])
        for message in re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE):
            kind = raised().get(evened(message))
            if kind is not None and code is not None:
                assert int(code[1]) == getattr(errors, kind).code, message


def broken(path: Path) -> Path:
    path.write_bytes(saved(build(CNN), path).read_bytes()[:-900])
    return path


def pointer(path: Path) -> Path:
    """The pointer file in place of a large file that Git LFS has not fetched."""
    return written(path, f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 1234\n")


def no_graph(path: Path) -> Path:
    return saved(onnx.ModelProto(producer_name="an exporter"), path)


def without_data(folder: Path) -> Path:
    path = saved_external(build(CNN), folder / "external.onnx")
    (folder / "weights.bin").unlink()
    return path


def samples(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "data.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    return folder / "data.npz"


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def other_plan(folder: Path) -> Path:
    called(
        "compress",
        saved(build(CNN, seed=1), folder / "other.onnx"),
        folder / "o.onnx",
        "--keep",
        0.5,
        "--plan-out",
        folder / "p.json",
    )
    return folder / "p.json"


def free_sizes(folder: Path) -> Path:
    text = CNN.replace("float[1, 3, 8, 8] x", "float[A, B, C, D] x").replace("float[5, 12] w3", "float[5, 432] w3")
    return saved(build(text.replace("p2 = GlobalAveragePool (r2)", "p2 = Identity (r2)")), folder / "free.onnx")


ONES = np.ones((6, 3, 8, 8), np.float32)
Words = list[object]
PROVOKED: dict[str, tuple[int, Callable[[Path, Path], Words]]] = {
    "bytes); export or copy": (2, lambda m, f: ["inspect", broken(f / "broken.onnx")]),
    "a pointer of Git LFS": (2, lambda m, f: ["inspect", pointer(f / "pointer.onnx")]),
    "a protobuf, but no ONNX model": (2, lambda m, f: ["inspect", no_graph(f / "begun.onnx")]),
    "is missing; copy it": (2, lambda m, f: ["inspect", without_data(f)]),
    "with any input size tried": (2, lambda m, f: ["inspect", free_sizes(f)]),
    "no such graph input": (2, lambda m, f: ["inspect", m, "--shape", "z=1"]),
    "the model declares": (2, lambda m, f: ["inspect", m, "--shape", "x=1,3,9,9"]),
    "is the lowest that can be reached": (1, lambda m, f: ["compress", m, f / "o", "--keep", 0.001]),
    "give exactly one of": (2, lambda m, f: ["compress", m, f / "o"]),
    "expected a fraction above 0": (2, lambda m, f: ["compress", m, f / "o", "--keep", 25]),
    "--pin …: no tensor": (2, lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--pin", "q"]),
    "--ignore …: no node": (2, lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--ignore", "q"]),
    "--why …: no tensor and no layer named": (2, lambda m, f: ["inspect", m, "--why", "none"]),
    "--target …": (2, lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--target", "q"]),
    "--latency is met by measuring": (2, lambda m, f: ["compress", m, f / "o", "--latency", 0.5]),
    "--method path-mass needs": (2, lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--method", "path-mass"]),
    "--calib has nothing to do": (2, lambda m, f: ["compress", m, f / "o", "--exact", "--calib", samples(f, x=ONES)]),
    "no array for input": (
        2,
        lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--calib", samples(f, a=ONES, b=ONES)],
    ),
    "its channels are along another axis": (
        2,
        lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--calib", samples(f, x=ONES.transpose(0, 2, 3, 1))],
    ),
    "convert the array": (
        2,
        lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--calib", samples(f, x=ONES.astype(complex))],
    ),
    "NaN or infinity, expected": (
        2,
        lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--calib", samples(f, x=ONES * np.nan)],
    ),
    "not a whole .npz or .npy file": (
        2,
        lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--calib", written(f / "d.npz", "x")],
    ),
    "no such file or folder": (2, lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--calib", f / "none"]),
    "the folder holds": (2, lambda m, f: ["compress", m, f / "o", "--keep", 0.5, "--calib", f.parent]),
    "made for another model": (2, lambda m, f: ["compress", m, f / "o", "--plan", other_plan(f)]),
    "not a plan of leanonnx (…)": (
        2,
        lambda m, f: ["compress", m, f / "o", "--plan", written(f / "p", json.dumps({}))],
    ),
    "a table named RULES": (2, lambda m, f: ["inspect", m, "--rules", written(f / "r.py", "")]),
    "--rules …: cannot be read": (2, lambda m, f: ["inspect", m, "--rules", written(f / "r.py", "1 +")]),
    "the output is the input file": (2, lambda m, f: ["compress", m, m, "--keep", 0.5]),
    "make it first": (2, lambda m, f: ["compress", m, f / "none" / "o", "--keep", 0.5]),
    "the CPU has no CUDA graphs": (2, lambda m, f: ["bench", m, "--cuda-graph"]),
    "fixes the first axis": (2, lambda m, f: ["bench", m, "--batch", 2]),
}
"""Part of a quoted message → exit code and the arguments, from a model and a folder, that bring it about."""


@pytest.mark.parametrize("part", PROVOKED)
def test_message_reaches_the_user(part: str, tmp_path: Path) -> None:
    (message,) = (each for each in QUOTED if part in each)
    code, arguments = PROVOKED[part]
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    model = saved(build(CNN), tmp_path / "model" / "model.onnx")
    done = called(*arguments(model, tmp_path / "data"))
    assert done.returncode == code, done.stderr
    assert re.fullmatch(f"leanonnx: {pattern(message)}", done.stderr.strip().replace("`", ""), re.DOTALL)
