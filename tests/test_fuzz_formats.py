"""The changes that the fuzzer makes: inputs that differ, and still have their format."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks.fuzz.formats import (
    Change,
    changed_archive,
    changed_array,
    changed_image,
    changed_model,
    changed_text,
)
from tests.helpers import CNN, build

COUNT = 60
TEXT = b'{"a": 1, "b": ["x", 2.5], "c": {"d": null}}\n{"e": true}\n'


def flipped(content: bytes) -> bytes:
    """The bytes with the last bit flipped; one byte if there were none."""
    return content[:-1] + bytes([content[-1] ^ 1]) if content else b"x"


def variants(change: Change, content: bytes) -> list[bytes]:
    """Results of a change for the first seeds."""
    return [change(content, np.random.default_rng(seed), flipped) for seed in range(COUNT)]


def array_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(6.0).reshape(2, 3))
    return file.getvalue()


def archive_bytes() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.arange(6.0), label=np.arange(2))
    return file.getvalue()


def image_bytes(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, kind)
    return file.getvalue()


MODEL = build(CNN).SerializeToString(deterministic=True)
CHANGES: dict[Change, bytes] = {
    changed_text: TEXT,
    changed_array: array_bytes(),
    changed_archive: archive_bytes(),
    changed_image: image_bytes("PNG"),
    changed_model: MODEL,
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_most_changes_differ_and_repeat(change: Change) -> None:
    content = CHANGES[change]
    found = variants(change, content)
    assert found == variants(change, content)
    assert sum(each != content for each in found) > 0.9 * COUNT
    assert len(set(found)) > 2


@pytest.mark.parametrize("change", [changed_array, changed_archive, changed_model, changed_text])
@pytest.mark.parametrize("content", [b"", b" \n"])
def test_other_formats_are_refused(change: Change, content: bytes) -> None:
    with pytest.raises(ValueError):
        change(content, np.random.default_rng(0), flipped)


def test_texts_lose_and_gain_tokens() -> None:
    lengths = [len(each) for each in variants(changed_text, TEXT)]
    assert min(lengths) < len(TEXT) < max(lengths)
    assert any(b"1e999" in each or b"NaN" in each for each in variants(changed_text, TEXT))


def test_headers_of_arrays_keep_their_length() -> None:
    data = np.arange(6.0).tobytes()
    kept = 0
    for each in variants(changed_array, array_bytes()):
        end = 10 + int.from_bytes(each[8:10], "little")
        assert each[end:] in (data, flipped(data))
        kept += each[end:] == data
    assert 0 < kept < COUNT


def test_archives_have_right_checksums() -> None:
    names = set()
    for each in variants(changed_archive, archive_bytes()):
        with zipfile.ZipFile(io.BytesIO(each)) as archive:
            assert archive.testzip() is None
            names.add(tuple(archive.namelist()))
    assert {("x.npy", "label.npy"), ("x.npy",), ("x.npy", "label.npy", "x.npy")} <= names


def test_chunks_of_images_have_right_checksums() -> None:
    for each in variants(changed_image, image_bytes("PNG")):
        at = 8
        while at < len(each):
            length = int.from_bytes(each[at : at + 4], "big")
            assert zlib.crc32(each[at + 4 : at + 8 + length]) == int.from_bytes(each[at + 8 + length :][:4], "big")
            at += length + 12
    assert variants(changed_image, image_bytes("BMP")) == [flipped(image_bytes("BMP"))] * COUNT


def test_models_keep_to_protobuf() -> None:
    assert all(onnx.ModelProto.FromString(each).graph.node for each in variants(changed_model, MODEL))
