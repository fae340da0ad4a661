"""The same judgement without a server: a folder or a list of images, in a process per CPU of a Ray.

    <out>/
        images.parquet                 what was given (see `image_list`)
        answers.parquet, answers.csv   one row per image, in the order given
        parts.parquet, parts.csv       one row per group of a table: its views judged together
        bad.csv                        images that cannot be read, and why; their group does without
        masks/, overlays/              PNG, JPEG by the number of the row
        chunks/                        those that are finished, and are not done again; `.at` where one was

Chunks are named by bundle, files and their size and times, so a job that was interrupted
goes on, and one with another bundle, or a changed file, does what it changes. Lists and rows are
read and written some thousands at a time; views of groups are held until all are there.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import ray
import ray.exceptions

from assay.bundle.bundle import Bundle, Variant
from assay.bundle.classify import Answer
from assay.cluster import nodes
from assay.cluster.heap import IMAGE_BYTES, keep_freed_memory
from assay.cluster.session import ray_session
from assay.data.images import decode
from assay.data.images.pyramid import ImagePyramid
from assay.data.walk import is_text, show, why_unreadable
from assay.errors import AssayError, BundleError, ImageError, ManifestError, ResourceError
from assay.files import write_whole
from assay.progress import progress_bar
from assay.serve.answer_tables import read_rows, write_answers, write_parts
from assay.serve.image_list import LIST, PICTURES, read_list, write_list
from assay.shapes import UInt8

CHUNK = 32
"""Images that one process judges before another may go on where it ends."""


AHEAD = 2
"""Chunks per CPU that are handed over at a time, so that no process waits for its next."""


TABLES = ("answers.parquet", "answers.csv", "parts.parquet", "parts.csv", "bad.csv")


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


def predict(
    folder: Path, paths: Sequence[Path], out: Path, variant: Variant, overlays: bool
) -> tuple[int, int]:
    """Judge images into a folder; return how many were answered and how many are bad.

    Args:
        folder: of the bundle.
        paths: what `list_images` takes.
        out: folder of the answers.
        variant: the graphs to use.
        overlays: draw patches or masks over each image.

    Raises:
        BundleError: the bundle does not verify.
        ManifestError: as `write_list`; or `out` holds what is no answer of this command.
        ResourceError: the disk is full, or a process died.
    """
    bundle, listed = Bundle(folder, variant=variant), out / LIST
    _refuse_foreign(out, listed)
    num, is_grouped = write_list(listed, paths)
    (out / "chunks").mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest() + variant
    files: list[Path] = []
    with progress_bar(num, "judge") as bar:

        def due() -> Iterator[dict[str, Any]]:
            for chunk in _cut(listed, out / "chunks", key):
                files.append(Path(chunk["file"]))
                if _is_judged(files[-1], len(chunk["images"]), overlays):
                    bar.update(len(chunk["images"]))
                else:
                    yield chunk

        for finished in _run(partial(_judge, folder, variant, out, overlays), due()):
            if finished["ended"]:
                raise _ended(finished["ended"])
            bar.update(finished["num"])
    if is_grouped:
        groups = chain.from_iterable(read_list(listed, CHUNK))
        write_parts(out, bundle, zip(read_rows(files), (group for _, group in groups), strict=True))
    if not any(out.resolve() in path.resolve().parents for path in paths):  # else what was given
        _remove_beyond(out, num)
    good = write_answers(out, files)
    return good, num - good


def _refuse_foreign(out: Path, listed: Path) -> None:
    """Refuse a folder with files of others under names of answers, that would be written over."""
    taken = [name for name in (*PICTURES, *TABLES) if os.path.lexists(out / name)]
    if taken and not listed.exists():
        raise ManifestError(
            f"{show(out)} holds {taken[0]}, which is no answer of this command and would be written over; give another folder as --out."
        )


def _cut(listed: Path, folder: Path, key: str) -> Iterator[dict[str, Any]]:
    """Cut a list into chunks, each with the file of its rows, named by all that it depends on."""
    for number, images in enumerate(read_list(listed, CHUNK)):
        names = [name for name, _ in images]
        stats = [(name, *_state_of(Path(name))) for name in names]
        identity = json.dumps([key, number, stats]).encode()
        file = folder / f"{hashlib.sha256(identity).hexdigest()[:16]}.json"
        yield {"start": number * CHUNK, "images": names, "file": str(file)}


def _is_judged(file: Path, num: int, overlays: bool) -> bool:
    """Tell whether a chunk is finished; one that is damaged, or lacks overlays that are asked for, is judged again."""
    try:
        rows = json.loads(file.read_bytes())
        is_whole = len(rows) == num and all(
            row["image"] and row["error"] is not None for row in rows
        )
        return is_whole and all(row["is_drawn"] or not overlays for row in rows)
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError, RecursionError):
        file.unlink()
        return False


def _state_of(path: Path) -> tuple[int, int, int]:
    """Return size and times of modification and of change, which rights that are given later alter too."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # its row will say why
        return 0, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _run(work: Any, chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Work chunks off in processes of one CPU each, and yield what becomes of them; without any, no Ray starts."""
    first = next(chunks, None)
    if first is None:
        return
    with ray_session(serves=True):
        judge: Any = ray.remote(num_cpus=1, max_retries=DEATHS)(lambda chunk: work(chunk))
        running: list[Any] = []
        try:
            for chunk in chain([first], chunks):
                running.append(judge.remote(chunk))
                # asked anew each time, since a cluster may grow by what waits
                if len(running) >= AHEAD * max(nodes.up()["CPU"], 1):
                    done, running = ray.wait(running)
                    yield ray.get(done[0])
            yield from (ray.get(each) for each in running)
        except _DEATHS as error:
            raise _ended(f"{type(error).__name__}, {str(error).splitlines()[0]}") from None


def _ended(reason: str) -> ResourceError:
    return ResourceError(
        f"The job ended early ({reason.rstrip('.')}); mend this and give the same command again: what is answered is kept."
    )


@lru_cache(maxsize=2)
def _open_bundle(folder: Path, variant: Variant) -> Bundle:
    keep_freed_memory(IMAGE_BYTES)
    return Bundle(folder, verify=False, variant=variant, threads=1)


def _judge(
    folder: Path, variant: Variant, out: Path, overlays: bool, chunk: dict[str, Any]
) -> dict[str, Any]:
    """Judge one chunk, image by image, and write its file last; `ended` says what is no matter of one image."""
    rows, place = [], Path(chunk["file"]).with_suffix(".at")
    try:
        bundle, deaths = _open_bundle(folder, variant), _read_deaths(place)
        with place.open("w") as at:
            for number, name in enumerate(chunk["images"], chunk["start"]):
                image = name if is_text(name) else ascii(name)
                if deaths.count(number) >= DEATHS:
                    error = (
                        f"Image {show(Path(name))} ended the process that judged it {DEATHS} times."
                    )
                    rows.append({"image": image, "error": error, "is_drawn": True})
                    continue
                _note(at, [*deaths, number])
                answer = _judge_one(bundle, out, overlays, number, Path(name))
                rows.append({"image": image, "is_drawn": overlays} | answer)
                if answer["error"]:
                    _remove_pictures(out, number)
        write_whole(Path(chunk["file"]), json.dumps(rows).encode())
    except (AssayError, OSError) as error:  # a bundle that was changed, a full disk
        return {"num": 0, "ended": str(error)}
    finally:
        place.unlink(missing_ok=True)
    return {"num": len(rows), "ended": ""}


def _note(at: TextIO, numbers: list[int]) -> None:
    """Note images in a file that outlives this process, should it end here; opening it for each would take a thirtieth of a small image's time."""
    at.seek(0)
    at.truncate()
    at.write(json.dumps(numbers))
    at.flush()


def _remove_pictures(out: Path, number: int) -> None:
    """Remove what earlier answers left under a row's number."""
    for name in (f"overlays/{number:06d}.jpg", f"masks/{number:06d}.png"):
        (out / name).unlink(missing_ok=True)


def _remove_beyond(out: Path, num: int) -> None:
    """Remove what the answers of a longer list left under numbers that no row has now."""
    for folder in (out / name for name in PICTURES):
        with os.scandir(folder) if folder.is_dir() else nullcontext(()) as entries:
            for entry in entries:
                if (name := entry.name.partition(".")[0]).isdigit() and int(name) >= num:
                    os.unlink(entry)


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
        ordered = cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", ordered)[1].tobytes()
        write_whole(out / "overlays" / f"{number:06d}.jpg", jpeg)
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


def find_bundle(path: Path) -> Path:
    """Find the bundle that a path means: itself, or that of a run.

    Raises:
        BundleError: it is neither.
    """
    for folder in (path, path / "bundle"):
        if (folder / "bundle.json").is_file():
            return folder
    raise BundleError(f"{path} is no bundle and holds none; give a bundle's folder or a run's.")
