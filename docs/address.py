"""Address of the repository within pages: one line of pyproject.toml, written where a page names it.

python -m docs.address            write it
python -m docs.address --check    exit 1 if a page has another
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from docs.written import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
URL = re.compile(r"(git\+|repo: )https://[^\s@'\"]+")
USED = re.compile(r"(?<=uses: )(?!actions/)[^\s@]+(?=@)")
"""The action of this repository, by owner and name; not those of others."""


def address() -> str:
    """Where the repository is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"]).rstrip("/")


def filled(page: str, url: str) -> str:
    """A page with this address."""
    return USED.sub(urlsplit(url).path.strip("/"), URL.sub(lambda found: found[1] + url, page))


if __name__ == "__main__":
    texts = [(path, filled(path.read_text(encoding="utf-8"), address())) for path in PAGES]
    raise SystemExit(main(texts, "python -m docs.address", sys.argv[1:]))
