"""Models as git has them: ``REV:PATH``, ``origin/main:models/net.onnx`` say, as ``git show`` names files."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from leanonnx.errors import ModelError
from leanonnx.graph.model import tensors


@contextmanager
def model_file(text: str) -> Iterator[Path]:
    """The path of a model; of one in git, that of a copy with its external data, which is removed afterwards.

    ``PATH`` is relative to the top of the repository, or to the current folder if it starts with ``./``.  Files that
    git keeps elsewhere (LFS) are fetched by the filters that the repository has set up.

    Raises:
        ModelError: neither a file nor anything in git.
    """
    revision, colon, inside = text.partition(":")
    if not colon or Path(text).exists():
        yield Path(text)
        return
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as name:
        folder = Path(name).resolve()
        path = folder / (PurePosixPath(inside).name or "model.onnx")
        path.write_bytes(_content(text, text))
        for location in _locations(path):
            with suppress(ModelError, OSError, ValueError):  # reading the model says what is wrong
                file = (folder / location).resolve()
                if file.is_relative_to(folder):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    beside = "/".join([*inside.split("/")[:-1], location])
                    file.write_bytes(_content(f"{revision}:{beside}", text))
        yield path


def _content(blob: str, text: str) -> bytes:
    """A file as git would check it out."""
    command = ["git", "cat-file", "--filters", blob]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            content, complaint = process.communicate()
    except OSError as error:
        raise ModelError(f"{text}: no such file, and git cannot be run: {error.strerror}; check the path") from error
    if process.returncode:
        said = " ".join(complaint.decode(errors="replace").split())
        raise ModelError(f"{text}: no such file, nor anything in git ({said}); check the path and the revision")
    return content


def _locations(path: Path) -> set[str]:
    """Names of the files that hold the model's external data; none of what is no model."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError):
        return set()
    return {ExternalDataInfo(tensor).location for tensor in tensors(proto.graph) if uses_external_data(tensor)}
