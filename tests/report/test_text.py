"""What is printed of a run."""

from assay.metrics.estimate import Estimate
from assay.metrics.summary import Summary
from assay.report import text


def number(num: int) -> Estimate:
    return Estimate(value=1.0, low=0.5, high=1.0, num=num, num_groups=num)


def test_a_number_of_other_rows_than_the_set_says_its_n(capsys):
    domains = {"line": {"a": number(3), "b": number(13)}}
    metrics = {"accuracy": number(16), "recall": number(1)}
    summary = Summary(
        num=16, num_groups=16, metrics=metrics, domains=domains, worst_domain=("line", "a")
    )
    text._print_set("test", summary)
    text._print_measures("casting", summary, "accuracy")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [
        "accuracy 1.000 [0.500, 1.000]",
        "recall 1.000 [0.500, 1.000] n = 1",
        "worst line 1.000 [0.500, 1.000] n = 3 a",
        "casting accuracy 1.000 [0.500, 1.000]",
        "recall 1.000 [0.500, 1.000] n = 1",
    ]
