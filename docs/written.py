"""What scripts write into docs/: they write it anew, or say where it is not what they would write."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path


def main(files: Iterable[tuple[Path, str]], command: str, arguments: list[str]) -> int:
    """Write the files; with ``--check`` leave them, and exit 1 if one is not what ``command`` would write."""
    old = [(path, text) for path, text in files if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        sys.stderr.writelines(f"{path.name}: not what it should be; run {command}\n" for path, _ in old)
        return int(bool(old))
    for path, text in old:
        path.write_text(text, encoding="utf-8")
    return 0
