"""The images of a report: chosen by rule when a run is judged, where pixels are, and kept with it.

    samples/
        <hash>.jpg       an image, its longer side at most 480 pixels
        samples.json     {"samples": [...], "near": [...]}, written last

Of each test set: the most confident errors, and right answers in the order of a hash of their ids,
spread over classes and domains, so that nobody picks the pretty ones. Where rows bear a score in
place of an answer, the rows that lose most of their weight stand for errors. A sample holds id,
split, kind ("error" or "example"), group, domains, boxes (x0, y0, x1, y1) in the small image and
their attn, width, height and image; and truth, answer, prob (calibrated), right, rejected, or
score. A near-duplicate holds split, agreement, and id and image of both.
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

from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import ImagePyramid
from assay.data.manifest import Manifest
from assay.data.near.copies import NearDuplicate
from assay.files import write_json, write_whole
from assay.metrics.decide import Decision
from assay.metrics.predictions import (
    class_names,
    domain_columns,
    logits_of,
    rows_of,
    scores_of,
    sets_of,
)

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
        folder: The run's directory.
        predictions: The whole table; its test sets are shown, or val where there is none.
        manifest: Rows that `pixels` and `near` number.
        pixels: The stored images.
        decision: What answers are drawn by; None for tables of scores.
        near: Near-duplicates of the split, the nearest first.
        picture: What is shown of a row in the place of its image, if anything.

    Raises:
        StoreError: The store no longer holds an image.
    """
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    ids = manifest.column("id")
    rows = {name: row for row, name in enumerate(ids)}
    sets = sets_of(predictions)
    records = []
    for name in [name for name in sets if name.startswith("test")] or sets:
        for record in choose(rows_of(predictions, name), decision):
            row = rows[record["id"]]
            image = _add(samples, pixels[row], record["boxes"], picture(row))
            records.append(record | image)
    pairs = [_add_pair(samples, ids, pixels, pair) for pair in near[:NUM_NEAR]]
    index = {"samples": records, "near": pairs}
    write_json(samples / "samples.json", index)
    text = json.dumps(index)
    for path in samples.glob("*.jpg"):
        if path.name not in text:
            path.unlink()


def choose(rows: pa.Table, decision: Decision | None) -> list[dict[str, Any]]:
    """Return the records of one set's images, errors first; boxes are still those of the whole image."""
    names = rows["id"].to_pylist()
    if decision is None:
        facts, confidence, wrong = _describe_scores(rows)
    else:
        facts, confidence, wrong = _describe_answers(rows, decision)
    order = sorted(np.flatnonzero(wrong).tolist(), key=lambda i: (-confidence[i], names[i]))
    errors = order[:NUM_ERRORS]
    right = sorted(set(range(len(names))) - set(order if decision else errors))
    columns = [facts.get("truth", []), *(rows[c].to_pylist() for c in domain_columns(rows))]
    examples = _choose_spread(right, names, [column for column in columns if column])
    records = []
    for kind, chosen in (("error", errors), ("example", examples)):
        for i in chosen:
            record = {key: column[i] for key, column in facts.items()}
            records.append(_describe(rows, i, kind) | record)
    return records


def _describe(rows: pa.Table, i: int, kind: str) -> dict[str, Any]:
    """Return what a record holds of any row, whether it bears a class or a score."""
    row = rows.slice(i, 1).to_pylist()[0]
    return {
        "id": row["id"],
        "split": row["split"],
        "kind": kind,
        "group": row["group"],
        "domains": {name.removeprefix("domain."): row[name] for name in domain_columns(rows)},
        "boxes": np.reshape(row.get("boxes", []), (-1, 4)).tolist(),
        "attn": row.get("attn"),
    }


def _describe_answers(
    rows: pa.Table, decision: Decision
) -> tuple[dict[str, list[Any]], np.ndarray, np.ndarray]:
    """Return what a record says of each row's answer, how sure that is, and whether it is wrong."""
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


def _describe_scores(rows: pa.Table) -> tuple[dict[str, list[Any]], np.ndarray, np.ndarray]:
    """Return the same of a table of scores: any row may be among those that lose most of their weight."""
    _, scores, weights = scores_of(rows)
    losses = (1 - scores) * weights
    return {"score": scores.tolist()}, losses, np.ones(len(scores), dtype=bool)


def _choose_spread(rows: list[int], names: list[str], columns: list[list[Any]]) -> list[int]:
    """Choose rows by a hash of their names, each next one of the class and domains taken least so far."""
    remaining = sorted(rows, key=lambda i: hashlib.blake2b(names[i].encode()).digest())
    taken: list[Counter[Any]] = [Counter() for _ in columns]
    chosen: list[int] = []
    while remaining and len(chosen) < NUM_EXAMPLES:
        best = min(
            remaining, key=lambda i: [num[c[i]] for num, c in zip(taken, columns, strict=True)]
        )
        remaining.remove(best)
        chosen.append(best)
        for num, column in zip(taken, columns, strict=True):
            num[column[best]] += 1
    return chosen


def _add(
    samples: Path, entry: ImagePyramid, boxes: Sequence[Sequence[float]], picture: np.ndarray | None
) -> dict[str, Any]:
    """Add the image with its boxes, or the picture that the task drew of it."""
    if picture is None:
        return _add_image(samples, entry, boxes)
    height, width = picture.shape[:2]
    name = _write_jpeg(samples, picture, 2 * MAX_BYTES)
    return {"image": name, "width": width, "height": height, "boxes": [], "is_picture": True}


def _add_image(
    samples: Path, entry: ImagePyramid, boxes: Sequence[Sequence[float]] = ()
) -> dict[str, Any]:
    small = entry.small(SIDE_PX)
    height, width = small.shape[:2]
    name = _write_jpeg(samples, small, MAX_BYTES)
    scale = width / entry.size[1], height / entry.size[0]
    scaled = [[round(v * scale[i % 2], 1) for i, v in enumerate(box)] for box in boxes]
    return {"image": name, "width": width, "height": height, "boxes": scaled}


def _add_pair(
    samples: Path, ids: Sequence[str], pixels: Pixels, pair: NearDuplicate
) -> dict[str, Any]:
    """Add both images of a near-duplicate."""
    return {
        "split": pair.set,
        "agreement": pair.agreement,
        "id": ids[pair.row],
        "twin": ids[pair.twin],
        "image": _add_image(samples, pixels[pair.row])["image"],
        "twin_image": _add_image(samples, pixels[pair.twin])["image"],
    }


def _write_jpeg(samples: Path, pixels: np.ndarray, max_bytes: int) -> str:
    """Write one small image; its name is its content, so that writing it again changes nothing."""
    jpeg = _encode(pixels, max_bytes)
    name = hashlib.blake2b(jpeg, digest_size=8).hexdigest() + ".jpg"
    path = samples / name
    if not path.exists():
        write_whole(path, jpeg)
    return name


def _encode(pixels: np.ndarray, max_bytes: int) -> bytes:
    """Encode as JPEG, at the best of some qualities that fits."""
    bgr = pixels[:, :, ::-1]
    for quality in (82, 68, 54, 40, 25, 10):
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        jpeg: bytes = encoded.tobytes()
        if len(jpeg) <= max_bytes:
            break
    return jpeg
