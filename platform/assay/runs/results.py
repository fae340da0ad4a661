"""What a run left to read: predictions, result, metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assay.errors import RunError
from assay.files import replacing

SCHEMA = 1


def read_predictions(folder: Path) -> pa.Table:
    """A run's predictions table.

    Raises:
        RunError: the run has none yet.
    """
    path = folder / "predictions.parquet"
    if not path.exists():
        raise RunError(f"{folder} has no predictions yet; run it to the end first.")
    return pq.read_table(path)


def write_predictions(folder: Path, predictions: pa.Table) -> None:
    """Put a predictions table in the place of a run's own, whole or not at all."""
    with replacing(folder / "predictions.parquet") as hidden:
        pq.write_table(predictions, hidden)


def rows_of(predictions: pa.Table, name: str) -> pa.Table:
    """The rows of one set."""
    return predictions.filter(pc.equal(predictions["split"], name))


def read_result(folder: Path) -> dict[str, Any]:
    """A run's result.json.

    Raises:
        RunError: it is missing, damaged, or of an older Assay.
    """
    result = _read(folder)
    if result.get("schema", 0) < SCHEMA:
        raise RunError(
            f"{folder.name} was judged by an older Assay; judge it again by assay judge {folder}."
        )
    return result


def _read(folder: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        raise RunError(
            f"{folder}/result.json is damaged, and with it the record of test scorings; restore it, or train again with --again."
        ) from None
    return result


NAMED = ("kind", "step", "epoch", "time", "val_s")
"""Fields of a val line that are no measure."""


Line = Mapping[str, Any]


def read_metrics(path: Path) -> dict[str, list[Line]]:
    """Lines of metrics.jsonl by kind, in order; a resumed run's repeated lines count once."""
    lines: dict[tuple[str, int], Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        line = json.loads(text)
        lines[line["kind"], line["step"]] = line
    kinds: dict[str, list[Line]] = {"step": [], "val": [], "epoch": []}
    for (kind, _), line in sorted(lines.items()):
        kinds.setdefault(kind, []).append(line)
    return kinds
