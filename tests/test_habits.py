"""Habits of command lines: short options, a file of options, percent, help in groups, several models, layer names."""

from __future__ import annotations

import errno
import json
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import typer.core
import typer.main

import leanonnx
from leanonnx.api.verbs import compress
from leanonnx.cli import options
from leanonnx.cli.group import NEEDLESS, OTHER_NAMES, Commands, LeanGroup, UsageError, command_of
from leanonnx.cli.habits import GROUPED_FROM, PANEL_OF
from leanonnx.cli.main import app
from leanonnx.commands.check.gates import read_limit
from leanonnx.errors import OptionError
from leanonnx.reporting.inspection import channel_report
from leanonnx.system import cores, memory
from leanonnx.system.clock import ignore_progress
from tests.helpers import CNN, TOTAL, build, called, cli, kernels, refused, saved
from tests.schemas import follow_schema

VERBS = Commands()
COMPRESS = ("compress", "m.onnx", "o.onnx")
OTHER = "other.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(build(CNN), tmp_path / "m.onnx")
    return tmp_path


def configured(folder: Path, text: str, name: str = "leanonnx.toml") -> str:
    """The name of a file of options."""
    (folder / name).write_text(text, encoding="utf-8")
    return name


def test_the_package_runs_as_a_module() -> None:
    done = cli("--version", command=[sys.executable, "-m", "leanonnx"])
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"leanonnx {leanonnx.__version__}")


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "leanonnx: interrupted; nothing was written"),
        (MemoryError(), 2, "leanonnx: not enough memory"),
        (OSError(errno.EIO, "Input/output error", "inspect.py"), 2, "leanonnx: inspect.py: Input/output error; check"),
    ],
    ids=("interrupted", "memory", "disk"),
)
def test_a_verb_that_cannot_be_imported(
    failure: BaseException, code: int, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_of.cache_clear()
    monkeypatch.setattr("leanonnx.cli.group.import_module", create_autospec(import_module, side_effect=failure))
    done = called("inspect", "m.onnx", cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(says)


def test_short_options() -> None:
    assert called("-V").stdout == called("--version").stdout
    assert called("-h").stdout == called("--help").stdout
    assert called("compress", "-h").stdout == called("compress", "--help").stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--sparsity", "0.5"), "No such option: --sparsity (Possible options: --keep)"),
        (("--budget", "0.5"), "(Possible options: --bytes, --keep, --latency, --macs, --params)"),
        (("--quantize",), "(Possible options: --int8)"),
        (("--force",), "No such option: --force: an output that is there already is replaced"),
        (("-o", "out.onnx"), "No such option: -o: the output is the last argument"),
        (("--kep", "0.5"), "--keep"),
        (("--nothing-like-it",), "No such option: --nothing-like-it"),
    ],
    ids=str,
)
def test_options_of_other_tools(words: tuple[str, ...], says: str, folder: Path) -> None:
    done = called(*COMPRESS, *words, cwd=folder)
    assert done.returncode == 2 and says in done.stderr


def test_an_unknown_command_with_suggestions_stays_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer parsers suggest commands as well as options."""
    error = UsageError("No such command 'chek'.")
    error.possibilities = ["check"]
    monkeypatch.setattr(typer.core.TyperGroup, "invoke", create_autospec(LeanGroup.invoke, side_effect=error))
    with pytest.raises(UsageError) as raised:
        typer.main.get_command(app).invoke(typer.Context(typer.main.get_command(app)))
    assert raised.value.possibilities == ["check"]


def test_other_names_are_those_of_options() -> None:
    known = {name for verb in VERBS.values() for parameter in verb.params for name in parameter.opts}
    assert {f"--{name}" for name in OTHER_NAMES} <= known
    taken = {word for words in (*OTHER_NAMES.values(), *map(" ".join, NEEDLESS.values())) for word in words.split()}
    assert not {f"--{word}" for word in taken} & known - {"--calib"}


@pytest.mark.parametrize("verb", VERBS)
def test_many_options_are_in_groups(verb: str) -> None:
    parameters = [each for each in VERBS[verb].params if each.param_type_name == "option"]
    panels = {each.name: each.rich_help_panel for each in parameters if each.name != "help"}
    if len(panels) < GROUPED_FROM:
        assert set(panels.values()) == {None}
        return
    assert {name for name, panel in panels.items() if panel is None} == {"config", "as_json"}
    text = called(verb, "--help").stdout
    assert [panel for panel in panels.values() if panel and panel not in text] == []


def test_groups_name_options_that_there_are() -> None:
    names = {name.rpartition(".")[2] for name in PANEL_OF}
    assert names <= {each.name for verb in VERBS.values() for each in verb.params}


def test_short_helps_are_not_cut() -> None:
    text = " ".join(called("--help").stdout.split())
    assert [name for name, verb in VERBS.items() if f"{name} {verb.short_help}" not in text] == []
    assert "..." not in text.partition("Commands:")[2]


# a file of options


def test_options_from_a_file(folder: Path) -> None:
    """Those of the verb's table, and those before all tables; numbers, flags, texts and lists."""
    name = configured(
        folder,
        'seed = 7\nlibrary = []\n[compress]\nkeep = 0.5\nplan_out = "p.json"\nalign = 1\nshape = ["x=1,3,8,8"]\n',
    )
    assert called(*COMPRESS, "--config", name, cwd=folder).returncode == 0
    made = json.loads((folder / "p.json").read_text())["options"]
    assert (made["kernels"], made["seed"], made["align"], made["shapes"]) == (0.5, 7, 1, {"x": [1, 3, 8, 8]})


