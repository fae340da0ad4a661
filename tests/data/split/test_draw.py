"""What is drawn: its shares, its classes, and what stays together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.split import draw_split
from assay.data.split_config import SplitConfig


def test_seeds_draw_differently(manifest_of, parts):
    manifest = manifest_of(parts())
    drawn = [draw_split(manifest, SplitConfig(seed=seed)).sets for seed in range(20)]
    assert len(set(map(tuple, drawn))) == 20


@settings(max_examples=60)
@given(st.integers(3, 60), st.integers(3, 60), st.floats(0.02, 0.45), st.floats(0.02, 0.45))
def test_shares_are_near_the_asked(manifest_of, num_a, num_b, val, test):
    rows = [
        {"label": c, "group": f"{c}{i}"} for c, n in (("a", num_a), ("b", num_b)) for i in range(n)
    ]
    manifest = manifest_of(rows)
    split = draw_split(manifest, SplitConfig(val=val, test=test))
    labels = np.array(manifest.column("label"))
    for label, num in (("a", num_a), ("b", num_b)):
        for name, share in (("val", val), ("test", test)):
            drawn = int((labels[split.rows(name)] == label).sum())
            assert abs(drawn - share * num) <= 1
            assert drawn >= 1
        assert (labels[split.rows("train")] == label).any()


def test_shares_count_groups_not_images(manifest_of):
    rows = [{"label": c, "group": f"{c}{i}"} for c in "ab" for i in range(20) for _ in range(1 + i)]
    manifest = manifest_of(rows)
    split = draw_split(manifest, SplitConfig(val=0.25, test=0.25))
    groups = np.array(manifest.column("group"))
    sizes = {name: len(set(groups[split.rows(name)])) for name in ("train", "val", "test")}
    assert sizes == {"train": 20, "val": 10, "test": 10}


def test_groups_that_share_a_file_move_together(manifest_of, parts):
    rows = parts()
    for first, second in ((0, 2), (2, 4)):
        rows[first]["content"] = rows[second]["content"] = "twin"
    for seed in range(10):
        split = draw_split(manifest_of(rows), SplitConfig(seed=seed))
        assert len({split.sets[i] for i in range(6)}) == 1
        assert split.report["groups"] == 54
        assert split.report["groups_joined_by_content"] == 2


@pytest.mark.parametrize(
    "change", [str.upper, lambda s: f" {s}  ", lambda s: s.replace("é", "e\u0301")]
)
def test_one_part_spelled_in_two_ways_stays_together(manifest_of, parts, change):
    rows = parts(num=6, designs=("Clé", "King"))
    for row in rows[::2]:
        row["group"] = change(row["group"])
    split = draw_split(manifest_of(rows), SplitConfig())
    assert split.sets[::2] == split.sets[1::2]
    respelled = len({row["group"] for row in rows}) - 36
    assert respelled > 0
    assert split.report["groups_joined_by_name"] == respelled
    assert split.report["groups_joined_by_content"] == 0


def test_other_parts_are_not_taken_for_one(manifest_of, parts):
    rows = parts(num=6, num_views=1, designs=("a b", "ab", "a-b", "a_b"))
    split = draw_split(manifest_of(rows), SplitConfig())
    assert split.report["groups_joined_by_name"] == 0


def test_no_share_draws_no_set(manifest_of, parts):
    split = draw_split(manifest_of(parts()), SplitConfig(val=0.0, test=0.3))
    assert set(split.sets) == {"train", "test"}


def test_fewer_groups_than_sets_are_refused_with_numbers(manifest_of, refusal):
    two = [{"label": c, "group": c} for c in "ab" for _ in range(9)]
    assert "2 groups are too few to draw test" in refusal(manifest_of(two), SplitConfig())
    many = [{"label": "a", "group": f"a{i}"} for i in range(9)]
    text = refusal(manifest_of([*many, *two[9:]]), SplitConfig())
    assert "class 'b' has no image" in text
    assert "1 group(s) in all" in text


def test_three_groups_of_a_class_are_enough_for_any_shares(assert_valid, manifest_of):
    rows = [{"label": c, "group": f"{c}{i}"} for c in "ab" for i in range(3)]
    for val, test in ((0.01, 0.98), (0.98, 0.01), (0.01, 0.01)):
        manifest, config = manifest_of(rows), SplitConfig(val=val, test=test)
        assert_valid(manifest, split := draw_split(manifest, config), config)
        assert {*split.sets} == {"train", "val", "test"}


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.25, 0.5, 1.0])
def test_a_share_is_of_the_groups_of_each_class(manifest_of, share):
    rows = [
        {"label": label, "group": f"{label}{i}"}
        for label, num in (("a", 200), ("b", 50))
        for i in range(num)
        for _ in range(1 + i % 3)
    ]
    manifest = manifest_of(rows)
    whole = draw_split(manifest, SplitConfig())
    split = draw_split(manifest, SplitConfig(train_share=share))
    for label in "ab":
        num, of = (
            len({g for g in np.array(manifest.column("group"))[s.rows("train")] if g[0] == label})
            for s in (split, whole)
        )
        assert num == max(1, round(share * of))
