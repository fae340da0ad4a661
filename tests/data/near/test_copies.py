import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.near.copies import (
    Leak,
    NearDuplicate,
    NearPair,
    clusters,
    leaks,
    near_duplicates,
)

PAIRS = [NearPair("a", "b", 0.9), NearPair("a", "d", 0.95), NearPair("c", "d", 0.88)]


def test_a_chain_of_pairs_is_one_cluster_and_pairs_of_other_data_do_not_count():
    assert clusters(["d", "e", "b", "c", "e"], [*PAIRS, NearPair("e", "x", 1.0)]) == [
        "c",
        "e",
        "b",
        "c",
        "e",
    ]
    assert clusters(["d", "a", "b", "c"], PAIRS) == ["a"] * 4


def test_the_nearest_row_of_train_is_named():
    contents = ["a", "c", "d", "b", "d", "a"]
    sets = ["train", "train", "test", "val", "dropped", "test"]
    assert near_duplicates(PAIRS, contents, sets) == [
        NearDuplicate(1.0, 5, "test", 0),
        NearDuplicate(0.95, 2, "test", 0),
        NearDuplicate(0.9, 3, "val", 0),
    ]
    assert near_duplicates(PAIRS, contents, sets, "val") == [NearDuplicate(0.9, 5, "test", 3)]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["train", "test", "val"]))),
    st.sets(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=8),
)
def test_rows_are_copies_where_a_search_of_all_rows_says_so(rows, links):
    pairs = [NearPair(i, j, 0.9) for i, j in links if i < j]
    contents, sets = [content for content, _ in rows], [name for _, name in rows]
    near = {(pair.first, pair.second) for pair in pairs}
    expected = {
        row
        for row, (content, name) in enumerate(rows)
        if name != "train"
        and any(
            other == "train"
            and (content == twin or (content, twin) in near or (twin, content) in near)
            for twin, other in rows
        )
    }
    assert {copy.row for copy in near_duplicates(pairs, contents, sets)} == expected


def test_leaks_are_counted_by_set_and_class():
    sets = ["train", "test", "test", "test", "val", "dropped"]
    labels = ["x", "x", "y", "y", "x", "y"]
    copies = [NearDuplicate(0.9, 2, "test", 0), NearDuplicate(0.9, 1, "test", 0)]
    counted = leaks(copies, sets, labels)
    assert counted == {
        "val": Leak(num=1, near=0, classes={"x": (1, 0)}),
        "test": Leak(num=3, near=2, classes={"x": (1, 1), "y": (2, 1)}),
    }
    assert counted["test"].share == pytest.approx(2 / 3)
