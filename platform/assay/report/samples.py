"""The images of a report: chosen by rule when a run is judged, where pixels are, and kept with it.

    samples/
        <hash>.jpg       an image, its longer side at most 480 pixels
        samples.json     {"samples": [...], "near": [...]}, written last

Of each test set: the most confident errors, and right answers in the order of a hash of their ids,
spread over classes and domains, so that nobody picks the pretty ones. Where rows bear a score in
place of an answer, the rows that lose most of their weight stand for errors. A sample holds id, split, kind ("error" or
"example"), group, domains, boxes (x0, y0, x1, y1) in the kept image and their attn, width, height
and image; and truth, answer, prob (calibrated), right, rejected, or score. A near-duplicate holds
split, bits, and id and image of both.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.data.duplicates import NearDuplicate
from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import ImagePyramid
from assay.data.manifest import Manifest
from assay.files import write_json, write_whole
from assay.metrics.decide import Decision
from assay.metrics.predictions import class_names, domain_columns, logits_of, scores_of

NUM_ERRORS, NUM_EXAMPLES, NUM_NEAR = 8, 6, 6


SIDE_PX = 480
"""Longer side of a kept image; smaller ones are kept as they are (pixels)."""


MAX_BYTES = 48 << 10
"""An image larger than this is compressed harder, so that a report stays below 5 MB."""


def collect(
    folder: Path,
    predictions: pa.Table,
    manifest: Manifest,
    pixels: Pixels,
    decision: Decision | None,
    near: Sequence[NearDuplicate] = (),
    picture: Callable[[int], np.ndarray | None] = lambda row: None,
) -> None:
    """Keep a run's images in `folder`/samples; what was kept there before goes.

    Args:
        folder: the run's directory.
        predictions: the whole table; its test sets are shown, or val where there is none.
        manifest: rows that `pixels` and `near` number.
        pixels: the stored images.
        decision: what answers are drawn by; None for tables of scores.
        near: near-duplicates of the split, the nearest first.
        picture: what is shown of a row in the place of its image, if anything.

    Raises:
        StoreError: the store no longer holds an image.
    """
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    ids = manifest.column("id")
    row_of = {name: row for row, name in enumerate(ids)}
    sets = sorted(predictions["split"].unique().to_pylist())
    chosen = [
        record
        for name in [s for s in sets if s.startswith("test")] or sets
        for record in choose(predictions.filter(pc.equal(predictions["split"], name)), decision)
    ]
    found = {
        "samples": [
            record | _shown(samples, pixels[row], record["boxes"], picture(row))
            for record in chosen for row in [row_of[record["id"]]]
        ],
        "near": [
            {
                "split": pair.set, "bits": pair.bits, "id": ids[pair.row], "twin": ids[pair.twin],
                "image": _keep(samples, pixels[pair.row])["image"],
                "twin_image": _keep(samples, pixels[pair.twin])["image"],
            }
            for pair in near[:NUM_NEAR]
        ],
    }  # fmt: skip
    write_json(samples / "samples.json", found)
    named = json.dumps(found)
    for path in samples.glob("*.jpg"):
        if path.name not in named:
            path.unlink()


def choose(rows: pa.Table, decision: Decision | None) -> list[dict[str, Any]]:
    """The records of one set's images, errors first; boxes are still those of the whole image."""
    names = rows["id"].to_pylist()
    domains = domain_columns(rows)
    if decision is None:
        facts, confidence, wrong = _scored(rows)
    else:
        facts, confidence, wrong = _answered(rows, decision)
    order = sorted(np.flatnonzero(wrong).tolist(), key=lambda i: (-confidence[i], names[i]))
    errors = order[:NUM_ERRORS]
    right = sorted(set(range(len(names))) - set(order if decision else errors))
    columns = [facts.get("truth", []), *(rows[c].to_pylist() for c in domains)]
    examples = _spread(right, names, [column for column in columns if column])
    boxes = rows["boxes"].to_pylist() if "boxes" in rows.column_names else [[]] * len(names)
    attn = rows["attn"].to_pylist() if "attn" in rows.column_names else [None] * len(names)
    return [
        {
            "id": names[i], "split": rows["split"][i].as_py(), "kind": kind, "group": rows["group"][i].as_py(),
            "domains": {c.removeprefix("domain."): rows[c][i].as_py() for c in domains},
            "boxes": np.reshape(boxes[i], (-1, 4)).tolist(), "attn": attn[i],
        } | {key: column[i] for key, column in facts.items()}
        for kind, places in (("error", errors), ("example", examples)) for i in places
    ]  # fmt: skip


