"""Check where it is used: models in git, the GitHub action, the pre-commit hook, the snippets of the documentation.

Nothing here needs a hosted service: the action's own steps are run by bash, with the variables that GitHub sets.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import yaml

from leanonnx.cli.hook import hook_main
from leanonnx.commands.check.gates import GATES, LIMITED_GATES, read_gates
from leanonnx.commands.check.revisions import model_file
from leanonnx.errors import ModelError
from tests.helpers import Done, build, called, refused, saved, saved_external, within
from tests.test_check_pairs import FREE

ROOT = Path(__file__).parents[1]
ACTION = ROOT / "action.yml"
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
BASH, GIT, PRE_COMMIT = (shutil.which(name) for name in ("bash", "git", "pre-commit"))
NAMED = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
LIMIT = 600

pytestmark = pytest.mark.skipif(GIT is None, reason="git is not installed")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")


@cache
def offline() -> bool:
    """True if pip cannot reach its configured index."""
    command = [sys.executable, "-m", "pip", "index", "versions", "hatchling"]
    return subprocess.run(command, capture_output=True, check=False, timeout=LIMIT).returncode != 0


def git(folder: Path, *args: object) -> str:
    done = subprocess.run(
        ["git", *NAMED, *map(str, args)], cwd=folder, capture_output=True, text=True, check=True, env=clean()
    )
    return done.stdout.strip()


def clean(**more: str) -> dict[str, str]:
    """The environment without variables of git or GitHub, so that tests do not touch this repository's index."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "GITHUB_", "PRE_COMMIT_"))}
    return {**kept, **more}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with models/net.onnx committed, and a broken model beside it that is not."""
    folder = tmp_path / "repository"
    (folder / "models").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    saved(build(FREE), folder / "models" / "net.onnx")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "A model")
    return folder


def changed(folder: Path, seed: int = 1, commit: bool = False) -> None:
    saved(build(FREE, seed), folder / "models" / "net.onnx")
    if commit:
        git(folder, "commit", "-q", "-a", "-m", "Another model")


# models in git


def test_base_from_git(repository: Path) -> None:
    changed(repository)
    saved(build(FREE, 1), repository / "new.onnx")
    for base in ("HEAD:models/net.onnx", "HEAD:./models/net.onnx", "main:models/net.onnx", ":models/net.onnx"):
        done = called("check", base, "models/net.onnx", "--max-deviation", 0.01, cwd=repository)
        assert done.returncode == 1, done.stderr
        assert done.stdout.splitlines()[1] == f"{base} → models/net.onnx"
        assert "max-deviation" in done.stderr
    done = called("check", "HEAD:models/net.onnx", "HEAD:models/net.onnx", "--max-deviation", 0, cwd=repository)
    assert done.returncode == 0, done.stderr


def test_external_data_come_from_the_same_commit(repository: Path) -> None:
    saved_external(build(FREE), repository / "models" / "net.onnx")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "Weights apart")
    saved_external(build(FREE, 1), repository / "models" / "net.onnx")
    done = called("check", "HEAD:models/net.onnx", "models/net.onnx", "--max-deviation", 0.01, cwd=repository)
    assert (done.returncode, "max-deviation" in done.stderr) == (1, True)
    done = called("check", "HEAD:models/net.onnx", "HEAD:models/net.onnx", "--max-deviation", 0, cwd=repository)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", ["../outside.bin", "{folder}/outside.bin", "gone.bin"])
def test_external_data_of_git_are_not_written_elsewhere(repository: Path, tmp_path: Path, place: str) -> None:
    location = place.format(folder=tmp_path)
    proto = build(FREE)
    for tensor in proto.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
    saved(proto, repository / "models" / "net.onnx")
    git(repository, "commit", "-q", "-a", "-m", "Weights elsewhere")
    refused(repository, "check", "HEAD:models/net.onnx", "models/net.onnx", says=("net.onnx", location))
    assert not (tmp_path / "outside.bin").exists()


@pytest.mark.parametrize(
    "text",
    ["HEAD:gone.onnx", "nowhere:models/net.onnx", "HEAD:models/..", "--all:models/net.onnx", ":", "C:\\net.onnx"],
)
def test_files_unknown_to_git_are_refused(repository: Path, text: str) -> None:
    refused(repository, "check", "--", text, "models/net.onnx", says=(f"{text}: no such file, nor anything in git",))


@pytest.mark.parametrize("text", ["HEAD:", "HEAD:models", "HEAD:./"])
def test_a_folder_in_git_is_no_model(repository: Path, text: str) -> None:
    refused(repository, "check", text, "models/net.onnx", says=("not an ONNX model",))


def test_a_file_takes_precedence_over_git(tmp_path: Path) -> None:
    path = saved(build(FREE), tmp_path / "HEAD:net.onnx")
    with model_file(str(path)) as found:
        assert found == path


def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match="git cannot be run"), model_file("HEAD:models/net.onnx"):
        pass


# the hook


def hook(folder: Path, *args: str, **variables: str) -> Done:
    """The hook in this process; it runs ``leanonnx check`` in processes of their own."""
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["leanonnx-hook", *args])
        for name in set(os.environ) - set(clean()):
            patch.delenv(name)
        return within(hook_main, sys.argv, folder, variables)


def hook_alone(folder: Path, *args: str) -> Done:
    """The hook in a process of its own."""
    code = "import sys; from leanonnx.cli.hook import hook_main; hook_main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=LIMIT,
        env=clean(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])),
    )


def test_hook_holds_each_model_against_its_committed_version(repository: Path) -> None:
    changed(repository)
    saved(build(FREE, 1), repository / "new.onnx")
    done = hook(repository, "--max-deviation", "0.01", "models/net.onnx", "new.onnx")
    assert done.returncode == 1
    assert "HEAD:./models/net.onnx → models/net.onnx" in done.stdout
    assert "new.onnx → new.onnx" in done.stdout
    assert done.stdout.count("FAILED: ") == done.stdout.count("PASSED: ") == 2  # the first and the last line of each
    assert "new.onnx is new" in done.stderr
    assert hook(repository, "new.onnx").returncode == 0
    assert hook(repository, "--max-bytes", "1kB", "new.onnx").returncode == 1


def test_hook_compares_with_the_commit_that_is_named(repository: Path) -> None:
    changed(repository, commit=True)
    args = ("--max-deviation", "0.01", "models/net.onnx")
    assert hook(repository, *args).returncode == 0
    assert hook(repository, *args, PRE_COMMIT_FROM_REF="HEAD~1", PRE_COMMIT_TO_REF="HEAD").returncode == 1


def test_hook_gives_the_highest_exit_code(repository: Path) -> None:
    changed(repository)
    (repository / "broken.onnx").write_bytes(b"nothing")
    assert hook(repository, "--max-deviation", "0.01", "broken.onnx", "models/net.onnx").returncode == 2
    assert hook_alone(repository).returncode == 0


@pytest.mark.skipif(PRE_COMMIT is None, reason="pre-commit is not installed")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone of the repository")
def test_pre_commit_runs_the_hook(repository: Path, tmp_path: Path) -> None:
    """``pre-commit try-repo`` builds the hook from this clone; its dependencies are those of the tests."""
    if offline():
        pytest.skip("no package index can be reached")
    variables = installing(PRE_COMMIT_HOME=str(tmp_path / "home"))

    def run(*args: str) -> Done:
        command = ["pre-commit", "try-repo", str(ROOT), "leanonnx-check", "--verbose", "--color", "never", *args]
        return subprocess.run(
            command,
            cwd=repository,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            timeout=LIMIT,
            env=variables,
        )

    changed(repository, seed=0)
    done = run("--files", "models/net.onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HEAD:./models/net.onnx → models/net.onnx" in done.stdout
    saved(build(FREE.replace(" y)", " z)").replace("y = ", "z = ")), repository / "models" / "net.onnx")
    git(repository, "commit", "-q", "-a", "-m", "An output renamed")
    done = run("--from-ref", "HEAD~1", "--to-ref", "HEAD")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "output 'y' is gone; output 'z' is new" in done.stdout


def installing(**more: str) -> dict[str, str]:
    """The environment for installing leanonnx elsewhere: pip finds its dependencies where those of the tests are."""
    return clean(PYTHONPATH=sysconfig.get_paths()["purelib"], **more)


# the action


def rendered(text: str, inputs: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], text)


def run_action(folder: Path, runner: Path, given: dict[str, str], *steps: str) -> tuple[Done, dict[str, str]]:
    """Run the named steps as the runner does; returns the last one and its outputs."""
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    inputs = {name: given.get(name, spec.get("default", "")) for name, spec in action["inputs"].items()}
    assert {name for name, spec in action["inputs"].items() if spec.get("required")} <= set(given) <= set(inputs)
    files = {name: runner / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_PATH")}
    for file in files.values():
        file.touch()
    fixed = {"RUNNER_TEMP": str(runner), "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_ACTIONS": "true"}
    done: Done | None = None
    for step in action["runs"]["steps"]:
        if step["name"] not in steps:
            continue
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "what users give reaches a script as a variable alone"
        script = runner / "step.sh"
        script.write_text(step["run"])
        own = {name: rendered(value, inputs) for name, value in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            timeout=LIMIT,
            env=installing(**fixed, **{name: str(file) for name, file in files.items()}, **own),
        )
        if done.returncode:
            break
    assert done is not None
    return done, dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A runner with leanonnx at the place where the action installs it."""
    folder = tmp_path / "runner"
    binaries = folder / "leanonnx" / "bin"
    binaries.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from leanonnx.cli.main import main; main()"
    (binaries / "leanonnx").write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-P", "-c", code])} "$@"\n')
    (binaries / "leanonnx").chmod(0o755)
    return folder


