from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import from_dict
from assay.data.manifest import SPLITS, Manifest
from assay.data.near.copies import NearPair
from assay.data.split import Split, draw_split
from assay.data.split_config import RULES, SplitConfig
from assay.errors import ConfigError, SplitError

MACHINES = ("m1", "m2", "m3")
DESIGNS = ("Clip", "King", "Oring", "Plug", "Switch", "Target")
BY_DESIGN = SplitConfig(unseen_domain="design", num_unseen=2)
ALL_RULES = [*RULES]
LEFT_OUT, ORACLE = "leave-one-domain-out", "oracle"


def manifest_of(rows):
    """Make a manifest of dicts; what a row leaves out is its own group, its own file, of no set."""
    defaults = [
        {"id": f"{i}", "group": f"{i}", "content": f"{i}", "split": None, "domain.design": "x"}
        | row
        for i, row in enumerate(rows)
    ]
    names = ("id", "label", "group", "split", "domain.design", "content")
    columns = {name: [row[name] for row in defaults] for name in names}
    columns["image"] = [f"/anywhere/{row['id']}" for row in defaults]
    return Manifest(pa.table(columns | {"split": pa.array(columns["split"], pa.string())}))


def parts(num=3, num_views=2, machines=MACHINES, designs=DESIGNS):
    """List parts as the seed has them: machine x design x part, several views each."""
    return [
        {
            "label": machine,
            "domain.design": design,
            "group": f"{machine}/{design}/{part}",
            "id": f"{machine}/{design}/{part}_{view}",
            "content": f"{machine}/{design}/{part}_{view}",
        }
        for machine in machines
        for design in designs
        for part in range(num)
        for view in range(num_views)
    ]


def sets_by(manifest, split, column):
    names_of = defaultdict(set)
    for key, name in zip(manifest.column(column), split.sets, strict=True):
        if name != "dropped":
            names_of[key].add(name)
    return names_of


def assert_no_leak(manifest, split):
    """Check what a split must be, whatever it was drawn from."""
    assert len(split.sets) == len(manifest)
    assert set(split.sets) <= {*SPLITS, "dropped"}
    for column in ("group", "content"):
        crossing = {k: v for k, v in sets_by(manifest, split, column).items() if len(v) > 1}
        assert not crossing
    rows = np.concatenate([split.rows(name) for name in (*SPLITS, "dropped")])
    assert sorted(rows.tolist()) == list(range(len(manifest)))


def assert_rule(manifest, split, config):
    """Check which sets a value of the held-out domain is in."""
    together = {
        "training-domain": [{"test_unseen"}, {"train", "val", "test", "test_seen"}],
        LEFT_OUT: [{"test_unseen"}, {"val"}, {"train", "test", "test_seen"}],
        ORACLE: [{"test_unseen", "val"}, {"train", "test", "test_seen"}],
    }[config.rule]
    for names in sets_by(manifest, split, "domain.design").values() if config.unseen_domain else ():
        assert any(names <= side for side in together)
    if config.rule == LEFT_OUT:
        assert len({manifest.column("domain.design")[i] for i in split.rows("val")}) == 1
    if config.rule == ORACLE:
        groups = np.array(manifest.column("group"))
        for name in ("test_unseen", "val"):
            assert set(groups[split.rows(name)])


def assert_every_class(manifest, split):
    labels = np.array(manifest.column("label"))
    for name in {*split.sets} - {"dropped", "test_unseen"}:
        assert set(labels[split.rows(name)]) == set(manifest.classes)


def refusal(manifest, config):
    with pytest.raises(SplitError) as caught:
        draw_split(manifest, config)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Drawing

asked = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "val": st.sampled_from([0.1, 0.2, 0.3]),
        "test": st.sampled_from([0.1, 0.2, 0.4]),
        "num_unseen": st.integers(1, 3),
    }
)
by_rule = st.sampled_from(
    [("training-domain", ""), *((rule, "design") for rule in ALL_RULES)],
).map(lambda drawn: {"rule": drawn[0], "unseen_domain": drawn[1]})