def _answered(
    rows: pa.Table, decision: Decision
) -> tuple[dict[str, list[Any]], np.ndarray, np.ndarray]:
    """What is known of each row, how sure its answer is, and whether it is wrong."""
    classes, truth = class_names(rows), rows["truth"].to_numpy()
    probs = decision.probs(logits_of(rows))
    answers = decision.answers(probs)
    prob = probs[np.arange(len(probs)), answers]
    facts = {
        "truth": [classes[i] for i in truth],
        "answer": [classes[i] for i in answers],
        "prob": prob.tolist(),
        "right": (answers == truth).tolist(),
        "rejected": decision.rejected(probs).tolist(),
    }
    return facts, prob, answers != truth


def _scored(rows: pa.Table) -> tuple[dict[str, list[Any]], np.ndarray, np.ndarray]:
    """The same of a table of scores: every row may be among the worst, which lose most of their weight."""
    _, scores, weights = scores_of(rows)
    lost = (1 - scores) * weights
    return {"score": scores.tolist()}, lost, np.ones(len(scores), dtype=bool)


def _spread(places: list[int], names: list[str], columns: list[list[Any]]) -> list[int]:
    """Places by a hash of their names, each next one of the class and domains taken least so far."""
    left = sorted(places, key=lambda i: hashlib.blake2b(names[i].encode()).digest())
    taken: list[Counter[Any]] = [Counter() for _ in columns]
    chosen: list[int] = []
    while left and len(chosen) < NUM_EXAMPLES:
        best = min(left, key=lambda i: [num[c[i]] for num, c in zip(taken, columns, strict=True)])
        left.remove(best)
        chosen.append(best)
        for num, column in zip(taken, columns, strict=True):
            num[column[best]] += 1
    return chosen


def _shown(
    samples: Path, entry: ImagePyramid, boxes: Sequence[Sequence[float]], picture: np.ndarray | None
) -> dict[str, Any]:
    """The image with its boxes, or the picture that the task made of it."""
    if picture is None:
        return _keep(samples, entry, boxes)
    height, width = picture.shape[:2]
    name = _write(samples, picture, 2 * MAX_BYTES)
    return {"image": name, "width": width, "height": height, "boxes": [], "is_picture": True}


def _keep(
    samples: Path, entry: ImagePyramid, boxes: Sequence[Sequence[float]] = ()
) -> dict[str, Any]:
    small = entry.small(SIDE_PX)
    height, width = small.shape[:2]
    name = _write(samples, small, MAX_BYTES)
    scale = width / entry.size[1], height / entry.size[0]
    scaled = [[round(v * scale[i % 2], 1) for i, v in enumerate(box)] for box in boxes]
    return {"image": name, "width": width, "height": height, "boxes": scaled}


def _write(samples: Path, pixels: np.ndarray, most: int) -> str:
    """Write one small image; its name is its content, so that writing it again changes nothing."""
    data = _jpeg(pixels, most)
    name = hashlib.blake2b(data, digest_size=8).hexdigest() + ".jpg"
    path = samples / name
    if not path.exists():
        write_whole(path, data)
    return name


def _jpeg(pixels: np.ndarray, most: int) -> bytes:
    for quality in (82, 68, 54, 40, 25, 10):
        data: bytes = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[
            1
        ].tobytes()
        if len(data) <= most:
            break
    return data
