"""Boxes of a YOLOX detector as a score for ``leanonnx compress --score benchmarks/tolerance/boxes.py:boxes_kept``.

    python -m benchmarks.tolerance.boxes boxes MODEL SAMPLES.npz WITH_BOXES.npz
    python -m benchmarks.tolerance.boxes score MODEL WITH_BOXES.npz

The first adds the model's own boxes to samples, the second prints the mean score of a model on such samples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from leanonnx.numeric.arrays import Array, Floats

STRIDES = (8, 16, 32)
CONFIDENT, OVERLAP = 0.3, 0.5
MOST_BOXES = 50
BOXES = "boxes"
"""Array of boxes [samples, boxes, (class, left, top, right, bottom)]; class -1 is none."""


def decoded(output: Array, side: int) -> tuple[Floats, Floats]:
    """Corners [n, 4] and scores by class [n, classes] of one image's output."""
    sizes = [side // stride for stride in STRIDES]
    grids = [np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) for n in sizes]
    grid, stride = np.concatenate(grids), np.repeat(STRIDES, [n * n for n in sizes])[:, None]
    rows = output.astype(np.float64)
    middle, half = (rows[:, :2] + grid) * stride, np.exp(np.clip(rows[:, 2:4], -20, 20)) * stride / 2
    return np.concatenate([middle - half, middle + half], 1), rows[:, 4:5] * rows[:, 5:]


def overlaps(one: Floats, others: Floats) -> Floats:
    """Intersection over union of a box with others."""
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), 1)
    areas = np.prod(others[:, 2:] - others[:, :2], 1) + np.prod(one[2:] - one[:2])
    return np.asarray(common / np.maximum(areas - common, 1e-9))


def boxes_of(output: Array, side: int) -> Floats:
    """Confident boxes [n, 5] without doubles, the most confident first."""
    corners, scores = decoded(output, side)
    best, sure = scores.argmax(1), scores.max(1)
    left = [k for k in np.argsort(-sure) if sure[k] >= CONFIDENT]
    found: list[Floats] = []
    while left and len(found) < MOST_BOXES:
        first = left.pop(0)
        found.append(np.array([best[first], *corners[first]]))
        shared = overlaps(corners[first], corners[left]) if left else np.zeros(0)
        left = [k for k, share in zip(left, shared, strict=True) if share < OVERLAP or best[k] != best[first]]
    return np.array(found).reshape(-1, 5)


def agreement(boxes: Floats, wanted: Floats) -> float:
    """F1 of boxes of the same class that overlap by half."""
    if not len(boxes) + len(wanted):
        return 1.0
    open_places, hits = list(range(len(wanted))), 0
    for box in boxes:
        places = [k for k in open_places if wanted[k, 0] == box[0]]
        shares = overlaps(box[1:], wanted[places, 1:]) if places else np.zeros(0)
        if len(shares) and shares.max() >= OVERLAP:
            open_places.remove(places[int(shares.argmax())])
            hits += 1
    return 2 * hits / (len(boxes) + len(wanted))


def detect(path: str, images: Array) -> list[Floats]:
    """Boxes of each image."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [boxes_of(session.run(None, {name: image[None]})[0][0], image.shape[-1]) for image in images]


def boxes_kept(path: str, samples: Mapping[str, Array]) -> Floats:
    """F1 of a model's boxes with the boxes in the samples, for each sample."""
    (images,) = (value for name, value in samples.items() if name != BOXES)
    wanted = [rows[rows[:, 0] >= 0] for rows in samples[BOXES]]
    return np.array([agreement(one, other) for one, other in zip(detect(path, images), wanted, strict=True)])


def padded(found: Floats) -> Floats:
    """As many rows for every image."""
    rows = np.full((MOST_BOXES, 5), -1.0)
    rows[: len(found)] = found
    return rows


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    task, model, source, *target = argv
    with np.load(source) as data:
        samples = dict(data)
    if task == "boxes":
        name = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name
        (images,) = samples.values()
        boxes = np.stack([padded(each) for each in detect(model, images)])
        np.savez(Path(target[0]), allow_pickle=False, **{name: images, BOXES: boxes})
    else:
        print(json.dumps({"score": float(boxes_kept(model, samples).mean())}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
