"""Image formats from ``preprocessor_config.json``, in which Hugging Face keeps how a network's images are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanonnx.data.images import ImageFormat, ImageLayout
from leanonnx.errors import OptionError
from leanonnx.spelling import option

FILE_NAME = "preprocessor_config.json"
KNOWN = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize", "size", "crop_size")
"""Keys of which an image processor has at least one."""
FULL_RANGE = 255.0
BILINEAR, FILTERS = 2, range(6)
"""Numbers of the filters, in these files as in pillow."""
WHOLE_IMAGE_FROM = 384
"""Short side from which processors with a ``crop_pct`` do not crop."""
Size = tuple[int, int]


def read_preprocessor(path: str | Path, layout: ImageLayout = "auto") -> ImageFormat:
    """Read how images become inputs from a preprocessor_config.json of Hugging Face, or the folder that holds it.

    Taken over: rescaling, mean and standard deviation, size, centre crop, filter, order of the colours.

    Args:
        path: of the file or the folder.
        layout: axes of the input.

    Raises:
        OptionError: no such file, no image processor, or one that pads images.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    given = option("preprocessor", str(path))
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{given}: cannot be read: {error.strerror}; give a {FILE_NAME}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{given}: not JSON: {error}; give a {FILE_NAME}") from error
    if not isinstance(row, Mapping) or not any(name in row for name in KNOWN):
        raise OptionError(f"{given}: no image processor (no {', '.join(KNOWN[:3])} …); give a {FILE_NAME}")
    try:
        return _image_format(row, str(path), layout, given)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise OptionError(f"{given}: unexpected values: {error}; give the file as transformers writes it") from error


def _image_format(row: Mapping[str, Any], path: str, layout: ImageLayout, given: str) -> ImageFormat:
    """The image format that the keys of an image processor say."""
    normalises = row.get("do_normalize", "image_mean" in row)
    resized, size = _sizes(row, given)
    resample = int(row.get("resample", BILINEAR))
    if resample not in FILTERS:
        raise ValueError(f"resample is {resample}")
    return ImageFormat(
        mean=_numbers(row.get("image_mean", 0.0)) if normalises else (0.0,),
        std=_numbers(row.get("image_std", 1.0)) if normalises else (1.0,),
        scale=1 / float(row.get("rescale_factor", 1 / FULL_RANGE)) if row.get("do_rescale", True) else 1.0,
        layout=layout,
        size=size,
        order="bgr" if row.get("do_flip_channel_order", False) else "rgb",
        resized=resized,
        resample=resample,
        preprocessor=path,
    )


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),)


def _sizes(row: Mapping[str, Any], given: str) -> tuple[int | Size | None, Size | None]:
    """The size that images are resized to (a number: their short side), and that of the crop or the whole image."""
    size, crops = row.get("size"), bool(row.get("do_center_crop", "crop_size" in row))
    crop = _size(row["crop_size"]) if crops and row.get("crop_size") is not None else None
    if not row.get("do_resize", True) or size is None:
        return None, crop
    if isinstance(size, Mapping) and "longest_edge" in size and not crops:
        raise OptionError(f"{given}: it keeps the shape of each image and pads it; prepare the inputs as .npz")
    if isinstance(size, Mapping) and "height" in size:
        exact = _size(size)
        return exact, crop or exact
    short = int(size["shortest_edge"] if isinstance(size, Mapping) else size)
    if crop is None and row.get("crop_pct") and short < WHOLE_IMAGE_FROM:
        return int(short / float(row["crop_pct"])), (short, short)
    if crop is None:
        return (short, short), (short, short)
    return short, crop


def _size(value: Any) -> Size:
    """Height and width of a size; one number is a square."""
    if isinstance(value, Mapping):
        side = value.get("shortest_edge")
        return int(value.get("height", side)), int(value.get("width", side))
    return int(value), int(value)
