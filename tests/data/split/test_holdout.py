"""Held-out values: which are drawn, what is known of the rest, and what is refused."""

import numpy as np

from assay.data.split import draw_split
from assay.data.split_config import SplitConfig

DESIGNS = ("Clip", "King", "Oring", "Plug", "Switch", "Target")
BY_DESIGN = SplitConfig(unseen_domain="design", num_unseen=2)


def test_added_parts_leave_the_held_out_designs_as_they_were(manifest_of, parts):
    few, many = (draw_split(manifest_of(parts(num)), BY_DESIGN) for num in (3, 5))
    designs = [
        {parts(num)[i]["domain.design"] for i in split.rows("test_unseen")}
        for num, split in ((3, few), (5, many))
    ]
    assert designs[0] == designs[1]


def test_every_known_design_is_tested_at_some_seed(manifest_of, parts):
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


def test_sets_follow_the_proportions_of_the_designs(manifest_of, parts):
    rows = parts(num=10, num_views=1)
    split = draw_split(manifest_of(rows), SplitConfig(unseen_domain="design", unseen=("Plug",)))
    for name in ("val", "test_seen"):
        drawn = np.unique([rows[i]["domain.design"] for i in split.rows(name)], return_counts=True)
        assert len(drawn[0]) == 5
        assert (abs(drawn[1] - 6) <= 3).all()  # 2 of 10 for each of three machines


def test_named_designs_are_held_out(manifest_of, parts):
    manifest = manifest_of(parts())
    config = SplitConfig(unseen_domain="design", unseen=("Plug", "Clip"), num_unseen=1)
    split = draw_split(manifest, config)
    designs = np.array(manifest.column("domain.design"))
    assert set(designs[split.rows("test_unseen")]) == {"Plug", "Clip"}
    assert "Plug" not in designs[split.rows("train")]


def test_held_out_designs_leave_given_sets_and_are_counted(assert_valid, given_parts, manifest_of):
    rows = given_parts(lambda part: "val" if part == 0 else "train")
    manifest = manifest_of(rows)
    split = draw_split(manifest, BY_DESIGN)
    assert_valid(manifest, split, BY_DESIGN)
    assert split.tests == ["test_seen", "test_unseen"]
    assert split.report["moved_to_unseen"] == len(split.rows("test_unseen")) == 2 * 3 * 4 * 2


def test_given_unseen_designs_are_those_held_out(given_parts, manifest_of, refusal):
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


def test_a_class_that_only_held_out_designs_show_is_refused(manifest_of, parts, refusal):
    rows = [*parts(), *parts(machines=("m4",), designs=("Plug",))]
    text = refusal(manifest_of(rows), SplitConfig(unseen_domain="design", unseen=("Plug",)))
    assert "'m4'" in text
    assert "3 group(s)" in text


def test_an_unknown_domain_or_value_is_refused_beside_those_there_are(manifest_of, parts, refusal):
    manifest = manifest_of(parts())
    for crossing in ("refuse", "drop"):
        config = SplitConfig(unseen_domain="printer", crossing=crossing)
        assert "the data has: design" in refusal(manifest, config)
    text = refusal(manifest, SplitConfig(unseen_domain="design", unseen=("Plugg",)))
    assert "'Plugg'" in text
    assert "Clip, King" in text


def test_held_out_values_may_be_named_in_either_unicode_form(manifest_of, parts):
    manifest = manifest_of(parts(designs=("Cl\u00e9", "King", "Plug")))  # as a manifest has them
    config = SplitConfig(unseen_domain="design", unseen=("Cle\u0301",))
    split = draw_split(manifest, config)
    designs = {manifest.column("domain.design")[i] for i in split.rows("test_unseen")}
    assert designs == {"Cl\u00e9"}
    chosen = SplitConfig(
        unseen_domain="design",
        unseen=("King",),
        rule="leave-one-domain-out",
        val_domain="Cle\u0301",
    )
    val = draw_split(manifest, chosen).rows("val")
    assert {manifest.column("domain.design")[i] for i in val} == {"Cl\u00e9"}


def test_holding_out_every_design_is_refused(manifest_of, parts, refusal):
    text = refusal(manifest_of(parts()), SplitConfig(unseen_domain="design", num_unseen=6))
    assert "6 of 6" in text


def test_a_group_of_seen_and_unseen_designs_is_refused(manifest_of, parts, refusal):
    rows = parts()
    rows[1]["domain.design"] = "Plug"
    text = refusal(manifest_of(rows), SplitConfig(unseen_domain="design", unseen=("Plug",)))
    assert "'m1/Clip/0'" in text
    assert "--data.group" in text