def test_action_describes_itself() -> None:
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    assert {"name", "description", "inputs", "outputs", "runs"} <= set(action)
    assert {"base", "new", "gates", "data", "python-version"} <= set(action["inputs"])
    assert all(spec.keys() <= {"description", "required", "default"} for spec in action["inputs"].values())
    assert action["runs"]["using"] == "composite"
    used = set(re.findall(r"\$\{\{ inputs\.([\w-]+)", ACTION.read_text(encoding="utf-8")))
    assert used == set(action["inputs"]), "every input is used, and none that there is not"
    identifiers = {step.get("id") for step in action["runs"]["steps"]}
    assert all(value["value"].split(".")[1] in identifiers for value in action["outputs"].values())


@needs_bash
def test_action_passes(repository: Path, runner: Path) -> None:
    given = {"base": "main:models/net.onnx", "new": "models/net.onnx"}
    done, outputs = run_action(repository, runner, given, "Check")
    assert (done.returncode, outputs) == (0, {"passed": "true"}), done.stderr
    assert "PASSED" in done.stdout
    assert "✅ leanonnx check: 7 of 7 gates passed" in (runner / "github_step_summary").read_text(encoding="utf-8")


@needs_bash
def test_action_fails_and_says_where(repository: Path, runner: Path) -> None:
    changed(repository)
    (repository / "my gates.toml").write_text("max-deviation = 0.01\n")
    given = {
        "base": "main:models/net.onnx",
        "new": "models/net.onnx",
        "gates": "my gates.toml",
        "junit": "the report.xml",
        "options": "--max-bytes 1kB\n--seed 3",
    }
    done, outputs = run_action(repository, runner, given, "Check")
    assert (done.returncode, outputs) == (1, {"passed": "false"}), done.stderr
    for name in ("max-deviation", "max-bytes"):
        assert f"::error title=leanonnx check%3A {name},file=models/net.onnx::" in done.stderr
    assert "2 of 9 gates failed" in (runner / "github_step_summary").read_text(encoding="utf-8")
    assert len(list(ElementTree.parse(repository / "the report.xml").getroot().iter("failure"))) == 2


