"""Settings of a split that are refused before anything is drawn."""

import pytest

from assay.config import from_dict
from assay.data.split_config import RULES, SplitConfig
from assay.errors import ConfigError

LEFT_OUT, ORACLE = "leave-one-domain-out", "oracle"


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


@pytest.mark.parametrize(
    "values",
    [{"val": -0.1}, {"test": -0.1}, {"val": 20}, {"val": 0.5, "test": 0.5}, {"num_unseen": 0}],
)
def test_shares_that_are_none_are_refused(values):
    with pytest.raises(ConfigError, match=r"^split\.(val|test|num-unseen) is"):
        from_dict(SplitConfig, values)


@pytest.mark.parametrize("wrong", [{"unseen_domain": ""}, {"rule": ORACLE}])
def test_crossing_groups_need_a_domain_and_training_domain_validation(wrong):
    with pytest.raises(ConfigError, match="crossing"):
        SplitConfig(**({"unseen_domain": "design", "crossing": "drop"} | wrong))


@pytest.mark.parametrize("share", [0.0, 1.01, -0.5])
def test_a_share_of_nothing_or_more_than_all_is_refused(share):
    with pytest.raises(ConfigError, match="train-share"):
        SplitConfig(train_share=share)