@st.composite
def many_parts(draw):
    """Draw enough parts for every set, in any order, a few files of which occur twice."""
    rows = parts(num=draw(st.integers(3, 5)), num_views=draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(0, 3))):
        copy, twin = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(rows) - 1))
        if rows[copy]["domain.design"] == rows[twin]["domain.design"]:
            rows[copy]["content"] = rows[twin]["content"]
    return draw(st.permutations(rows))


@settings(max_examples=50)
@given(many_parts(), asked, by_rule)
def test_a_drawn_split_leaks_nothing(rows, values, rule):
    manifest, config = manifest_of(rows), SplitConfig(**values, **rule)
    split = draw_split(manifest, config)
    assert_no_leak(manifest, split)
    assert_every_class(manifest, split)
    tests = ["test_seen", "test_unseen"] if config.unseen_domain else ["test"]
    assert split.tests == tests
    assert {*split.sets} == {"train", "val", *tests}
    assert_rule(manifest, split, config)
    if config.unseen_domain:
        unseen = designs_of(rows, split, "test_unseen")
        if config.rule == ORACLE:
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
def test_whatever_is_given_is_split_without_a_leak_or_refused(rows, duplicates, rule, shares):
    if rule["rule"] != "training-domain":
        rows = [row | {"split": None} if row["split"] == "val" else row for row in rows]
    manifest = manifest_of(rows)
    config = SplitConfig(duplicates=duplicates, num_unseen=1, val=shares[0], test=shares[1], **rule)
    try:
        split = draw_split(manifest, config)
    except SplitError:
        return
    assert_no_leak(manifest, split)
    assert_every_class(manifest, split)
    assert_rule(manifest, split, config)
    allowed = {"dropped", "test_unseen"} if config.unseen_domain else {"dropped"}
    for row, name in zip(rows, split.sets, strict=True):
        is_allowed = name == row["split"] or name in allowed or row["split"] is None
        # the oracle draws val from whatever is held out
        is_allowed |= config.rule == ORACLE and name == "val"
        # of what is given as train, missing sets are drawn
        assert is_allowed or (row["split"] == "train" and name in ("val", "test", "test_seen"))
    assert split.report["dropped"] == split.sets.count("dropped")
    if duplicates == "refuse":
        assert "dropped" not in split.sets


@settings(max_examples=50)
@given(many_parts(), asked, by_rule, st.integers(0, 1000))
def test_the_draw_depends_on_seed_and_names_not_on_the_order_of_rows(rows, values, rule, order):
    config = SplitConfig(**values, **rule)
    turned = [rows[i] for i in np.random.default_rng(order).permutation(len(rows))]
    split, other = (draw_split(manifest_of(r), config) for r in (rows, turned))
    of_row = {row["id"]: name for row, name in zip(rows, split.sets, strict=True)}
    assert of_row == {row["id"]: name for row, name in zip(turned, other.sets, strict=True)}
    assert split.report == other.report
    assert draw_split(manifest_of(rows), config).sets == split.sets


def test_seeds_draw_differently():
    manifest = manifest_of(parts())
    drawn = [draw_split(manifest, SplitConfig(seed=seed)).sets for seed in range(20)]
    assert len(set(map(tuple, drawn))) == 20


def test_added_parts_leave_the_held_out_designs_as_they_were():
    few, many = (draw_split(manifest_of(parts(num)), BY_DESIGN) for num in (3, 5))
    designs = [
        {parts(num)[i]["domain.design"] for i in split.rows("test_unseen")}
        for num, split in ((3, few), (5, many))
    ]
    assert designs[0] == designs[1]


@settings(max_examples=60)
@given(st.integers(3, 60), st.integers(3, 60), st.floats(0.02, 0.45), st.floats(0.02, 0.45))
def test_shares_are_near_the_asked(num_a, num_b, val, test):
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


def test_shares_count_groups_not_images():
    rows = [{"label": c, "group": f"{c}{i}"} for c in "ab" for i in range(20) for _ in range(1 + i)]
    manifest = manifest_of(rows)
    split = draw_split(manifest, SplitConfig(val=0.25, test=0.25))
    groups = np.array(manifest.column("group"))
    sizes = {name: len(set(groups[split.rows(name)])) for name in ("train", "val", "test")}
    assert sizes == {"train": 20, "val": 10, "test": 10}


