"""Other quantisers as a user calls them.  Imports nothing of this package: an interpreter of theirs runs it.

    python quantisers.py defaults|settings|nncf IN OUT INPUTS.npz [--reduced]

``defaults`` and ``settings``: onnxruntime's own, as a first call gives it and with the settings that suit processors.
``--reduced``: for a processor without VNNI, whose sums of products of 8 bits saturate.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import version_converter

LEAST_OPSET, RAISED_OPSET = 13, 17
"""Each channel can have a scale of its own from the first on; the second is what an older file is raised to."""
Feed = dict[str, Any]


def feeds(model: onnx.ModelProto, data: Path) -> Iterator[Feed]:
    """Samples, each as the inputs of one run.

    An array of an input's rank has its samples along the first axis; one with one axis more has whole inputs.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    with np.load(data) as file:
        arrays = {each.name: file[each.name if each.name in file.files else file.files[0]] for each in inputs}
    columns = [list(_rows(each, arrays[each.name])) for each in inputs]
    for row in zip(*columns, strict=True):
        yield dict(zip(arrays, row, strict=True))


def _rows(value: onnx.ValueInfoProto, array: Any) -> Iterator[Any]:
    kind = value.type.tensor_type
    array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if array.ndim > len(kind.shape.dim):
        yield from array
        return
    batch = kind.shape.dim[0].dim_value or 1
    for start in range(0, len(array) - batch + 1, batch):
        yield array[start : start + batch]


def with_raised_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with an operator set in which each channel can have a scale of its own."""
    version = next(each.version for each in model.opset_import if not each.domain)
    return model if version >= LEAST_OPSET else version_converter.convert_version(model, RAISED_OPSET)


def with_onnxruntime(model: onnx.ModelProto, target: Path, samples: list[Feed], settings: Feed) -> None:
    """As its documentation says: prepare, then quantise."""
    quantization = importlib.import_module("onnxruntime.quantization")
    preparation = importlib.import_module("onnxruntime.quantization.shape_inference")

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as name:
        plain, prepared = Path(name) / "plain.onnx", Path(name) / "prepared.onnx"
        onnx.save(model, plain)
        try:
            preparation.quant_pre_process(str(plain), str(prepared))
        except Exception:  # noqa: BLE001 - it then advises to leave out one of its steps
            preparation.quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(str(prepared), str(target), Samples(), **settings)


def right_settings(reduced: bool) -> Feed:
    """The settings that suit processors."""
    quantization = importlib.import_module("onnxruntime.quantization")
    return {
        "quant_format": quantization.QuantFormat.QDQ,
        "per_channel": True,
        "reduce_range": reduced,
        "activation_type": quantization.QuantType.QUInt8,
        "weight_type": quantization.QuantType.QInt8,
        "calibrate_method": quantization.CalibrationMethod.MinMax,
    }


def with_nncf(model: onnx.ModelProto, target: Path, samples: list[Feed], reduced: bool) -> None:
    """With asymmetric activations; ``reduced``: weights of 7 bits everywhere, not only where it thinks them needed."""
    nncf: Any = importlib.import_module("nncf")
    words: Feed = {"preset": nncf.QuantizationPreset.MIXED}
    if reduced:
        advanced: Any = importlib.import_module("nncf.quantization.advanced_parameters")
        words["advanced_parameters"] = advanced.AdvancedQuantizationParameters(overflow_fix=advanced.OverflowFix.ENABLE)
    onnx.save(nncf.quantize(model, nncf.Dataset(samples), **words), target)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["defaults", "settings", "nncf"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--reduced", action="store_true")
    args = parser.parse_args(argv)
    model = onnx.load(args.source)
    samples = list(feeds(model, args.data))
    try:
        if args.way == "defaults":
            with_onnxruntime(model, args.target, samples, {})
        elif args.way == "settings":
            with_onnxruntime(with_raised_opset(model), args.target, samples, right_settings(args.reduced))
        else:
            with_nncf(with_raised_opset(model), args.target, samples, args.reduced)
        ort.InferenceSession(str(args.target), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - whatever theirs raises is the result
        args.target.unlink(missing_ok=True)
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
