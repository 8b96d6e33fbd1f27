"""Write docs/operators.md from the rules: what leanonnx does at each operator, and how to add a rule.

python docs/operators.py writes the page; with --check it exits 1 where the page is not what the rules say.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, Rule
from leanonnx.rules.table import DEFAULT

HERE = Path(__file__).parent
PAGE = HERE / "operators.md"
EXAMPLE = HERE / "examples" / "my_rules.py"
SECTIONS = ("Flow", "Ties", "Pins", "Limits", "Specification")
EFFECT = {
    "outputs": "one label array for each output: which channel each position belongs to",
    "ties": "pairs of label arrays of one shape: these channels live and die together",
    "slices": "`Slice(slot, factors)`: how the constant in an input slot shrinks with the channels",
    "rewrite": "a function from the channels that are kept to an `Edit`: new attributes or sizes of the node",
    "pins": "`Pin(labels, tensor, reason, advice)`: channels that may not be removed",
    "mixes": "`Mix`: the kernels of a layer that makes new channels of old ones; take those of a standard rule",
    "links": "`Link(sources, targets, gains)`: which channel leads on to which; needed where the rule makes new labels",
    "implied": "pairs (channel, reader) in which the reader can be dropped alone but cannot outlive the channel",
    "starts": "channels that no other channel leads to, because they come from constants",
    "moves": "for operators that only move data: how, so that one Gather can stand in for a run of them",
    "gathers": "that a Gather always takes the node's place when channels go",
}
"""What each field of ``Effect`` says; a field without an entry raises KeyError."""
SEEN = ("labels", "slices", "shape", "output_shape", "attribute", "ints", "array", "is_constant", "has", "title")
"""What of ``Call`` the page shows."""
WIDTH = 120
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
    for (domain, name), rule in DEFAULT.items():
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


def page() -> str:
    """The whole page."""
    found = entries()
    parts = [HEAD, index(found), *chapters(found), WITHOUT, own_rules()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


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
    return "\n\n".join(["## Find an operator", *(filled(row) for row in rows)])


def filled(text: str) -> str:
    """Text in lines of at most the house's width."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def chapters(found: list[Entry]) -> list[str]:
    """One chapter for each family of operators."""
    families = groupby(found, lambda each: each.family)
    return ["\n\n".join([f"## {title}", *(rule_text(each) for each in rules)]) for title, rules in families]


def rule_text(found: Entry) -> str:
    """Heading, summary and a table of the sections."""
    lines = [f'### <a id="{found.anchor}"></a>{found.title}', "", markdown(found.summary), ""]
    if len(found.operators) > FEW or any("." in name for name in found.operators):
        lines += [filled("Operators: " + ", ".join(f"`{name}`" for name in found.operators)), ""]
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


def own_rules() -> str:
    """How to write a rule."""
    code = EXAMPLE.read_text(encoding="utf-8").strip()
    seen = [f"| `{usage(name)}` | {described(name)} |" for name in SEEN]
    effect = [f"| `{field.name}` | {EFFECT[field.name]} |" for field in sorted(fields(Effect), key=_place)]
    return OWN.format(code=code, call="\n".join(seen), effect="\n".join(effect))


def _place(field: object) -> int:
    return list(EFFECT).index(getattr(field, "name", ""))


def usage(name: str) -> str:
    """How a member of ``Call`` is written in a rule."""
    member = getattr(Call, name)
    if isinstance(member, property):
        return f"call.{name}"
    parameters = inspect.signature(member).parameters
    return f"call.{name}({', '.join(key for key in parameters if key != 'self')})"


def described(name: str) -> str:
    """The first sentence about a member of ``Call``, without its full stop."""
    text = inspect.getdoc(getattr(Call, name)) or ""
    return markdown(" ".join(text.partition("\n\n")[0].split())).rstrip(".")


HEAD = """
# Operators

<!-- Made by `python docs/operators.py` from the docstrings of leanonnx/rules; change those, not this page. -->

leanonnx knows no architectures. It knows operators: for each there is a *rule* that says what happens to channels on
their way through it, and what a network can lose follows from the rules of its operators. This page lists them all.
Look here when `leanonnx inspect` says that channels are pinned, and you want to know whether something can be done.

Each rule answers five questions:

| | |
|---|---|
| **Flow** | where do the channels of its inputs go? |
| **Ties** | which channels must live or die together because of it? |
| **Pins** | which channels may not be removed because of it? |
| **Limits** | which forms of the operator are covered? Any other form pins what it touches, and says why. |
| **Specification** | which definition of the operator was followed? (name and version) |

A *channel* is one slice of a tensor along its channel axis, wherever that axis lies: rules follow it through
transpositions and reshapes. *Kernels* are the numbers of a layer that lead from one channel to another, and what
`--keep` counts. A *constant* is a tensor that depends on no graph input.
"""

WITHOUT = f"""
## Operators without a rule

Nothing is guessed. Where leanonnx has no rule:

- **All channels that the operator reads stay**, and with them whatever is tied to them. The layers before it can still
  lose channels further up, and the layers behind it lose output channels of their own.
- **What it puts out counts as one channel**, which stays.
- **You are told**: `leanonnx inspect` and `compress` list the tensor, the operator, the number of kernels held, and
  what to do: "{advice.RULE}".
- **The result is as well proven** as any other.

The same holds for operators that run a subgraph (If, Loop, Scan): what their bodies read stays, and the weights in the
bodies are neither counted nor changed. Functions that the model defines itself are written out first, so that they
need no rule. Operators that read constants only are never asked: they compute what they always did, unless a rule
behind them slices their result.

An operator that onnxruntime does not know either needs its library: `--library L.so` (see below).
"""

