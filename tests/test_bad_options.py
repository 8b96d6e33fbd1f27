"""Wrong options are refused before anything is done, and the message names the option."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import CNN, build, called, cli, refused, saved, tree

COMPRESS = ("compress", "model.onnx", "out.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("options")
    saved(build(CNN), made / "model.onnx")
    return made


@pytest.mark.parametrize("option", ["--keep", "--macs", "--params"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "inf"])
def test_fraction_out_of_range(folder: Path, option: str, value: str) -> None:
    run = cli if (option, value) == ("--keep", "nan") else called
    refused(folder, *COMPRESS, option, value, says=(f"{option} {value}", "above 0 and at most 1"), run=run)


@pytest.mark.parametrize(
    "budget",
    [
        (),
        ("--keep", "0.5", "--macs", "0.5"),
        ("--macs", "0.5", "--params", "0.5"),
        ("--keep", "0.5", "--macs", "0.5", "--params", "0.5"),
        ("--keep", "0.5", "--plan", "plan.json"),
    ],
    ids=" ".join,
)
def test_not_exactly_one_budget(folder: Path, budget: tuple[str, ...]) -> None:
    refused(folder, *COMPRESS, *budget, says=("exactly one of --keep, --macs, --params",))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((*COMPRESS, "--keep", "abc"), "--keep"),
        ((*COMPRESS, "--keep"), "--keep"),
        ((*COMPRESS, "--keep", "0.5", "--frobnicate"), "--frobnicate"),
        ((*COMPRESS, "--keep", "0.5", "--method", "magic"), "magic"),
        ((*COMPRESS, "--keep", "0.5", "--chains", "golden"), "golden"),
        ((*COMPRESS, "--keep", "0.5", "--recover", "magic"), "magic"),
        ((*COMPRESS, "--keep", "0.5", "--seed", "x"), "--seed"),
        ((*COMPRESS, "--keep", "0.5", "--seed", "-1"), "seed"),
        (("compress", "model.onnx"), "OUT"),
        (("inspect",), "IN"),
        (("inspect", "model.onnx", "--extra"), "--extra"),
        (("bench", "model.onnx", "model.onnx", "extra.onnx"), "extra"),
        (("squash", "model.onnx"), "squash"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage(folder: Path, args: tuple[str, ...], says: str) -> None:
    """Refusals of the option parser: the last line names the problem, the one before points to the help."""
    before = tree(folder)
    done = (cli if "--frobnicate" in args else called)(*args, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("y=1,3,8,8", "the inputs are x"),
        ("x=1,3,8", "1,3,8,8"),
        ("x=1,3,9,8", "1,3,8,8"),
        ("x=a,b", "NAME=1,3,224,224"),
        ("x=1.5,3,8,8", "NAME=1,3,224,224"),
        ("x=1,0,8,8", "at least 1"),
        ("x=1,-3,8,8", "at least 1"),
        ("x=", "NAME=1,3,224,224"),
        ("x", "NAME=1,3,224,224"),
        ("=1,3,8,8", "NAME=1,3,224,224"),
    ],
)
def test_shape(folder: Path, text: str, says: str) -> None:
    option = f"--shape {text.split('=')[0]}"
    refused(folder, *COMPRESS, "--keep", "0.5", "--shape", text, says=(option, says))
    refused(folder, "inspect", "model.onnx", "--shape", text, says=(option, says))


def test_shape_given_twice(folder: Path) -> None:
    twice = ("--shape", "x=1,3,8,8", "--shape", "x=2,3,8,8")
    refused(folder, *COMPRESS, "--keep", "0.5", *twice, says=("--shape x", "twice"))


def test_shape_from_the_shell(folder: Path) -> None:
    refused(folder, *COMPRESS, "--keep", "0.5", "--shape", "x=1,3,9,8", says=("--shape x=1,3,9,8",), run=cli)


@pytest.mark.parametrize("option", ["--pin", "--ignore"])
def test_unknown_name(folder: Path, option: str) -> None:
    says = (f"{option} ghost", "leanonnx inspect")
    refused(folder, *COMPRESS, "--keep", "0.5", option, "ghost", says=says)


@pytest.mark.parametrize("option", ["--pin", "--ignore"])
def test_empty_name(tmp_path: Path, option: str) -> None:
    """No name is not the name of all nodes that have none."""
    proto = build(CNN)
    for node in proto.graph.node:
        node.name = ""
    saved(proto, tmp_path / "model.onnx")
    refused(tmp_path, *COMPRESS, "--keep", "0.5", option, "", says=(option,))


def test_pins_that_hold_the_budget_up_are_named(folder: Path) -> None:
    pins = ("--pin", "c1", "--pin", "c2")
    refused(folder, *COMPRESS, "--keep", "0.5", *pins, code=1, says=("--pin c2", "1.0000"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("ghost", "'ghost'"),
        ("ghost:1", "'ghost'"),
        ("c1:8", "8 channels"),
        ("c1:-1", "c1:-1"),
        ("c1:x", "c1:x"),
    ],
)
def test_why(folder: Path, text: str, says: str) -> None:
    refused(folder, "inspect", "model.onnx", "--why", text, says=(f"--why {text}", says))


def test_why_from_the_shell(folder: Path) -> None:
    refused(folder, "inspect", "model.onnx", "--why", "c1:8", says=("8 channels",), run=cli)
