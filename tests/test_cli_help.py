"""The rest of the command line: versions, help, completion, public names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from platform import python_version

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import leanonnx
from tests.helpers import (
    called,
    called_json,
    cli,
)

# the rest of the command line


def test_version() -> None:
    """One line for each, leanonnx first; onnxruntime with the providers that it has."""
    done = cli("--version")
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = done.stdout.splitlines()
    assert first == f"leanonnx {leanonnx.__version__}"
    runtime = f"onnxruntime {ort.__version__} ({', '.join(ort.get_available_providers())})"
    assert others == [f"onnx {onnx.__version__}", runtime, f"numpy {np.__version__}", f"Python {python_version()}"]
    row = called_json("--version")
    assert row["providers"] == ort.get_available_providers()
    wanted = {"schema": 1, "leanonnx": leanonnx.__version__, "python": python_version(), "numpy": np.__version__}
    assert wanted.items() <= row.items()


@pytest.mark.parametrize("args", [("--json",), ("--json", "inspect", "model.onnx")], ids=" ".join)
def test_json_of_no_verb(args: tuple[str, ...]) -> None:
    done = called(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json" in done.stderr.splitlines()[-1]


COMPLETIONS = [
    (("",), {"compress", "inspect", "bench", "check", "sweep", "finetune", "calibrate-device"}),
    (("co",), {"compress"}),
    (("compress", "--met"), {"--method"}),
    (("compress", "--method", "path"), {"path-mass"}),
    (("bench", "--provider", ""), {"cpu", "cuda", "tensorrt"}),
]


@pytest.mark.parametrize(("words", "found"), COMPLETIONS, ids=[" ".join(words) for words, _ in COMPLETIONS])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, words: tuple[str, ...], found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and answers of shell completion, by the protocol that ``--install-completion`` installs."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)  # read from the environment when help is first shown
    line = " ".join(("leanonnx", *words))
    asked = {"COMP_WORDS": line.replace(" ", "\n"), "COMP_CWORD": str(len(words))}
    asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asked["_LEANONNX_COMPLETE"] = f"complete_{shell}"
    done = cli(env=asked) if words == ("",) else called(env={**asked, "TERMINAL_WIDTH": "1000"})
    assert (done.returncode, done.stderr) == (0, "")
    if shell == "zsh":
        answered = set(re.findall(r'^(?:_arguments .*\(\()?"([^"]+)"', done.stdout, re.MULTILINE))
    else:
        answered = {text.partition("\t")[0] for text in done.stdout.splitlines()}
    assert answered == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    done = called(env={"_LEANONNX_COMPLETE": f"source_{shell}"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_LEANONNX_COMPLETE=complete_{shell}" in done.stdout


HELP = {
    "": "bench check compress inspect --version",
    "bench": "--provider --threads --batch --shape --seconds --library --cuda-graph --tf32 --seed --json",
    "check": "--max-deviation --min-agreement --min-psnr --min-speedup --max-latency-ms --max-bytes --max-params "
    "--max-macs --gates --data --provider --skip-missing-provider --threads --batch --shape --seconds --library --seed "
    "--junit --github --json",
    "inspect": "--why --shape --json",
    "compress": "--keep --macs --params --method --chains --shape --pin --ignore --plan --plan-out --report --recover "
    "--best-effort --no-measure --seed --json",
}


@pytest.mark.parametrize("verb", HELP)
def test_help(verb: str) -> None:
    done = called(*verb.split(), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert [option for option in HELP[verb].split() if option not in done.stdout] == []


def test_public_names() -> None:
    """``__all__`` lists just what the stub gives, and each name is there."""
    stub = ast.parse(Path(leanonnx.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    given = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(given) == sorted(listed) == sorted(leanonnx.__all__) == sorted(dir(leanonnx))
    assert all(getattr(leanonnx, name) is not None for name in leanonnx.__all__)


def test_a_process_that_measures_imports_no_analysis() -> None:
    """Each measurement starts one, and waits for its imports."""
    script = "import sys, leanonnx.runtime.subprocess_timing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "leanonnx.runtime.timing" in loaded
    assert [name for name in loaded if name.startswith(("leanonnx.analysis", "leanonnx.commands", "scipy"))] == []


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_versions_import_no_verb(word: str) -> None:
    """Who asks for them does not wait for what carries out the verbs."""
    script = (
        "import sys; from leanonnx.cli.main import app\n"
        "app(sys.argv[1:], standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, word], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert "leanonnx.cli.group" in loaded and done.stdout
    heavy = ("leanonnx.analysis", "leanonnx.commands", "leanonnx.cli.compress", "scipy")
    assert [name for name in loaded if name.startswith(heavy)] == []


def test_import_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; import leanonnx; from leanonnx.cli.group import Commands\n"
        "assert len(dict(Commands())) > 1; print(leanonnx.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, leanonnx.__version__), done.stderr