OWN = """
## Write a rule of your own

A rule is a Python function that gets a `Call` (one node, as rules see it) and answers with an `Effect`. This is a whole
file of rules, [`docs/examples/my_rules.py`](examples/my_rules.py):

```python
{code}
```

The table `RULES` maps (domain, operator) to a rule; `""` is the domain of the standard operators. Name the file, and
the library that holds the operator for onnxruntime:

```sh
leanonnx inspect  model.onnx --rules my_rules.py --library libmyops.so
leanonnx compress model.onnx small.onnx --keep 0.5 --rules my_rules.py --library libmyops.so
```

`--library` can be given several times. An entry for an operator that has a rule already takes its place. **The rules
file is code, and is run**: only where `--rules` names it, never because a model or a plan mentions it.

### Labels

Every channel has a number, its *label*. A tensor's labels are an integer array of the tensor's rank; on an axis along
which the channel does not change, it has size 1. A feature map [N, C, H, W] has labels of shape [1, C, 1, 1], the same
data flattened to [N, C·H·W] has labels of shape [1, C·H·W], in which each label stands H·W times. A tensor whose
channels cannot go has the same label throughout, as a graph input has.

So the simplest rules pass labels on: an operator that treats each number by itself answers
`Effect((call.labels(0),))`. One that moves data moves the labels in the same way.

### What a rule sees

Inputs are counted from 0.

| | |
|---|---|
{call}

`call.mint(n)` gives n new labels, for channels that the operator makes; `call.op`, `call.domain`, `call.name` and
`call.opset` tell which node it is.

### What a rule answers

Only `outputs` is needed; everything else is empty unless you say more.

| | |
|---|---|
{effect}

An operator with one number per channel in constants (here [C], as for a scale and a shift) slices them by the labels of
the channel axis:

```python
from leanonnx.numeric.labels import on_axis
from leanonnx.rules.call import Call, Effect, Slice, Unsupported


def scale_shift(call: Call) -> Effect:
    \"\"\"x · scale + shift, one number per channel each.\"\"\"
    if not (call.is_constant(1) and call.is_constant(2)):
        raise Unsupported("its scale is computed at run time", "export it as a constant")
    channels, ties = call.slices(0, 1)
    labels = on_axis(channels, 1, len(call.shape(0)))
    return Effect((labels,), ties=tuple(ties), slices=(Slice(1, (channels,)), Slice(2, (channels,))))


RULES = {{("com.acme", "ScaleShift"): scale_shift}}
```

`call.slices(0, 1)` gives the label of each slice of input 0 along axis 1, and the ties that are needed where channels
lie on other axes as well. An operator that normalises over groups of channels ties the channels of each group, and says
how many groups are left:

```python
import numpy as np

from leanonnx.rules.call import Call, Edit, Effect, Kept, Slice


def group_norm(call: Call) -> Effect:
    \"\"\"Each group of channels is normalised, then each channel scaled and shifted.\"\"\"
    channels, ties = call.slices(0, 1)
    groups = channels.reshape(call.attribute("num_groups"), -1)
    ties.append((np.repeat(groups[:, :1], groups.shape[1] - 1, axis=1), groups[:, 1:]))

    def rewrite(kept: Kept) -> Edit:
        return Edit({{"num_groups": int(kept.mask(groups[:, 0]).sum())}})

    slices = (Slice(1, (channels,)), Slice(2, (channels,)))
    return Effect((call.labels(0),), ties=tuple(ties), slices=slices, rewrite=rewrite)


RULES = {{("com.acme", "GroupNorm"): group_norm}}
```

An operator that is a standard one by another name takes that one's rule:

```python
from leanonnx.rules.convolution import conv

RULES = {{("com.acme", "ConvMish"): conv}}
```

### Where a rule does not know

Raise `Unsupported(reason, advice)`: all that the node touches is pinned, with your reason, and your advice is shown
beside it. For single channels use `pins`. Pin when in doubt: it costs budget, never correctness.

### Is the rule right?

The proof says so: a file is only written if it computes what the original computes with the removed channels zeroed. To
try a rule on many sets of channels, let chance choose them:

```sh
for seed in 1 2 3 4 5 6 7 8 9; do
  leanonnx compress model.onnx /tmp/small.onnx --keep 0.5 --method random --seed $seed --rules my_rules.py || break
done
```

Exit code 1 with "differs from the masked original" or "is not valid" means that the rule is wrong: a forgotten tie, a
constant that is not sliced, labels in another order than the data. Exit code 2 means that the rule raised an error, or
that its answer makes no sense (labels that were never minted, say). `leanonnx inspect model.onnx --rules my_rules.py
--why TENSOR:CHANNEL` shows what a channel is tied to.
"""


def main(arguments: list[str]) -> int:
    """Write the page, or compare it with what stands there."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{PAGE} is not what the rules say; run python docs/operators.py\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