def test_every_known_design_is_tested_at_some_seed():
    # six designs of two parts: a draw at fixed places would take the same two of them each time
    rows = parts(num=2, num_views=1, designs=(*DESIGNS, "Minion"))
    manifest = manifest_of(rows)
    tested = {
        rows[i]["domain.design"]
        for seed in range(10)
        for i in draw_split(
            manifest, SplitConfig(seed=seed, unseen_domain="design", unseen=("Minion",))
        ).rows("test_seen")
    }
    assert tested == set(DESIGNS)


def test_sets_follow_the_proportions_of_the_designs():
    rows = parts(num=10, num_views=1)
    split = draw_split(manifest_of(rows), SplitConfig(unseen_domain="design", unseen=("Plug",)))
    for name in ("val", "test_seen"):
        drawn = np.unique([rows[i]["domain.design"] for i in split.rows(name)], return_counts=True)
        assert len(drawn[0]) == 5
        assert (abs(drawn[1] - 6) <= 3).all()  # 2 of 10 for each of three machines


def test_groups_that_share_a_file_move_together():
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
def test_one_part_spelled_in_two_ways_stays_together(change):
    rows = parts(num=6, designs=("Clé", "King"))
    for row in rows[::2]:
        row["group"] = change(row["group"])
    split = draw_split(manifest_of(rows), SplitConfig())
    assert split.sets[::2] == split.sets[1::2]
    respelled = len({row["group"] for row in rows}) - 36
    assert respelled > 0
    assert split.report["groups_joined_by_name"] == respelled
    assert split.report["groups_joined_by_content"] == 0


def test_other_parts_are_not_taken_for_one():
    rows = parts(num=6, num_views=1, designs=("a b", "ab", "a-b", "a_b"))
    split = draw_split(manifest_of(rows), SplitConfig())
    assert split.report["groups_joined_by_name"] == 0


def test_named_designs_are_held_out():
    manifest = manifest_of(parts())
    config = SplitConfig(unseen_domain="design", unseen=("Plug", "Clip"), num_unseen=1)
    split = draw_split(manifest, config)
    designs = np.array(manifest.column("domain.design"))
    assert set(designs[split.rows("test_unseen")]) == {"Plug", "Clip"}
    assert "Plug" not in designs[split.rows("train")]


def test_no_share_draws_no_set():
    split = draw_split(manifest_of(parts()), SplitConfig(val=0.0, test=0.3))
    assert set(split.sets) == {"train", "test"}


# Given sets


def given_parts(level, **change):
    """List parts as the seed's folders give them: the set of a part is up to `level(part)`."""
    rows = [row | {"split": level(int(row["group"][-1]))} for row in parts(num=4)]
    for i, values in change.get("rows", {}).items():
        rows[i] |= values
    return rows


def test_given_train_and_val_are_kept_and_only_test_is_drawn():
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    manifest = manifest_of(rows)
    split = draw_split(manifest, SplitConfig(test=0.25))
    assert_no_leak(manifest, split)
    assert_every_class(manifest, split)
    val = np.array([row["split"] == "val" for row in rows])
    np.testing.assert_array_equal(np.array(split.sets) == "val", val)
    assert split.tests == ["test"]
    assert abs(len(split.rows("test")) / (~val).sum() - 0.25) < 0.05


def test_held_out_designs_leave_given_sets_and_are_counted():
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    manifest = manifest_of(rows)
    split = draw_split(manifest, BY_DESIGN)
    assert_rule(manifest, split, BY_DESIGN)
    assert split.tests == ["test_seen", "test_unseen"]
    assert split.report["moved_to_unseen"] == len(split.rows("test_unseen")) == 2 * 3 * 4 * 2


def test_a_whole_given_split_is_kept():
    rows = given_parts(lambda part: ("train", "train", "val", "test")[part])
    split = draw_split(manifest_of(rows), SplitConfig())
    assert split.sets == [row["split"] for row in rows]


