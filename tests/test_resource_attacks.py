"""Small files that ask for terabytes or for years are refused within seconds, before any memory is taken for them."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import CNN, build
from tests.seed_models import DATA, MODEL, external, raw

pytest.importorskip("resource", reason="limits of processes as Unix has them")

from leanonnx.runtime import sessions
from tests.fuzz_runner import Verdict, Watch, laid, tried
from tests.resource_attacks import BOMBS, ENDLESS, ENTRIES, HARMLESS, PLANS, plan

PATIENCE = 20.0


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """One worker for all bombs; one that hangs or dies is replaced."""
    found = Watch(PATIENCE)
    yield found
    found.stop()


def blown(watch: Watch, folder: Path, files: dict[str, bytes], *options: str) -> Verdict:
    return watch.ask(laid(folder / "case", files), *options)


@pytest.mark.parametrize("name", [name for name in BOMBS if name != ENDLESS])
def test_bomb(watch: Watch, tmp_path: Path, name: str) -> None:
    """Refused with a message, or so harmless that it can be carried out; nothing left, little memory."""
    verdict = blown(watch, tmp_path, dict(BOMBS[name]()))
    assert verdict.faults == (), verdict.message[:1000]
    assert (verdict.code == 0) == (name in HARMLESS), verdict.message[:1000]


def test_loop_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up after a while, which is made short here."""
    monkeypatch.setattr(sessions, "MAX_RUN_SECONDS", 0.5)
    verdict = tried(laid(tmp_path / "case", BOMBS[ENDLESS]()))
    assert (verdict.code, verdict.faults) == (2, ()), verdict.message


def test_data_behind_a_link_out_of_the_folder(watch: Watch, tmp_path: Path) -> None:
    files = external()
    (tmp_path / "elsewhere").write_bytes(files[DATA])
    folder = laid(tmp_path / "case", {MODEL: files[MODEL]})
    (folder / "in" / DATA).symlink_to(tmp_path / "elsewhere")
    verdict = watch.ask(folder)
    assert (verdict.code, verdict.faults) == (2, ())
    assert "outside" in verdict.message


@pytest.mark.parametrize("name", PLANS)
def test_plan_bomb(watch: Watch, tmp_path: Path, name: str) -> None:
    refused_plan(watch, tmp_path, PLANS[name])


@pytest.mark.parametrize("name", ENTRIES)
def test_plan_with_an_impossible_entry(watch: Watch, tmp_path: Path, name: str) -> None:
    model = raw(build(CNN))[MODEL]
    refused_plan(watch, tmp_path, plan(hashlib.sha256(model).hexdigest(), ENTRIES[name]))


def refused_plan(watch: Watch, folder: Path, text: bytes) -> None:
    files = {**raw(build(CNN)), "plan.json": text}
    place = folder / "case" / "in" / "plan.json"
    verdict = blown(watch, folder, files, "--plan", str(place), "--json")
    assert (verdict.code, verdict.faults) == (2, ()), verdict.message[:1000]
    assert str(place) in verdict.message


def test_the_watch_sees_memory_hangs_and_deaths(tmp_path: Path) -> None:
    """What would make every test above pass: a watch that sees nothing."""
    case = raw(build(CNN))
    assert "hangs" in Watch(0.01).ask(laid(tmp_path / "hang", case)).faults[0]
    dead = Watch(PATIENCE)
    dead.start().send_signal(signal.SIGSEGV)
    assert dead.ask(laid(tmp_path / "death", case)).faults == ("the process died: SIGSEGV",)
    small = Watch(PATIENCE, peak=1 << 20)
    assert "MB of memory" in small.ask(laid(tmp_path / "memory", case)).faults[0]
    assert small.worker is None
