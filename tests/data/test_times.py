"""Times of frames: from names and columns, and what cannot be."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.manifest import Manifest
from assay.data.times import add_times, seconds_since_start
from assay.errors import ManifestError


def manifest_of(names: list[str], groups: list[str], **kept: list[str]) -> Manifest:
    columns = {"id": names, "image": [f"/x/{name}" for name in names], "group": groups}
    columns |= {"label": ["a"] * len(names)} | {f"column.{k}": v for k, v in kept.items()}
    return Manifest(pa.table(columns))


def seconds_of(manifest: Manifest, column: str = "time") -> list[float]:
    dataset = Dataset.of(manifest, Pixels(Store(""), []))
    return seconds_since_start(dataset, column).tolist()


def test_a_file_is_named_by_its_time():
    names = ["021/1/1660000000.0.png", "021/1/1660000000.5.png", "022/2/1660000061.25.jpg"]
    manifest = add_times(manifest_of(names, ["1", "1", "2"]), "stem")
    assert manifest.column("column.time") == ["1660000000.0", "1660000000.5", "1660000061.25"]
    assert seconds_of(manifest) == [0.0, 0.5, 0.0]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True), st.integers(1, 4))
def test_seconds_are_since_the_first_frame_of_the_print(quarters, num_prints):
    """Unix times keep quarters of a second, which float32 would lose before the start is taken off."""
    start = 1_660_000_000
    times = [f"{start + quarter / 4:.2f}" for quarter in quarters]
    groups = [str(i % num_prints) for i in range(len(times))]
    names = [f"{time}.png" for time in times]
    seconds = seconds_of(add_times(manifest_of(names, groups), "stem"))
    for group in set(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        first = min(quarters[i] for i in members)
        expected = [(quarters[i] - first) / 4 for i in members]
        np.testing.assert_array_equal([seconds[i] for i in members], np.float32(expected))


def test_a_column_that_is_kept_holds_times():
    manifest = manifest_of(["a.png", "b.png"], ["1", "1"], at=["12", "10.5"])
    assert add_times(manifest, "at") is manifest
    assert seconds_of(manifest, "at") == [1.5, 0.0]


@pytest.mark.parametrize(
    ("manifest", "source", "sentence"),
    [
        (
            manifest_of(["a.png"], ["1"], at=["12"]),
            "when",
            "The times are to stand in 'when', and the columns kept are at; name it in --data.keep, or say stem",
        ),
        (manifest_of(["a.png"], ["1"]), "when", "the columns kept are none"),
        (
            manifest_of(["x/frame.png"], ["1"]),
            "stem",
            "The time of 'x/frame.png' is 'frame'; give seconds, such as the Unix time",
        ),
        (
            manifest_of(["x/1660000000500.png"], ["1"]),
            "stem",
            "The time of 'x/1660000000500.png' is 1660000000500, in seconds a year after 5000; give seconds, to which milliseconds are divided",
        ),
        (
            manifest_of(["a.png", "b.png"], ["7", "7"], at=["3.0", "3"]),
            "at",
            "The frames 'a.png' and 'b.png' of the print '7' have one time, 3 s, so which came first is not known",
        ),
        (
            manifest_of(["f_9.png", "f_10.png"], ["7", "7"], at=["12.0", "11.5"]),
            "at",
            "The times of the print '7' run backwards: 'f_9.png' is of 12 s and 'f_10.png', the next by its number, of 11.5 s",
        ),
    ],
)
def test_times_that_cannot_be_are_refused_in_a_sentence(manifest, source, sentence):
    with pytest.raises(ManifestError, match=re.escape(sentence)):
        add_times(manifest, source)


def test_names_that_are_no_numbers_of_frames_say_nothing_of_the_order():
    add_times(manifest_of(["a1.png", "b0.png"], ["7", "7"], at=["3", "2"]), "at")
    add_times(manifest_of(["f_2.png", "f_1.png"], ["7", "8"], at=["3", "2"]), "at")
    # .25 comes before .5, though 25 is more than 5
    add_times(manifest_of(["10.25.png", "10.5.png"], ["7", "7"]), "stem")