def test_given_unseen_designs_are_those_held_out():
    rows = given_parts(lambda part: "train")
    rows = [r | ({"split": "test_unseen"} if r["domain.design"] == "King" else {}) for r in rows]
    manifest = manifest_of(rows)
    for seed in range(5):
        split = draw_split(manifest, SplitConfig(seed=seed, unseen_domain="design"))
        assert {rows[i]["domain.design"] for i in split.rows("test_unseen")} == {"King"}
        assert split.report["moved_to_unseen"] == 0
    other = SplitConfig(unseen_domain="design", unseen=("Plug",))
    text = refusal(manifest, other)
    assert "'King'" in text
    assert "Plug" in text


def test_rows_without_a_set_join_that_of_their_group_or_file():
    rows = given_parts(lambda part: "val" if part == 0 else None)
    rows[0]["split"] = None  # a view of a part in val
    rows[2]["content"] = rows[8]["content"] = "twin"  # in val, and in no set yet
    rows[2] = rows[2] | {"group": "m1/Clip/0", "split": "val"}
    manifest = manifest_of(rows)
    split = draw_split(manifest, SplitConfig())
    assert_no_leak(manifest, split)
    assert split.sets[0] == split.sets[1] == split.sets[2] == split.sets[8] == "val"


@pytest.mark.parametrize("duplicates", ["refuse", "drop"])
def test_a_group_on_both_sides_is_refused(duplicates):
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    rows[1]["split"] = "train"
    text = refusal(manifest_of(rows), SplitConfig(duplicates=duplicates))
    assert "1 group(s)" in text
    assert "'m1/Clip/0' in train and val" in text


def test_a_part_spelled_in_two_ways_on_both_sides_is_refused():
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    rows[1] |= {"group": "m1/clip/0 ", "split": "train"}
    text = refusal(manifest_of(rows), SplitConfig())
    assert "another spelling" in text
    assert "'m1/Clip/0'" in text
    assert "train and to val" in text


def test_a_file_on_both_sides_is_refused_or_the_earlier_copy_dropped():
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
    assert_no_leak(manifest, split)
    dropped = [i for i, name in enumerate(split.sets) if name == "dropped"]
    assert dropped == [2, 5, 12]
    assert split.report["dropped"] == 3
    assert [s for i, s in enumerate(split.sets) if i not in dropped] == [
        row["split"] for i, row in enumerate(rows) if i not in dropped
    ]


def test_copies_in_two_test_sets_count_once():
    rows = given_parts(lambda part: ("train", "val", "test_seen", "test_unseen")[part])
    rows[4]["content"] = rows[6]["content"] = "twin"
    split = draw_split(manifest_of(rows), SplitConfig(duplicates="drop"))
    assert split.sets[4:8] == ["dropped", "test_seen", "test_unseen", "test_unseen"]


def test_a_chain_of_copies_between_given_sets_is_refused():
    rows = given_parts(lambda part: (None, None, "val", "train")[part])
    rows[0]["content"] = rows[4]["content"] = "a"  # no set - val
    rows[1]["content"] = rows[6]["content"] = "b"  # the same group - train
    text = refusal(manifest_of(rows), SplitConfig())
    assert "train and to val" in text


# Rules


def by_design(rule, **values):
    return SplitConfig(rule=rule, unseen_domain="design", num_unseen=2, **values)


def designs_of(rows, split, name):
    return {rows[i]["domain.design"] for i in split.rows(name)}


def groups_of(rows, split, name, **having):
    wanted = [rows[i] for i in split.rows(name)]
    return {r["group"] for r in wanted if all(r[k] == v for k, v in having.items())}


def test_every_rule_holds_out_the_same_designs():
    rows = parts(num=5)
    for seed in range(5):
        plain, left_out, oracle = (
            draw_split(manifest_of(rows), by_design(rule, seed=seed)) for rule in ALL_RULES
        )
        unseen = designs_of(rows, plain, "test_unseen")
        assert len(unseen) == 2
        assert designs_of(rows, left_out, "test_unseen") == unseen
        # as many tested groups as the others have, less those that select
        assert groups_of(rows, plain, "test_unseen") == groups_of(
            rows, oracle, "test_unseen"
        ) | groups_of(rows, oracle, "val")


def test_a_named_design_is_val_whole():
    rows = parts()
    for design in DESIGNS[2:]:
        config = by_design(LEFT_OUT, unseen=DESIGNS[:2], val_domain=design)
        split = draw_split(manifest_of(rows), config)
        val = np.array([row["domain.design"] == design for row in rows])
        np.testing.assert_array_equal(np.array(split.sets) == "val", val)


