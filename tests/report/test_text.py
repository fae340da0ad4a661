"""What is printed of a run."""

from pathlib import Path

from assay.metrics.comparison import Comparison
from assay.metrics.estimate import Estimate
from assay.metrics.summary import Summary
from assay.report import text
from assay.runs.listing import RunSummary


def number(num: int, value: float = 1.0) -> Estimate:
    return Estimate(value=value, low=0.5, high=1.0, num=num, num_groups=num)


def test_a_number_of_other_rows_than_the_set_says_its_n(capsys):
    domains = {"line": {"a": number(3, 0.75), "b": number(13)}}
    metrics = {"accuracy": number(16), "recall": number(1)}
    summary = Summary(
        num=16, num_groups=16, metrics=metrics, domains=domains, worst_domain=("line", "a")
    )
    text._print_set("test", summary)
    text._print_measures({"casting": summary})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [
        "accuracy 1.000 [0.500, 1.000]",
        "recall 1.000 [0.500, 1.000] n = 1",
        "worst line 0.750 [0.500, 1.000] n = 3 (a)",
        "casting accuracy 1.000 [0.500, 1.000]",
        "recall 1.000 [0.500, 1.000] n = 1",
    ]


def test_numbers_stand_below_one_another_whatever_their_names(capsys):
    metrics = {"accuracy": number(16), "false_alarms_per_clean_layer": number(16)}
    summary = Summary(num=16, num_groups=16, metrics=metrics)
    text._print_set("test", summary)
    text._print_measures({"casting": summary, "frozen_backbone": summary})
    lines = [line for line in capsys.readouterr().out.splitlines() if "1.000 [" in line]
    for part in (lines[:2], lines[2:]):
        assert len({line.index("1.000 [") for line in part}) == 1


def test_no_domain_is_the_worst_where_all_fare_alike(capsys):
    domains = {"line": {"a": number(3), "b": number(13)}}
    summary = Summary(
        num=16,
        num_groups=16,
        metrics={"accuracy": number(16)},
        domains=domains,
        worst_domain=("line", "a"),
    )
    text._print_set("test", summary)
    assert "worst" not in capsys.readouterr().out


def test_measures_are_written_in_words(capsys):
    one = number(16)
    compared = Comparison(
        set="test",
        metric="image_accuracy",
        first_name="a",
        name="b",
        first=one,
        second=one,
        difference=one,
        p=1.0,
        p_holm=1.0,
        mcnemar=None,
    )
    run = RunSummary(Path("a"), "finished")
    text.print_compared([compared], {"a": run, "b": run})
    assert capsys.readouterr().out.startswith("test, image accuracy: 16 rows in 16 groups")
