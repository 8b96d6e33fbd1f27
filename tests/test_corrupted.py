"""A corrupted model file is either refused with a message or compressed and proven; nothing in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corruption import case
from tests.helpers import CNN, Done, build, called, tree
from tests.seed_models import DATA, MODEL, SEED_MODELS, raw

pytest.importorskip("resource", reason="limits of processes as Unix has them")

from tests.fuzz_runner import Supervisor, Verdict, judge, lay_out

COUNT = 150
CORPUS = Path(__file__).parent / "corrupted"
EXPECTED: dict[str, tuple[int | tuple[int, ...], str]] = {
    "attribute_not_utf8": (2, "utf-8"),
    "batch_of_65536": ((0, 2), ""),
    "function_with_too_many_inputs": (2, "function"),
    "half_weight_cut_short": (2, ""),
    "height_of_65536": ((0, 2), ""),
    "key_not_utf8": (2, "UTF-8"),
    "key_unknown": (2, "missing"),
    "length_below_zero": (2, "w3"),
    "location_not_utf8": (2, "w"),
    "location_with_nul": (2, "w"),
    "name_not_utf8": (2, r"b'conv\xf6out', which is not UTF-8"),
    "offset_below_zero": (2, "q2"),
    "offset_no_number": (2, "w2"),
    "pads_of_100000": (2, ""),
    "scalar_flag": (0, ""),
    "stride_without_end": (0, ""),
    "type_without_numpy": ((0, 2), ""),
    "weights_that_overflow": (0, ""),  # proven on inputs so small that they do not
}
"""Every file on which leanonnx once failed: the exit code that it must give, and what the message must name."""


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    """One worker for all cases; one that hangs or dies is replaced."""
    runner = Supervisor()
    yield runner
    runner.stop()


@pytest.mark.parametrize("name", SEED_MODELS)
def test_seed_models_are_compressed(supervisor: Supervisor, tmp_path: Path, name: str) -> None:
    """The seed models themselves are compressed, so that a refusal below is due to the corruption."""
    assert supervisor.ask(lay_out(tmp_path / "case", SEED_MODELS[name]())) == Verdict(0, "", ())


@pytest.mark.parametrize("seed", range(COUNT))
def test_corrupted_models_are_refused_or_compressed(supervisor: Supervisor, tmp_path: Path, seed: int) -> None:
    found = case(seed)
    verdict = supervisor.ask(lay_out(tmp_path / "case", found.files))
    assert verdict.faults == (), f"{found.what}\n{verdict.message}"


@pytest.mark.parametrize("name", EXPECTED)
def test_files_that_once_failed(supervisor: Supervisor, tmp_path: Path, name: str) -> None:
    codes, says = EXPECTED[name]
    files = {MODEL: (CORPUS / f"{name}.onnx").read_bytes(), DATA: SEED_MODELS["external"]()[DATA]}
    verdict = supervisor.ask(lay_out(tmp_path / "case", files))
    assert verdict.faults == (), verdict.message
    assert verdict.code in (codes if isinstance(codes, tuple) else (codes,)), verdict.message
    assert says in verdict.message


def test_corpus_is_complete() -> None:
    assert {path.stem for path in CORPUS.glob("*.onnx")} == set(EXPECTED)


def test_cases_are_reproducible_and_differ() -> None:
    assert case(3) == case(3)
    assert len({case(seed).files[MODEL] for seed in range(COUNT)}) > 0.95 * COUNT


# the judge itself


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Done]:
    """A run without faults."""
    folder = lay_out(tmp_path / "case", raw(build(CNN)))
    done = called("compress", folder / "in" / MODEL, folder / "out" / "out.onnx", "--keep", "0.5", "--json")
    assert judge(done, folder, tree(folder / "in")).faults == ()
    return folder, done


def truncate_output(folder: Path, done: Done) -> None:
    path = folder / "out" / "out.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def remove_output(folder: Path, done: Done) -> None:
    (folder / "out" / "out.onnx").unlink()


def leave_something(folder: Path, done: Done) -> None:
    (folder / "tmp" / "leanonnx-1").mkdir()


def touch_input(folder: Path, done: Done) -> None:
    (folder / "in" / MODEL).write_bytes(b"")


def claim_no_proof(folder: Path, done: Done) -> None:
    done.stdout = done.stdout.replace("passed", "skipped")


def print_beside(folder: Path, done: Done) -> None:
    done.stdout = "[W] beware\n" + done.stdout


def refuse_but_write(folder: Path, done: Done) -> None:
    done.returncode, done.stdout, done.stderr = 2, "", "leanonnx: no\n"


def show_traceback(folder: Path, done: Done) -> None:
    remove_output(folder, done)
    done.returncode, done.stdout, done.stderr = 3, "", "leanonnx: a bug\nTraceback\nValueError\n"


def run_out_of_memory(folder: Path, done: Done) -> None:
    remove_output(folder, done)
    done.returncode, done.stdout, done.stderr = 2, "", "leanonnx: Unable to allocate 24 GiB\n"


FAULTY = (
    *(truncate_output, remove_output, leave_something, touch_input, claim_no_proof, print_beside, refuse_but_write),
    *(show_traceback, run_out_of_memory),
)


@pytest.mark.parametrize("harm", FAULTY, ids=lambda harm: harm.__name__)
def test_the_judge_sees_faults(run: tuple[Path, Done], harm: object) -> None:
    folder, done = run
    before = tree(folder / "in")
    assert callable(harm)
    harm(folder, done)
    assert judge(done, folder, before).faults
