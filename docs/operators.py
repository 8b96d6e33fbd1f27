"""What leanonnx does at each operator, from the docstrings of the rules: a part of docs/operators.md on the site."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from leanonnx.rules.call import Rule
from leanonnx.rules.table import DEFAULT_RULES

SECTIONS = ("Flow", "Ties", "Pins", "Limits", "Specification")
FEW = 4
"""How many operators a heading names."""


@dataclass(frozen=True)
class Entry:
    """One rule: the title of the module it is in, its operators by domain, its summary and its sections."""

    family: str
    operators: tuple[str, ...]
    summary: str
    sections: dict[str, str]

    @property
    def title(self) -> str:
        """The heading: the operators, or the first of many."""
        names = [name.rpartition(".")[2] for name in self.operators]
        return ", ".join(names) if len(names) <= FEW else f"{names[0]} and {len(names) - 1} more"

    @property
    def anchor(self) -> str:
        """Where links to this rule lead."""
        return self.operators[0].lower().replace(".", "-")


def entries() -> list[Entry]:
    """All rules of the standard table, in its order."""
    operators: dict[Rule, list[str]] = {}
    for (domain, name), rule in DEFAULT_RULES.items():
        operators.setdefault(rule, []).append(f"{domain}.{name}" if domain else name)
    return [entry(rule, names) for rule, names in operators.items()]


def entry(rule: Rule, operators: list[str]) -> Entry:
    """Read a rule's docstring.

    Raises:
        KeyError: it lacks a section.
    """
    text = inspect.getdoc(rule) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    found = dict(re.findall(r"^(\w+): (\S.*(?:\n[ ]+\S.*)*)", text, re.MULTILINE))
    sections = {name: " ".join(found[name].split()) for name in SECTIONS}
    return Entry(family(rule), tuple(operators), summary, sections)


def family(rule: Rule) -> str:
    """The title of a rule's family: its module's docstring, as far as the first colon or full stop."""
    return re.split(r"[:.]", inspect.getdoc(inspect.getmodule(rule)) or "")[0]


def reference() -> str:
    """All operators, then a chapter for each family."""
    found = entries()
    return "\n\n".join([index(found), *chapters(found)])


def index(found: Iterable[Entry]) -> str:
    """Every operator with a link to its rule, by domain."""
    links: dict[str, list[tuple[str, str]]] = {}
    for each in found:
        for name in each.operators:
            domain, _, short = name.rpartition(".")
            links.setdefault(domain, []).append((short, each.anchor))
    rows = [
        f"**{domain or 'ONNX'}**: " + " · ".join(f"[{name}](#{anchor})" for name, anchor in sorted(names))
        for domain, names in sorted(links.items())
    ]
    return "\n\n".join(["## Find an operator", *rows])


def chapters(found: list[Entry]) -> list[str]:
    """One chapter for each family of operators."""
    families = groupby(found, lambda each: each.family)
    return ["\n\n".join([f"## {title}", *(rule_text(each) for each in rules)]) for title, rules in families]


def rule_text(found: Entry) -> str:
    """Heading, summary and a table of the sections."""
    lines = [f'### <a id="{found.anchor}"></a>{found.title}', "", markdown(found.summary), ""]
    if len(found.operators) > FEW or any("." in name for name in found.operators):
        lines += ["Operators: " + ", ".join(f"`{name}`" for name in found.operators), ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {markdown(sentence(text))} |" for name, text in found.sections.items()]
    return "\n".join(lines)


def sentence(text: str) -> str:
    """With a capital in front (a domain keeps its name) and a full stop behind."""
    named = "." in text.split()[0].rstrip(".")
    return (text if named else text[0].upper() + text[1:]).rstrip(".") + "."


def markdown(text: str) -> str:
    """Docstring text as Markdown that can stand in a table."""
    return text.replace("``", "`").replace("|", "\\|")
