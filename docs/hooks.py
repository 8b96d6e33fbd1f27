"""Hooks of mkdocs: pages get their parts that are made, files that they link to a place; nothing comes from elsewhere.

Links in the pages are those of the repository, so that the same text can be read there. Files beside ``docs/`` that
are linked to get a place in the site, and the links follow them.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs runs this file by itself

from docs.reference import whole  # noqa: E402

BESIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "models/README.md": "models.md",
    "leanonnx/hardware/targets.toml": "files/targets.toml",
    **{
        f"benchmarks/results/{path.name}": f"files/{path.name}" for path in (ROOT / "benchmarks/results").glob("*.json")
    },
}
"""File of the repository → its place in the site."""
ORIGIN = {place: name for name, place in BESIDE.items()}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
"""What a browser fetches by itself."""

log = logging.getLogger("mkdocs.hooks.docs")


def on_config(config: MkDocsConfig) -> None:
    """A folder in the navigation stands for its pages, in the order of their names."""
    for section in config.nav or ():
        for title, entries in section.items():
            if isinstance(entries, list):
                section[title] = [_folder(entry, config) for entry in entries]


def _folder(entry: Any, config: MkDocsConfig) -> Any:
    title, place = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
    if not (isinstance(place, str) and place.endswith("/")):
        return entry
    return {title: sorted(f"{place}{path.name}" for path in (Path(config.docs_dir) / place).glob("*.md"))}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site holds the files that lie beside ``docs/``."""
    for name, place in BESIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Parts that are made stand in their places, and links lead to where the files are in the site."""
    origin = ORIGIN.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda found: _in_site(found[1], origin, page.file.src_uri), whole(markdown))


def _in_site(link: str, origin: str, place: str) -> str:
    """A link of the repository file ``origin``, as the page at ``place`` has to say it."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    found = BESIDE.get(target, target.removeprefix("docs/"))
    return posixpath.relpath(found, posixpath.dirname(place) or ".")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Code in a line: bars, which tables want with a backslash, lose it, and an option is not broken in two."""
    html = re.sub(r"<code>[^<]*</code>", lambda found: found[0].replace("\\|", "|"), html)
    return re.sub(r"<code>(--[a-z0-9-]+)</code>", r'<code class="option">\1</code>', html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The site works without a network: what a page would fetch from elsewhere fails a strict build."""
    for address in LOADED.findall(output):
        log.warning("'%s' fetches %s; put the file into docs/", page.file.src_uri, address)
    return output
