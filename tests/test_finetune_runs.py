"""Runs of fine-tuning: killed ones resume to the same bytes; steps, refusals, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.helpers import COMMAND, build

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.commands.compress.options import CompressOptions as Compression
from leanonnx.commands.finetune.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from leanonnx.commands.finetune.driver import run_finetune
from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.steps import PruningSchedule, finetune_in_steps
from leanonnx.errors import DataError, ModelError, OptionError
from leanonnx.selection.metrics import Budget
from tests.schemas import follow_schema
from tests.tuning import DENOISER, classifier, samples, saved, settings


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """A teacher, a smaller student and data."""
    return {
        "base": saved(classifier(12, 0), tmp_path / "base.onnx"),
        "new": saved(classifier(4, 1), tmp_path / "new.onnx"),
        "data": samples(tmp_path / "data.npz"),
        "out": tmp_path / "out.onnx",
    }


def test_the_same_seed_gives_the_same_bytes(pair: dict[str, Path]) -> None:
    written = []
    for seed in (0, 0, 1):
        run_finetune(
            pair["new"], pair["out"], pair["base"], pair["data"], FinetuneOptions(settings=settings(seed=seed))
        )
        written.append(pair["out"].read_bytes())
    assert written[0] == written[1] != written[2]


def command(pair: dict[str, Path], out: Path, *more: str) -> list[str]:
    words = ["finetune", str(pair["new"]), str(out), "--teacher", str(pair["base"]), "--data", str(pair["data"])]
    return [*COMMAND, *words, *more]


def test_a_killed_run_resumes_to_the_same_bytes(pair: dict[str, Path], tmp_path: Path) -> None:
    given = ("--epochs", "60", "--batch", "4", "--json")
    whole, other, kept = tmp_path / "whole.onnx", tmp_path / "other.onnx", tmp_path / "state.pt"
    subprocess.run(command(pair, whole, *given), check=True, capture_output=True)
    words = command(pair, other, *given, "--checkpoint", str(kept), "--resume")
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not kept.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not other.exists()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert 0 < follow_schema("finetune", done.stdout)["resumed_epoch"] < 60
    assert other.read_bytes() == whole.read_bytes()


def test_a_lower_rate_is_advised_where_no_epoch_gains(pair: dict[str, Path]) -> None:
    result = run_finetune(
        pair["new"],
        pair["out"],
        pair["base"],
        pair["data"],
        FinetuneOptions(settings=replace(settings(epochs=1), rate=50.0)),
    )
    assert result is not None and result.training.best_epoch == 0
    assert any(note.endswith("try a lower rate, such as lr=5") for note in result.warnings)


def test_too_large_a_rate_is_corrected_on_the_way(pair: dict[str, Path]) -> None:
    wild = replace(settings(epochs=16), rate=50.0)
    result = run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], FinetuneOptions(settings=wild))
    assert result is not None and result.training.best_epoch > 0
    assert result.training.after < result.training.before
    assert max(loss for _, loss in result.training.history) > 2 * result.training.before


@pytest.mark.parametrize("content", [b"", b"K", b"j", b"jj\x14\x14\x14", b"PK\x05\x06"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(OptionError, match="no checkpoint of leanonnx"):
        read_checkpoint(tmp_path / "run.pt", "run")


def stored(path: Path, **changes: Any) -> Path:
    """A small checkpoint with changed fields."""
    weights = [torch.ones(100), torch.ones(2, 3)]
    best = [each.clone() for each in weights]
    whole = Checkpoint("run", 1, weights, best, 0.5, 1, [(0.5, 0.5)], 1.0, {"state": {}}, {}, 1.0)
    write_checkpoint(replace(whole, **changes), path)
    return path


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """PyTorch reads such a file without a word."""
    path = stored(tmp_path / "run.pt")
    assert torch.equal(read_checkpoint(path, "run").best[0], torch.ones(100))
    content = bytearray(path.read_bytes())
    content[content.index(b"\0\0\x80\x3f" * 100) + 3] ^= 0x40
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["run"] == "run"
    with pytest.raises(OptionError, match="no checkpoint of leanonnx, or damaged"):
        read_checkpoint(path, "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "1"},
        {"value": None},
        {"weights": torch.ones(2)},
        {"best": [torch.ones(100)]},
        {"best": [torch.ones(1), torch.ones(2, 3)]},
        {"best": [torch.ones(100), 3.0]},
        {"weights": [torch.ones(100, dtype=torch.float64), torch.ones(2, 3)]},
        {"history": [(0.5,)]},
        {"scaler": []},
    ],
    ids=str,
)
def test_fields_of_other_types_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="no checkpoint of leanonnx, or damaged"):
        read_checkpoint(stored(tmp_path / "run.pt", **changes), "run")


def one_more(weights: list[Any]) -> list[Any]:
    return [*weights, torch.ones(1)]


def of_one_number(weights: list[Any]) -> list[Any]:
    return [torch.ones(1) for _ in weights]


SPOILT: dict[str, Callable[[dict[str, Any]], object]] = {
    "one more": lambda fields: fields.update({name: one_more(fields[name]) for name in ("weights", "best")}),
    "one number": lambda fields: fields.update({name: of_one_number(fields[name]) for name in ("weights", "best")}),
    "no groups": lambda fields: fields.update(optimizer={"state": {}}),
    "no state": lambda fields: fields.update(optimizer={}),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_checkpoint_that_does_not_fit_the_network(pair: dict[str, Path], tmp_path: Path, kind: str) -> None:
    kept = tmp_path / "state.pt"
    once = FinetuneOptions(settings=settings(epochs=1, checkpoint=kept))
    run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], once)
    fields = torch.load(kept, weights_only=True)
    SPOILT[kind](fields)
    torch.save(fields, kept)
    pair["out"].unlink()
    again = FinetuneOptions(settings=settings(epochs=1, checkpoint=kept, resume=True))
    with pytest.raises(OptionError, match="no checkpoint of leanonnx, or damaged"):
        run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], again)
    assert not pair["out"].exists()


def test_a_checkpoint_of_another_run_is_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    kept = tmp_path / "state.pt"
    first = FinetuneOptions(settings=settings(epochs=1, checkpoint=kept))
    run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], first)
    with pytest.raises(OptionError, match="resume=True"):
        run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], first)
    other = FinetuneOptions(settings=settings(epochs=2, checkpoint=kept, resume=True, seed=3))
    with pytest.raises(OptionError, match="other options"):
        run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], other)
    kept.write_bytes(b"nonsense")
    with pytest.raises(OptionError, match="no checkpoint"):
        run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], other)


def test_steps_decrease_by_equal_shares(pair: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "steps"
    folder.mkdir()
    schedule = PruningSchedule(2, Compression(budget=Budget("params", 0.25), align=1), folder)
    done = finetune_in_steps(
        pair["base"], pair["out"], pair["base"], pair["data"], FinetuneOptions(settings=settings(epochs=2)), schedule
    )
    assert done is not None
    assert [step.fraction for step in done.steps] == [0.5, 0.25]
    sizes = [
        sum(t.dims[0] for t in onnx.load(p).graph.initializer if t.name == "w1")
        for p in (pair["base"], folder / "step-01.onnx", pair["out"])
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    assert all(step.reached <= step.fraction for step in done.steps)
    assert done.steps[1].path == pair["out"]


def test_steps_resume_where_they_stopped(pair: dict[str, Path], tmp_path: Path) -> None:
    schedule = PruningSchedule(2, Compression(budget=Budget("params", 0.25), align=1))

    def tried(out: Path, **more: Any) -> None:
        options = FinetuneOptions(settings=settings(epochs=2, **more))
        finetune_in_steps(pair["base"], out, pair["base"], pair["data"], options, schedule)

    kept, whole = tmp_path / "state.pt", tmp_path / "whole.onnx"
    tried(whole)
    tried(pair["out"], checkpoint=kept)
    (tmp_path / "state.pt.step02").unlink()
    tried(pair["out"], checkpoint=kept, resume=True)
    assert pair["out"].read_bytes() == whole.read_bytes()


def test_wrong_requests_are_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    def tried(**changed: Any) -> None:
        given = {**pair, **{k: v for k, v in changed.items() if k in pair}}
        teacher = None if changed.get("alone") else given["base"]
        run_finetune(
            given["new"],
            given["out"],
            teacher,
            given["data"],
            FinetuneOptions(strategy=changed.get("strategy", "school"), settings=settings(epochs=1)),
        )

    with pytest.raises(OptionError, match="teacher="):
        tried(alone=True)
    with pytest.raises(DataError, match="no labels"):
        tried(strategy="supervised")
    with pytest.raises(OptionError, match="noise2self"):
        tried(strategy="noise2self")
    with pytest.raises(DataError, match="too few"):
        tried(data=samples(tmp_path / "few.npz", 3))
    with pytest.raises(OptionError, match="the output is the input"):
        tried(out=pair["base"])
    with pytest.raises(OptionError, match="inputs and outputs"):
        tried(base=saved(build(DENOISER.replace("x)", "other)").replace("(x,", "(other,")), tmp_path / "d.onnx"))
    odd = classifier(4, 0)
    odd.graph.node[1].op_type, odd.graph.node[1].domain = "Odd", "com.acme"
    with pytest.raises(ModelError, match="node 'R1'"):
        TorchNetwork(load_unchecked(odd), ())
    assert not pair["out"].exists()


def load_unchecked(proto: onnx.ModelProto) -> Any:
    from leanonnx.graph.model import Model

    return Model(path=Path(os.devnull), proto=proto, sha256="", external_files=())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--keep", "0.5"], "--steps"),
        (["--steps", "2"], "exactly one"),
        (["--keep-steps", "."], "--steps"),
        (["--lr", "0"], "--lr"),
        (["--minutes", "-1"], "--minutes"),
        (["--resume"], "--checkpoint"),
        (["--strategy", "supervised"], "no labels"),
        (["--strategy", "measurement"], "--operator FILE.onnx"),
        (["--strategy", "measurement", "--operator", "x:y"], "named 'mask'"),
        (["--strategy", "noise2inverse"], "[objects, splits, 3, 8, 8]"),
        (["--pairing", "1:X"], "--strategy noise2inverse"),
        (["--loss-share", "0.3"], "--strategy measurement"),
    ],
)
def test_exit_code_2(pair: dict[str, Path], words: list[str], says: str) -> None:
    done = subprocess.run(command(pair, pair["out"], *words), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert not pair["out"].exists()


def test_without_torch_the_fix_is_named(pair: dict[str, Path]) -> None:
    code = (
        "import sys, importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a); "
        "from leanonnx.cli.main import main; main()"
    )
    words = command(pair, pair["out"])[len(COMMAND) :]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install torch" in done.stderr
