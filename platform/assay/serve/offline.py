"""The same judgement without a server: a folder or a list of images, as a Ray Data job.

    <out>/
        answers.parquet, answers.csv   one row per image, in the order given
        parts.parquet, parts.csv       one row per group of a table: its views judged together
        bad.csv                        images that cannot be read, and why; their group does without
        masks/, overlays/              PNG by the number of the row
        chunks/                        those that are finished, and are not done again; `.at` where one was

Chunks are named by bundle, files and their size and times, so a job that was interrupted
goes on, and one with another bundle, or a changed file, does what it changes.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.exceptions

from assay.bundle.bundle import Bundle, Variant
from assay.bundle.classify import Answer
from assay.data import table as tables
from assay.data.images import decode
from assay.data.images.entry import MASK, SUFFIX
from assay.data.images.pyramid import ImagePyramid
from assay.data.spellings import compose, refuse_spellings
from assay.data.walk import is_text, show, walk_folder, why_unreadable
from assay.errors import AssayError, BundleError, ImageError, ManifestError, ResourceError
from assay.files import write_parquet, write_rows, write_whole
from assay.progress import progress_bar
from assay.shapes import UInt8

CHUNK = 32


OVERLAY_PX = 1024
"""Longer side of an overlay."""


DEATHS = 3
"""Times that the process may end at one image before that image is passed over; Ray tries a chunk four times."""


_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)
"""What Ray raises where a process that judged came to its end, again and again."""


def list_images(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """List the images of files, folders, and tables (CSV, Parquet) that have a column `image`.

    Also the group of each, "" where none is given: a table may have a column `group`. What turns
    out to be no image is listed too, for its row to say so.

    Raises:
        ManifestError: there is none, a path or a column is missing, a folder or table cannot be
            read, or a group is written in two ways.
    """
    images: list[Path] = []
    groups: list[str] = []
    for path in paths:
        reason = why_unreadable(path)
        if reason == "does not exist":
            raise ManifestError(
                f"{show(path)} is no file; give images ({', '.join(decode.SUFFIXES)}), folders of them, or tables with a "
                "column 'image'."
            )
        if reason == "is a folder":
            images += _images_below(path)
        elif path.suffix.lower() in tables.SUFFIXES:
            listed = tables.read_table(path, ("image",), ("group",))
            images += listed.images("image", range(len(listed)))
            groups += [group or "" for group in listed.columns.get("group", ())]
        else:
            images.append(path)
        groups += [""] * (len(images) - len(groups))
    if not images:
        raise ManifestError(
            f"No image is in {', '.join(map(show, paths))}; give images ({', '.join(decode.SUFFIXES)}), folders of them, or "
            "tables with a column 'image'."
        )
    refuse_spellings("group", groups)
    return images, [*map(compose, groups)]


def _images_below(folder: Path) -> list[Path]:
    """List images, and what is named as one or cannot be looked into; of a store no masks."""
    walk = walk_folder(folder, (*decode.SUFFIXES, SUFFIX))
    paths = [*walk.files, *(stranger.path for stranger in walk.strangers)]
    return sorted(path for path in paths if not path.name.endswith(MASK + SUFFIX))


def predict(
    folder: Path,
    images: Sequence[Path],
    out: Path,
    variant: Variant,
    overlays: bool,
    groups: Sequence[str] = (),
) -> tuple[int, int]:
    """Judge images into a folder; return how many were answered and how many are bad.

    Raises:
        BundleError: the bundle does not verify.
        ResourceError: the disk is full, or a process died.
    """
    bundle = Bundle(folder, variant=variant)
    (out / "chunks").mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest() + variant
    chunks = _cut(images, out / "chunks", key)
    due = [chunk for chunk in chunks if not Path(chunk["file"]).exists()]
    bar = progress_bar(len(images), "judge")
    bar.update(len(images) - sum(len(chunk["images"]) for chunk in due))
    for finished in _run(partial(_judge, folder, variant, out, overlays), due):
        if finished["ended"]:
            raise _ended(finished["ended"])
        bar.update(finished["num"])
    bar.close()
    rows = [row for chunk in chunks for row in json.loads(Path(chunk["file"]).read_text())]
    _write_parts(out, bundle, rows, groups)
    return _write_answers(out, rows)


def _cut(images: Sequence[Path], folder: Path, key: str) -> list[dict[str, Any]]:
    """Cut a list into chunks, each with the file of its rows, named by all that it depends on."""
    chunks: list[dict[str, Any]] = []
    for start in range(0, len(images), CHUNK):
        paths = images[start : start + CHUNK]
        stats = [(str(path), *_state_of(path)) for path in paths]
        identity = json.dumps([key, len(chunks), stats]).encode()
        file = folder / f"{hashlib.sha256(identity).hexdigest()[:16]}.json"
        chunks.append({"start": start, "images": list(map(str, paths)), "file": str(file)})
    return chunks


def _state_of(path: Path) -> tuple[int, int, int]:
    """Return size and times of modification and of change, which rights that are given later alter too."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # its row will say why
        return 0, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _run(work: Any, chunks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if not chunks:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_items([{"chunk": json.dumps(chunk)} for chunk in chunks])
    try:
        yield from dataset.repartition(len(chunks)).map(work).iter_rows()
    except _DEATHS as error:
        raise _ended(f"{type(error).__name__}, {str(error).splitlines()[0]}") from None


def _ended(reason: str) -> ResourceError:
    return ResourceError(
        f"The job ended early ({reason.rstrip('.')}); mend this and give the same command again: what is answered is kept."
    )


@lru_cache(maxsize=2)
def _open_bundle(folder: Path, variant: Variant) -> Bundle:
    return Bundle(folder, verify=False, variant=variant, threads=1)


def _judge(
    folder: Path, variant: Variant, out: Path, overlays: bool, row: dict[str, Any]
) -> dict[str, Any]:
    """Judge one chunk, image by image, and write its file last; `ended` says what is no matter of one image."""
    chunk = json.loads(row["chunk"])
    rows, place = [], Path(chunk["file"]).with_suffix(".at")
    try:
        bundle, deaths = _open_bundle(folder, variant), _read_deaths(place)
        for number, name in enumerate(chunk["images"], chunk["start"]):
            image = name if is_text(name) else ascii(name)
            if deaths.count(number) >= DEATHS:
                error = f"Image {show(Path(name))} ended the process that judged it {DEATHS} times."
                rows.append({"image": image, "error": error})
                continue
            # outlives the process, should it end here
            place.write_text(json.dumps([*deaths, number]))
            rows.append({"image": image} | _judge_one(bundle, out, overlays, number, Path(name)))
        write_whole(Path(chunk["file"]), json.dumps(rows).encode())
    except (AssayError, OSError) as error:  # a bundle that was changed, a full disk
        return {"num": 0, "ended": str(error)}
    finally:
        place.unlink(missing_ok=True)
    return {"num": len(rows), "ended": ""}


def _read_deaths(place: Path) -> list[int]:
    """Read at which images earlier processes on a chunk ended."""
    try:
        deaths: list[int] = json.loads(place.read_text())
    except (FileNotFoundError, ValueError):  # ended while it was written
        return []
    return deaths


def _judge_one(
    bundle: Bundle, out: Path, overlays: bool, number: int, path: Path
) -> dict[str, Any]:
    """Return one image's row, once its mask and overlay are written; `error` says why there is no answer."""
    try:
        entry, answer = _answer(bundle, path)
        # before the mask: what it finds damaged is no answered image
        overlay = draw_overlay(entry, answer) if overlays else None
    except ImageError as error:
        return {"error": str(error)}
    except Exception as error:  # whatever a decoder raises at one image, the others are answered
        reason = " ".join(f"{type(error).__name__}, {error}".split())
        return {"error": f"Image {show(path)} cannot be read: {reason}."}
    height, width = entry.size
    row: dict[str, Any] = {"error": "", "height": height, "width": width}
    row["cells"] = answer.cells(bundle.classes)
    if overlay is not None:
        decode.write_png(out / "overlays" / f"{number:06d}.png", overlay)
    for folder, picture in answer.pictures().items():
        decode.write_png(out / folder / f"{number:06d}.png", picture)
    if isinstance(answer, Answer):
        row |= {"verdict": answer.verdict(), "logits": answer.logits.tolist()}
    return row


def _answer(bundle: Bundle, path: Path) -> tuple[ImagePyramid, Any]:
    """Answer for one image.

    Raises:
        ImageError: the image, or a part of it that was looked at, cannot be read.
    """
    reason = why_unreadable(path)
    if reason:
        raise ImageError(f"Image {show(path)} {reason}.")
    entry = bundle.read(path)
    (answer,) = bundle.predict_each([entry])
    if isinstance(entry, ImageError) or isinstance(answer, ImageError):
        raise answer
    return entry, answer


def draw_overlay(entry: ImagePyramid, answer: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Draw an answer over a small copy of its image."""
    small = entry.small(OVERLAY_PX)
    answer.draw(small, np.divide(small.shape[1::-1], entry.size[::-1]))
    return small


def _write_answers(out: Path, rows: list[dict[str, Any]]) -> tuple[int, int]:
    good = [row for row in rows if not row["error"]]
    bad = [row for row in rows if row["error"]]
    names = ("image", "error")
    write_rows(out / "bad.csv", names, [{name: row[name] for name in names} for row in bad])
    _write_tables(out / "answers", [_flatten(row) for row in good])
    return len(good), len(bad)


def _write_parts(
    out: Path, bundle: Bundle, rows: Sequence[dict[str, Any]], groups: Sequence[str]
) -> None:
    """Write the answer for each group, where there are groups and classes."""
    views: dict[str, list[Answer]] = {}
    for row, group in zip(rows, groups or [""] * len(rows), strict=True):
        if group and "logits" in row:
            fields = row["verdict"] | {"set": tuple(row["verdict"]["set"])}
            logits = np.array(row["logits"], np.float32)
            answer = Answer(**fields, boxes=np.zeros((0, 4)), attn=np.zeros(0), logits=logits)
            views.setdefault(group, []).append(answer)
    parts: list[dict[str, Any]] = []
    for group, answers in views.items():
        verdict = bundle.together(answers)
        if verdict is not None:
            part = {"group": group, "views": len(answers)}
            part |= {"label": verdict.label, "rejected": verdict.rejected}
            part |= {f"prob.{name}": prob for name, prob in verdict.probs.items()}
            parts.append(part | {"set": json.dumps(verdict.set)})
    if parts:
        _write_tables(out / "parts", parts)


def _write_tables(path: Path, rows: list[dict[str, Any]]) -> None:
    # no rows know no columns
    table = pa.Table.from_pylist(rows) if rows else pa.table({"image": pa.array([], pa.string())})
    write_parquet(path.with_suffix(".parquet"), table)
    write_rows(path.with_suffix(".csv"), table.column_names, rows)


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Make a row of the tables."""
    return {name: row[name] for name in ("image", "height", "width")} | row["cells"]


def find_bundle(path: Path) -> Path:
    """Find the bundle that a path means: itself, or that of a run.

    Raises:
        BundleError: it is neither.
    """
    for folder in (path, path / "bundle"):
        if (folder / "bundle.json").is_file():
            return folder
    raise BundleError(f"{path} is no bundle and holds none; give a bundle's folder or a run's.")