def test_every_design_left_is_val_at_some_seed_and_stays_it_with_more_parts():
    drawn = set()
    for seed in range(20):
        config = by_design(LEFT_OUT, seed=seed, unseen=DESIGNS[:2])
        few, many = (
            designs_of(parts(num), draw_split(manifest_of(parts(num)), config), "val")
            for num in (3, 5)
        )
        assert few == many
        drawn |= few
    assert drawn == set(DESIGNS[2:])


def test_two_designs_besides_the_held_out_are_needed_to_leave_one_out():
    few = manifest_of(parts(designs=DESIGNS[:3]))
    assert "3 values of 'design' 2 are held out" in refusal(few, by_design(LEFT_OUT))
    tested = [r | {"split": "test" if r["domain.design"] == "Clip" else None} for r in parts()]
    config = by_design(LEFT_OUT, unseen=DESIGNS[1:5])
    assert "1 of the others can be trained on" in refusal(manifest_of(tested), config)
    config = SplitConfig(rule=LEFT_OUT, unseen_domain="design", num_unseen=1)
    assert {*draw_split(few, config).sets} == {"train", "val", "test_seen", "test_unseen"}


@pytest.mark.parametrize("design", ["Clip", "Plugg"])
def test_a_left_out_design_that_is_held_out_or_unknown_is_refused(design):
    config = by_design(LEFT_OUT, unseen=("Clip", "Plug"), val_domain=design)
    text = refusal(manifest_of(parts()), config)
    assert f"split.val-domain is {design!r}" in text
    assert "King, Oring, Switch, Target" in text


def test_designs_in_a_given_test_are_not_left_out_for_val():
    rows = parts()
    for row in rows:
        if row["domain.design"] != "Oring" and row["group"].endswith("0"):
            row["split"] = "test_seen"
    manifest = manifest_of(rows)
    for seed in range(5):
        split = draw_split(manifest, by_design(LEFT_OUT, seed=seed, unseen=("Clip", "Plug")))
        assert designs_of(rows, split, "val") == {"Oring"}
        assert split.sets.count("test_seen") == 3 * 3 * 2
    text = refusal(manifest, by_design(LEFT_OUT, unseen=("Clip", "Plug"), val_domain="King"))
    assert "nor in a given test: Oring" in text
    text = refusal(manifest, by_design(LEFT_OUT, unseen=("Clip", "Oring")))
    assert "4 of the others can be trained on and 0 have no image in a given test" in text


def test_a_design_whose_files_are_all_dropped_is_neither_held_nor_left_out():
    rows = parts(designs=DESIGNS[:5])
    twins = [row for row in rows if row["domain.design"] == "Plug"]
    for row, twin in zip((r for r in rows if r["domain.design"] == "Clip"), twins, strict=True):
        row["split"], twin["split"], twin["content"] = "test_seen", "train", row["content"]
    for seed in range(10):
        config = SplitConfig(
            rule=LEFT_OUT, unseen_domain="design", num_unseen=1, seed=seed, duplicates="drop"
        )
        split = draw_split(manifest_of(rows), config)
        assert split.sets.count("dropped") == len(twins)
        for name in ("test_unseen", "val"):
            assert len(designs_of(rows, split, name)) == 1


def test_the_oracle_draws_its_share_of_every_class_and_design_held_out():
    rows = parts(num=10, num_views=1)
    for val, drawn in ((0.001, 1), (0.25, 5), (0.3, 6), (0.79, 10)):
        config = by_design(ORACLE, val=val, unseen=("Clip", "Plug"))
        split = draw_split(manifest_of(rows), config)
        for machine in MACHINES:
            assert len(groups_of(rows, split, "val", label=machine)) == drawn
            assert len(groups_of(rows, split, "test_unseen", label=machine)) == 20 - drawn
            if drawn > 1:
                spread = {
                    d: len(groups_of(rows, split, "val", label=machine, **{"domain.design": d}))
                    for d in ("Clip", "Plug")
                }
                assert abs(spread["Clip"] - spread["Plug"]) <= 1
        assert designs_of(rows, split, "train") == set(DESIGNS) - {"Clip", "Plug"}


