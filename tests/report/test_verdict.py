"""What the page leads with: verdicts, and marks before any number."""

import copy
import json
import shutil

import pytest

from assay.report import page as report
from assay.report.verdict import set_name


def test_the_answer_leads(page_of, run):
    text = page_of(report.render(run)).text
    start = text.index("fingerprint is better than random on known designs and unseen designs.")
    assert start < text.index("Numbers")
    head = text[: text.index("Numbers", start + 1)]
    for words in (
        "+0.400 in accuracy over random [+0.300, +0.500], p = 0.002",
        "40 images of 20 groups",
        "0.812 [0.712, 0.912]",
        "0.412 [0.312, 0.512]",
        "training-domain validation",
        "seed 3",
        "1 configuration tried",
        "test scored once",
        "Holm over 4 comparisons",
    ):
        assert words in head
    assert "ORACLE" not in text
    assert "Scoring 2" not in text


def test_one_comparison_is_one(page_of, comparison, write, run):
    values = comparison()
    write(run, "comparison.json", values | {"comparisons": values["comparisons"][:1]})
    assert "p by Holm over 1 comparison." in page_of(report.render(run)).text


@pytest.mark.parametrize(
    ("name", "domain", "shown"),
    [
        ("test_unseen", "batch", "unseen batches"),
        ("test_seen", "box", "known boxes"),
        ("test_seen", "assembly", "known assemblies"),
        ("test_line_2", "design", "test line 2"),
    ],
)
def test_a_set_has_a_name_in_words(name, domain, shown):
    assert set_name(name, {"split": {"unseen_domain": domain}}) == shown


def test_no_difference_is_said_in_words(page_of, comparison, write, run):
    write(run, "comparison.json", comparison(p_holm=0.4, difference=0.01))
    text = page_of(report.render(run)).text
    verdict = "fingerprint is not significantly different from random on known designs and"
    assert f"{verdict} unseen designs." in text
    assert "p = 0.400 not significantly different" in text
    assert "better than" not in text


def test_two_groups_lead_with_no_verdict(page_of, comparison, write, run):
    values = comparison(p_holm=0.036, difference=-0.4)
    for c in values["comparisons"]:
        c["difference"] |= {"num_groups": 2, "num_effective": 2.0}
    write(run, "comparison.json", values)
    text = page_of(report.render(run)).text
    assert "is not decided (too few or too unequal groups) against random on known designs" in text
    assert "too few or too unequal groups to compare (effective 2.0 of 2); not decided" in text
    assert "is worse than" not in text
    assert "not significantly different" not in text


def test_a_worse_method_is_said_to_be_worse(page_of, comparison, write, run):
    write(run, "comparison.json", comparison(difference=-0.2))
    text = page_of(report.render(run)).text
    assert "fingerprint is worse than random" in text
    assert "\N{MINUS SIGN}0.200 in accuracy against random" in text


def test_each_set_and_baseline_gets_its_own_verdict(page_of, comparison, write, run):
    values = comparison()
    unseen = [c for c in values["comparisons"] if c["set"] == "test_unseen"]
    for c in unseen:
        c["p_holm"] = 0.05
    values["comparisons"] += [
        copy.deepcopy(c) | {"name": n} for n in ("erm", "{probe}") for c in unseen
    ]
    write(run, "comparison.json", values)
    text = page_of(report.render(run)).text
    assert (
        "fingerprint is better than random on known designs, not significantly different from it on unseen designs; "
        "it is not significantly different from erm and {probe} on unseen designs."
    ) in text


def test_oracle_scorings_tries_and_warnings_are_marked(hostile, page_of, result, write, run):
    values = result() | {"oracle": True, "rule": "oracle", "tried": 24}
    values["scorings"] *= 2
    write(run, "result.json", values)
    record = json.loads((run / "run.json").read_text())
    write(run, "run.json", record | {"warnings": [f"Constant {hostile} answers."]})
    text = page_of(report.render(run)).text
    numbers = text.index("Numbers")
    marks = ("ORACLE.", "Scoring 2 of test.", "24 configurations tried", "test scored 2 times")
    for words in (*marks, f"Constant {hostile} answers."):
        assert text.index(words) < numbers


def test_a_test_domain_that_was_seen_is_marked_before_any_number(page_of, result, write, run):
    write(run, "result.json", result() | {"transductive": True})
    text = page_of(report.render(run)).text
    assert text.index("TRANSDUCTIVE.") < text.index("Numbers")
    assert "ORACLE" not in text


def test_what_is_missing_is_said(page_of, run):
    (run / "comparison.json").unlink()
    shutil.rmtree(run / "samples")
    (run / "metrics.jsonl").unlink()
    text = page_of(report.render(run)).text
    assert "fingerprint: accuracy 0.812 on known designs and 0.700 on unseen designs." in text
    assert "No other run was compared" in text
    assert "No images were kept" in text
    assert "kept no metrics" in text


def test_a_run_without_baselines_leads_with_its_own_numbers(page_of, comparison, write, run):
    write(run, "comparison.json", comparison() | {"comparisons": []})
    text = page_of(report.render(run)).text
    assert "fingerprint: accuracy 0.812" in text
    assert "No other run was compared" in text


def test_a_trial_that_val_alone_judged_makes_a_page(page_of, result, write, run):
    values = result()
    values["sets"] = {name: each for name, each in values["sets"].items() if name == "val"}
    write(run, "result.json", values | {"scorings": []})
    (run / "comparison.json").unlink(missing_ok=True)
    text = page_of(report.render(run)).text
    assert "test was not scored." in text
    assert text.index("No image is in test.") < text.index("Numbers")
