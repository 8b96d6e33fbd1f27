"""What is shipped: the wheel is whole, releases can be made, and nothing asks an index for a package that it lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from docs import address
from leanonnx.version import __version__
from tests.documented import PAGES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
INSTALL = re.compile(r"\bpip3? install +([^`\n&;|]+)")
BARE = re.compile(r"(?<![\w/.-])leanonnx(?:\[[\w,]*\])?(?:[=<>~!]=?[\d.]+)?(?=[\s'\"]|$)(?!\s*@)")
READERS = [path for name, path in PAGES.items() if name != "CHANGELOG.md"]
"""Pages of what is true today; the changelog is history."""


def shipped(folder: Path, kind: str) -> Path:
    """The wheel or sdist that a clone makes."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install '.[test]'")
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (package,) = folder.iterdir()
    return package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped(tmp_path_factory.mktemp("wheel"), "wheel")


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    here = [path for path in (ROOT / "leanonnx").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in here}
    assert {"leanonnx/py.typed", "leanonnx/hardware/targets.toml", "leanonnx/page/templates/page.html"} <= wanted
    assert wanted <= inside
    assert {name.partition("/")[0] for name in inside} == {"leanonnx", f"leanonnx-{__version__}.dist-info"}


def test_the_wheel_runs_where_the_clone_is_not(wheel: Path, tmp_path: Path) -> None:
    """In a new environment; what it depends on is lent from that of the tests, behind its own packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "new"], check=True)
    python = shutil.which("python", path=f"{tmp_path / 'new' / 'bin'}{';' if sys.platform == 'win32' else ':'}")
    pip = [sys.executable, "-m", "pip", "--python", python or "", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lent = [path for path in sys.path if path.endswith("site-packages")]
    code = f"""
import sys
sys.path += {lent!r}
import importlib.metadata, leanonnx
from importlib.resources import files
from leanonnx.cli.main import main
assert leanonnx.__file__.startswith({str(tmp_path)!r}), leanonnx.__file__
assert files("leanonnx").joinpath("page/templates/page.html").is_file()
print(importlib.metadata.metadata("leanonnx").get_all("Project-URL"))
print(files("leanonnx").joinpath("hardware/targets.toml").read_text(encoding="utf-8"))
sys.argv = ["leanonnx", "--version"]
main()
"""
    done = subprocess.run([python or "", "-Iu", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Repository, {address.address()}" in done.stdout
    assert "[cpu-avx512]" in done.stdout
    assert f"\nleanonnx {__version__}\n" in done.stdout


# No index has leanonnx


def asks_an_index(command: str) -> bool:
    """True if the arguments of ``pip install`` name leanonnx without its place."""
    return BARE.search(command) is not None


@pytest.mark.parametrize("command", ["leanonnx", "'leanonnx[cuda]'", "-U leanonnx", "leanonnx==0.1", '"leanonnx[a,b]"'])
def test_commands_that_need_an_index_are_detected(command: str) -> None:
    assert asks_an_index(command)


@pytest.mark.parametrize(
    "command",
    [".", "'.[test]'", "-e '.[docs]' pre-commit", "'leanonnx @ git+https://a.b/leanonnx@v1'", "pillow", "a/leanonnx"],
)
def test_commands_that_need_none_are_not(command: str) -> None:
    assert not asks_an_index(command)


def test_nothing_needs_leanonnx_on_an_index() -> None:
    files = [*READERS, ROOT / "action.yml", ROOT / "Dockerfile", ROOT / ".ci" / "run", RELEASE]
    files += [*(ROOT / "leanonnx").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    said = [(path.name, found) for path in files for found in INSTALL.findall(path.read_text(encoding="utf-8"))]
    assert len(said) > 15
    assert [each for each in said if asks_an_index(each[1])] == []


def test_packages_named_in_messages_are_those_of_the_extras() -> None:
    extras = {each for found in PROJECT["optional-dependencies"].values() for each in found}
    known = {re.match(r"[\w.-]+(?:\[[\w,]+\])?", each)[0] for each in extras}
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "leanonnx").rglob("*.py")]
    named = {name.strip("'") for text in texts for name in re.findall(r"pip install ('[^']+'|[a-z][\w-]*)", text)}
    assert len(named) > 4
    assert named <= known


# The address


def test_pages_have_the_address_of_the_project() -> None:
    url = address.address()
    texts = [path.read_text(encoding="utf-8") for path in address.PAGES]
    assert [text for text in texts if address.filled(text, url) != text] == [], "run python -m docs.address"
    assert sum(text.count(url) for text in texts) == 2


def test_another_address_gets_everywhere() -> None:
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    moved = address.filled(page, "https://forge.example/some/where")
    assert "uses: some/where@v" in moved
    assert "git+https://forge.example/some/where@v" in moved
    assert "repo: https://forge.example/some/where\n" in moved
    assert "uses: actions/checkout@" in moved
    assert address.filled(moved, address.address()) == page


def test_no_placeholder_is_left() -> None:
    files = [*READERS, ROOT / "action.yml", ROOT / "mkdocs.yml", RELEASE]
    texts = [path for path in files if "OWNER" in path.read_text(encoding="utf-8")]
    assert texts == []


# Releases


def test_release_publishes_what_was_checked_and_only_tags() -> None:
    found = yaml.safe_load(RELEASE.read_text(encoding="utf-8"))
    assert set(found[True]) == {"push", "workflow_dispatch"}
    assert set(found[True]["push"]) == {"tags"}
    build, publish = found["jobs"]["build"], found["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert "github.ref_type == 'tag'" in publish["if"]
    assert (found["permissions"], publish["permissions"]) == ({"contents": "read"}, {"id-token": "write"})
    steps = [*build["steps"], *publish["steps"]]
    assert [each["uses"] for each in steps if not re.search(r"@v\d+\.\d+\.\d+$", each.get("uses", "@v0.0.0"))] == []
    script = "\n".join(each.get("run", "") for each in build["steps"])
    for part in ("python -m build", "twine check --strict", "check-wheel-contents", "-m venv", "leanonnx compress"):
        assert part in script
    assert [each for each in publish["steps"] if "run" in each] == []


def test_release_wants_the_tag_of_the_version() -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    (step,) = [
        each
        for each in yaml.safe_load(RELEASE.read_text(encoding="utf-8"))["jobs"]["build"]["steps"]
        if "tag" in each.get("name", "")
    ]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    for tag, code in ((f"v{__version__}", 0), ("v9.9.9", 1), (__version__, 1)):
        variables = {"PATH": path, "GITHUB_REF_NAME": tag}
        assert subprocess.run(["bash", "-ec", step["run"]], cwd=ROOT, env=variables).returncode == code
