"""Convert folders of images to input tensors; needs pillow (the extra ``images``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leanonnx.checks import check_choice
from leanonnx.errors import DataError, OptionError
from leanonnx.formatting import quoted_text
from leanonnx.numeric.arrays import Array
from leanonnx.spelling import option, option_list

ImageLayout = Literal["auto", "nchw", "nhwc"]
ColourOrder = Literal["rgb", "bgr"]
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
IMAGE_RANKS = (3, 4)
IMAGE_CHANNEL_COUNTS = (1, 2, 3, 4)
"""Numbers of channels that an image can have; two are those of a complex image."""
IMAGE_BATCH_RANK = 4
PILLOW_MODES = {1: "L", 3: "RGB"}
"""Pillow's image modes by number of channels."""
DEEP_MODES = {"I", "F", "I;16", "I;16B", "I;16L"}
"""Pillow's names of images with more than 8 bits for each channel."""
EXAMPLES = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
IMAGE_OPTIONS = ("mean", "std", "scale", "layout", "size", "preprocessor")
"""Options that say how photographs become tensors."""


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """Conversion of images to input tensors: x = (pixel / ``scale`` - ``mean``) / ``std``, with pixels from 0 to 255.

    ``mean`` and ``std`` hold one number for all channels or one per channel, in the ``order`` of the tensor's channels.
    Their unit is the full range with the default ``scale`` of 255, and the pixel value with a scale of 1.
    ``size`` is (height, width); None stands for the model's input size.  Integer inputs take the pixels unchanged.
    ``resized`` is the size before the centre crop, or that of the short side alone (None: images just cover ``size``),
    by pillow's filter ``resample``; ``preprocessor`` is the file that all of this was read from.

    Raises:
        OptionError: a number is not finite, a scale or size is not above 0, or a standard deviation is 0.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    layout: ImageLayout = "auto"
    size: tuple[int, int] | None = None
    order: ColourOrder = "rgb"
    resized: int | tuple[int, int] | None = None
    resample: int = 2
    preprocessor: str | None = None

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, ImageLayout)
        check_choice("layout", self.order, ColourOrder)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values or not all(math.isfinite(value) for value in values):
                raise wrong_numbers(name, _numbers_text(values), values)
        if 0 in self.std:
            given, example = option("std", self.std, _numbers_text(self.std)), _example("std")
            raise OptionError(f"{given}: expected numbers other than 0, for example {example}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise OptionError(
                f"{option('scale', float(self.scale))}: expected a number above 0, for example {option('scale', 255)}"
            )
        if self.size is not None and min(self.size) < 1:
            raise wrong_size("x".join(map(str, self.size)), self.size)


def wrong_numbers(name: str, text: str, value: object = None) -> OptionError:
    """The error of a ``mean`` or ``std`` that is no list of finite numbers; ``text`` is the value as typed."""
    given = option(name, value or text, text)
    return OptionError(f"{given}: expected one number or one for each channel, for example {_example(name)}")


def wrong_size(text: str, value: object = None) -> OptionError:
    """The error of a ``size`` that is no height and width; ``text`` is the value as typed."""
    given, example = option("size", value or text, text), option("size", (224, 224), "224x224")
    return OptionError(f"{given}: expected height and width of at least 1, for example {example}")


def _example(name: str) -> str:
    return option(name, EXAMPLES[name], _numbers_text(EXAMPLES[name]))


def _numbers_text(values: tuple[float, ...]) -> str:
    """Numbers as typed on a command line."""
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """Images that an input takes: their ``size`` (height, width) and number of ``channels``, first or last."""

    channels: int
    channels_first: bool
    size: tuple[int, int]
    is_integer: bool
    images: ImageFormat


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder in the order of their names, as samples [channels, height, width] or channels last."""

    path: Path
    names: tuple[str, ...]
    frame: ImageInput

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all samples together."""
        channels, size = (self.frame.channels,), self.frame.size
        return (self.count, *channels, *size) if self.frame.channels_first else (self.count, *size, *channels)

    @contextmanager
    def open_reader(self) -> Iterator[Callable[[int], Array]]:
        """Open a reader of images by their index.

        Raises:
            DataError: pillow is not installed; the reader raises it for an image that cannot be read.
        """
        maker = import_pillow()
        yield lambda k: _read_image(maker, self.path / self.names[k], self.frame)


def image_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the axes of height and width of images [n, channels, height, width] or [n, height, width, channels].

    None for other shapes: an image has 1 to 4 channels, and more rows and columns than channels.
    """
    if len(shape) == IMAGE_BATCH_RANK:
        for channels, height, width in ((1, 2, 3), (3, 1, 2)):
            if shape[channels] in IMAGE_CHANNEL_COUNTS and shape[channels] < min(shape[height], shape[width]):
                return height, width
    return None


def image_names(path: Path) -> tuple[str, ...]:
    """List the names of the images directly in a folder, sorted."""
    names = (entry.name for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file())
    return tuple(sorted(name for name in names if not name.startswith(".")))


