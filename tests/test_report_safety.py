"""The page of ``compress --report`` is self-contained, and safe against hostile names."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from leanonnx import formatting as words
from tests.pages import HOSTILE, Found, hostile, page_of, parsed, plain, residual, without_seconds

# self-contained


def test_loads_nothing(calibrated: tuple[Found, str, dict[str, Any]]) -> None:
    found, page, _ = calibrated
    loaded = [
        v for _, attributes in found.tags for k, v in attributes.items() if k in ("src", "href", "xlink:href", "data")
    ]
    assert all(value and value.startswith(("#", "data:")) for value in loaded)
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.tags}
    style = found.text("style")
    assert "url(" not in style
    assert "@import" not in style
    assert re.findall(r"https?:", page) == []


def test_only_its_own_script_may_run(calibrated: tuple[Found, str, dict[str, Any]]) -> None:
    found, page, _ = calibrated
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert [s.get("type") for s in found.all("script")] == ["application/json", "application/json", None]
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)


def test_pictures_have_text_descriptions(calibrated: tuple[Found, str, dict[str, Any]]) -> None:
    """Every picture has a name; others are hidden from readers of the screen; ids are unique."""
    found, _, _ = calibrated
    ids = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for svg in found.all("svg"):
        names = (svg.get("aria-labelledby") or "").split()
        assert svg.get("aria-hidden") == "true" or svg.get("aria-label") or (names and set(names) <= set(ids))
    assert all(image.get("alt") for image in found.all("img"))
    assert len(found.all("details")) >= 5


def test_hostile_names(tmp_path: Path) -> None:
    """Names are always plain text, in the page and in the JSON within it."""
    page, row = page_of(tmp_path, hostile(residual()), "--keep", 0.5, "--pin", HOSTILE[0])
    found = parsed(page)
    assert [s.get("type") for s in found.all("script")] == ["application/json", "application/json", None]
    assert {tag for tag, _ in found.tags} & {"b", "img"} <= {"b"}
    assert without_seconds(found.json("numbers")) == without_seconds(row)
    assert [layer["name"] for layer in row["layers"]] == HOSTILE
    assert "\u202e" not in page
    assert "\x07" not in page
    for name in HOSTILE:
        assert plain(words.short_name(name, 60)) in found.text("network")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("plain", "plain"), ("a\nb", "a\\nb"), ("\u202e", "\\u202e"), ("層", "層"), ("x" * 501, "x" * 499 + "…")],
)
def test_shown(name: str, wanted: str) -> None:
    assert words.printable_name(name) == wanted


def test_short_keeps_both_ends() -> None:
    name = "/".join(f"block{k}" for k in range(20))
    assert len(words.short_name(name)) == words.SHORT_NAME_LENGTH
    head, _, tail = words.short_name(name).partition("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert len(tail) > len(head) > 5


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50.0 %"),
        (0.00001, "< 0.01 %"),
        (0.001, "0.10 %"),
        (0.9999, "99.99 %"),
        (0.999999, "> 99.99 %"),
        (0.99, "99.0 %"),
        (1.0005, "100.05 %"),
        (1.0425, "104.2 %"),
    ],
)
def test_percent(share: float, wanted: str) -> None:
    assert plain(words.percent_text(share)) == wanted


@pytest.mark.parametrize(
    ("number", "wanted"), [(999, "999"), (999.9, "1 k"), (1234, "1.23 k"), (2.5e6, "2.5 M"), (123456789, "123 M")]
)
def test_compact(number: float, wanted: str) -> None:
    assert plain(words.compact_text(number)) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"), [(0, "0.000 ms"), (0.0123, "0.012 ms"), (1.234, "1.23 ms"), (123.4, "123 ms")]
)
def test_ms(value: float, wanted: str) -> None:
    assert plain(words.milliseconds_text(value)) == wanted