def test_an_oracle_without_two_groups_of_a_class_is_refused():
    config = SplitConfig(rule=ORACLE, unseen_domain="design", unseen=("Plug",))
    two = [*parts(designs=("Clip",), num=4), *parts(designs=("Plug",), num=2)]
    split = draw_split(manifest_of(two), config)
    assert len(groups_of(two, split, "val")) == len(groups_of(two, split, "test_unseen")) == 3
    fewer = [row for row in two if row["group"] != "m2/Plug/1"]
    assert "class 'm2' has no image in val" in refusal(manifest_of(fewer), config)
    alone = [row for row in two if row["group"][:7] in ("m1/Clip", "m2/Clip")] + [
        row for row in two if row["group"] == "m1/Plug/0"
    ]
    assert "1 group(s) of held-out values are too few" in refusal(manifest_of(alone), config)


@pytest.mark.parametrize("rule", ALL_RULES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8, 0.99])
def test_groups_that_are_seen_without_labels_are_none_that_is_scored(rule, share):
    rows = parts(num=4, designs=DESIGNS[:4])
    plain = by_design(rule, unseen=("Clip", "Plug"))
    seen, dropped = (
        replace(plain, unlabelled=use, unlabelled_share=share) for use in ("train", "drop")
    )
    before, split = (draw_split(manifest_of(rows), config) for config in (plain, seen))
    taken = groups_of(rows, split, "unlabelled")
    whole, scored = (groups_of(rows, each, "test_unseen") for each in (before, split))
    assert (taken | scored, taken & scored) == (whole, set())
    assert len(taken) == min(max(1, round(share * len(whole))), len(whole) - 1)
    assert split.report["unlabelled"] == 2 * len(taken)
    if 0.3 < share < 0.9:
        assert designs_of(rows, split, "unlabelled") == {"Clip", "Plug"}
    for name in ("train", "val", "test_seen"):
        assert groups_of(rows, split, name) == groups_of(rows, before, name)
    # a run that is compared with a transductive one is scored on the same rows
    beside = draw_split(manifest_of(rows), dropped)
    assert beside.sets == ["dropped" if name == "unlabelled" else name for name in split.sets]


def test_labels_of_the_held_out_domain_do_not_change_which_groups_are_seen():
    rows = parts(num=4)
    config = by_design("training-domain", unseen=("Clip",), unlabelled="train")
    turned = [
        row | {"label": MACHINES[MACHINES.index(row["label"]) - 1]}
        if row["domain.design"] == "Clip"
        else row
        for row in rows
    ]
    first, second = (draw_split(manifest_of(each), config) for each in (rows, turned))
    assert first.sets == second.sets


def test_what_cannot_be_seen_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r"split\.unlabelled is 'train', split\.unseen-domain ''"):
        SplitConfig(unlabelled="train")
    with pytest.raises(ConfigError, match=r"split\.crossing 'drop'; images to be seen without"):
        SplitConfig(unlabelled="drop", unseen_domain="design", crossing="drop")
    one = [*parts(designs=("King", "Plug")), *parts(num=1, machines=("m1",), designs=("Clip",))]
    config = by_design("training-domain", unseen=("Clip",), unlabelled="train")
    assert "test_unseen has 1 group, and with split.unlabelled 'train'" in refusal(
        manifest_of(one), config
    )
    assert set(SplitConfig().idle()) == {"unlabelled_share", "unseen", "num_unseen"}
    assert set(config.idle()) == {"num_unseen"}
    assert not replace(config, unseen=()).idle()


def test_an_oracle_takes_val_from_a_given_test_unseen():
    rows = [r | {"split": "test_unseen"} if r["domain.design"] == "King" else r for r in parts()]
    split = draw_split(manifest_of(rows), by_design(ORACLE))
    for name in ("val", "test_unseen"):
        assert designs_of(rows, split, name) == {"King"}


def test_a_left_out_design_without_a_class_is_refused():
    rows = [r for r in parts() if (r["label"], r["domain.design"]) != ("m3", "Target")]
    config = by_design(LEFT_OUT, unseen=("Clip", "Plug"), val_domain="Target")
    assert "class 'm3' has no image in val" in refusal(manifest_of(rows), config)


