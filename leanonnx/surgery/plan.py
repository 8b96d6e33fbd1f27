"""The plan: the kept channels, the options and the digest of the input file, as JSON.

``tensors[NAME]`` holds the shapes before and after and the kept indices on each axis (null: all), NAME being the
constant's name in the input file, so that the surgery can be repeated elsewhere, for example on a PyTorch module.  If
several nodes read different slices of a constant, ``others`` holds the kept indices of the further slices.  A plan
contains no weights: ``recovery`` records how the run changed the remaining weights, null if it did not.
``removed_branches``, if there are any, tells which branches stand-ins replace (``branch_rows``); the tensors are
then those of the network with the stand-ins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanonnx.analysis.closure import Closure
from leanonnx.analysis.constants import ConstantUse
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import PlanError
from leanonnx.numeric.channel_ids import ChannelIds, Mask, varied_axes
from leanonnx.spelling import option, verb
from leanonnx.surgery.branch_rows import BranchRow, check_row
from leanonnx.surgery.patch import kept_indices
from leanonnx.surgery.recipe import Recipe, earlier_recipe, read_recipe
from leanonnx.system.outputs import StrPath, check_writable, write_file

PLAN_SCHEMA = 1
PLAN_FIELDS = ("schema", "leanonnx", "input_sha256", "options", "tensors")
"""Fields that every plan has."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The kept indices of every sliced constant, and how weights were changed (``recovery`` None: they were not).

    ``removed_branches``: branches that were replaced before, as ``branch_rows`` gives them.
    ``origin`` names the plan in messages: its file, if it has one.
    """

    schema: int
    leanonnx: str
    input_sha256: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Any]]
    recovery: Recipe | None = None
    removed_branches: Sequence[BranchRow] = ()
    origin: str = field(default="the plan", compare=False)

    @property
    def exact(self) -> bool:
        """True if the plan is a lossless reduction, which changes weights as well."""
        return bool(self.options.get("exact"))

    @property
    def freezes_weights(self) -> bool:
        """True if weights that are listed as graph inputs become constants."""
        return bool(self.options.get("freeze"))

    @property
    def copies_weights(self) -> bool:
        """True if weights that several layers share are copied for each."""
        return bool(self.options.get("unshare"))

    def check_branches(self) -> None:
        """Refuse a plan that removes whole branches.

        Raises:
            PlanError: it does.
        """
        if self.removed_branches:
            raise PlanError(
                f"{self.origin}: removes whole branches, which takes more than removing channels: carry it out with "
                f"{verb('compress')}, or make one with {option('blocks', 'never')}"
            )

    def row(self, folder: Path | None = None) -> dict[str, Any]:
        """Return the plan as plain data; a weights file is given relative to ``folder``, that of the plan."""
        row = {name: getattr(self, name) for name in PLAN_FIELDS}
        row |= {"removed_branches": list(self.removed_branches)} if self.removed_branches else {}
        return row | {"recovery": None if self.recovery is None else self.recovery.row(folder)}

    def text(self, folder: Path | None = None) -> str:
        """Return the plan as JSON, deterministic for the same plan and ``folder``."""
        return json.dumps(self.row(folder), indent=1, sort_keys=True) + "\n"

    def save(self, path: StrPath) -> None:
        """Write the plan as JSON, atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        check_writable(None, Path(path))
        write_file(Path(path), self.text(Path(path).parent).encode())


def make_plan(
    dag: ChannelDag,
    alive: Mask,
    options: Mapping[str, Any],
    version: str,
    recovery: Recipe | None = None,
    removed_branches: Sequence[BranchRow] = (),
) -> Plan:
    """Make the plan of a keep set, with the recipe that changed the remaining weights.

    ``dag`` is that of the network without the removed branches.
    """
    entries: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for use in sorted(dag.constant_uses, key=lambda u: (u.input_channel_ids is None, u.node, u.slot)):
        entries.setdefault(use.constant, {})[use.node, use.slot] = _entry(dag, use, alive)
    tensors = {
        name: _combine_entries([*places.values()], dag.model.use_counts.get(name, 0))
        for name, places in entries.items()
    }
    return Plan(
        schema=PLAN_SCHEMA,
        leanonnx=version,
        input_sha256=dag.model.sha256,
        options=dict(options),
        tensors=tensors,
        recovery=recovery,
        removed_branches=removed_branches,
    )


def _entry(dag: ChannelDag, use: ConstantUse, alive: Mask) -> dict[str, Any]:
    shape = dag.model.shape_of(use.constant) if use.computed is None else use.computed.shape
    kept = kept_indices(use, shape, alive)
    after = [size if index is None else len(index) for size, index in zip(shape, kept, strict=True)]
    return {"before": list(shape), "after": after, "kept": [None if k is None else k.tolist() for k in kept]}


