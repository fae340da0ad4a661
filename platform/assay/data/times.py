"""When frames were taken: from the names of their files, or from a column."""

import itertools
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from assay.data.dataset import Dataset
from assay.data.manifest import Manifest
from assay.errors import ManifestError
from assay.shapes import Float32, Float64

STEM = "stem"
"""Says that a file is named by its time, as 1660000000.5.png."""

FROM_STEM = "time"
"""Column that the names of files are kept in."""

FAR_S = 1e11
"""Seconds from 1970 to the year 5138: a time from there on is of another unit, as milliseconds are since 1973."""

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")


def add_times(manifest: Manifest, source: str) -> Manifest:
    """Return a manifest whose column `time_column(source)` holds the time of each frame.

    Args:
        manifest: frames, of which a group is one print.
        source: `STEM`, or a column that `data.keep` names.

    Raises:
        ManifestError: there is no such column, a time is no number of seconds or seems one of milliseconds, two frames of a print have
            one time, or the times of a print run against the numbers in its frames' names.
    """
    if source == STEM:
        stems = [Path(image).stem for image in manifest.column("image")]
        table = manifest.table
        manifest = Manifest(table.append_column(f"column.{FROM_STEM}", pa.array(stems)))
    elif source not in manifest.columns:
        raise ManifestError(
            f"The times are to stand in {source!r}, and the columns kept are {', '.join(manifest.columns) or 'none'}; "
            f"name it in --data.keep, or say {STEM} where files are named by their time."
        )
    ids, groups = manifest.column("id"), manifest.column("group")
    times = _read(manifest.column(f"column.{time_column(source)}"), ids)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    for group, rows in rows_of.items():
        _refuse_equal(group, [(float(times[row]), ids[row]) for row in rows])
        if source != STEM:
            _refuse_backwards(group, [(ids[row], float(times[row])) for row in rows])
    return manifest


def time_column(source: str) -> str:
    """Name the column that times of this source stand in."""
    return FROM_STEM if source == STEM else source


def seconds_since_start(dataset: Dataset, column: str) -> Float32[np.ndarray, " rows"]:
    """Return the seconds from the first frame of each row's group to the row."""
    kept = dataset.columns[column]
    times = np.array([float(value) for value in kept.values])[kept.codes]
    starts = np.full(len(dataset.group.values), np.inf)
    np.minimum.at(starts, dataset.group.codes, times)
    since: np.ndarray = (times - starts[dataset.group.codes]).astype(np.float32)
    return since


def _read(texts: list[str], ids: list[str]) -> Float64[np.ndarray, " rows"]:
    times = np.zeros(len(texts))
    for row, text in enumerate(texts):
        if not re.fullmatch(r"\d+(\.\d*)?", text):
            raise ManifestError(
                f"The time of {ids[row]!r} is {text!r}; give seconds, such as the Unix time 1660000000.5, or leave out where times stand."
            )
        times[row] = float(text)
        if times[row] >= FAR_S:
            raise ManifestError(
                f"The time of {ids[row]!r} is {text}, in seconds a year after 5000; give seconds, to which milliseconds are divided by 1000."
            )
    return times


def _refuse_equal(group: str, frames: list[tuple[float, str]]) -> None:
    frames.sort()
    for (time, first), (other_time, second) in itertools.pairwise(frames):
        if time == other_time:
            raise ManifestError(
                f"The frames {first!r} and {second!r} of the print {group!r} have one time, {time:.10g} s, so which came first is not known; "
                "give times in fractions of a second, or leave one of them out."
            )


def _refuse_backwards(group: str, frames: list[tuple[str, float]]) -> None:
    """Compare times with the numbers of frames, where the names of all differ in one number alone."""
    matches = [_NUMBERED.fullmatch(Path(name).stem) for name, _ in frames]
    if any(match is None for match in matches) or len({(m[1], m[3]) for m in matches if m}) > 1:
        return
    numbered = sorted(
        (int(m[2]), time, name) for m, (name, time) in zip(matches, frames, strict=True) if m
    )
    for (_, time, first), (_, other_time, second) in itertools.pairwise(numbered):
        if other_time < time:
            raise ManifestError(
                f"The times of the print {group!r} run backwards: {first!r} is of {time:.10g} s and {second!r}, the next by its number, of {other_time:.10g} s; "
                "correct the times, or rename the frames."
            )