def test_flags_from_a_file(folder: Path) -> None:
    name = configured(folder, "[compress]\nexact = true\njson = true\nno-measure = true\n")
    done = called(*COMPRESS, "--config", name, cwd=folder, measure=True)
    assert json.loads(done.stdout)["exact"] is not None


def test_the_command_line_wins(folder: Path) -> None:
    """Over the same option, and a budget over any other way to say how far to go."""
    name = configured(folder, '[compress]\nkeep = 0.9\nalign = 1\nplan_out = "p.json"\n')
    assert called(*COMPRESS, "--config", name, "--keep", "0.5", cwd=folder).returncode == 0
    assert json.loads((folder / "p.json").read_text())["options"]["kernels"] == 0.5
    assert called(*COMPRESS, "--config", name, "--macs", "0.5", cwd=folder).returncode == 0
    assert json.loads((folder / "p.json").read_text())["options"]["macs"] == 0.5


def test_pyproject_has_a_section(folder: Path) -> None:
    name = configured(folder, "[tool.leanonnx.compress]\nkeep = 0.5\nalign = 1\n", "pyproject.toml")
    assert called(*COMPRESS, cwd=folder).returncode == 2, "the file is read unasked"
    assert called(*COMPRESS, "--config", name, cwd=folder).returncode == 0
    assert kernels(folder / "o.onnx") <= TOTAL / 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[compress]\nkep = 0.5", "[compress] has no option 'kep'; did you mean 'keep'?"),
        ("kep = 0.5", "no command has an option 'kep'; did you mean 'keep'?"),
        ("[compres]\nkeep = 0.5", "there is no command 'compres'; did you mean 'compress'?"),
        ("[inspect]\nkeep = 0.5", "[inspect] has no option 'keep'"),
        ("[compress]\nexact = 1", "exact = 1: expected true or false"),
        ("[compress]\nkeep = true", "keep = True: expected a number"),
        ("keep = ", "not TOML"),
        ("[compress]\nkeep = '50'", "--keep 50: expected a fraction above 0 and at most 1"),
    ],
)
def test_wrong_files_of_options(folder: Path, text: str, says: str) -> None:
    refused(folder, *COMPRESS, "--config", configured(folder, text), says=(says,))


def test_a_file_of_options_that_is_not_there(folder: Path) -> None:
    refused(folder, *COMPRESS, "--config", "no.toml", says=("no.toml: cannot be read", "--config"))
    configured(folder, "[tool.other]\na = 1", "pyproject.toml")
    refused(folder, *COMPRESS, "--config", "pyproject.toml", says=("no table [tool.leanonnx]",))


# numbers as people write them


@pytest.mark.parametrize("given", ["50%", "50 %", ".5", "0.5"])
def test_fractions_in_percent(folder: Path, given: str) -> None:
    assert called(*COMPRESS, "--keep", given, "--align", 1, cwd=folder).returncode == 0
    assert 0.4 < kernels(folder / "o.onnx") / TOTAL <= 0.5
    assert compress(folder / "m.onnx", keep=given, align=1).kernels.fraction <= 0.5  # type: ignore[arg-type]


def test_lists_and_gates_in_percent() -> None:
    assert options.fractions("keep", "75%,0.5") == (0.75, 0.5)
    assert read_limit("min-agreement", "99%", "").number == pytest.approx(0.99)
    assert read_limit("max-latency-ms", "20ms", "").number == 20
    assert read_limit("max-latency-ms", "0.02s", "").number == 20


