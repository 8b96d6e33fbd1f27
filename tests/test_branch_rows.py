"""Removed branches in a plan: written, read, and made again with stand-ins of the same form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from leanonnx.analysis.branches import find_branches
from leanonnx.errors import PlanError
from leanonnx.surgery.branch_rows import branch_rows, plain_stand_ins
from leanonnx.surgery.plan import load_plan, make_plan
from leanonnx.surgery.shortening import StandIn, shorten
from tests.blocks import BASIC, BOTTLENECK, GATE, framed
from tests.helpers import build
from tests.shortened import observed

FORMS = [
    (BASIC, StandIn(np.ones((4, 4)), np.ones(4)), ("linear", "matrix", True)),
    (BASIC, StandIn(np.ones(4)), ("linear", "factors", False)),
    (BASIC, StandIn(None, np.ones(4)), ("linear", None, True)),
    (framed(GATE.format("Sigmoid (o)")), StandIn(np.ones(4)), ("scale", "factors", False)),
    (BOTTLENECK, StandIn(np.ones((6, 4, 1, 1)), np.ones(6)), ("shortcut", "kernels", True)),
    (BOTTLENECK, StandIn(), ("shortcut", None, False)),
]


@pytest.mark.parametrize(("text", "standin", "form"), FORMS)
def test_plan_tells_the_network_with_stand_ins(
    text: str, standin: StandIn, form: tuple[str, str | None, bool], tmp_path: Path
) -> None:
    """From the plan and the model, the same network comes about but for the numbers of the stand-ins."""
    dag = observed(build(text), tmp_path)
    branches = find_branches(dag.model, dag.shapes)
    replaced = {branches[0]: standin}
    plan = make_plan(dag, dag.all_alive, {}, "0", removed_branches=branch_rows(replaced))
    plan.save(tmp_path / "plan.json")
    read = load_plan(tmp_path / "plan.json")
    assert [dict(row) for row in read.removed_branches] == [dict(row) for row in plan.removed_branches]
    (row,) = read.removed_branches
    assert (row["kind"], row["weight"], row["bias"]) == form
    made, again = (shorten(dag.model, each) for each in (replaced, plain_stand_ins(dag.model, branches, [row], "p")))
    assert made.graph.node == again.graph.node
    assert [(t.name, list(t.dims)) for t in made.graph.initializer] == [
        (t.name, list(t.dims)) for t in again.graph.initializer
    ]


def test_plan_without_removed_branches_does_not_name_them(tmp_path: Path) -> None:
    dag = observed(build(BASIC), tmp_path)
    assert "removed_branches" not in make_plan(dag, dag.all_alive, {}, "0").row()


@pytest.mark.parametrize(
    "change", [{"operand": "x"}, {"join": "y"}, {"kind": "scale"}, {"weight": "kernels"}, {"weight": "other"}]
)
def test_broken_rows_are_refused(change: dict[str, str], tmp_path: Path) -> None:
    dag = observed(build(BASIC), tmp_path)
    branches = find_branches(dag.model, dag.shapes)
    plan = make_plan(dag, dag.all_alive, {}, "0", removed_branches=branch_rows({branches[0]: StandIn(np.ones(4))}))
    row = plan.row()
    row["removed_branches"] = [row["removed_branches"][0] | change]
    (tmp_path / "plan.json").write_text(json.dumps(row))
    with pytest.raises(PlanError, match=r"plan\.json: (not a plan|the plan removes the branch)"):
        read = load_plan(tmp_path / "plan.json")
        plain_stand_ins(dag.model, branches, read.removed_branches, read.origin)
