"""The JSON Schemas of what each verb prints with ``--json``, as files of the package.

``python -m docs.schemas`` writes them from the rows of the reports.
"""

from __future__ import annotations

import json
from importlib import resources

from leanonnx.errors import OptionError
from leanonnx.reporting.encoding import Json

SCHEMA_FOLDER = "schemas"


def json_schema(name: str) -> Json:
    """The JSON Schema (draft 2020-12) of what a verb prints with ``--json``, and ``to_dict`` returns.

    >>> json_schema("inspect")["properties"]["kernels"]
    {'type': 'integer'}

    Args:
        name: a verb of the command line; or "inspect-why", "version", or "several" for several models in one command.

    Raises:
        OptionError: there is no such schema.
    """
    folder = resources.files("leanonnx") / SCHEMA_FOLDER
    names = sorted(file.name.removesuffix(".json") for file in folder.iterdir())
    if name not in names:
        raise OptionError(f"{name}: there is no JSON Schema of this name; give one of {', '.join(names)}")
    schema: Json = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return schema
