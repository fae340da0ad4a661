"""Whatever is split leaks nothing, at any seed, rule and order; the split itself."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.manifest import SPLITS
from assay.data.near.copies import NearPair
from assay.data.split import Split, draw_split
from assay.data.split_config import RULES, SplitConfig
from assay.errors import SplitError

MACHINES = ("m1", "m2", "m3")
asked = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "val": st.sampled_from([0.1, 0.2, 0.3]),
        "test": st.sampled_from([0.1, 0.2, 0.4]),
        "num_unseen": st.integers(1, 3),
    }
)
by_rule = st.sampled_from(
    [("training-domain", ""), *((rule, "design") for rule in RULES)],
).map(lambda drawn: {"rule": drawn[0], "unseen_domain": drawn[1]})


@st.composite
def many_parts(draw, parts):
    """Draw enough parts for every set, in any order, a few files of which occur twice."""
    rows = parts(num=draw(st.integers(3, 5)), num_views=draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(0, 3))):
        copy, twin = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(rows) - 1))
        if rows[copy]["domain.design"] == rows[twin]["domain.design"]:
            rows[copy]["content"] = rows[twin]["content"]
    return draw(st.permutations(rows))


@settings(max_examples=50)
@given(st.data(), asked, by_rule)
def test_a_drawn_split_leaks_nothing(
    assert_valid, designs_of, manifest_of, parts, data, values, rule
):
    rows = data.draw(many_parts(parts))
    manifest, config = manifest_of(rows), SplitConfig(**values, **rule)
    split = draw_split(manifest, config)
    assert_valid(manifest, split, config)
    # @
    tests = ["test_seen", "test_unseen"] if config.unseen_domain else ["test"]
    assert split.tests == tests
    assert {*split.sets} == {"train", "val", *tests}
    # @
    if config.unseen_domain:
        unseen = designs_of(rows, split, "test_unseen")
        if config.rule == "oracle":
            unseen |= designs_of(rows, split, "val")
        assert len(unseen) == config.num_unseen


@st.composite
def anything(draw):
    """Draw groups of any class, design and given set, and tie a few rows to another group."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    given_sets = draw(st.sampled_from([[None], [None, "train"], [None] * 8 + [*SPLITS]]))
    groups = [
        {
            "group": f"{i}",
            "label": str(rng.choice(["a", "b"])),
            "split": given_sets[rng.integers(len(given_sets))],
            "domain.design": str(rng.choice(["x", "y", "z"])),
        }
        for i in range(draw(st.integers(8, 60)))
    ]
    rows = [dict(group) for group in groups for _ in range(rng.integers(1, 3))]
    for i, row in enumerate(rows):
        row["content"] = f"{i}"
    for column in draw(st.lists(st.sampled_from(["group", "content", "split"]), max_size=3)):
        copy, twin = rng.integers(len(rows), size=2)
        rows[copy][column] = rows[twin][column]
    return rows


@settings(max_examples=400)
@given(
    anything(),
    st.sampled_from(["refuse", "drop"]),
    by_rule,
    st.sampled_from([(0.2, 0.2), (0.2, 0.0), (0.0, 0.0)]),
)
def test_whatever_is_given_is_split_without_a_leak_or_refused(
    assert_valid, manifest_of, rows, duplicates, rule, shares
):
    if rule["rule"] != "training-domain":
        rows = [row | {"split": None} if row["split"] == "val" else row for row in rows]
    manifest = manifest_of(rows)
    config = SplitConfig(duplicates=duplicates, num_unseen=1, val=shares[0], test=shares[1], **rule)
    try:
        split = draw_split(manifest, config)
    except SplitError:
        return
    assert_valid(manifest, split, config)
    # @
    # @
    allowed = {"dropped", "test_unseen"} if config.unseen_domain else {"dropped"}
    for row, name in zip(rows, split.sets, strict=True):
        is_allowed = name == row["split"] or name in allowed or row["split"] is None
        # the oracle draws val from whatever is held out
        is_allowed |= config.rule == "oracle" and name == "val"
        # of what is given as train, missing sets are drawn
        assert is_allowed or (row["split"] == "train" and name in ("val", "test", "test_seen"))
    assert split.report["dropped"] == split.sets.count("dropped")
    if duplicates == "refuse":
        assert "dropped" not in split.sets


@settings(max_examples=50)
@given(st.data(), asked, by_rule, st.integers(0, 1000))
def test_the_draw_depends_on_seed_and_names_not_on_the_order_of_rows(
    manifest_of, parts, data, values, rule, order
):
    rows = data.draw(many_parts(parts))
    config = SplitConfig(**values, **rule)
    turned = [rows[i] for i in np.random.default_rng(order).permutation(len(rows))]
    split, other = (draw_split(manifest_of(r), config) for r in (rows, turned))
    of_row = {row["id"]: name for row, name in zip(rows, split.sets, strict=True)}
    assert of_row == {row["id"]: name for row, name in zip(turned, other.sets, strict=True)}
    assert split.report == other.report
    assert draw_split(manifest_of(rows), config).sets == split.sets


