"""Mean average precision at an overlap of 0.5: the usual score of detectors, for ``compress``, ``check`` and ``sweep``.

    leanonnx compress detector.onnx small.onnx --calib boxes.npz --score detection_map.py:map50 --max-drop 0.02

Beside the images, named like the graph input, the data hold ``boxes`` [samples, boxes, 5]: class, left, top, right and
bottom in pixels of the input; class -1 fills up the rows of images with fewer boxes. Where nobody has drawn boxes,
those of the original tell how many of its detections a smaller network keeps:

    python detection_map.py detector.onnx images.npz boxes.npz

Two layouts of outputs are read: [1, boxes, 5 + classes] of YOLOX, with offsets on three grids and one score for "any
object", and [1, 4 + classes, boxes] of ultralytics (YOLOv8, YOLO11), with centres and sizes in pixels. Change
``candidates`` for others.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, Any]
STRIDES = (8, 16, 32)
BOXES = "boxes"
LEAST_SCORE, DRAWN_SCORE = 0.05, 0.3
"""Candidates below the first are not counted, those below the second not taken for boxes of the original."""
DOUBLE, HIT = 0.65, 0.5
"""Overlap (intersection over union) from which a box is a double of another one, and from which it is right."""
MOST = 100
"""Largest number of boxes of an image."""


def candidates(output: Array, side: int) -> tuple[Array, Array]:
    """Corners [n, 4] and scores [n, classes] of the candidates of one image."""
    rows = output if output.shape[0] > output.shape[1] else output.T
    centres, sizes, scores = rows[:, :2], rows[:, 2:4], rows[:, 4:]
    if rows is output:
        grids = [np.indices((side // s, side // s)).reshape(2, -1)[::-1].T for s in STRIDES]
        stride = np.concatenate([np.full((len(grid), 1), s) for grid, s in zip(grids, STRIDES, strict=True)])
        centres, sizes = (centres + np.concatenate(grids)) * stride, np.exp(sizes) * stride
        scores = rows[:, 4:5] * rows[:, 5:]
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1), scores


def overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of a box [4] with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return np.asarray(common / np.maximum(areas - common, 1e-9))


def detections(output: Array, side: int) -> Array:
    """Boxes of one image [n, 6] without doubles: class, corners, score; the highest scores first."""
    corners, scores = candidates(output.astype(np.float64), side)
    boxes = []
    for label in range(scores.shape[1]):
        left = np.flatnonzero(scores[:, label] >= LEAST_SCORE)
        left = left[np.argsort(-scores[left, label], kind="stable")]
        while left.size:
            first, left = left[0], left[1:]
            boxes.append([label, *corners[first], scores[first, label]])
            left = left[overlaps(corners[first], corners[left]) < DOUBLE]
    rows = np.array(boxes).reshape(-1, 6)
    return np.asarray(rows[np.argsort(-rows[:, 5], kind="stable")][:MOST])


def average_precision(rows: list[Array], wanted: list[Array]) -> float:
    """Area under precision over recall of one class: boxes [n, 6] and drawn boxes [m, 5] of each image."""
    order = sorted(((-box[5], k, box[1:5]) for k, boxes in enumerate(rows) for box in boxes), key=lambda each: each[0])
    free = [np.ones(len(boxes), bool) for boxes in wanted]
    hits = np.zeros(len(order))
    for place, (_, image, box) in enumerate(order):
        shares = overlaps(box, wanted[image][:, 1:]) * free[image]
        if shares.size and shares.max() >= HIT:
            hits[place], free[image][shares.argmax()] = 1, False
    precision = hits.cumsum() / np.arange(1, len(order) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((highest * hits).sum() / sum(map(len, wanted)))


def mean_average_precision(detected: list[Array], drawn: list[Array]) -> float:
    """Mean over the classes of which there are drawn boxes; 0 where there are none."""
    classes = np.unique(np.concatenate([boxes[:, 0] for boxes in drawn]))
    values = [
        average_precision(
            [rows[rows[:, 0] == label] for rows in detected], [rows[rows[:, 0] == label] for rows in drawn]
        )
        for label in classes
    ]
    return float(np.mean(values)) if values else 0.0


def detect(model_path: str, images: Array) -> list[Array]:
    """Boxes of each image."""
    session = ort.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [detections(session.run(None, {name: image[None]})[0][0], image.shape[-1]) for image in images]


def map50(model_path: str, data: Mapping[str, Array]) -> float:
    """The score: higher is better."""
    images = next(array for name, array in data.items() if name != BOXES)
    return mean_average_precision(detect(model_path, images), [rows[rows[:, 0] >= 0] for rows in data[BOXES]])


if __name__ == "__main__":
    model, source, target = sys.argv[1:]
    with np.load(source) as arrays:
        samples = dict(arrays)
    given = np.full((len(next(iter(samples.values()))), MOST, 5), -1, np.float32)
    for row, rows in zip(given, detect(model, next(iter(samples.values()))), strict=True):
        sure = rows[rows[:, 5] >= DRAWN_SCORE]
        row[: len(sure)] = sure[:, :5]
    np.savez(target, allow_pickle=False, **{**samples, BOXES: given})
