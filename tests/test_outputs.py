"""Messages about results that cannot be written; a file that cannot be read is not blamed on the output."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from leanonnx.commands.compress import choosing, pipeline
from leanonnx.commands.sweep.journal import claim_folder
from leanonnx.errors import OutputError
from leanonnx.selection.metrics import Budget
from leanonnx.system.outputs import temporary_folder_beside
from tests.helpers import CNN, Options, build, saved

FULL = Path("/dev/full")


def on_a_full_disk(folder: Path) -> None:
    """Raise what writing to an open file on a full disk raises: an error that names no path."""
    if not FULL.exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    with FULL.open("wb", buffering=0) as file:
        file.write(b"x")


def no_room_for_a_file(folder: Path) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/elsewhere")


def failing_disk(folder: Path) -> None:
    raise OSError(errno.EIO, "Input/output error")


def nowhere(folder: Path) -> None:
    (folder / "none" / "file").write_bytes(b"x")


def missing(folder: Path) -> None:
    (folder.parent / "targets.toml").read_text(encoding="utf-8")


def not_a_folder(folder: Path) -> None:
    list((folder.parent / "samples").iterdir())


def unreachable(folder: Path) -> None:
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (on_a_full_disk, "No space left on device; free some space"),
        (no_room_for_a_file, "Disk quota exceeded; free some space"),
        (failing_disk, "Input/output error; give another path"),
        (nowhere, "No such file or directory; give another path"),
    ],
)
def test_obstacles_to_writing_a_result_are_reported(fails: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    with pytest.raises(OutputError) as raised, temporary_folder_beside(target) as folder:
        fails(folder)
    assert str(raised.value) == f"{target}: cannot be written: {says}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fails", "kind", "says"),
    [
        (missing, FileNotFoundError, "targets.toml"),
        (not_a_folder, FileNotFoundError, "samples"),
        (unreachable, ConnectionResetError, "reset"),
    ],
)
def test_read_errors_elsewhere_stay_unchanged(
    fails: Callable[[Path], None], kind: type[OSError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says), temporary_folder_beside(tmp_path / "out.onnx") as folder:
        fails(folder)
    assert list(tmp_path.iterdir()) == []
    sweep = tmp_path / "sweep"
    with pytest.raises(kind, match=says), claim_folder(sweep):
        fails(sweep)


def test_a_sweep_that_cannot_write_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="sweep: cannot be written: No such file"), claim_folder(tmp_path / "sweep"):
        nowhere(tmp_path / "sweep")


def test_a_missing_table_is_not_blamed_on_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        (tmp_path / "targets.toml").read_text(encoding="utf-8")

    monkeypatch.setattr(choosing, "builtin_hardware", gone)
    source = saved(build(CNN), tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match=r"targets\.toml"):
        pipeline.compress_file(source, tmp_path / "o.onnx", Options(Budget("kernels", 0.5)))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
