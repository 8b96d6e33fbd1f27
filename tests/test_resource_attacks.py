"""Small files that demand terabytes or years are refused within seconds, before any memory is allocated for them."""

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
from tests.fuzz_runner import Supervisor, Verdict, lay_out, run_case
from tests.resource_attacks import ATTACKS, ENDLESS, ENTRIES, HARMLESS, PLANS, plan

TIMEOUT_SECONDS = 20.0


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    """One worker for all attacks; one that hangs or dies is replaced."""
    runner = Supervisor(TIMEOUT_SECONDS)
    yield runner
    runner.stop()


def run_attack(supervisor: Supervisor, folder: Path, files: dict[str, bytes], *options: str) -> Verdict:
    return supervisor.ask(lay_out(folder / "case", files), *options)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != ENDLESS])
def test_resource_attack(supervisor: Supervisor, tmp_path: Path, name: str) -> None:
    """An attack is refused with a message, or harmless and carried out; no files left, little memory."""
    verdict = run_attack(supervisor, tmp_path, dict(ATTACKS[name]()))
    assert verdict.faults == (), verdict.message[:1000]
    assert (verdict.code == 0) == (name in HARMLESS), verdict.message[:1000]


def test_loop_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is abandoned after a time limit, which is short here."""
    monkeypatch.setattr(sessions, "MAX_RUN_SECONDS", 0.5)
    verdict = run_case(lay_out(tmp_path / "case", ATTACKS[ENDLESS]()))
    assert (verdict.code, verdict.faults) == (2, ()), verdict.message


def test_data_behind_a_link_out_of_the_folder(supervisor: Supervisor, tmp_path: Path) -> None:
    files = external()
    (tmp_path / "elsewhere").write_bytes(files[DATA])
    folder = lay_out(tmp_path / "case", {MODEL: files[MODEL]})
    (folder / "in" / DATA).symlink_to(tmp_path / "elsewhere")
    verdict = supervisor.ask(folder)
    assert (verdict.code, verdict.faults) == (2, ())
    assert "outside" in verdict.message


@pytest.mark.parametrize("name", PLANS)
def test_plan_attack(supervisor: Supervisor, tmp_path: Path, name: str) -> None:
    refused_plan(supervisor, tmp_path, PLANS[name])


@pytest.mark.parametrize("name", ENTRIES)
def test_plan_with_an_impossible_entry(supervisor: Supervisor, tmp_path: Path, name: str) -> None:
    model = raw(build(CNN))[MODEL]
    refused_plan(supervisor, tmp_path, plan(hashlib.sha256(model).hexdigest(), ENTRIES[name]))


def refused_plan(supervisor: Supervisor, folder: Path, text: bytes) -> None:
    files = {**raw(build(CNN)), "plan.json": text}
    place = folder / "case" / "in" / "plan.json"
    verdict = run_attack(supervisor, folder, files, "--plan", str(place), "--json")
    assert (verdict.code, verdict.faults) == (2, ()), verdict.message[:1000]
    assert str(place) in verdict.message


def test_the_watch_sees_memory_hangs_and_deaths(tmp_path: Path) -> None:
    """A supervisor that sees nothing would make every test above pass."""
    case = raw(build(CNN))
    assert "hangs" in Supervisor(0.01).ask(lay_out(tmp_path / "hang", case)).faults[0]
    dead = Supervisor(TIMEOUT_SECONDS)
    dead.start().send_signal(signal.SIGSEGV)
    assert dead.ask(lay_out(tmp_path / "death", case)).faults == ("the process died: SIGSEGV",)
    small = Supervisor(TIMEOUT_SECONDS, peak=1 << 20)
    assert "MB of memory" in small.ask(lay_out(tmp_path / "memory", case)).faults[0]
    assert small.worker is None
