"""Models in git: ``REV:PATH`` as in ``git show``, for example ``origin/main:models/net.onnx``."""

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
    """The path of a model; for a model in git, that of a temporary copy with its external data.

    ``PATH`` is relative to the top of the repository, or to the current folder if it starts with ``./``.  Files that
    git stores elsewhere (LFS) are fetched by the filters of the repository.

    Raises:
        ModelError: the text names neither a file nor an object in git.
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
            with suppress(ModelError, OSError, ValueError):  # loading the model reports the error
                file = (folder / location).resolve()
                if file.is_relative_to(folder):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    beside = "/".join([*inside.split("/")[:-1], location])
                    file.write_bytes(_content(f"{revision}:{beside}", text))
        yield path


def _content(blob: str, text: str) -> bytes:
    """Content of a file as git checks it out."""
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
    """Names of the files of the model's external data; none if the file is not a model."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError):
        return set()
    return {ExternalDataInfo(tensor).location for tensor in tensors(proto.graph) if uses_external_data(tensor)}