@pytest.mark.parametrize("value", ["half", [0.5], None, True])
def test_values_that_are_no_numbers(folder: Path, value: object) -> None:
    with pytest.raises(OptionError):
        compress(folder / "m.onnx", macs=value)  # type: ignore[arg-type]


def test_finetune_gets_the_options_that_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function takes all that the command passes on; what it does needs torch."""
    taken = create_autospec(leanonnx.finetune, return_value=None)
    monkeypatch.setattr("leanonnx.cli.finetune.finetune", taken)
    done = called("finetune", "m.onnx", "o.onnx", "--data", "x.npz", "--quiet", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert taken.call_args.kwargs["progress"] is ignore_progress


# layer names


def test_why_takes_layers(folder: Path) -> None:
    """A node by its name is its output, here with the name in capitals; tensors go first."""
    dag = leanonnx.analyse(folder / "m.onnx").dag
    assert channel_report(dag, "C1") == channel_report(dag, "c1")
    done = called("inspect", "m.onnx", "--why", "C1:2", cwd=folder)
    assert done.stdout == called("inspect", "m.onnx", "--why", "c1:2", cwd=folder).stdout != ""
    refused(folder, "inspect", "m.onnx", "--why", "C11", says=("no layer named 'C11'", "did you mean 'C1'?"))


# several models


def test_several_models_go_to_a_folder(folder: Path) -> None:
    """By pattern, too, where the shell does not know it; and one model, where OUT is a folder."""
    saved(build(CNN, seed=1), folder / OTHER)
    (folder / "out").mkdir()
    done = called("compress", "*.onnx", "out", "--keep", "0.5", "--align", 1, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    row = follow_schema("several", done.stdout)
    assert list(row) == ["schema", "models", "errors"]
    assert list(row["models"]) == ["m.onnx", OTHER]
    assert row["models"]["m.onnx"]["kernels"]["fraction"] <= 0.5
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["m.onnx", OTHER]
    (folder / "out" / "m.onnx").unlink()
    assert called("compress", "m.onnx", "out", "--keep", "0.5", "--align", 1, cwd=folder).returncode == 0
    assert (folder / "out" / "m.onnx").is_file()


def test_one_bad_model_does_not_stop_the_others(folder: Path) -> None:
    (folder / "a.onnx").write_bytes(b"no model")
    done = called("inspect", "a.onnx", "m.onnx", "--json", cwd=folder)
    row = follow_schema("several", done.stdout)
    assert (done.returncode, list(row["errors"]), list(row["models"])) == (2, ["a.onnx"], ["m.onnx"])
    assert "leanonnx: a.onnx: not an ONNX model" in done.stderr
    assert "60" in called("inspect", "m.onnx", "m.onnx", cwd=folder).stdout


def test_wrong_places_for_several_models(folder: Path) -> None:
    saved(build(CNN), folder / OTHER)
    (folder / "sub").mkdir()
    saved(build(CNN), folder / "sub" / "m.onnx")
    both = ("compress", "m.onnx", OTHER)
    refused(folder, *both, "out", "--keep", "0.5", says=("out: is no folder", "make that folder"))
    refused(folder, *both, "sub", "--keep", "0.5", "--report", "r.html", says=("--report r.html: is one file",))
    refused(folder, "compress", "m.onnx", "sub/m.onnx", "sub", "--keep", "0.5", says=("two models have this name",))
    refused(folder, "compress", "no*.onnx", "sub", "--keep", "0.5", says=("no file matches this pattern",))


# the system


def test_hardware_lies_where_the_system_keeps_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEANONNX_TARGETS", raising=False)
    monkeypatch.setattr(options, "user_config_path", lambda name, appauthor: tmp_path / name)
    assert options.targets_file() == tmp_path / "leanonnx" / "targets.toml"


def test_cores_and_memory_where_there_is_no_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells them as well: two cores with two threads each."""
    monkeypatch.delattr(cores.os, "sched_getaffinity", raising=False)
    for name in ("TOPOLOGY", "GROUP_QUOTA"):
        monkeypatch.setattr(cores, name, tmp_path / "none")
    monkeypatch.setattr(cores.psutil, "cpu_count", lambda logical=True: 4 if logical else 2)
    assert cores.available_cores() == 2
    assert cores.resident_memory() > 1 << 20
    assert memory.available_memory() > 1 << 20
