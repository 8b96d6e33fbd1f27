"""A pass for Olive: ``olive run`` compresses as one step of a workflow; needs olive-ai (the extra ``olive``).

    python -m leanonnx.integrations.olive passes.json
    olive run --config workflow.json --package-config passes.json

The first command writes Olive's own list of passes with ``LeanOnnx`` added.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from olive.common.config_utils import ParamCategory
from olive.exception import OlivePassError
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.resource_path import LocalFile, LocalFolder

from leanonnx.api.verbs import compress
from leanonnx.commands.compress.options import described_options
from leanonnx.data.preprocessor import read_preprocessor
from leanonnx.errors import LeanOnnxError
from leanonnx.runtime.providers import PROVIDER_NAMES
from leanonnx.selection.metrics import BUDGETS
from leanonnx.system.outputs import data_file, write_file

EVERY = ["*"]
PREPROCESSOR = "preprocessor"
"""Option that takes the place of ``images``; a path, as the report is."""
NOT_IN_A_WORKFLOW = ("model", "out", "images", "progress")
"""Arguments of ``compress`` that Olive gives, or that no JSON file can hold."""
JSON_SCALARS = (bool, int, float, str)
OTHERS = {
    "plan": "Carry out this plan instead of selecting channels.",
    "exact": "Remove only what contributes nothing; the output does not change.",
    "plan_out": "Write the plan here.",
    "plan_weights": "Write the weights that recovery changed here; the plan refers to them.",
    "report": "Write a page that shows what was done here.",
    "targets": "File of measured hardware targets.",
    "rules": "Python file with rules of your own; it is run.",
    "measure": "Time the result; latency always does.",
    PREPROCESSOR: "Of images in calib: a preprocessor_config.json of Hugging Face, or its folder.",
}
"""Descriptions of the options that are no fields of the table of options."""

log = logging.getLogger(__name__)


class LeanOnnx(Pass):  # type: ignore[misc] # olive is not seen by the type checker
    """``leanonnx.compress`` as a pass, with the same options; an error of leanonnx makes the pass fail."""

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """False: widths are made to fit the hardware."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        names = {full: name for name, full in PROVIDER_NAMES.items()}
        defaults = {"provider": names.get(str(accelerator_spec.execution_provider), "cpu")}
        return {name: _parameter(name, each, defaults) for name, each in _options().items()}

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        source = Path(model.model_path)
        out = Path(resolve_onnx_path(output_model_path, source.name))
        try:
            result = compress(source, out, **_keywords(config.model_dump()))
        except LeanOnnxError as error:
            raise OlivePassError(str(error)) from error
        log.info("%r", result)
        for text in result.warnings:
            log.warning(text)
        if data_file(out).exists():
            return ONNXModelHandler(LocalFolder({"path": out.parent}), onnx_file_name=out.name)
        return ONNXModelHandler(LocalFile({"path": out}))


def package_config() -> dict[str, Any]:
    """Olive's own package configuration with this pass, for ``olive.run(..., package_config=package_config())``."""
    own = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    row = {
        "module_path": f"leanonnx.integrations.olive.{LeanOnnx.__name__}",
        "supported_providers": EVERY,
        "supported_accelerators": EVERY,
        "supported_precisions": EVERY,
    }
    return {**own, "passes": {**own["passes"], LeanOnnx.__name__: row}}


def _options() -> dict[str, inspect.Parameter]:
    """The options of ``compress`` that a workflow can set, as parameters."""
    signature = inspect.signature(compress, eval_str=True)
    kept = {name: each for name, each in signature.parameters.items() if name not in NOT_IN_A_WORKFLOW}
    return {**kept, PREPROCESSOR: kept["report"]}


def _parameter(name: str, option: inspect.Parameter, defaults: Mapping[str, Any]) -> PassConfigParam:
    helps = {field.name: each.help for field, each in described_options()}
    helps |= {each.keyword: each.help for _, each in described_options() if each.keyword}
    helps |= {budget: metric.help for budget, metric in BUDGETS.items()} | OTHERS
    is_path = option.default is None and PathLike in map(_kind, get_args(option.annotation))
    return PassConfigParam(
        type_=str if is_path else _json_type(option.annotation),
        default_value=defaults.get(name, option.default),
        category=ParamCategory.PATH if is_path else ParamCategory.NONE,
        description=helps[name],
    )


def _kind(hint: Any) -> Any:
    return get_origin(hint) or hint


def _json_type(hint: Any) -> Any:
    """The part of a type that a JSON file can hold."""
    kinds: list[Any] = []
    for part in get_args(hint) if isinstance(hint, UnionType) or _kind(hint) is Union else (hint,):
        kind = _kind(part)
        if part in JSON_SCALARS or kind is Literal:
            kinds.append(part)
        elif isinstance(kind, type) and issubclass(kind, Mapping):
            kinds.append(dict[str, list[int]])
        elif isinstance(kind, type) and issubclass(kind, Sequence):
            kinds.append(list[str])
    return reduce(or_, kinds)


def _keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``compress`` from the values of a pass."""
    values = {name: value for name, value in given.items() if value is not None}
    if "shape" in values:
        values["shape"] = {name: tuple(sizes) for name, sizes in values["shape"].items()}
    file = values.pop(PREPROCESSOR, None)
    return values if file is None else {**values, "images": read_preprocessor(file)}


def write_package_config(arguments: Sequence[str]) -> None:
    """Write the package configuration to the file that is named."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m leanonnx.integrations.olive PASSES.json")
    write_file(Path(arguments[0]), json.dumps(package_config(), indent=2).encode())


if __name__ == "__main__":
    write_package_config(sys.argv[1:])