@pytest.mark.parametrize("rule", [LEFT_OUT, ORACLE])
def test_a_given_val_and_a_rule_that_makes_its_own_are_refused(rule):
    rows = given_parts(lambda part: "val" if part == 0 else None)
    text = refusal(manifest_of(rows), by_design(rule))
    assert "gives 36 image(s) to val" in text
    assert "training-domain" in text


def test_a_group_of_val_and_other_designs_is_refused():
    rows = parts()
    rows[1]["domain.design"] = "Plug"
    config = by_design(LEFT_OUT, unseen=("King",), val_domain="Plug")
    assert "'m1/Clip/0'" in refusal(manifest_of(rows), config)


@pytest.mark.parametrize("rule", [LEFT_OUT, ORACLE])
def test_rules_of_a_held_out_domain_without_one_are_refused(rule):
    with pytest.raises(ConfigError, match="unseen-domain is empty"):
        SplitConfig(rule=rule)


@pytest.mark.parametrize("rule", ["training-domain", ORACLE])
def test_a_value_for_val_that_no_rule_takes_is_refused(rule):
    with pytest.raises(ConfigError, match="only leave-one-domain-out"):
        SplitConfig(rule=rule, unseen_domain="design", val_domain="Plug")


def test_every_rule_has_a_name_to_be_shown():
    for rule in RULES:
        assert from_dict(SplitConfig, {"rule": rule, "unseen_domain": "design"}).rule == rule
    with pytest.raises(ConfigError, match="rule"):
        from_dict(SplitConfig, {"rule": "best"})


# Refusals


def test_a_split_without_train_is_refused():
    rows = given_parts(lambda part: "val" if part == 0 else "test")
    assert "has no image in train" in refusal(manifest_of(rows), SplitConfig())


def test_fewer_groups_than_sets_are_refused_with_numbers():
    two = [{"label": c, "group": c} for c in "ab" for _ in range(9)]
    assert "2 groups are too few to draw test" in refusal(manifest_of(two), SplitConfig())
    many = [{"label": "a", "group": f"a{i}"} for i in range(9)]
    text = refusal(manifest_of([*many, *two[9:]]), SplitConfig())
    assert "class 'b' has no image" in text
    assert "1 group(s) in all" in text


def test_three_groups_of_a_class_are_enough_for_any_shares():
    rows = [{"label": c, "group": f"{c}{i}"} for c in "ab" for i in range(3)]
    for val, test in ((0.01, 0.98), (0.98, 0.01), (0.01, 0.01)):
        manifest = manifest_of(rows)
        assert_every_class(manifest, split := draw_split(manifest, SplitConfig(val=val, test=test)))
        assert {*split.sets} == {"train", "val", "test"}


def test_a_class_that_only_held_out_designs_show_is_refused():
    rows = [*parts(), *parts(machines=("m4",), designs=("Plug",))]
    text = refusal(manifest_of(rows), SplitConfig(unseen_domain="design", unseen=("Plug",)))
    assert "'m4'" in text
    assert "3 group(s)" in text


def test_an_unknown_domain_or_value_is_refused_beside_those_there_are():
    manifest = manifest_of(parts())
    for crossing in ("refuse", "drop"):
        config = SplitConfig(unseen_domain="printer", crossing=crossing)
        assert "the data has: design" in refusal(manifest, config)
    text = refusal(manifest, SplitConfig(unseen_domain="design", unseen=("Plugg",)))
    assert "'Plugg'" in text
    assert "Clip, King" in text


def test_held_out_values_may_be_named_in_either_unicode_form():
    manifest = manifest_of(parts(designs=("Cl\u00e9", "King", "Plug")))  # as a manifest has them
    config = SplitConfig(unseen_domain="design", unseen=("Cle\u0301",))
    split = draw_split(manifest, config)
    designs = {manifest.column("domain.design")[i] for i in split.rows("test_unseen")}
    assert designs == {"Cl\u00e9"}
    chosen = SplitConfig(
        unseen_domain="design", unseen=("King",), rule=LEFT_OUT, val_domain="Cle\u0301"
    )
    val = draw_split(manifest, chosen).rows("val")
    assert {manifest.column("domain.design")[i] for i in val} == {"Cl\u00e9"}


