"""docs/ as a site: it builds without a warning, reads as it does elsewhere, and fetches nothing from the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("material", reason="needs the extra 'docs' (mkdocs-material)")

from markdown_it import MarkdownIt

from docs.reference import whole
from tests.documented import PAGES, ROOT

TAGS = ("h1", "h2", "h3", "ol", "ul", "li", "table", "tr", "pre", "strong", "em")
MOVED = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog", "models/README.md": "models"}
"""Pages from beside docs/."""
INPUTS = ("mkdocs.yml", "docs", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md", "leanonnx/hardware/targets.toml")


def built(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder, as the checks do."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", target],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = built(ROOT, target)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return target


def article(site: Path, name: str) -> str:
    """The content of a page on the site, without the theme."""
    text = (site / f"{MOVED.get(name, name.removeprefix('docs/').removesuffix('.md'))}.html").read_text(
        encoding="utf-8"
    )
    return re.sub(
        r"<nav.*?</nav>|<aside.*?</aside>", "", re.search(r"<article.*?</article>", text, re.DOTALL)[0], flags=re.DOTALL
    )


@pytest.mark.parametrize("name", [name for name in PAGES if name != "README.md"])
def test_page_reads_as_it_does_elsewhere(site: Path, name: str) -> None:
    """Lists, tables and code come out as CommonMark has them; Python-Markdown wants lists indented further."""
    wanted = MarkdownIt("commonmark").enable("table").render(whole(PAGES[name].read_text(encoding="utf-8")))
    found = article(site, name)
    assert {tag: len(re.findall(rf"<{tag}[\s>]", found)) for tag in TAGS} == {
        tag: len(re.findall(rf"<{tag}[\s>]", wanted)) for tag in TAGS
    }


def test_files_beside_the_pages_are_in_the_site(site: Path) -> None:
    links = {
        link for name in PAGES if name != "README.md" for link in re.findall(r'href="([^":#]+)', article(site, name))
    }
    assert {"files/targets.toml", "files/recovery.json", "architecture.html", "examples/my_rules.py"} <= links
    assert (site / "files" / "recovery.json").read_bytes() == (ROOT / "benchmarks/results/recovery.json").read_bytes()


def test_bars_in_code_in_tables_have_no_backslash(site: Path) -> None:
    assert r"\|" not in article(site, "docs/calibration.md")
    assert "nchw|nhwc[,bgr]" in article(site, "docs/calibration.md")


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?=[\"']?((?:https?:)?//[^\"' >]+)", text) == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//[^)]+|@import", sheet.read_text(encoding="utf-8")) == []


def link_to_nowhere(docs: Path) -> None:
    (docs / "index.md").write_text("[gone](nowhere.md)", encoding="utf-8")


def anchor_to_nowhere(docs: Path) -> None:
    (docs / "index.md").write_text("[gone](lean.md#nowhere)", encoding="utf-8")


def page_in_no_menu(docs: Path) -> None:
    (docs / "orphan.md").write_text("# Orphan", encoding="utf-8")


def script_from_elsewhere(docs: Path) -> None:
    (docs / "index.md").write_text('# A\n\n<script src="https://example.org/a.js"></script>', encoding="utf-8")


FAULTS = {
    "nowhere.md": link_to_nowhere,
    "nowhere": anchor_to_nowhere,
    "orphan.md": page_in_no_menu,
    "fetches https://example.org/a.js": script_from_elsewhere,
}
"""Warning of the build → the edit that provokes it."""


@pytest.mark.parametrize("said", FAULTS)
def test_faults_fail_the_build(said: str, tmp_path: Path) -> None:
    copy_of_inputs(tmp_path)
    FAULTS[said](tmp_path / "docs")
    done = built(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert said in done.stderr


def copy_of_inputs(root: Path) -> None:
    """A copy of the files that the site is built from."""
    places: dict[bool, Callable[..., object]] = {True: shutil.copytree, False: shutil.copy}
    for name in (*INPUTS, "benchmarks/results"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        places[(ROOT / name).is_dir()](ROOT / name, root / name)
