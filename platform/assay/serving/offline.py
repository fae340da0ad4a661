"""The same judgement without a server: a folder or a list of images, as a Ray Data job.

    <out>/
        answers.parquet, answers.csv   one row per image, in the order given
        bad.csv                        images that cannot be read, and why
        masks/, overlays/              PNG by the number of the row
        parts/                         finished chunks: what is there is not done again

Chunks are named by bundle, files and their contents' size and time, so a job that was interrupted
goes on, and one with another bundle, or a changed file, does what it changes.
"""

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import ray
import ray.data

from assay.bundle import Bundle, Variant, read
from assay.data import image
from assay.errors import BundleError, ImageError, ManifestError
from assay.overlay import FALSE, STRENGTH
from assay.serving.reply import view_of
from assay.telemetry import progress_bar

CHUNK = 32
OVERLAY_PX = 1024
"""Longer side of an overlay."""


def images_in(paths: Sequence[Path]) -> list[Path]:
    """Images of files, folders, and tables (CSV, Parquet) that have a column `image`.

    Raises:
        ManifestError: there is none, or a path or a column is missing.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (one for one in path.rglob("*") if one.suffix.lower() in image.SUFFIXES)
            found += sorted(inside)
        elif path.suffix.lower() in (".csv", ".parquet"):
            found += [path.parent / name for name in _column(path)]
        else:
            found.append(path)
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        raise ManifestError(
            f"{missing[0] if missing else 'No image'} is {'no file' if missing else 'in ' + ', '.join(map(str, paths))}; give images ({', '.join(image.SUFFIXES)}), folders of them, or tables with a column 'image'."
        )
    return found


def _column(path: Path) -> list[str]:
    try:
        table = pacsv.read_csv(path) if path.suffix.lower() == ".csv" else pq.read_table(path)
        names: list[str] = table["image"].to_pylist()
        return names
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ManifestError(
            f"{path} cannot be read as a table with a column 'image' ({str(error).splitlines()[0]}); give one."
        ) from None


def predict(
    folder: Path, images: Sequence[Path], out: Path, variant: Variant, overlays: bool
) -> tuple[int, int]:
    """Judge images into a folder; returns how many were answered and how many are bad.

    Raises:
        BundleError: the bundle does not verify.
    """
    bundle = Bundle(folder, variant=variant)
    (out / "parts").mkdir(parents=True, exist_ok=True)
    cut = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    key = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest() + variant
    chunks: list[dict[str, Any]] = [
        {"start": i * CHUNK, "images": list(map(str, own)), "part": str(_part(out, key, i, own))}
        for i, own in enumerate(cut)
    ]
    due = [chunk for chunk in chunks if not Path(chunk["part"]).exists()]
    bar = progress_bar(len(images), "judge")
    bar.update(len(images) - sum(len(chunk["images"]) for chunk in due))
    for done in _run(partial(_judge, folder, variant, out, overlays), due):
        bar.update(done["num"])
    bar.close()
    rows = [row for chunk in chunks for row in json.loads(Path(chunk["part"]).read_text())]
    return _write(out, rows, bundle.classes)


def _part(out: Path, key: str, place: int, own: Sequence[Path]) -> Path:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in own]
    digest = hashlib.sha256(json.dumps([key, place, stats]).encode()).hexdigest()
    return out / "parts" / f"{digest[:16]}.json"


def _run(work: Any, chunks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if not chunks:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_items([{"chunk": json.dumps(chunk)} for chunk in chunks])
    yield from dataset.repartition(len(chunks)).map(work).iter_rows()


@lru_cache(maxsize=2)
def _opened(folder: Path, variant: Variant) -> Bundle:
    return Bundle(folder, verify=False, variant=variant, threads=1)


def _judge(
    folder: Path, variant: Variant, out: Path, overlays: bool, row: dict[str, Any]
) -> dict[str, int]:
    """Judge one chunk, image by image, and write its part last."""
    chunk = json.loads(row["chunk"])
    bundle = _opened(folder, variant)
    rows = []
    for number, name in enumerate(chunk["images"], chunk["start"]):
        entry = read(Path(name))
        (answer,) = bundle.predict_each([entry])
        if isinstance(entry, ImageError):
            rows.append({"image": name, "error": str(entry)})
            continue
        view = view_of(answer, entry.size, "none").model_dump()
        rows.append({"image": name, "error": ""} | view)
        if hasattr(answer, "mask"):
            image.write_png(out / "masks" / f"{number:06d}.png", answer.mask)
        if overlays:
            image.write_png(out / "overlays" / f"{number:06d}.png", drawn(entry.levels[0], answer))
    image.write_whole(Path(chunk["part"]), json.dumps(rows).encode())
    return {"num": len(rows)}


def drawn(pixels: np.ndarray, answer: Any) -> np.ndarray:
    """An image with its patches outlined, the more attention the thicker, or its mask in colour."""
    height, width = pixels.shape[:2]
    scale = min(1.0, OVERLAY_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image.to_uint8(pixels), size, interpolation=cv2.INTER_AREA)
    if hasattr(answer, "mask"):
        # a defect of one pixel stays in sight
        marked = (answer.mask > 0).astype(np.float32)
        touched = cv2.resize(marked, size, interpolation=cv2.INTER_AREA) > 0
        small[touched] = (1 - STRENGTH) * small[touched] + STRENGTH * np.array(FALSE)
        return small
    for box, share in zip(answer.boxes * scale, answer.attn, strict=True):
        x0, y0, x1, y1 = np.rint(box).astype(int).tolist()
        thick = 1 + round(4 * float(share / answer.attn.max()))
        cv2.rectangle(small, (x0, y0), (x1, y1), FALSE, thick)
    return small


def _write(out: Path, rows: list[dict[str, Any]], classes: Sequence[str]) -> tuple[int, int]:
    good = [row for row in rows if not row["error"]]
    bad = [row for row in rows if row["error"]]
    with (out / "bad.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "error"])
        writer.writerows([row["image"], row["error"]] for row in bad)
    made = [_flat(row, classes) for row in good]
    # pyarrow's own writer of an empty list of rows knows no columns
    table = pa.Table.from_pylist(made) if made else pa.table({"image": pa.array([], pa.string())})
    pq.write_table(table, out / "answers.parquet")
    with (out / "answers.csv").open("w", newline="") as file:
        lines = csv.DictWriter(file, table.column_names)
        lines.writeheader()
        lines.writerows(made)
    return len(good), len(bad)


def _flat(row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A row of the tables: what has no single value is JSON."""
    flat = {"image": row["image"], "height": row["height"], "width": row["width"]}
    if row["answer"]:
        answer = row["answer"]
        flat |= {"label": answer["label"], "rejected": answer["rejected"]}
        flat |= {f"prob.{name}": answer["probs"][name] for name in classes}
        return flat | {"set": json.dumps(answer["set"]), "patches": json.dumps(row["patches"])}
    areas = {name: 0 for name in classes}
    for defect in row["defects"]:
        areas[defect["label"]] += defect["area_px"]
    flat |= {f"area_px.{name}": area for name, area in areas.items()}
    return flat | {"num_defects": len(row["defects"]), "defects": json.dumps(row["defects"])}


def find_bundle(path: Path) -> Path:
    """The bundle that a path means: itself, or that of a run.

    Raises:
        BundleError: it is neither.
    """
    for folder in (path, path / "bundle"):
        if (folder / "bundle.json").is_file():
            return folder
    raise BundleError(f"{path} is no bundle and holds none; give a bundle's folder or a run's.")
