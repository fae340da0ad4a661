from collections import defaultdict

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.config import from_dict
from assay.data.manifest import SPLITS, Manifest
from assay.data.pixels import signature
from assay.data.split import Split, SplitConfig, draw_split, near_duplicates
from assay.errors import ConfigError, SplitError

MACHINES = ("m1", "m2", "m3")
DESIGNS = ("Clip", "King", "Oring", "Plug", "Switch", "Target")
BY_DESIGN = SplitConfig(unseen_domain="design", num_unseen=2)


def manifest_of(rows):
    """A manifest of dicts; what a row leaves out is its own group, its own file, of no set."""
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
    """Parts as the seed has them: machine x design x part, several views each."""
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
    found = defaultdict(set)
    for key, name in zip(manifest.column(column), split.sets, strict=True):
        if name != "dropped":
            found[key].add(name)
    return found


def assert_no_leak(manifest, split):
    """What a split must be, whatever it was drawn from."""
    assert len(split.sets) == len(manifest)
    assert set(split.sets) <= {*SPLITS, "dropped"}
    for column in ("group", "content"):
        crossing = {k: v for k, v in sets_by(manifest, split, column).items() if len(v) > 1}
        assert not crossing
    rows = np.concatenate([split.rows(name) for name in (*SPLITS, "dropped")])
    assert sorted(rows.tolist()) == list(range(len(manifest)))


def assert_designs_unseen(manifest, split):
    for names in sets_by(manifest, split, "domain.design").values():
        assert names == {"test_unseen"} or "test_unseen" not in names


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
        "unseen_domain": st.sampled_from(["", "design"]),
        "num_unseen": st.integers(1, 3),
    }
)


@st.composite
def many_parts(draw):
    """Enough parts for every set, in any order, a few files of which occur twice."""
    rows = parts(num=draw(st.integers(3, 5)), num_views=draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(0, 3))):
        one, other = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(rows) - 1))
        if rows[one]["domain.design"] == rows[other]["domain.design"]:
            rows[one]["content"] = rows[other]["content"]
    return draw(st.permutations(rows))


@settings(max_examples=25)
@given(many_parts(), asked)
def test_a_drawn_split_leaks_nothing(rows, values):
    manifest, config = manifest_of(rows), SplitConfig(**values)
    split = draw_split(manifest, config)
    assert_no_leak(manifest, split)
    assert_every_class(manifest, split)
    tests = ["test_seen", "test_unseen"] if config.unseen_domain else ["test"]
    assert split.tests == tests
    assert {*split.sets} == {"train", "val", *tests}
    if config.unseen_domain:
        assert_designs_unseen(manifest, split)
        unseen = {DESIGNS.index(rows[i]["domain.design"]) for i in split.rows("test_unseen")}
        assert len(unseen) == config.num_unseen


@st.composite
def anything(draw):
    """Few rows of any kind, given sets or none, groups and files that cross them or not."""
    row = st.fixed_dictionaries(
        {
            "label": st.sampled_from("ab"),
            "group": st.sampled_from("ABCDEFGHIJKL"),
            "content": st.integers(0, 40).map(str),
            "split": st.sampled_from([None, None, "train", "val", *SPLITS]),
            "domain.design": st.sampled_from("xyz"),
        }
    )
    rows = draw(st.lists(row, min_size=2, max_size=16))
    of_group = {r["group"]: r for r in rows}
    if draw(st.booleans()):  # so that more of them can be split
        rows = [r | {k: of_group[r["group"]][k] for k in ("split", "domain.design")} for r in rows]
    return rows


@settings(max_examples=200)
@given(
    anything(),
    st.sampled_from(["refuse", "drop"]),
    st.sampled_from(["", "design"]),
    st.sampled_from([(0.2, 0.2), (0.2, 0.0), (0.0, 0.0)]),
)
def test_whatever_is_given_is_split_without_a_leak_or_refused(rows, duplicates, domain, shares):
    manifest = manifest_of(rows)
    config = SplitConfig(
        duplicates=duplicates, unseen_domain=domain, num_unseen=1, val=shares[0], test=shares[1]
    )
    try:
        split = draw_split(manifest, config)
    except SplitError:
        return
    assert_no_leak(manifest, split)
    assert_every_class(manifest, split)
    if domain:
        assert_designs_unseen(manifest, split)
    allowed = {"dropped", "test_unseen"} if domain else {"dropped"}
    for row, name in zip(rows, split.sets, strict=True):
        kept = name == row["split"] or name in allowed or row["split"] is None
        # of what is given as train, missing sets are drawn
        assert kept or (row["split"] == "train" and name in ("val", "test", "test_seen"))
    assert split.report["dropped"] == split.sets.count("dropped")
    if duplicates == "refuse":
        assert "dropped" not in split.sets