@needs_bash
@pytest.mark.parametrize("new", ["gone.onnx; touch hacked", "$(touch hacked)", "--help", "-x"])
def test_action_takes_names_as_names(repository: Path, runner: Path, new: str) -> None:
    done, outputs = run_action(repository, runner, {"base": "models/net.onnx", "new": new}, "Check")
    assert (done.returncode, outputs) == (2, {"passed": "false"})
    assert f"{new}: no such file" in done.stderr
    assert not (repository / "hacked").exists()


@needs_bash
def test_action_installs_its_own_version(repository: Path, tmp_path: Path) -> None:
    """The whole action, but for the step that sets up Python."""
    if offline():
        pytest.skip("no package index can be reached")
    runner = tmp_path / "runner"
    runner.mkdir()
    given = {"base": "models/net.onnx", "new": "models/net.onnx"}
    done, outputs = run_action(repository, runner, given, "Install leanonnx", "Check")
    assert (done.returncode, outputs) == (0, {"passed": "true"}), done.stdout + done.stderr
    assert (runner / "leanonnx" / "bin" / "leanonnx").is_file()


# the documentation


def block(language: str, holds: str) -> str:
    """The code block of the page that contains a text."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holds in text]
    assert len(found) == 1
    return str(found[0])


def test_gates_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_text(block("toml", "max-deviation"))
    assert set(read_gates(tmp_path / "gates.toml")) == set(LIMITED_GATES)


@needs_bash
def test_gitlab_snippet(repository: Path, runner: Path) -> None:
    job = yaml.safe_load(block("yaml", "CI_MERGE_REQUEST_DIFF_BASE_SHA"))["model"]
    base = git(repository, "rev-parse", "HEAD")
    changed(repository, commit=True)
    (repository / "gates.toml").write_text("max-deviation = 0.01\n")
    (script,) = [line for line in job["script"] if "leanonnx check" in line]
    path = f"{runner / 'leanonnx' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = installing(PATH=path, CI_MERGE_REQUEST_DIFF_BASE_SHA=base)
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=repository, capture_output=True, text=True, check=False, env=variables
    )
    assert done.returncode == 1, done.stderr
    report = job["artifacts"]["reports"]["junit"]
    cases = ElementTree.parse(repository / report).iter("testcase")
    assert [case.attrib["name"] for case in cases if case.find("failure") is not None] == ["max-deviation"]
    assert job["artifacts"]["when"] == "always"


def test_github_snippet() -> None:
    (job,) = yaml.safe_load(block("yaml", "actions/checkout"))["jobs"].values()
    (step,) = [step for step in job["steps"] if "leanonnx" in step["uses"]]
    inputs = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
    assert {"base", "new"} <= set(step["with"]) <= set(inputs)


def test_pre_commit_snippet() -> None:
    (repo,) = yaml.safe_load(block("yaml", "leanonnx-check"))["repos"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert [each["id"] for each in repo["hooks"]] == [each["id"] for each in hooks]


def test_every_gate_is_explained() -> None:
    assert [name for name in GATES if f"| `{name}` |" not in PAGE] == []
