"""Every command in README.md and docs/ works: run on substitutes for a reader's files, or excused with a reason."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leanonnx.cli.group import Commands
from tests.documented import PAGES, ROOT, Typed, furnish, typed
from tests.helpers import SHORT, TIMEOUT, Done, called
from tests.sweeps import made_within

VALUES = {"LAYER:CHANNEL": "r1:3", "NAME=1,3,224,224": "x=1,3,16,16"}
"""Values that a reader has to substitute for a word of the page."""
PARSED = {
    "--provider cuda": "needs a GPU",
    "--provider tensorrt": "needs a GPU",
    "--min-speedup": "depends on the machine's time; tests/test_check.py does it",
    "--calib inputs.npz --min-agreement": "needs more samples than the substitute has; tests/test_tolerance.py does it",
    "--calib inputs.npz --max-deviation": "the same",
    "--score": "runs a file of the reader's; tests/test_tolerance_refusals.py does it",
    "--library": "needs a library of custom operators; tests/test_variants_rules.py does it",
    "leanonnx calibrate-device": "takes a machine for itself; tests/test_calibration.py does it",
    "leanonnx finetune": "trains for minutes and needs torch; tests/test_finetune_runs.py does it",
}
"""Part of a command → why it is not run; its options are read as the command line reads them."""
REPLACED = {"--latency": "--macs"}
"""Options that depend on the machine's speed → their replacements; tests/test_search.py covers the former."""
EXCUSED = {
    "pip install": "installs; the checks begin with README's own",
    "python -m pytest": "these tests themselves",
    "python3 -m venv": "makes the environment",
    "python -m models.train_unet": "trains for 17 minutes",
    "python -m models.circles_squares --count 16": "writes the committed samples; see tests/test_models.py",
    "python -m leanonnx.integrations.olive": "needs olive-ai; tests/test_olive.py does it",
    "olive run": "the same",
    "python detection_map.py": "tests/test_detection_map.py does it",
    "yolo ": "needs ultralytics and trained weights",
    "optimum-cli": "needs optimum and trained weights",
    "torchrun": "needs several GPUs",
    "for seed in": "a loop over a command of the same page",
}
"""Beginning of a command → why it is not run."""
PYTHON_ELSEWHERE = {"docs/operators.md": "tests/test_operators_page.py"}
"""Pages whose Python another test runs."""
ADDED = {
    "leanonnx compress models/cs_unet.onnx": ["--target", "cpu-avx512"],
    "--calib models/cs_unet_samples.npz": ["--method", "lean"],
    "leanonnx check models/cs_unet.onnx": ["--max-deviation", "0.9", "--min-agreement", "0.5"],
    "leanonnx sweep": ["--no-measure"],
    "leanonnx bench": ["--seconds", str(SHORT)],
}
"""Options added so that outputs are the same everywhere, and fast."""
UNMEASURED = ("latency", "times the speed", "times as fast", " of the size.")
"""Marks of lines that are not printed without measuring, or not the same."""
COMMANDS = {name: typed(path.read_text(encoding="utf-8")) for name, path in PAGES.items()}
PAIRS = [(name, each) for name, found in COMMANDS.items() for each in found if each.language == "sh"]


def excuse(command: str) -> str:
    """The reason why a command is not run; empty if it is."""
    return next((reason for start, reason in EXCUSED.items() if command.startswith(start)), "")


def is_parsed(command: str) -> bool:
    return any(part in command for part in PARSED)


def arguments(command: str) -> list[str]:
    """The arguments after ``leanonnx``, with a reader's values."""
    return [VALUES.get(word, word) for word in shlex.split(command)[1:]]


def added(command: str) -> list[str]:
    """Arguments added to a command when it is run."""
    return [word for part, words in ADDED.items() if part in command for word in words]


def parse(command: str) -> None:
    """Read the options of a command as the command line does.

    Raises:
        Exception: it does not know them.
    """
    verb, *rest = arguments(command)
    Commands()[verb].make_context(verb, rest)


def run(command: str, folder: Path) -> Done:
    """Run a command in a folder with the files that it names."""
    furnish(folder, command)
    if not command.startswith("leanonnx"):
        return _spawned([sys.executable, *shlex.split(command)[1:]], folder)
    parse(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanonnx.commands.sweep.extras.make_locally", made_within)
        return called(*(REPLACED.get(word, word) for word in arguments(command)), *added(command), cwd=folder)


def _spawned(words: list[str], folder: Path) -> Done:
    """Run another program in a folder; Python finds what it would find in the repository."""
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )


def lines(text: str, masked: bool) -> list[str]:
    """Lines with normalised blanks, and with # for each number that may differ.

    Then one sample may stand for several, of which intervals are known.
    """
    plain = [" ".join(line.split()) for line in text.splitlines()]
    number = re.compile(r"[\d.,]*\d(?:e[-+]\d+)?")
    if masked:
        plain = [number.sub("#", line).replace("samples", "sample") for line in plain]
        plain = [re.sub(r" \(#(?: %)? to #(?: %)?\)", "", line) for line in plain]
    return [number.sub("#", line) if line.startswith("Proof") else line for line in plain if line]


def missing(shown: str, given: str, masked: bool) -> list[str]:
    """Shown lines that the output lacks, in this order."""
    rest = iter(lines(given, masked))
    wanted = [line for line in lines(shown, masked) if line != "…" and not any(part in line for part in UNMEASURED)]
    return [line for line in wanted if line not in rest]


@pytest.mark.parametrize("name", [name for name, found in COMMANDS.items() if found])
def test_page_works_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    """All commands run in one folder, so that each finds the files of those before it."""
    for each in COMMANDS[name]:
        if each.language == "python":
            if name in PYTHON_ELSEWHERE:
                continue
            furnish(tmp_path, each.text)
            (tmp_path / rule_file(each, name)).write_text(each.text, encoding="utf-8")
            done = _spawned([sys.executable, rule_file(each, name)], tmp_path)
        elif excuse(each.text):
            continue
        elif is_parsed(each.text):
            parse(each.text)
            continue
        else:
            done = run(each.text, tmp_path)
        assert done.returncode == 0, f"{each.text}\n{done.stderr}"
        masked = any(part in each.text for part in ("--calib", "bench", "check", "print"))
        assert missing(each.shown, done.stdout, masked) == [], f"{each.text}\n{done.stdout}"


def rule_file(each: Typed, name: str) -> str:
    """The file for a page's Python: the name that the page gives a file of rules, else a script."""
    if "RULES = " not in each.text:
        return "script.py"
    return next(word for word in re.findall(r"`(\w+\.py)`", PAGES[name].read_text(encoding="utf-8")))


def test_every_command_is_known() -> None:
    """A command of another program than leanonnx and Python is excused by name, or it fails here."""
    runnable = ("leanonnx ", "python -m models.")
    assert [pair for pair in PAIRS if not pair[1].text.startswith(runnable) and not excuse(pair[1].text)] == []


def test_pages_show_commands() -> None:
    """The search finds commands, in fences and indented, on the pages that people read first."""
    assert len(PAIRS) > 50
    assert {"README.md", "docs/tutorial.md", "docs/recipes.md", "docs/targets.md"} <= {name for name, _ in PAIRS}


@pytest.mark.parametrize("part", PARSED)
def test_no_excuse_is_left_over(part: str) -> None:
    assert any(part in each.text for _, each in PAIRS)


@pytest.mark.parametrize("start", EXCUSED)
def test_no_excuse_by_beginning_is_left_over(start: str) -> None:
    assert any(each.text.startswith(start) for _, each in PAIRS)


def test_wrong_option_is_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("leanonnx compress IN OUT --kepp 0.5 --provider cuda")


def test_wrong_output_is_found() -> None:
    assert missing("a  12\n…\nc 3.5", "a 12\nb\nc 3.5", masked=False) == []
    assert missing("a 13", "a 12", masked=False) == ["a 13"]
    assert missing("a 13\nc", "a 12\nb", masked=True) == ["c"]
    assert missing("b\na", "a\nb", masked=True) == ["a"]


OPTION = re.compile(r"`(--[a-z][\w-]*)")


@pytest.mark.parametrize("name", PAGES)
def test_options_in_the_text_exist(name: str) -> None:
    known = {
        option for verb in Commands().values() for each in verb.params for option in each.opts + each.secondary_opts
    }
    said = set(OPTION.findall(PAGES[name].read_text(encoding="utf-8")))
    assert said - known - {"--help", "--version", "--check"} == set()