@settings(max_examples=25)
@given(many_parts(), asked, st.integers(0, 1000))
def test_the_draw_depends_on_seed_and_names_not_on_the_order_of_rows(rows, values, order):
    config = SplitConfig(**values)
    turned = [rows[i] for i in np.random.default_rng(order).permutation(len(rows))]
    one, other = (draw_split(manifest_of(r), config) for r in (rows, turned))
    of_row = {row["id"]: name for row, name in zip(rows, one.sets, strict=True)}
    assert of_row == {row["id"]: name for row, name in zip(turned, other.sets, strict=True)}
    assert one.report == other.report
    assert draw_split(manifest_of(rows), config).sets == one.sets


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
    for one, other in ((0, 2), (2, 4)):
        rows[one]["content"] = rows[other]["content"] = "twin"
    for seed in range(10):
        split = draw_split(manifest_of(rows), SplitConfig(seed=seed))
        assert len({split.sets[i] for i in range(6)}) == 1
        assert split.report["groups"] == 54
        assert split.report["groups_joined_by_content"] == 2


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
    """The seed's folders: which part is in which set is up to `level(part)`."""
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
    assert_designs_unseen(manifest, split)
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


# Refusals


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
    assert "the data has: design" in refusal(manifest, SplitConfig(unseen_domain="printer"))
    text = refusal(manifest, SplitConfig(unseen_domain="design", unseen=("Plugg",)))
    assert "'Plugg'" in text
    assert "Clip, King" in text


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
    with pytest.raises(ConfigError, match="shares from 0"):
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


# Near-duplicates


def scenes(num, seed, height=180, width=240):
    """Unrelated images: smooth noise of full contrast."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        noise = rng.standard_normal((height, width, 3)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), rng.uniform(4, 12))
        yield cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def signatures(images):
    return np.stack([np.frombuffer(signature(image), np.uint8) for image in images])


def recompressed(image, quality=60):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def turned(image, number):
    flipped = image[:, ::-1] if number >= 4 else image
    return np.ascontiguousarray(np.rot90(flipped, number % 4))


@pytest.mark.parametrize("block", [7, 2048])
def test_planted_copies_are_found_and_unrelated_images_are_not(block):
    train = list(scenes(40, seed=1))
    copies = [recompressed(turned(image, i % 8)) for i, image in enumerate(train[::2])]
    others = list(scenes(60, seed=2))
    sets = ["train"] * 40 + ["val"] * 20 + ["val"] * 30 + ["test"] * 30
    found = near_duplicates(signatures([*train, *copies, *others]), sets, block=block)
    assert found == {"val": 20, "test": 0}


def test_every_flip_and_quarter_turn_is_found():
    image, *_ = scenes(1, seed=3)
    views = [turned(image, number) for number in range(8)]
    found = near_duplicates(signatures([image, *views]), ["train"] + ["test_seen"] * 8)
    assert found == {"test_seen": 8}


def test_only_train_is_compared_with_and_dropped_copies_do_not_count():
    image, other = scenes(2, seed=4)
    sets = ["train", "val", "test", "dropped"]
    assert near_duplicates(signatures([other, image, image, image]), sets) == {"val": 0, "test": 0}
    assert near_duplicates(signatures([image, image, other, image]), sets) == {"val": 1, "test": 0}


def test_a_brighter_or_smaller_copy_is_found():
    image, *_ = scenes(1, seed=5)
    dark = (image * 0.7 + 10).astype(np.uint8)
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert near_duplicates(signatures([image, dark, small]), ["train", "val", "val"]) == {"val": 2}
