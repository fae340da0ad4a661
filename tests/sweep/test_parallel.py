"""Parallel coordinates: where each value lies, and what a trial did not have."""

import re
from xml.etree import ElementTree

import optuna
import pytest

from assay.space import Choice, Float
from assay.sweep.parallel import axes_of, render_parallel
from assay.sweep.trial import Outcome

SPACE = {
    "lr": Float(low=1e-4, high=1e-2, log=True),
    "fixed": Choice(values=(3,)),
    "mode": Choice(values=("a", "b", "c")),
    "sigma": Float(low=0.0, high=2.0, when={"mode": ("c",)}),
    "never": Float(low=0.0, high=1.0, when={"mode": ("d",)}),
}


def trial(number: int, score: float | None, **values: object) -> tuple:
    kinds = {
        "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "mode": optuna.distributions.CategoricalDistribution(("a", "b", "c")),
        "sigma": optuna.distributions.FloatDistribution(0.0, 2.0),
    }
    frozen = optuna.trial.create_trial(
        params=values, distributions={name: kinds[name] for name in values}, value=score or 0.0
    )
    frozen.number = number
    return frozen, Outcome("finished" if score is not None else "failed", score=score)


TRIALS = [
    trial(0, 0.5, lr=1e-3, mode="a"),
    trial(1, 0.9, lr=1e-2, mode="c", sigma=2.0),
    trial(2, 0.1, lr=1e-4, mode="b"),
    trial(3, None, lr=1e-4, mode="b"),
]


def test_axes_are_what_varies_and_some_trial_had():
    names = [axis.name for axis in axes_of(SPACE, TRIALS)]
    assert names == ["lr (log)", "mode", "sigma", "val"]


def test_values_lie_where_they_belong_and_the_best_quarter_stands_out():
    axes = axes_of(SPACE, TRIALS)
    values = (1e-3, "b", 0.5, 0.5)
    shares = [axis.share(value) for axis, value in zip(axes, values, strict=True)]
    assert shares == pytest.approx([0.5, 0.5, 0.25, 0.5])
    page = ElementTree.fromstring(render_parallel(axes, TRIALS))
    lines = [p for p in page.iter("path") if p.get("class") != "axis"]
    assert [p.get("class") for p in lines] == ["other", "other", "best"]
    assert [p.find("title").text.split(":")[0] for p in lines] == ["trial 0", "trial 2", "trial 1"]
    high, low = (
        {y for y in re.findall(r" ([\d.]+)", lines[i].get("d"))} for i in (2, 1)
    )  # all at the top; the worst has mode b in the middle
    assert len(high) == 1
    assert len(low) == 2
    assert float(max(low, key=float)) > float(next(iter(high)))


def test_a_setting_that_a_trial_did_not_have_breaks_its_line_and_leaves_a_dot():
    page = ElementTree.fromstring(render_parallel(axes_of(SPACE, TRIALS), TRIALS))
    first = next(p for p in page.iter("path") if (p.find("title") is not None))
    parts = [part for part in first.get("d").split("M") if part]
    assert len(parts) == 2  # lr to mode, then val alone
    assert parts[1].endswith("h0")