def test_rows_and_table_say_the_same(manifest_of, parts):
    manifest = manifest_of(parts())
    split = draw_split(manifest, SplitConfig(unseen_domain="design"))
    table = split.table(manifest)
    assert table["split"].to_pylist() == split.sets
    assert table.drop_columns("split") == manifest.table.drop_columns("split")
    assert all(split.sets[row] == "val" for row in split.rows("val"))
    assert (np.diff(split.rows("train")) > 0).all()


def test_a_set_without_rows_is_no_test():
    assert Split(["train", "val"], {}).tests == []
    assert len(Split(["train", "val"], {}).rows("test")) == 0


@given(st.integers(0, 20), st.integers(1, 3))
def test_parts_under_every_light_are_on_one_side_and_the_held_out_light_in_test_alone(
    manifest_of, sets_by, seed, num
):
    lights = ("l1", "l2", "l3", "l4")
    groups = [f"{machine}/{part}" for machine in MACHINES for part in range(8)]
    rows = [
        {"label": group[:2], "group": group, "domain.design": light, "content": f"{group}/{light}"}
        for group in groups
        for light in lights
    ]
    manifest, unseen = manifest_of(rows), lights[:num]
    config = SplitConfig(unseen_domain="design", unseen=unseen, crossing="drop", seed=seed)
    split = draw_split(manifest, config)
    by_group = sets_by(manifest, split, "group")
    assert all(len({name.split("_")[0] for name in names}) == 1 for names in by_group.values())
    for value, names in sets_by(manifest, split, "domain.design").items():
        assert names == ({"test_unseen"} if value in unseen else {"train", "val", "test_seen"})
    tested = [g for g, names in by_group.items() if "test_unseen" in names]
    assert split.sets.count("test_unseen") == len(tested) * num
    assert split.report["left_out"] == split.sets.count("dropped") == (24 - len(tested)) * num


def linked(rows, rng, num):
    """Draw pairs among the contents of rows."""
    contents = sorted({row["content"] for row in rows})
    drawn = [sorted(rng.choice(contents, 2, replace=False)) for _ in range(num)]
    return [NearPair(str(i), str(j), 0.9) for i, j in drawn]


@settings(max_examples=200)
@given(anything(), by_rule, st.integers(0, 6), st.integers(0, 1000))
def test_grouped_near_duplicates_stand_in_one_set(
    assert_valid, manifest_of, sets_by, rows, rule, num, seed
):
    if rule["rule"] != "training-domain":
        rows = [row | {"split": None} if row["split"] == "val" else row for row in rows]
    manifest, pairs = manifest_of(rows), linked(rows, np.random.default_rng(seed), num)
    config = SplitConfig(duplicates="drop", num_unseen=1, near_duplicates="group", **rule)
    try:
        split = draw_split(manifest, config, pairs)
    except SplitError:
        return
    assert_valid(manifest, split, config)
    sets_of = sets_by(manifest, split, "content")
    for pair in pairs:
        assert len(sets_of[pair.first] | sets_of[pair.second]) <= 1
    assert split.report["dropped"] + split.report["near_dropped"] == split.sets.count("dropped")
    regrouped = split.regroup(manifest)
    assert_valid(regrouped, split, config)
    # whatever stands in a set is one group with its copies, and groups are only ever joined
    kept = [i for i, name in enumerate(split.sets) if name != "dropped"]
    contents, before, after = (
        np.array(table.column(name))[kept]
        for table, name in ((manifest, "content"), (manifest, "group"), (regrouped, "group"))
    )
    for values in (contents, before):
        assert len(set(zip(values, after, strict=True))) == len(set(values))
    for pair in pairs:
        assert len(set(after[np.isin(contents, [pair.first, pair.second])])) <= 1
    assert draw_split(manifest, replace(config, near_duplicates="report")).groups is None


@settings(max_examples=150)
@given(
    anything(),
    by_rule,
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 1000),
)
def test_a_share_of_train_lies_inside_a_larger_one(manifest_of, rows, rule, share, other, seed):
    if rule["rule"] != "training-domain":
        rows = [row | {"split": None} if row["split"] == "val" else row for row in rows]
    manifest = manifest_of(rows)
    values = {"duplicates": "drop", "num_unseen": 1, "seed": seed, **rule}
    try:
        whole = draw_split(manifest, SplitConfig(**values))
    except SplitError:
        return
    low, high = sorted([share, other])
    few, many = (
        draw_split(manifest, SplitConfig(train_share=share, **values)) for share in (low, high)
    )
    assert set(few.rows("train")) <= set(many.rows("train")) <= set(whole.rows("train"))
    groups, labels = np.array(manifest.column("group")), np.array(manifest.column("label"))
    for split in (few, many):
        for before, now in zip(whole.sets, split.sets, strict=True):
            assert now == before or (before == "train" and now == "dropped")
        left_out = set(split.rows("dropped")) - set(whole.rows("dropped"))
        assert split.report.get("left_out_of_train", 0) == len(left_out)
        assert not set(groups[split.rows("train")]) & set(groups[sorted(left_out)])
        assert set(labels[split.rows("train")]) == set(labels[whole.rows("train")])
