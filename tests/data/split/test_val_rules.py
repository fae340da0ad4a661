"""What val is drawn from, by each rule, and what is seen of held-out values without labels."""

from dataclasses import replace

import numpy as np
import pytest

from assay.data.split import draw_split
from assay.data.split_config import RULES, SplitConfig
from assay.errors import ConfigError

MACHINES = ("m1", "m2", "m3")
DESIGNS = ("Clip", "King", "Oring", "Plug", "Switch", "Target")
ALL_RULES = [*RULES]
LEFT_OUT, ORACLE = "leave-one-domain-out", "oracle"


def groups_of(rows, split, name, **having):
    wanted = [rows[i] for i in split.rows(name)]
    return {r["group"] for r in wanted if all(r[k] == v for k, v in having.items())}


def test_every_rule_holds_out_the_same_designs(by_design, designs_of, manifest_of, parts):
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


def test_a_named_design_is_val_whole(by_design, manifest_of, parts):
    rows = parts()
    for design in DESIGNS[2:]:
        config = by_design(LEFT_OUT, unseen=DESIGNS[:2], val_domain=design)
        split = draw_split(manifest_of(rows), config)
        val = np.array([row["domain.design"] == design for row in rows])
        np.testing.assert_array_equal(np.array(split.sets) == "val", val)


def test_every_design_left_is_val_at_some_seed_and_stays_it_with_more_parts(
    by_design, designs_of, manifest_of, parts
):
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


def test_two_designs_besides_the_held_out_are_needed_to_leave_one_out(
    by_design, manifest_of, parts, refusal
):
    few = manifest_of(parts(designs=DESIGNS[:3]))
    assert "3 values of 'design' 2 are held out" in refusal(few, by_design(LEFT_OUT))
    tested = [r | {"split": "test" if r["domain.design"] == "Clip" else None} for r in parts()]
    config = by_design(LEFT_OUT, unseen=DESIGNS[1:5])
    assert "1 of the others can be trained on" in refusal(manifest_of(tested), config)
    config = SplitConfig(rule=LEFT_OUT, unseen_domain="design", num_unseen=1)
    assert {*draw_split(few, config).sets} == {"train", "val", "test_seen", "test_unseen"}


@pytest.mark.parametrize("design", ["Clip", "Plugg"])
def test_a_left_out_design_that_is_held_out_or_unknown_is_refused(
    by_design, manifest_of, parts, refusal, design
):
    config = by_design(LEFT_OUT, unseen=("Clip", "Plug"), val_domain=design)
    text = refusal(manifest_of(parts()), config)
    assert f"split.val-domain is {design!r}" in text
    assert "King, Oring, Switch, Target" in text


def test_designs_in_a_given_test_are_not_left_out_for_val(
    by_design, designs_of, manifest_of, parts, refusal
):
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


def test_a_design_whose_files_are_all_dropped_is_neither_held_nor_left_out(
    designs_of, manifest_of, parts
):
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


def test_the_oracle_draws_its_share_of_every_class_and_design_held_out(
    by_design, designs_of, manifest_of, parts
):
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


def test_an_oracle_without_two_groups_of_a_class_is_refused(manifest_of, parts, refusal):
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
def test_groups_that_are_seen_without_labels_are_none_that_is_scored(
    by_design, designs_of, manifest_of, parts, rule, share
):
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


def test_labels_of_the_held_out_domain_do_not_change_which_groups_are_seen(
    by_design, manifest_of, parts
):
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


def test_what_cannot_be_seen_without_labels_is_refused(by_design, manifest_of, parts, refusal):
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


def test_an_oracle_takes_val_from_a_given_test_unseen(by_design, designs_of, manifest_of, parts):
    rows = [r | {"split": "test_unseen"} if r["domain.design"] == "King" else r for r in parts()]
    split = draw_split(manifest_of(rows), by_design(ORACLE))
    for name in ("val", "test_unseen"):
        assert designs_of(rows, split, name) == {"King"}


def test_a_left_out_design_without_a_class_is_refused(by_design, manifest_of, parts, refusal):
    rows = [r for r in parts() if (r["label"], r["domain.design"]) != ("m3", "Target")]
    config = by_design(LEFT_OUT, unseen=("Clip", "Plug"), val_domain="Target")
    assert "class 'm3' has no image in val" in refusal(manifest_of(rows), config)


@pytest.mark.parametrize("rule", [LEFT_OUT, ORACLE])
def test_a_given_val_and_a_rule_that_makes_its_own_are_refused(
    by_design, given_parts, manifest_of, refusal, rule
):
    rows = given_parts(lambda part: "val" if part == 0 else None)
    text = refusal(manifest_of(rows), by_design(rule))
    assert "gives 36 image(s) to val" in text
    assert "training-domain" in text


def test_a_group_of_val_and_other_designs_is_refused(by_design, manifest_of, parts, refusal):
    rows = parts()
    rows[1]["domain.design"] = "Plug"
    config = by_design(LEFT_OUT, unseen=("King",), val_domain="Plug")
    assert "'m1/Clip/0'" in refusal(manifest_of(rows), config)
