"""The page of ``compress --report`` as a browser shows it: on a phone and on a screen, light and dark, by keyboard.

Skipped where there is no Chromium, or no playwright to drive it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from leanonnx.reporting.encoding import Json
from tests.calibrated import net
from tests.pages import hostile, images, page_of, residual

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install '.[test]'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser found ({', '.join(BROWSERS)})")

SCREENS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]
NAMES = ("small", "deep", "crowded")
LEAST, LEAST_LARGE, LEAST_GRAPHIC = 4.5, 3.0, 3.0
"""Contrasts of text, of large text and of what is drawn (WCAG 2.2, 1.4.3 and 1.4.11)."""


def deep() -> onnx.ModelProto:
    """Fifty depthwise blocks between residual joins: a bracket for each, and more layers than are seen at once."""
    body = ["t0 = Conv (x, w0)"]
    weights = ["float[8, 3, 1, 1] w0", "float[4, 8, 1, 1] last"]
    for k in range(1, 51):
        body.append(f"p{k} = Conv (t{k - 1}, w{k}) d{k} = Conv <group = 12> (p{k}, g{k}) q{k} = Conv (d{k}, v{k})")
        body.append(f"t{k} = Add (t{k - 1}, q{k})")
        weights.append(f"float[12, 8, 1, 1] w{k}, float[12, 1, 1, 1] g{k}, float[8, 12, 1, 1] v{k}")
    body.append(f"y = Conv (t{50}, last)")
    return net("(float[1, 3, 4, 4] x) => (float[1, 4, 4, 4] y)", ", ".join(weights), " ".join(body))


def crowded() -> onnx.ModelProto:
    """Twenty-six stages of residual blocks close together in four hundred layers, and one far wider than all others."""
    body, last = ["s0 = Conv (x, w0)"], "s0"
    for k in range(26):
        body.append(f"a{k} = Conv ({last}, w) b{k} = Conv (a{k}, u{k}) c{k} = Add (a{k}, b{k})")
        body.append(f"d{k} = Conv (c{k}, v{k}) e{k} = Add (c{k}, d{k})")
        last = f"e{k}"
    weights = [f"float[2, 2, 1, 1] {name}{k}" for k in range(26) for name in "uv"]
    body = [line.replace(", w)", f", w_{k})") for k, line in enumerate(body)]
    weights += [f"float[2, 2, 1, 1] w_{k}" for k, line in enumerate(body) if f"w_{k})" in line]
    for k in range(320):
        body.append(f"f{k} = Conv ({last}, f_{k})")
        weights.append(f"float[2, 2, 1, 1] f_{k}")
        last = f"f{k}"
    weights += ["float[2, 3, 1, 1] w0", "float[200, 2, 1, 1] last"]
    proto = net(
        "(float[1, 3, 2, 2] x) => (float[1, 200, 2, 2] y)",
        ", ".join(weights),
        " ".join([*body, f"y = Conv ({last}, last)"]),
    )
    rng = np.random.default_rng(0)
    for weight in proto.graph.initializer:
        if list(weight.dims) == [2, 2, 1, 1]:  # near the identity, so that four hundred layers do not fade to nothing
            near = np.eye(2) + 0.1 * rng.standard_normal((2, 2))
            weight.CopyFrom(onnx.numpy_helper.from_array(near[..., None, None].astype(np.float32), weight.name))
    return proto


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three pages: everything that there is under hostile names; very deep; over budget."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    calib = ("--calib", images(folders["small"] / "x.npz"))
    page_of(folders["small"], hostile(residual()), "--keep", 0.5, "--best-effort", *calib, measure=True)
    page_of(folders["deep"], deep(), "--keep", 0.5)
    page_of(folders["crowded"], crowded(), "--keep", 0.01, "--best-effort")
    return {name: folder / "page.html" for name, folder in folders.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=BROWSER)
        yield found
        found.close()


class Seen:
    """A page in a window, with its console messages and requests."""

    def __init__(self, browser: Any, path: Path, width: int, theme: str) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())


@pytest.fixture(params=[(name, *screen) for name in NAMES for screen in SCREENS], ids=lambda p: "-".join(map(str, p)))
def seen(request: pytest.FixtureRequest, browser: Any, pages: dict[str, Path]) -> Iterator[Seen]:
    name, width, theme = request.param
    found = Seen(browser, pages[name], width, theme)
    yield found
    found.context.close()


OPEN = "document.querySelectorAll('details').forEach(each => each.open = true)"
SIZES = "[document.documentElement.scrollWidth, window.innerWidth]"
WIDE = """() => [...document.querySelectorAll("main *, header *")]
    .filter(each => !each.closest(".scroll") && !each.closest("svg") && each.getBoundingClientRect().width)
    .filter(each => each.getBoundingClientRect().right > window.innerWidth + 1)
    .map(each => each.tagName + "." + each.className)"""


def test_quiet_and_within_the_window(seen: Seen) -> None:
    """Nothing on the console, nothing asked for but the file, no sideways scrolling; tables opened as well."""
    for step in ("0", OPEN):
        seen.page.evaluate(step)
        scroll, window = seen.page.evaluate(SIZES)
        assert scroll <= window
        assert seen.page.evaluate(WIDE) == []
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith("data:")] == [seen.page.url]


OVERLAPS = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
    const boxes = [...svg.querySelectorAll("text")].filter(text => text.getClientRects().length)
        .map(text => [text.textContent, text.getBoundingClientRect()]);
    return boxes.flatMap(([one, a], k) => boxes.slice(k + 1)
        .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
        .map(([other]) => one + " on " + other));
})"""
OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter(text => text.getClientRects().length)
    .map(text => [text.textContent, text.getBoundingClientRect()])
    .filter(([, box]) => box.left < 0 || box.right > window.innerWidth).map(([name]) => name)"""
BLOCKS = """() => {
    const boxes = [...document.querySelectorAll(".rows li > *, .tile > *, figcaption, h1, h2, .intro, .legend > li")]
        .filter(each => each.textContent.trim() && each.checkVisibility())
        .map(each => [each, each.getBoundingClientRect()]);
    return boxes.flatMap(([one, a], k) => boxes.slice(k + 1)
        .filter(([other, b]) => !one.contains(other)
            && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
        .map(([other]) => one.textContent.trim() + " on " + other.textContent.trim()));
}"""


def test_texts_do_not_overlap(seen: Seen) -> None:
    assert len(seen.page.query_selector_all("svg text")) > 5
    assert seen.page.evaluate(OVERLAPS) == []
    assert seen.page.evaluate(OUTSIDE) == []
    for step in ("0", OPEN):
        seen.page.evaluate(step)
        assert seen.page.evaluate(BLOCKS) == []


CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const behind = element => {
        for (let each = element; each; each = each.parentElement) {
            const colour = getComputedStyle(each).backgroundColor;
            if ((numbers(colour)[3] ?? 1) === 1) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const parent = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || parent.closest("script, noscript, title, desc")) continue;
        if (!parent.getClientRects().length) continue;
        const style = getComputedStyle(parent);
        const pair = [light(parent.closest("svg") ? style.fill : style.color), light(behind(parent))];
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        found.push([walker.currentNode.textContent.trim(), large, ratio]);
    }
    return found;
}"""


def test_texts_stand_out(seen: Seen) -> None:
    seen.page.evaluate(OPEN)
    found = seen.page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [(text, ratio) for text, large, ratio in found if ratio < (LEAST_LARGE if large else LEAST)] == []


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG has it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_drawings_stand_out(browser: Any, pages: dict[str, Path], theme: str) -> None:
    """Outlines and fills of what is drawn against the paper; shades of kernels grow steadily, so grey is enough."""
    seen = Seen(browser, pages["small"], 1280, theme)
    style = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
    paper = luminance(seen.page.evaluate(style, "--paper"))
    for name in ("--after", "--before", "--best"):
        light = luminance(seen.page.evaluate(style, name))
        assert (max(light, paper) + 0.05) / (min(light, paper) + 0.05) >= LEAST_GRAPHIC, name
    shades = [luminance(seen.page.evaluate(style, f"--k{level}")) for level in range(5)]
    assert shades == sorted(shades, reverse=theme == "light")
    steps = [(max(a, b) + 0.05) / (min(a, b) + 0.05) for a, b in pairwise(shades)]
    assert min(steps) > 1.2
    seen.context.close()


def test_themes_differ(browser: Any, pages: dict[str, Path]) -> None:
    colours = set()
    for theme in ("light", "dark"):
        seen = Seen(browser, pages["small"], 1280, theme)
        colours.add(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        seen.context.close()
    assert len(colours) == 2


def test_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    """Tab reaches every link, table, and button; Enter opens a table."""
    seen = Seen(browser, pages["small"], 1280, "light")
    reached = []
    for _ in range(80):
        seen.page.keyboard.press("Tab")
        reached.append(seen.page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.innerText"))
        if reached[-1].startswith("SUMMARY All 6 layers"):
            seen.page.keyboard.press("Enter")
        if reached[-1].startswith("BODY"):
            break
    assert reached[0] == "A Skip to the pictures"
    assert seen.page.evaluate("document.querySelector('#network details').open")
    assert "DIV" in {each.partition(" ")[0] for each in reached}
    for selector in ("a", "button", "summary"):
        assert {each.inner_text() for each in seen.page.query_selector_all(selector)} <= {
            each.partition(" ")[2] for each in reached
        }
    seen.context.close()


def test_plan_and_numbers_are_saved(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    seen = Seen(browser, pages["deep"], 1280, "light")
    for label, name, key in (
        ("Save the plan", "plan.json", "tensors"),
        ("Save all numbers", "numbers.json", "kernels"),
    ):
        with seen.page.expect_download() as started:
            seen.page.get_by_role("button", name=label).click()
        assert started.value.suggested_filename == name
        started.value.save_as(tmp_path / name)
        saved: Json = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        assert saved["schema"] == 1
        assert saved[key]
    assert seen.said == []
    seen.context.close()


@pytest.mark.parametrize(
    ("label", "start"), [("Copy the command", "leanonnx"), ("Copy the plan", '{\n "input_sha256"')]
)
def test_copied(browser: Any, pages: dict[str, Path], label: str, start: str) -> None:
    seen = Seen(browser, pages["deep"], 1280, "light")
    seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen.page.get_by_role("button", name=label).click()
    seen.page.wait_for_function("document.getElementById('said').textContent !== ''")
    assert seen.page.inner_text("#said") == "Copied."
    assert seen.page.evaluate("navigator.clipboard.readText()").startswith(start)
    seen.context.close()


def test_without_scripts(browser: Any, pages: dict[str, Path]) -> None:
    """All pictures are there; only the buttons do nothing."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["small"].as_uri())
    assert page.locator("svg.heat").count() == 6
    assert page.locator("noscript p").is_visible()
    context.close()


def test_printed(browser: Any, pages: dict[str, Path]) -> None:
    """On paper it is light and fits, whatever the screen is."""
    seen = Seen(browser, pages["small"], 794, "dark")
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert (
        luminance(seen.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()"))
        > 0.9
    )
    scroll, window = seen.page.evaluate(SIZES)
    assert scroll <= window
    assert not seen.page.get_by_role("button").first.is_visible()
    assert seen.page.pdf(format="A4").startswith(b"%PDF")
    seen.context.close()
