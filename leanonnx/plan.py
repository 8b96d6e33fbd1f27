"""The plan: which channels survive, what was asked and what it was made from, as JSON.

``tensors[NAME]`` holds the shapes before and after and the kept indices on each axis (null: all), NAME being the
constant's name in the input file; so anyone can redo the surgery elsewhere, on a PyTorch module say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.analysis import ChannelDag
from leanonnx.closure import closed
from leanonnx.constants import Use
from leanonnx.errors import PlanError
from leanonnx.labels import Labels, Mask, varied
from leanonnx.patch import constant_of, kept_indices

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """The kept indices of every sliced constant."""

    schema: int
    leanonnx: str
    input_sha256: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Any]]

    def text(self) -> str:
        """The plan as JSON, the same bytes for the same plan."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def make_plan(dag: ChannelDag, alive: Mask, options: Mapping[str, Any], version: str) -> Plan:
    """Write down a keep set."""
    tensors: dict[str, dict[str, Any]] = {}
    for use in sorted(dag.uses, key=lambda u: (u.inward is None, u.node, u.slot)):
        if use.constant not in tensors:
            tensors[use.constant] = _entry(dag, use, alive)
    return Plan(SCHEMA, version, dag.model.sha256, dict(options), tensors)


def _entry(dag: ChannelDag, use: Use, alive: Mask) -> dict[str, Any]:
    shape = constant_of(dag, use).shape
    kept = kept_indices(use, shape, alive)
    after = [size if index is None else len(index) for size, index in zip(shape, kept, strict=True)]
    return {"before": list(shape), "after": after, "kept": [None if k is None else k.tolist() for k in kept]}


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: the file is missing or is no plan.
    """
    try:
        data = json.loads(path.read_text())
        plan = Plan(**{key: data[key] for key in ("schema", "leanonnx", "input_sha256", "options", "tensors")})
    except OSError as error:
        raise PlanError(f"{path}: the plan cannot be read: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlanError(f"{path}: not a plan of leanonnx ({error}); make one with --plan-out") from error
    kinds = ((plan.tensors, dict), (plan.options, dict), (plan.input_sha256, str))
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise PlanError(f"{path}: not a plan of leanonnx (wrong kinds of values); make one with --plan-out")
    if plan.schema != SCHEMA:
        raise PlanError(f"{path}: plan schema {plan.schema}, expected {SCHEMA}; make the plan again with --plan-out")
    return plan


def replay(dag: ChannelDag, plan: Plan, path: Path) -> Mask:
    """The keep set of a plan [labels].

    Raises:
        PlanError: the plan was made for another file, or does not fit this one.
    """
    _check_origin(dag, plan, path)
    dead = np.zeros(dag.count, bool)
    for use in dag.uses:
        entry = plan.tensors.get(use.constant)
        if entry is not None and use.inward is not None:
            dead[_dropped(use, entry, path)] = True
    keep = np.ones(int(dag.classes.max()) + 1, bool)
    keep[dag.classes[dead]] = False
    alive = closed(dag, dag.classes, keep)
    if make_plan(dag, alive, plan.options, plan.leanonnx).tensors != plan.tensors:
        raise PlanError(f"{path}: the plan does not fit the model's ties and shapes; make it again with --plan-out")
    if not alive[0] or any(not alive[pin.labels].all() for pin in dag.pins):
        raise PlanError(f"{path}: the plan removes channels that may not be removed; make it again with --plan-out")
    return alive


def confirm(dag: ChannelDag, made: Plan, plan: Plan, path: Path) -> None:
    """Check that what was found anew is what a plan says.

    Raises:
        PlanError: the plan was made for another file, or says something else.
    """
    _check_origin(dag, plan, path)
    if made.tensors != plan.tensors:
        raise PlanError(f"{path}: the plan keeps other channels than --exact finds; make it again with --plan-out")


def _check_origin(dag: ChannelDag, plan: Plan, path: Path) -> None:
    if plan.input_sha256 != dag.model.sha256:
        raise PlanError(
            f"{path}: the plan was made for another model (sha256 {plan.input_sha256[:12]}…, this file has "
            f"{dag.model.sha256[:12]}…); give the model that the plan was made from"
        )


def _dropped(use: Use, entry: Mapping[str, Any], path: Path) -> Labels:
    """Labels that an entry of the plan removes."""
    try:
        shape, kept = tuple(entry["before"]), entry["kept"]
        gone = 0 in entry["after"]  # a layer that died whole says nothing of the channels that it read
        found = [np.zeros(0, np.int64)]
        for factor in use.factors:
            if gone and factor is use.inward:
                continue
            part = factor
            for axis in varied(factor):
                index = kept[axis + len(shape) - factor.ndim]
                if index is not None:
                    part = np.take(part, np.asarray(index, np.int64), axis)
            found.append(np.setdiff1d(factor, part))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise PlanError(f"{path}: the entry of '{use.constant}' is broken ({error}); make the plan again") from error
    return np.concatenate(found)