def test_holding_out_every_design_is_refused():
    text = refusal(manifest_of(parts()), SplitConfig(unseen_domain="design", num_unseen=6))
    assert "6 of 6" in text


def test_a_group_of_seen_and_unseen_designs_is_refused():
    rows = parts()
    rows[1]["domain.design"] = "Plug"
    text = refusal(manifest_of(rows), SplitConfig(unseen_domain="design", unseen=("Plug",)))
    assert "'m1/Clip/0'" in text
    assert "--data.group" in text


@pytest.mark.parametrize(
    "values",
    [{"val": -0.1}, {"test": -0.1}, {"val": 20}, {"val": 0.5, "test": 0.5}, {"num_unseen": 0}],
)
def test_shares_that_are_none_are_refused(values):
    with pytest.raises(ConfigError, match=r"^split\.(val|test|num-unseen) is"):
        from_dict(SplitConfig, values)


# The split itself


def test_rows_and_table_say_the_same():
    manifest = manifest_of(parts())
    split = draw_split(manifest, BY_DESIGN)
    table = split.table(manifest)
    assert table["split"].to_pylist() == split.sets
    assert table.drop_columns("split") == manifest.table.drop_columns("split")
    assert all(split.sets[row] == "val" for row in split.rows("val"))
    assert (np.diff(split.rows("train")) > 0).all()


def test_a_set_without_rows_is_no_test():
    assert Split(["train", "val"], {}).tests == []
    assert len(Split(["train", "val"], {}).rows("test")) == 0


@given(st.integers(0, 20), st.integers(1, 3))
def test_parts_under_every_light_are_on_one_side_and_the_held_out_light_in_test_alone(seed, num):
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


@pytest.mark.parametrize("wrong", [{"unseen_domain": ""}, {"rule": ORACLE}])
def test_crossing_groups_need_a_domain_and_training_domain_validation(wrong):
    with pytest.raises(ConfigError, match="crossing"):
        SplitConfig(**({"unseen_domain": "design", "crossing": "drop"} | wrong))


# Near-duplicates


def linked(rows, rng, num):
    """Draw pairs among the contents of rows."""
    contents = sorted({row["content"] for row in rows})
    drawn = [sorted(rng.choice(contents, 2, replace=False)) for _ in range(num)]
    return [NearPair(str(i), str(j), 0.9) for i, j in drawn]


@settings(max_examples=200)
@given(anything(), by_rule, st.integers(0, 6), st.integers(0, 1000))
def test_grouped_near_duplicates_stand_in_one_set(rows, rule, num, seed):
    if rule["rule"] != "training-domain":
        rows = [row | {"split": None} if row["split"] == "val" else row for row in rows]
    manifest, pairs = manifest_of(rows), linked(rows, np.random.default_rng(seed), num)
    config = SplitConfig(duplicates="drop", num_unseen=1, near_duplicates="group", **rule)
    try:
        split = draw_split(manifest, config, pairs)
    except SplitError:
        return
    assert_no_leak(manifest, split)
    sets_of = sets_by(manifest, split, "content")
    for pair in pairs:
        assert len(sets_of[pair.first] | sets_of[pair.second]) <= 1
    assert split.report["dropped"] + split.report["near_dropped"] == split.sets.count("dropped")
    regrouped = split.regroup(manifest)
    assert_no_leak(regrouped, split)
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


def test_a_given_test_stays_as_it_is_and_its_near_copies_leave_train():
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


# Shares of train


@settings(max_examples=150)
@given(
    anything(),
    by_rule,
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 1000),
)
def test_a_share_of_train_lies_inside_a_larger_one(rows, rule, share, other, seed):
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


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.25, 0.5, 1.0])
def test_a_share_is_of_the_groups_of_each_class(share):
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


@pytest.mark.parametrize("share", [0.0, 1.01, -0.5])
def test_a_share_of_nothing_or_more_than_all_is_refused(share):
    with pytest.raises(ConfigError, match="train-share"):
        SplitConfig(train_share=share)
