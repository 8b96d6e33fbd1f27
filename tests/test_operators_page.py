"""docs/operators.md contains the documentation of all rules, and its examples are working rules."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import onnx
import pytest

from docs import operators
from docs.reference import whole
from leanonnx.errors import ProofFailed
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Rule
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.rules.user import read_rules
from leanonnx.spelling import spelled_for
from tests.documented import PAGES
from tests.helpers import called
from tests.variants import assert_pins, compress, network

DOCS = PAGES["docs/operators.md"].parent
PAGE = whole(PAGES["docs/operators.md"].read_text(encoding="utf-8"))
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    "rule", dict.fromkeys(DEFAULT_RULES.values()), ids=lambda rule: f"{rule.__module__}.{rule.__name__}"
)
def test_every_rule_has_a_summary_and_all_sections(rule: Rule) -> None:
    """Each rule has a name and a summary; no section is empty or swallowed by another."""
    found = operators.entry(rule, ["Some"])
    assert found.summary.endswith(".")
    assert not found.summary.startswith(operators.SECTIONS)
    assert list(found.sections) == list(operators.SECTIONS)
    assert all(len(text) > 3 for text in found.sections.values())
    assert not [text for text in found.sections.values() for name in operators.SECTIONS if f"{name}:" in text]


def test_section_that_is_missing_is_an_error() -> None:
    def rule(call: object) -> Effect:
        """Do something.

        Flow: channels pass through.
        Ties: none.
        """
        raise NotImplementedError

    rule.__module__ = "leanonnx.rules.pointwise"
    with pytest.raises(KeyError, match="Pins"):
        operators.entry(rule, ["Some"])


def test_every_operator_is_named_and_linked() -> None:
    anchors = re.findall(r'<a id="([\w-]+)"></a>', PAGE)
    links = re.findall(r"\[(\w+)\]\(#([\w-]+)\)", PAGE)
    assert len(set(anchors)) == len(anchors)
    assert {anchor for _, anchor in links} == set(anchors)
    assert sorted(name for name, _ in links) == sorted(name for _, name in DEFAULT_RULES)


def test_every_field_of_an_effect_is_explained() -> None:
    assert [field.name for field in fields(Effect) if f"| `{field.name}` |" not in PAGE] == []


def test_the_api_that_rules_use_exists_with_these_parameters() -> None:
    documented = re.findall(r"\| `call\.(\w+)(?:\(([\w, ]+)\))?` \|", PAGE)
    assert len(documented) == 10
    for name, parameters in documented:
        member = getattr(Call, name)
        own = [] if isinstance(member, property) else list(inspect.signature(member).parameters)[1:]
        assert own == (parameters.split(", ") if parameters else [])


def test_advice_is_quoted_as_it_is_given() -> None:
    with spelled_for("command line"):
        assert f'"{advice.write_rule()}"' in PAGE


def test_tables_are_tables() -> None:
    """A stray bar would break a row in two."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def test_links_lead_somewhere() -> None:
    files = re.findall(r"\]\(([^#)]+)\)", PAGE)
    named = re.findall(r"\(docs/([\w/.-]+)\)", PAGE)
    assert files
    assert [name for name in files if not (DOCS / name).exists()] == []
    assert [name for name in named if not list((DOCS / name).parent.glob(f"{Path(name).name}*"))] == []


def test_first_example_is_the_file() -> None:
    assert CODE[0] == (DOCS / "examples" / "my_rules.py").read_text(encoding="utf-8")


def test_options_are_those_of_the_command() -> None:
    said = set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", PAGE))
    helps = "".join(called(verb, "--help").stdout for verb in ("compress", "inspect"))
    assert {"--rules", "--library"} <= said
    assert {option for option in said if option not in helps} == set()


FRAME = """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) {} r = Relu (n) c = Conv (r, w2) d = Relu (c) y = Conv (d, w3)"""
CONSTANTS = """float[16, 3, 3, 3] w1, float[16] b1, float[16] s, float[16] o, float[12, 16, 1, 1] w2,
    float[4, 12, 1, 1] w3"""
STANDARD = {
    "ScaleShift": ("InstanceNormalization", "n = InstanceNormalization (a, s, o)", {"s", "o"}),
    "GroupNorm": ("GroupNormalization", "n = GroupNormalization <num_groups = 4> (a, s, o)", {"s", "o"}),
    "ConvMish": ("Conv", "n = Conv <pads = [1, 1, 1, 1]> (a, wn, s)", {"s"}),
}
"""For the operator of each further example: a standard one that takes its place, in a network, and what it slices."""


def example(name: str, folder: Path) -> dict[tuple[str, str], Rule]:
    """The rule of an example on the page, for the standard operator that takes the place of the example's."""
    code = next(code for code in CODE if f'"{name}"' in code)
    (folder / "rules.py").write_text(code, encoding="utf-8")
    return {**DEFAULT_RULES, ("", STANDARD[name][0]): read_rules(folder / "rules.py")["com.acme", name]}


def model(name: str) -> onnx.ModelProto:
    body = FRAME.format(STANDARD[name][1])
    constants = f"{CONSTANTS}, float[16, 16, 3, 3] wn"
    return network("(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)", constants, body, 21)


def test_every_further_example_is_tried() -> None:
    assert len(CODE) == 1 + len(STANDARD)


@pytest.mark.parametrize("name", STANDARD)
def test_further_examples_work(name: str, tmp_path: Path) -> None:
    """On keep sets that chance chooses, as the page advises."""
    for seed in range(4):
        done = compress(model(name), tmp_path, rules=example(name, tmp_path), method="random", seed=seed)
        assert_pins(done, {})
        sliced = {done.shapes[vector][0] for vector in STANDARD[name][2]}
        assert len(sliced) == 1
        assert sliced < set(range(16))


def test_example_of_groups_ties_them(tmp_path: Path) -> None:
    done = compress(model("GroupNorm"), tmp_path, rules=example("GroupNorm", tmp_path))
    groups = next(a.i for node in done.target.graph.node for a in node.attribute if a.name == "num_groups")
    assert (done.shapes["w1"][0], groups < 4) == (4 * groups, True)


def test_forgotten_slice_is_caught_as_the_page_says(tmp_path: Path) -> None:
    rules = example("ScaleShift", tmp_path)
    text = (tmp_path / "rules.py").read_text(encoding="utf-8").replace(", Slice(2, (channels,))", ",")
    (tmp_path / "wrong.py").write_text(text, encoding="utf-8")
    wrong = read_rules(tmp_path / "wrong.py")["com.acme", "ScaleShift"]
    with pytest.raises(ProofFailed, match=r"differs from the masked original|is not valid"):
        compress(model("ScaleShift"), tmp_path, rules={**rules, ("", "InstanceNormalization"): wrong})
