"""Removed branches as a plan records them: which branch, and the form of its stand-in, without its numbers.

``operand`` is the name of the tensor that the branch outputs, ``join`` that of the joined tensor.  ``weight`` is
"matrix", "factors" or "kernels" (of the convolution beside the branch), null if the stand-in has none; ``bias`` tells
whether it has a bias.  Branches of the same ``step`` are removed together, from the network that the steps before left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from leanonnx.analysis.branches import Branch
from leanonnx.errors import PlanError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.spelling import option
from leanonnx.surgery.shortening import MATRIX, StandIn

WEIGHT_FORMS = (None, "matrix", "factors", "kernels")
BranchRow = Mapping[str, Any]


def branch_rows(replaced: Mapping[Branch, StandIn], step: int = 1) -> list[BranchRow]:
    """The branches for a plan that are removed in one step."""
    return [
        {
            "operand": branch.operand,
            "join": branch.output,
            "kind": branch.kind,
            "weight": _form(branch, standin),
            "bias": standin.bias is not None,
            "step": step,
        }
        for branch, standin in sorted(replaced.items(), key=lambda pair: pair[0].join)
    ]


def check_row(row: Any) -> BranchRow:
    """A row as read from JSON.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    texts = {key: row[key] for key in ("operand", "join", "kind")}
    if not all(isinstance(text, str) for text in texts.values()) or row["weight"] not in WEIGHT_FORMS:
        raise ValueError("a removed branch is broken")
    return texts | {"weight": row["weight"], "bias": bool(row["bias"]), "step": int(row["step"])}


def plain_stand_ins(
    model: Model, branches: Iterable[Branch], rows: Sequence[BranchRow], origin: str
) -> dict[Branch, StandIn]:
    """The removed branches of the plan ``origin`` with stand-ins of its form that only leave the branches out.

    Raises:
        PlanError: the model has no such branches.
    """
    known = {(branch.operand, branch.output, branch.kind): branch for branch in branches}
    replaced: dict[Branch, StandIn] = {}
    for row in rows:
        branch = known.get((row["operand"], row["join"], row["kind"]))
        if branch is None or (row["weight"] == "kernels") != (branch.kind == "shortcut" and row["weight"] is not None):
            raise PlanError(
                f"{origin}: the plan removes the branch '{row['operand']}', which this model has not in that form; "
                f"make it again with {option('plan_out')}"
            )
        size = branch.channels
        arrays: dict[str | None, Array] = {"matrix": np.eye(size), "factors": np.ones(size)}
        if branch.shortcut:
            arrays["kernels"] = model.constant(model.proto.graph.node[branch.shortcut[0]].input[1])
        replaced[branch] = StandIn(arrays.get(row["weight"]), np.zeros(size) if row["bias"] else None)
    return replaced


def _form(branch: Branch, standin: StandIn) -> str | None:
    """The form of a stand-in's weight."""
    if standin.weight is None:
        return None
    if branch.kind == "shortcut":
        return "kernels"
    return "matrix" if standin.weight.ndim == MATRIX else "factors"
