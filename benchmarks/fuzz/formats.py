"""Changes of an input that keep its format, so that a fuzzer gets behind its parser and its checksums.

A change takes an input, a source of random numbers, and the fuzzer's own change of bytes.  It raises ``ValueError``
where the input does not have the format.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.lib import format as npy

from tests.corruption import mutate

BytesChange = Callable[[bytes], bytes]
Change = Callable[[bytes, np.random.Generator, BytesChange], bytes]
TOKEN = re.compile(rb""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[-+.\w]+|[^\s\w]""")
VALUES = (
    *(b"0", b"-1", b"1", b"1.5", b"1e999", b"-0.0", b"1e-320", b"9223372036854775808", b"-9223372036854775809"),
    *(b"NaN", b"nan", b"inf", b"-Infinity", b"null", b"true", b"false", b"1979-05-27", b"0x" + 5000 * b"F"),
    *(b'""', b'"x"', b'"1e999"', b'"nan"', rb'"\ud800"', rb'"\u0000"', b'"../x"', b"[]", b"{}", b"[[]]", b'[1, "x"]'),
)
"""Values of JSON and TOML that readers seldom expect."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_ENTRY_BYTES = 1 << 16
"""Largest entry of an archive that is unpacked, in bytes."""


def changed_text(content: bytes, rng: np.random.Generator, _: BytesChange) -> bytes:
    """Replace, remove or repeat tokens or lines of a text, one to three times: of JSON, TOML and lines of JSON."""
    if not TOKEN.search(content):
        raise ValueError("no token")
    for _round in range(int(rng.integers(1, 4))):
        content = _changed_once(content, rng)
    return content


def _changed_once(content: bytes, rng: np.random.Generator) -> bytes:
    spans = [match.span() for match in TOKEN.finditer(content)] or [(0, len(content))]
    (begin, end), (first, last) = (spans[int(rng.integers(len(spans)))] for _ in range(2))
    before, token, after = content[:begin], content[begin:end], content[end:]
    line = slice(content.rfind(b"\n", 0, begin) + 1, content.find(b"\n", end) + 1 or len(content))
    place = content.rfind(b"\n", 0, first) + 1
    form = int(rng.integers(8))
    if form < 3:
        return before + VALUES[int(rng.integers(len(VALUES)))] + after
    forms = {
        3: before + content[first:last] + after,
        4: before + after,
        5: before + token + b", " + token + after,
        6: content[: line.start] + content[line.stop :],
        7: content[:place] + content[line] + content[place:],
    }
    return forms[form]


def changed_array(content: bytes, rng: np.random.Generator, change: BytesChange) -> bytes:
    """Change the header of an ``.npy`` array, whose length is right afterwards, or the bytes of the array."""
    size = 2 if content[6:7] == b"\x01" else 4
    begin = len(npy.MAGIC_PREFIX) + 2 + size
    end = begin + int.from_bytes(content[begin - size : begin], "little")
    if not content.startswith(npy.MAGIC_PREFIX) or end > len(content):
        raise ValueError("no array")
    if rng.random() < 0.3:
        return content[:end] + change(content[end:])
    header = changed_text(content[begin:end], rng, change)[: (1 << 16) - 1]
    return content[: begin - size] + len(header).to_bytes(size, "little") + header + content[end:]


def changed_archive(content: bytes, rng: np.random.Generator, change: BytesChange) -> bytes:
    """Change, remove, repeat or rename one entry of a zip archive; checksums and sizes are right afterwards."""
    entries = list(_entries(content))
    if not entries:
        raise ValueError("an archive without entries")
    place = int(rng.integers(len(entries)))
    name, inside, method = entries[place]
    form = rng.random()
    if form < 0.8:
        is_array = inside.startswith(npy.MAGIC_PREFIX) and rng.random() < 0.5
        entries[place] = (name, changed_array(inside, rng, change) if is_array else change(inside), method)
    elif form < 0.85:
        del entries[place]
    elif form < 0.9:
        entries.append(entries[place])
    elif form < 0.95:
        entries[place] = (name, inside, zipfile.ZIP_STORED if method else zipfile.ZIP_DEFLATED)
    else:
        entries[place] = (change(name.encode()).decode(errors="replace") or name, inside, method)
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:  # it warns of repeated names
        for each, data, packed in entries:
            archive.writestr(zipfile.ZipInfo(each.replace("\0", "")), data, packed)
    return file.getvalue()


def _entries(content: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Name, content and method of packing of each entry; ``ValueError`` where they cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    yield info.filename, file.read(MAX_ENTRY_BYTES), info.compress_type
    except Exception as error:  # zipfile raises whatever a damaged archive makes it do
        raise ValueError("no archive") from error


def changed_image(content: bytes, rng: np.random.Generator, change: BytesChange) -> bytes:
    """Change one chunk of a PNG, whose checksums are right afterwards; other images by bytes."""
    if not content.startswith(PNG_SIGNATURE):
        return change(content)
    chunks = list(_chunks(content))
    if not chunks:
        raise ValueError("no chunk")
    place = int(rng.integers(len(chunks)))
    kind, inside = chunks[place]
    chunks[place] = (kind, change(inside))
    return PNG_SIGNATURE + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG."""
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += length + 12


def changed_model(content: bytes, rng: np.random.Generator, _: BytesChange) -> bytes:
    """Change the structure of an ONNX model, as ``tests.corruption`` does."""
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ValueError("no model") from error
    if not proto.graph.node:
        raise ValueError("a model without nodes")
    mutate(proto, rng)
    return proto.SerializeToString(deterministic=True)