def _combine_entries(entries: list[dict[str, Any]], consumers: int) -> dict[str, Any]:
    """Combine the entries of a constant, of which nodes may read different slices, and some the whole."""
    wanted = [entry["kept"] for entry in entries]
    if len(entries) < consumers:
        wanted.append([None] * len(entries[0]["before"]))
    others = [kept for k, kept in enumerate(wanted) if kept not in wanted[:k]][1:]
    return {**entries[0], "others": others} if others else entries[0]


def load_plan(path: StrPath) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: the file is missing or not a valid plan.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        fields = {key: data[key] for key in PLAN_FIELDS}
        recipe = read_recipe(data["recovery"], Path(path).parent) if "recovery" in data else None
        removed = tuple(check_row(row) for row in data.get("removed_branches", ()))
        plan = Plan(**fields, recovery=recipe, removed_branches=removed, origin=str(path))
        kinds = ((plan.tensors, dict), (plan.options, dict), (plan.input_sha256, str))
        if not all(isinstance(value, kind) for value, kind in kinds):
            raise TypeError("wrong kinds of values")
        if "recovery" not in data:
            plan = replace(plan, recovery=earlier_recipe(plan.options))
    except OSError as error:
        raise PlanError(f"{path}: the plan cannot be read: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise PlanError(f"{path}: not a plan of leanonnx ({error}); make one with {option('plan_out')}") from error
    if plan.schema != PLAN_SCHEMA:
        raise PlanError(
            f"{path}: plan schema {plan.schema}, expected {PLAN_SCHEMA}; make the plan again with {option('plan_out')}"
        )
    return plan


def replay_plan(dag: ChannelDag, plan: Plan, shortened: bool = False) -> Mask:
    """Return the keep mask of a plan [channels].

    Args:
        dag: the network.
        plan: the plan.
        shortened: True if the branches that the plan removes are gone already.

    Raises:
        PlanError: the plan was made for another file, or does not fit this one.
    """
    _check_origin(dag, plan)
    if not shortened:
        plan.check_branches()
    dead = np.zeros(dag.count, bool)
    for use in dag.constant_uses:
        entry = plan.tensors.get(use.constant)
        if entry is not None and use.input_channel_ids is not None:
            dead[_removed_channels(use, entry, plan.origin)] = True
    keep = np.ones(int(dag.groups.max()) + 1, bool)
    keep[dag.groups[dead]] = False
    alive = Closure(dag, dag.groups).alive_channels(keep)
    if make_plan(dag, alive, plan.options, plan.leanonnx).tensors != plan.tensors:
        raise PlanError(f"{plan.origin}: the plan does not fit the model's ties and shapes; {_again()}")
    if not alive[0] or any(not alive[pin.channel_ids].all() for pin in dag.pins):
        raise PlanError(f"{plan.origin}: the plan removes channels that may not be removed; {_again()}")
    return alive


def check_same_plan(dag: ChannelDag, made: Plan, plan: Plan) -> None:
    """Check that a newly made plan equals a given one.

    Raises:
        PlanError: the plan was made for another file, or keeps other channels.
    """
    _check_origin(dag, plan)
    if made.tensors != plan.tensors:
        raise PlanError(f"{plan.origin}: the plan keeps other channels than {option('exact', True)} finds; {_again()}")


def _again() -> str:
    return f"make it again with {option('plan_out')}"


def _check_origin(dag: ChannelDag, plan: Plan) -> None:
    if plan.input_sha256 != dag.model.sha256:
        raise PlanError(
            f"{plan.origin}: the plan was made for another model (sha256 {plan.input_sha256[:12]}…, this file has "
            f"{dag.model.sha256[:12]}…); give the model that the plan was made from"
        )


def _removed_channels(use: ConstantUse, entry: Mapping[str, Any], origin: str) -> ChannelIds:
    """Channel ids that an entry of the plan removes."""
    try:
        shape, kept = tuple(entry["before"]), entry["kept"]
        gone = (
            0 in entry["after"]
        )  # a layer that is removed whole does not tell which of its input channels are removed
        removed = [np.zeros(0, np.int64)]
        for factor in use.factors:
            if gone and factor is use.input_channel_ids:
                continue
            part = factor
            for axis in varied_axes(factor):
                index = kept[axis + len(shape) - factor.ndim]
                if index is not None:
                    part = np.take(part, np.asarray(index, np.int64), axis)
            removed.append(np.setdiff1d(factor, part))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise PlanError(f"{origin}: the entry of '{use.constant}' is broken ({error}); make the plan again") from error
    return np.concatenate(removed)
