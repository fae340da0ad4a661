"""Sets that the data give are kept, and contradictions among them refused."""

import numpy as np
import pytest

from assay.data.near.copies import NearPair
from assay.data.split import draw_split
from assay.data.split_config import SplitConfig


def test_given_train_and_val_are_kept_and_only_test_is_drawn(
    assert_valid, given_parts, manifest_of
):
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    manifest, config = manifest_of(rows), SplitConfig(test=0.25)
    split = draw_split(manifest, config)
    assert_valid(manifest, split, config)
    # @
    val = np.array([row["split"] == "val" for row in rows])
    np.testing.assert_array_equal(np.array(split.sets) == "val", val)
    assert split.tests == ["test"]
    assert abs(len(split.rows("test")) / (~val).sum() - 0.25) < 0.05


def test_a_whole_given_split_is_kept(given_parts, manifest_of):
    rows = given_parts(lambda part: ("train", "train", "val", "test")[part])
    split = draw_split(manifest_of(rows), SplitConfig())
    assert split.sets == [row["split"] for row in rows]


def test_rows_without_a_set_join_that_of_their_group_or_file(
    assert_valid, given_parts, manifest_of
):
    rows = given_parts(lambda part: "val" if part == 0 else None)
    rows[0]["split"] = None  # a view of a part in val
    rows[2]["content"] = rows[8]["content"] = "twin"  # in val, and in no set yet
    rows[2] = rows[2] | {"group": "m1/Clip/0", "split": "val"}
    manifest = manifest_of(rows)
    split = draw_split(manifest, SplitConfig())
    assert_valid(manifest, split, SplitConfig())
    assert split.sets[0] == split.sets[1] == split.sets[2] == split.sets[8] == "val"


@pytest.mark.parametrize("duplicates", ["refuse", "drop"])
def test_a_group_on_both_sides_is_refused(given_parts, manifest_of, refusal, duplicates):
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    rows[1]["split"] = "train"
    text = refusal(manifest_of(rows), SplitConfig(duplicates=duplicates))
    assert "1 group(s)" in text
    assert "'m1/Clip/0' in train and val" in text


def test_a_part_spelled_in_two_ways_on_both_sides_is_refused(given_parts, manifest_of, refusal):
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    rows[1] |= {"group": "m1/clip/0 ", "split": "train"}
    text = refusal(manifest_of(rows), SplitConfig())
    assert "another spelling" in text
    assert "'m1/Clip/0'" in text
    assert "train and to val" in text


def test_a_file_on_both_sides_is_refused_or_the_earlier_copy_dropped(
    assert_valid, given_parts, manifest_of, refusal
):
    rows = given_parts(lambda part: ("train", "train", "val", "test")[part])
    for copy in (2, 5, 6):  # train, val, test
        rows[copy]["content"] = "twin"
    rows[12]["content"] = rows[14]["content"] = "other twin"  # val, test
    manifest = manifest_of(rows)
    text = refusal(manifest, SplitConfig())
    assert "2 file content(s)" in text
    assert "'other twin' in test and val" in text
    assert "--split.duplicates drop" in text
    split = draw_split(manifest, SplitConfig(duplicates="drop"))
    assert_valid(manifest, split, SplitConfig())
    dropped = [i for i, name in enumerate(split.sets) if name == "dropped"]
    assert dropped == [2, 5, 12]
    assert split.report["dropped"] == 3
    assert [s for i, s in enumerate(split.sets) if i not in dropped] == [
        row["split"] for i, row in enumerate(rows) if i not in dropped
    ]


def test_copies_in_two_test_sets_count_once(given_parts, manifest_of):
    rows = given_parts(lambda part: ("train", "val", "test_seen", "test_unseen")[part])
    rows[4]["content"] = rows[6]["content"] = "twin"
    split = draw_split(manifest_of(rows), SplitConfig(duplicates="drop"))
    assert split.sets[4:8] == ["dropped", "test_seen", "test_unseen", "test_unseen"]


def test_a_chain_of_copies_between_given_sets_is_refused(given_parts, manifest_of, refusal):
    rows = given_parts(lambda part: (None, None, "val", "train")[part])
    rows[0]["content"] = rows[4]["content"] = "a"  # no set - val
    rows[1]["content"] = rows[6]["content"] = "b"  # the same group - train
    text = refusal(manifest_of(rows), SplitConfig())
    assert "train and to val" in text


def test_a_split_without_train_is_refused(given_parts, manifest_of, refusal):
    rows = given_parts(lambda part: "val" if part == 0 else "test")
    assert "has no image in train" in refusal(manifest_of(rows), SplitConfig())


def test_a_given_test_stays_as_it_is_and_its_near_copies_leave_train(manifest_of):
    rows = [
        {"label": label, "split": name, "content": f"{name}{label}{i}"}
        for name in ("train", "test")
        for label in "ab"
        for i in range(12)
    ]
    pairs = [
        NearPair("testa0", "traina0", 0.9),
        NearPair("traina0", "traina1", 0.9),
        NearPair("testb3", "trainb7", 0.9),
        NearPair("trainb1", "trainb2", 0.9),
    ]
    manifest = manifest_of(rows)
    plain = draw_split(manifest, SplitConfig(), pairs)
    assert plain.sets == draw_split(manifest, SplitConfig()).sets
    split = draw_split(manifest, SplitConfig(near_duplicates="group"), pairs)
    contents = np.array(manifest.column("content"))
    assert set(contents[split.rows("dropped")]) == {"traina0", "traina1", "trainb7"}
    assert split.report["near_dropped"] == 3
    assert split.report["groups_joined_by_near_duplicates"] == 1
    np.testing.assert_array_equal(split.rows("test"), plain.rows("test"))
