"""The lines of metrics.jsonl: what was measured at updates, epochs and looks at val."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.errors import RunError
from assay.files import reading

NAMED = ("kind", "step", "epoch", "time", "val_s")
"""Fields of a val line that are no measure."""

Line = Mapping[str, Any]


_MEASURED = ("step", "val", "epoch")
"""Kinds of lines whose values are all numbers, but for the kind itself."""


def _is_number(value: Any) -> bool:
    return value in (None, *_MEASURED) or type(value) in (int, float)


def read_metrics(path: Path) -> dict[str, list[Line]]:
    """Read the lines of metrics.jsonl by kind, in order; a resumed run's repeated lines count once.

    A last line that a killed process left half written is passed over.

    Raises:
        RunError: any other line is damaged; names it.
    """
    lines: dict[tuple[str, int], Line] = {}
    with reading(path):
        texts = path.read_bytes().splitlines() if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            with reading(f"Line {number} of {path}", remedy="take it out, or train the run again"):
                line = json.loads(text)
                lines[str(line["kind"]), int(line["step"])] = line
                if line["kind"] in _MEASURED and not all(map(_is_number, line.values())):
                    raise ValueError("a measure is no number")
        except RunError:
            if number < len(texts):
                raise
    kinds: dict[str, list[Line]] = {"step": [], "val": [], "epoch": []}
    for (kind, _), line in sorted(lines.items()):
        kinds.setdefault(kind, []).append(line)
    return kinds