def image_input(
    name: str, dims: tuple[int | None, ...], observed: tuple[int, ...], dtype: np.dtype[Any], images: ImageFormat
) -> ImageInput:
    """Determine the images that an input with the declared sizes ``dims`` (None: free) takes.

    Raises:
        DataError: it takes no images, or none with this layout, size, mean or std.
    """
    shape = tuple(size if dim is None else dim for dim, size in zip(dims, observed, strict=True))
    text = "×".join(map(str, shape))
    if len(shape) not in IMAGE_RANKS:
        raise DataError(f"input '{name}' takes {text or 'one number'}, no image; give the data as .npz")
    first = _channels_first(name, shape[-3:], images.layout, text)
    channels, *size = shape[-3:] if first else (shape[-1], *shape[-3:-1])
    if channels not in PILLOW_MODES:
        raise DataError(
            f"input '{name}' takes {text} with {channels} channels, expected 1 or 3 of an image; give the data as .npz"
        )
    free = dims[-2:] if first else dims[-3:-1]
    wanted = images.size or (size[0], size[1])
    if any(fixed not in (None, side) for fixed, side in zip(free, wanted, strict=True)):
        given = option("size", wanted, "x".join(map(str, wanted)))
        raise DataError(f"{given}: input '{name}' takes {size[0]}x{size[1]}; leave out {option('size')}")
    _check_numbers(name, channels, dtype, images)
    return ImageInput(
        channels=channels, channels_first=first, size=wanted, is_integer=dtype.kind in "iu", images=images
    )


def _channels_first(name: str, shape: tuple[int, ...], layout: str, text: str) -> bool:
    """Return True if the channels precede height and width."""
    if layout != "auto":
        return layout == "nchw"
    first, last = shape[0] in PILLOW_MODES, shape[-1] in PILLOW_MODES
    if first == last:
        raise DataError(
            f"input '{name}' takes {text}: which axis holds the 1 or 3 channels cannot be told; "
            f"add {option('layout', 'nchw')} or {option('layout', 'nhwc')}"
        )
    return first


def _check_numbers(name: str, channels: int, dtype: np.dtype[Any], images: ImageFormat) -> None:
    for parameter, values in (("mean", images.mean), ("std", images.std)):
        if len(values) not in (1, channels):
            raise DataError(
                f"{option(parameter)}: {len(values)} numbers, but input '{name}' takes {channels} channels; "
                f"give one number, or one for each channel, for example {_example(parameter)}"
            )
    plain = ImageFormat()
    if dtype.kind in "iu" and (images.mean, images.std, images.scale) != (plain.mean, plain.std, plain.scale):
        raise DataError(
            f"input '{name}' takes {dtype}, pixels as they are; leave out {option_list('mean', 'std', 'scale')}"
        )


def import_pillow() -> Any:
    """Import the module ``PIL.Image``.

    Raises:
        DataError: pillow is not installed.
    """
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise DataError("images need the package pillow; install it with: pip install pillow") from error


def _read_image(maker: Any, path: Path, frame: ImageInput) -> Array:
    """Read one image: resize its short side, crop the centre, and scale and normalise the pixels."""
    try:
        with maker.open(path) as image:
            deep = image.mode in DEEP_MODES
            pixels = None if deep else _resize_and_crop(maker, image.convert(PILLOW_MODES[frame.channels]), frame)
    except MemoryError:
        raise
    except Exception as error:  # pillow raises several unrelated types
        text = quoted_text(str(error))
        raise DataError(f"{path}: cannot be read as an image: {text}; copy it again or remove it") from error
    if pixels is None:
        raise DataError(f"{path}: more than 8 bits for each channel; convert it to 8 bits, or give the data as .npz")
    values = pixels.reshape(*frame.size, frame.channels)
    if frame.images.order == "bgr":
        values = values[..., ::-1]
    if not frame.is_integer:
        mean, std = np.asarray(frame.images.mean), np.asarray(frame.images.std)
        values = (values / frame.images.scale - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1) if frame.channels_first else values)


def _resize_and_crop(maker: Any, image: Any, frame: ImageInput) -> Array:
    """Resize an image, bilinearly by default, and crop the centre; pixels [height, width] or [height, width, 3]."""
    height, width = frame.size
    tall, wide = resized_to((image.height, image.width), frame.size, frame.images.resized)
    if (tall, wide) != (image.height, image.width):
        image = image.resize((wide, tall), maker.Resampling(frame.images.resample))
    left, top = (wide - width) // 2, (tall - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def resized_to(image: tuple[int, int], size: tuple[int, int], resized: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width that an image is resized to, at least ``size``, before its centre is cropped to that.

    Args:
        image: its height and width.
        size: those of the crop.
        resized: those asked for, or the short side alone; None to cover ``size`` just so.
    """
    height, width = size
    if isinstance(resized, tuple):
        return max(height, resized[0]), max(width, resized[1])
    scale = max(height / image[0], width / image[1])
    if resized is None:
        return max(height, round(image[0] * scale)), max(width, round(image[1] * scale))
    scale = max(scale, resized / min(image))
    return max(height, int(image[0] * scale)), max(width, int(image[1] * scale))
