"""Tables of answers: one row per image, one per group of images, and the images that have none."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assay.bundle.bundle import Bundle
from assay.bundle.classify import Answer
from assay.files import replacing, write_rows
from assay.serve.image_list import ROWS


def read_rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read the rows of finished chunks."""
    for file in files:
        yield from json.loads(file.read_bytes())


def write_answers(out: Path, files: Sequence[Path]) -> int:
    """Write what was answered, and what is bad; return how many were answered."""
    names = ("image", "error")
    bad = ({name: row[name] for name in names} for row in read_rows(files) if row["error"])
    write_rows(out / "bad.csv", names, bad)
    return _write_tables(
        out / "answers", (_flatten(row) for row in read_rows(files) if not row["error"])
    )


def write_parts(out: Path, bundle: Bundle, rows: Iterable[tuple[dict[str, Any], str]]) -> None:
    """Write the answer for each group, where there are classes."""
    views: dict[str, list[Answer]] = {}
    for row, group in rows:
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
        _write_tables(out / "parts", iter(parts))


def _write_tables(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write rows of the same columns as Parquet and CSV, some thousands at a time; return how many."""
    part, num = list(islice(rows, ROWS)), 0
    # no rows know no columns
    schema = pa.Table.from_pylist(part).schema if part else pa.schema({"image": pa.string()})
    parquet, text = path.with_suffix(".parquet"), path.with_suffix(".csv")
    with (
        replacing(parquet) as table,
        pq.ParquetWriter(table, schema) as writer,
        replacing(text) as lines,
        lines.open("w", newline="") as file,
    ):
        printed = csv.DictWriter(file, schema.names)
        printed.writeheader()
        while part:
            writer.write_table(pa.Table.from_pylist(part, schema))
            printed.writerows(part)
            num += len(part)
            part = list(islice(rows, ROWS))
    return num


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Make a row of the tables."""
    return {name: row[name] for name in ("image", "height", "width")} | row["cells"]
