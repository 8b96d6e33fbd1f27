"""Generated parts of docs/ are up to date: the command line, the pictures, the numbers within pages."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer

from benchmarks import digest
from benchmarks.common import load
from benchmarks.int8 import page as integers
from docs import cli, pictures, written
from docs.reference import PARTS, whole
from leanonnx.cli.terminal import INTERRUPTED, TERMINATED
from leanonnx.errors import BUG, NO, USER_ERROR
from tests.documented import PAGES, ROOT
from tests.helpers import called

VERBS = cli.verbs()
CLI = whole(PAGES["docs/cli.md"].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_its_place(name: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in PAGES.values()]
    (page,) = [text for text in pages if f"<!-- {name} -->" in text]
    assert whole(page).count(PARTS[name]()) == 1
    assert f"<!-- {name} -->" not in whole(page)


def test_exit_codes_are_those_of_the_command_line() -> None:
    documented = re.findall(r"^\| ([\d, ]+) \|", CLI, re.MULTILINE)
    assert documented[:5] == ["0", str(NO), str(USER_ERROR), str(BUG), f"{INTERRUPTED}, {TERMINATED}"]


def test_scripts_update_outdated_files_and_only_report_them_with_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [(tmp_path / "a", "new"), (tmp_path / "b", "same")]
    (tmp_path / "a").write_text("old", encoding="utf-8")
    (tmp_path / "b").write_text("same", encoding="utf-8")
    assert written.main(files, "python -m this", ["--check"]) == 1
    assert capsys.readouterr().err == "a: not what it should be; run python -m this\n"
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old"
    assert written.main(files, "python -m this", []) == 0
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new"
    assert written.main(files, "python -m this", ["--check"]) == 0


def test_every_verb_has_a_chapter() -> None:
    shown = re.findall(r"^  ([a-z-]+) ", called("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert [verb.name for verb in VERBS] == shown
    assert all(f"\n## {name}\n" in CLI for name in shown)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_options_are_those_of_the_help(verb: cli.Verb) -> None:
    text = called(verb.name, "--help").stdout
    documented = set(re.findall(r"^│ [* ]{0,4}(--[a-z][\w-]*)(?:,? +-\w)?(?: +(--no-[\w-]+))?", text, re.MULTILINE))
    shown = {option for each in verb.parameters for option in re.findall(r"--[a-z][\w-]*", each.shown)}
    assert shown == {option for pair in documented for option in pair if option} - {"--help"}
    assert {0, 2, 3} <= set(verb.exits)


def test_verb_without_exit_codes_is_an_error() -> None:
    def verb(source: Annotated[Path, typer.Argument(metavar="IN", help="A model.")]) -> None:
        """Do something. Exit codes: 0 done."""

    with pytest.raises(KeyError, match="own: its docstring lacks"):
        cli.verb("own", verb)


def test_parameters_in_the_words_of_the_page() -> None:
    def verb(
        target: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Where.")] = None,
        much: Annotated[list[str] | None, typer.Option("--much", metavar="A|B", help="How much.")] = None,
        fast: Annotated[bool, typer.Option(help="Quickly.")] = True,
        rate: Annotated[float, typer.Option(help="Speed; see --fast.")] = 2.50,
    ) -> None:
        """Do something.

        More of it. Exit codes: 0 done (or not, as it may be), 1 refused, 2 wrong, 3 a bug. Last words.
        """

    text = cli.chapter(cli.verb("own", verb))
    assert "`leanonnx own [OUT] [OPTIONS]`" in text
    assert "| `--much A\\|B` |  | How much; may be given several times. |" in text
    assert "| `--fast / --no-fast` | `--fast` | Quickly. |" in text
    assert "| `--rate X` | `2.5` | Speed; see `--fast`. |" in text
    assert "Do something. More of it. Last words." in text
    assert "| 0 | done (or not, as it may be) |" in text


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_picture_agrees_with_the_drawing(name: str) -> None:
    text = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert text == pictures.PICTURES[name](), "run python -m docs.pictures"
    root = ElementTree.fromstring(text)
    assert root.findtext("{http://www.w3.org/2000/svg}title")
    assert "prefers-color-scheme:dark" in text
    assert [word for word in ("http:", "https:") if word in text.replace("http://www.w3.org/2000/svg", "")] == []


def test_every_class_of_a_picture_has_its_colours() -> None:
    """In the light and in the dark."""
    light, _, dark = (pictures.FOLDER / "chains.svg").read_text(encoding="utf-8").partition("@media")
    for name in pictures.PICTURES:
        used = set(re.findall(r'class="(\w+)"', (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")))
        assert [
            kind for kind in used if f".{kind}" not in light or f".{kind}" not in dark.partition("</style>")[0]
        ] == []


def test_pictures_show_the_analysis() -> None:
    """Channels joined by the Add share a letter, pinned ones have none, and the drawn kernels are all there are."""
    found, places = pictures.network(), pictures.Drawn(0).places
    classes = found.dag.groups
    tied = [found.dag.channel_ids[name].reshape(-1) for name in "abs"]
    assert all(np.array_equal(classes[tied[0]], classes[other]) for other in tied)
    assert set(places) == set(range(1, found.dag.count))
    assert len(found.gains) == 4 + 16 + 16 + 8
    assert all(source < target for source, target in [*found.gains, *found.fixed])


def test_covering_chains_cover_the_best_first() -> None:
    """Each chain runs from the input to an output and covers something new."""
    dag, covered = pictures.network().dag, set[int]()
    for chain in pictures.covering():
        assert (chain[0] in dag.starts, chain[-1] in dag.ends) == (True, True)
        assert set(chain) - covered
        covered |= set(chain)
    assert covered == set(range(1, dag.count))


FILLED = [name for name, path in PAGES.items() if digest.BLOCK.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", FILLED)
def test_numbers_are_those_of_the_results(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    assert digest.filled(text) == text, "run python -m benchmarks.digest"


def test_every_block_of_numbers_is_used_and_altered_ones_are_found() -> None:
    texts = [PAGES[name].read_text(encoding="utf-8") for name in FILLED]
    names = [name for text in texts for _, name, _ in digest.BLOCK.findall(text)]
    assert sorted(names) == sorted(digest.BLOCKS)
    for text in texts:
        number = re.search(r"\| [\d.]+ \|", text[digest.BLOCK.search(text).start() :])
        if number is None:
            assert integers.EMPTY in text
            continue
        assert digest.filled(text.replace(number[0], "| 12.34567 |", 1)) == text


def test_a_mean_of_the_digest_is_the_mean_of_its_cells() -> None:
    rows = [r for r in load("selection")["rows"] if (r["ratio"], r["choice"]) == (0.5, "cover")]
    cells = [row["accuracy"] for row in rows if row["network"] in digest.CLASSIFIERS]
    assert len(cells) == 4
    line = next(line for line in digest.chains().splitlines() if line.startswith("| 0.5 "))
    assert line.split(" | ")[1] == f"{100 * sum(cells) / 4:.1f}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "models/README.md"])
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[name].read_text(encoding="utf-8"))
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []
