"""Each rule of the table on models built around its operator.

(a) Channels on the operator's path can be removed, and the compressed model equals the masked original.
(b) The rule's account of the channels agrees with what the operator does when it is run.
(c) Uses that the rule does not cover are pinned, with the node and the reason.
(d) Wrong versions of the rule are caught by (a) or (b).
"""

from __future__ import annotations

import itertools
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from leanonnx import rules
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.product_costs import products
from leanonnx.numeric.channel_ids import ChannelIds, Mask, compact_ids
from leanonnx.rules.call import Call, Effect, Rule
from leanonnx.rules.table import COUNTED_WEIGHT_SLOTS, DEFAULT_RULES
from tests.rules import mutants, naive
from tests.rules.case import Case, Form, Refusal
from tests.rules.harness import analysed, check, emptied, sampled, seeded, touched, verdict, without
from tests.rules.model_builder import Choose, Sample
from tests.rules.table import CASES
from tests.test_masked_equals_compact import killed

SEEDS = 4
SINGLES = 6
CAUGHT = ("surgery", "checker", "onnxruntime", "different")
FEW = settings(
    max_examples=max(3, settings().max_examples // 50),
    phases=(Phase.generate,),
    report_multiple_bugs=False,
    print_blob=False,
)
"""The models are small already: no shrinking, so that a wrong rule shows at once."""
FORMS = [
    pytest.param(case, form, id=f"{case.domain}{case.op}-{form.name}".replace("com.microsoft", "ms."))
    for case in CASES
    for form in case.forms
]
REFUSALS = [
    pytest.param(case, refusal, id=f"{case.domain}{case.op}-{refusal.name}".replace("com.microsoft", "ms."))
    for case in CASES
    for refusal in case.refusals
]


def choices(data: st.DataObject) -> Choose:
    return lambda n: data.draw(st.integers(0, n - 1))


def noted(sample: Sample) -> Sample:
    note(onnx.printer.to_text(sample.proto))
    return sample


# The table.


MODULES = [import_module(f"leanonnx.rules.{m.name}") for m in iter_modules(rules.__path__)]


def named(suffix: str) -> list[tuple[ModuleType, dict[Any, Any]]]:
    """Tables whose names end so, with their modules."""
    return [(m, table) for m in MODULES for name, table in vars(m).items() if name.endswith(suffix) and name[0] != "D"]


TABLES = named("_RULES")


def test_every_operator_stands_in_one_table_and_every_table_is_joined() -> None:
    """The order of the tables, in which later ones would take the place of earlier ones, makes no difference."""
    keys = [key for _, table in TABLES for key in table]
    assert sorted({key for key in keys if keys.count(key) > 1}) == [], "operators in two tables"
    assert {key: rule for _, table in TABLES for key, rule in table.items()} == DEFAULT_RULES
    assert all(vars(module)[rule.__name__] is rule for module, table in TABLES for rule in table.values())
    assert set(COUNTED_WEIGHT_SLOTS) <= set(DEFAULT_RULES)


def test_every_rule_has_a_case() -> None:
    keys = [case.key for case in CASES]
    assert sorted(set(DEFAULT_RULES) - set(keys)) == [], "rules without a case"
    assert sorted(set(keys) - set(DEFAULT_RULES)) == [], "cases without a rule"
    assert sorted({key for key in keys if keys.count(key) > 1}) == [], "operators with two cases"


def test_every_case_has_accepted_and_refused_uses() -> None:
    for case in CASES:
        assert bool(case.refusals) != bool(case.whole), f"{case.op}: refusals, or why there are none"
        assert bool(case.forms) != bool(case.never), f"{case.op}: forms, or why there are none"


# (a)


@pytest.mark.parametrize(("case", "form"), FORMS)
@FEW
@given(st.data())
def test_channels_can_go(case: Case, form: Form, data: st.DataObject) -> None:
    sample = noted(sampled(form, choices(data)))
    with analysed(sample.proto) as dag:
        fed = [value.name for value in dag.model.inputs]
        title = f"{case.op} '{sample.subject.name}'"
        refused = [pin.reason for pin in dag.pins if title in pin.reason and pin.tensor not in fed]
        refused = [reason for reason in refused if not form.allows or form.allows not in reason]
        assert not refused, f"{case.op} ({form.name}) should be supported: {refused}"
        movable = touched(dag, sample, form.beside)
        assert movable.size, f"{case.op} ({form.name}): no channel that it reads or outputs is removable"
        one = without(dag, movable[data.draw(st.integers(0, movable.size - 1))])
        check(dag, ~one[dag.groups])
        check(dag, killed(dag, np.random.default_rng(data.draw(st.integers(0, 1 << 20)))))


# (b)


@pytest.mark.parametrize(("case", "form"), FORMS)
@FEW
@given(st.data())
def test_channels_go_where_the_rule_says(case: Case, form: Form, data: st.DataObject) -> None:
    sample = noted(sampled(form, choices(data)))
    with analysed(sample.proto) as dag:
        found = disagreement(dag, sample, form)
        assert not found, f"{case.op} ({form.name}): {found}"


def disagreement(dag: ChannelDag, sample: Sample, form: Form) -> str:
    """The difference between the rule and the operator; empty if they agree."""
    return (
        misshapen(dag, sample)
        or misled(dag, sample, form)
        or (misplaced(dag, sample, form.exact) if form.moves else "")
        or miscounted(dag, sample)
    )


def misshapen(dag: ChannelDag, sample: Sample) -> str:
    """Labels must have the rank of their tensor and on each axis its size, or 1."""
    for name in sample.subject.output:
        if name in dag.channel_ids:
            labels, shape = dag.channel_ids[name].shape, dag.shapes[name]
            if len(labels) != len(shape) or any(n not in (1, m) for n, m in zip(labels, shape, strict=True)):
                return f"'{name}' has shape {shape}, its labels {labels}"
    return ""


def misled(dag: ChannelDag, sample: Sample, form: Form) -> str:
    """A description of positions that a channel moves though its id does not lead there; empty if there are none."""
    known = naive.reached(dag, dag.starts) > 0
    for moved in naive.moved(sample):
        for name, value in moved.before.items():
            if name in dag.channel_ids and (np.asarray(value != 0) & ~known[naive.laid_out(dag, name)]).any():
                return f"no chain can start from what fills a part of '{name}'"
        gains = naive.reached(dag, naive.label_of(dag, moved.probe, moved.channel))
        what = f"channel {moved.channel} of '{moved.probe.tensor}'"
        for name, deltas in moved.outputs.items():
            if name not in dag.channel_ids:
                continue
            predicted, where = gains[naive.laid_out(dag, name)], moved.where(name)
            missed = where & ~np.isin(naive.laid_out(dag, name), followers(dag, gains > 0, form.mates))
            if missed.any():
                return f"{what} moves '{name}' at {np.argwhere(missed)[0]}: not foreseen"
            if form.exact and (~where & (predicted != 0)).any():
                return f"{what} does not move '{name}' at {np.argwhere(~where & (predicted != 0))[0]}"
            for delta, step in zip(deltas, naive.STEPS, strict=True):
                factor, gain = np.abs(delta[where] / step), predicted[where]
                if form.linear and not np.allclose(factor, gain, naive.CLOSE, naive.CLOSE):
                    return f"{what} moves '{name}' by {np.unique(factor)}, not {np.unique(gain)}"
    return ""


def followers(dag: ChannelDag, reached: Mask, mates: bool) -> ChannelIds:
    """Channel ids that are reached, with their ties if ``mates`` is set."""
    return np.flatnonzero(np.isin(dag.groups, dag.groups[reached]) if mates else reached)


def misplaced(dag: ChannelDag, sample: Sample, exact: bool) -> str:
    """A difference between the channel ids of the rule and the operator run on them; empty if there is none."""
    node = naive.node_of(dag, sample)
    edges, own = naive.fixed_edges(dag, node), set()
    for name in sample.subject.input:
        own |= set(dag.channel_ids[name].reshape(-1).tolist()) if name in dag.channel_ids else set()
    for name, carried in naive.carried(dag, sample).items():
        said = naive.laid_out(dag, name)
        for truth, label in sorted({*zip(carried.reshape(-1).tolist(), said.reshape(-1).tolist(), strict=True)}):
            if truth in own and truth != label and (int(truth), label) not in edges:
                return f"'{name}' holds label {int(truth)} where the rule says {label}"
            if exact and truth not in own and label in own:
                return f"'{name}' holds no channel where the rule says {label}"
        if name in dag.moves:
            source, move = dag.moves[name]
            if not np.array_equal(compact_ids(move(dag.channel_ids[source])), compact_ids(carried.astype(np.int64))):
                return f"the movement to '{name}' is another"
    return ""


def steps(node: onnx.NodeProto, extents: tuple[int, ...]) -> tuple[int, ...]:
    """Along each axis, how many taps on from one the next is that the node's strides bring to the same place."""
    given = {a.name: a.ints for a in node.attribute if a.name in ("strides", "dilations")}
    strides, gaps = (given.get(name, [1] * len(extents)) for name in ("strides", "dilations"))
    axes = zip(strides, gaps, extents, strict=True)
    return tuple(min(next(k for k in itertools.count(1) if k * gap % step == 0), int(n)) for step, gap, n in axes)


def miscounted(dag: ChannelDag, sample: Sample) -> str:
    """Kernels must be the numbers of the weight that are sliced with their two channels, multiply-adds as many as are.

    Strides must be the least number of taps that lie a multiple of the node's strides apart, or all that there are.
    """
    node = naive.node_of(dag, sample)
    macs = sum(
        mix.taps * mix.positions * mix.destinations.size * mix.sources.shape[1]
        for k, mix in dag.kernel_blocks
        if k == node
    )
    macs += sum(product.macs for product in products(dag)[0] if product.node == node)
    if sample.subject.op_type in naive.MACS and macs != naive.macs(dag, sample.subject):
        return f"{macs} multiply-adds, not {naive.macs(dag, sample.subject)}"
    for mix in [mix for k, mix in dag.kernel_blocks if k == node and mix.input_channel_ids is not None]:
        kernels = mix.kernels()
        if mix.is_counted != (sample.subject.op_type in naive.KERNELS):
            return f"its kernels are {'' if mix.is_counted else 'not '}counted"
        if mix.strides and mix.strides != (strides := steps(sample.subject, kernels.shape[3:])):
            return f"strides {mix.strides}, not {strides}"
        for group, out, within in np.ndindex(*kernels.shape[:3]):
            source, target = int(mix.sources[group, within]), int(mix.destinations[group, out])
            found = naive.kernel_in_weight(dag, node, mix, source, target)
            if found is None or (mix.sources == source).sum() > 1:
                continue
            if not np.array_equal(found.reshape(-1), kernels[group, out, within].reshape(-1)):
                return f"kernel {within} → {out} of group {group} is not what the weight holds"
    return ""


# (c)


@pytest.mark.parametrize(("case", "refusal"), REFUSALS)
@FEW
@given(st.data())
def test_uncovered_uses_are_pinned(case: Case, refusal: Refusal, data: st.DataObject) -> None:
    sample = noted(sampled(refusal, choices(data)))
    title = f"{case.op} '{sample.subject.name}'"
    with analysed(sample.proto) as dag:
        reasons = sorted({pin.reason for pin in dag.pins})
        assert any(title in reason and refusal.says in reason for reason in reasons), (title, refusal.says, reasons)
        found = misshapen(dag, sample) or misled(dag, sample, Form("", refusal.build, exact=False))
        assert not found, f"{title}: {found}"
        alive = killed(dag, np.random.default_rng(data.draw(st.integers(0, 1 << 20))))
        check(dag, alive)


# (d)


def verdict_of(case: Case, form: Form | Refusal, rule: Rule, seed: int) -> str:
    """The check that catches a wrong rule on one model; empty if none does."""
    sample = sampled(form, seeded(seed))
    with analysed(sample.proto, {**DEFAULT_RULES, case.key: rule}) as dag:
        if misshapen(dag, sample):
            return "misshapen"
        for chosen in touched(dag, sample, isinstance(form, Form) and form.beside)[:SINGLES]:
            found = verdict(dag, ~without(dag, chosen)[dag.groups])
            if found in CAUGHT:
                return found
        for order in (1, -1):
            found = verdict(dag, emptied(dag, order))
            if found in CAUGHT:
                return found
        return "seen by running the operator" if isinstance(form, Form) and disagreement(dag, sample, form) else ""


def caught(case: Case, rule: Rule, forms: tuple[Form | Refusal, ...]) -> str:
    """The check that catches a wrong rule on any model of an operator; empty if none does."""
    for seed in range(SEEDS):
        for form in forms:
            found = verdict_of(case, form, rule, seed)
            if found:
                return found
    return ""


def models_for(case: Case, change: str) -> tuple[Form | Refusal, ...]:
    """Models on which a wrong rule can show; for pins, refused uses too."""
    return (*case.forms, *case.refusals) if change == "unpinned" else case.forms


def applicable(case: Case) -> dict[str, Rule]:
    """The changes that alter the rule's answer on any model of an operator, as wrong rules."""
    seen: set[str] = set()
    right = DEFAULT_RULES[case.key]

    def watching(call: Call) -> Effect:
        effect = right(call)
        changes = {name for name, change in mutants.CHANGES.items() if change(effect) is not None}
        seen.update(name for name in changes if form in models_for(case, name))
        return effect

    models: tuple[Form | Refusal, ...] = (*case.forms, *case.refusals)
    for form in models:
        with analysed(sampled(form, seeded(0)).proto, {**DEFAULT_RULES, case.key: watching}):
            pass
    return {name: mutants.changed(right, mutants.CHANGES[name]) for name in sorted(seen)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.domain}{case.op}".replace("com.microsoft", "ms."))
def test_wrong_rules_are_caught(case: Case) -> None:
    """Every change that alters the answer is caught, unless the case gives a reason; at least one is."""
    right = DEFAULT_RULES[case.key]
    wrong = applicable(case)
    wrong |= {name: mutants.altered(right, change) for name, change in case.wrong.items()}
    died = {name: caught(case, rule, models_for(case, name)) for name, rule in wrong.items()}
    if case.refusals:
        died["passing"] = caught(case, mutants.passing(right), case.refusals)
    assert any(died.values()), f"{case.op}: no wrong rule is caught"
    survived = {name for name, how in died.items() if not how and name != "passing"}
    assert survived == set(case.harmless), f"{case.op}: not caught, or caught though called harmless: {died}"
