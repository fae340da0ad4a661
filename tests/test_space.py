"""The search space: what is written is what is drawn, and what cannot be run is refused."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import ConfigError
from assay.space import Choice, Float, Int, change, grid, sample, value_of
from assay.sweep.space_text import check, merge, parse, parse_all
from assay.train.source import TaskSource, load_task

CONFIG = load_task(TaskSource.read(Path(__file__).with_name("toy.py"))).Config()
NUMBERS = st.floats(1e-6, 1e6, allow_nan=False)


def ask() -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()


@given(st.tuples(NUMBERS, NUMBERS).filter(lambda ends: ends[0] < ends[1]), st.booleans())
def test_a_range_is_read_as_it_is_written(ends: tuple[float, float], log: bool) -> None:
    name, dimension = parse(f"optim.lr={ends[0]!r}..{ends[1]!r}{',log' if log else ''}", CONFIG)
    assert (name, dimension) == ("optim.lr", Float(low=ends[0], high=ends[1], log=log))


def written_once(value: Any) -> tuple[bool, Any]:
    return isinstance(value, bool), value


@given(
    st.lists(
        st.integers(-9, 9) | NUMBERS | st.booleans(),
        min_size=1,
        max_size=5,
        unique_by=written_once,
    )
)
def test_a_choice_is_read_as_it_is_written(values: list[Any]) -> None:
    _, dimension = parse("dropout=" + "|".join(str(value) for value in values), CONFIG)
    assert isinstance(dimension, Choice)
    assert [(type(v), v) for v in dimension.values] == [(type(v), v) for v in values]


@given(st.text(max_size=30))
def test_no_text_gets_past_the_parser_unnoticed(text: str) -> None:
    try:
        name, dimension = parse(text, CONFIG)
    except ConfigError:
        return
    assert value_of(CONFIG, name) is not None
    assert dimension.levels()


def test_a_setting_that_is_a_whole_number_has_whole_ends() -> None:
    assert parse("train.batch_size=2..16,log", CONFIG)[1] == Int(low=2, high=16, log=True)
    with pytest.raises(ConfigError, match="whole number"):
        parse("train.batch_size=2.5..16", CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        "optim.lr",
        "optim.lr=",
        "optim.lr=a..b",
        "optim.lr=2..1",
        "optim.lr=0..1,log",
        "optim.lr=1..2,cubic",
        "optim.lr=0,1..0,2",
        "optim.lr=1e-4...1e-2",
        "optim.lr=0.1|0.2|0.10",
        "train.batch-size=4|8|4.0",
        "optim.lr=1..inf",
        "optim=1|2",
        "optim.rate=1|2",
        "nothing=1|2",
    ],
)
def test_what_is_no_dimension_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text, CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        "train.seed=0|1|2",
        "split.seed=0..3",
        "data.image=a|b",
        "decide.coverage=0.5..0.9",
        "optim.lr=-1|1",
        "train.precision=fp32|fp64",
        "optim.lr=0.1",
        "train.batch-size=1|true",
    ],
)
def test_what_no_sweep_may_choose_is_refused(text: str) -> None:
    name, dimension = parse(text, CONFIG)
    with pytest.raises(ConfigError):
        check({name: dimension}, CONFIG)


@given(low=st.floats(1e-5, 1e-2), factor=st.floats(1.5, 900), log=st.booleans())
def test_what_is_drawn_lies_in_the_range_and_in_the_settings(
    low: float, factor: float, log: bool
) -> None:
    space = {"optim.lr": Float(low=low, high=low * factor, log=log)}
    values = sample(space, CONFIG, ask())
    assert low <= values["optim.lr"] <= low * factor
    assert change(CONFIG, values).optim.lr == values["optim.lr"]
    levels = grid(space, CONFIG)
    assert levels[0]["optim.lr"] == low
    assert math.isclose(float(levels[-1]["optim.lr"]), low * factor)


def test_a_condition_decides_what_is_drawn_next() -> None:
    space = {
        "optim.optimizer": Choice(values=("adamw", "lamb")),
        "dropout": Float(low=0.1, high=0.5, when={"optim.optimizer": ("lamb",)}),
        "head_lr": Choice(values=(1.0, 2.0), when={"train.precision": ("bf16",)}),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [sample(space, CONFIG, study.ask()) for _ in range(20)]
    assert {len(values) for values in drawn} == {1, 2}
    assert all(("dropout" in v) == (v["optim.optimizer"] == "lamb") for v in drawn)
    # a grid counts a setting once where its condition fails: 1 + 3 levels
    assert len(grid(space, CONFIG)) == 4


def test_changes_are_made_of_whole_settings() -> None:
    new = change(CONFIG, {"optim.lr": 0.5, "dropout": 0.25})
    assert type(new) is type(CONFIG)
    assert (new.optim.lr, new.dropout, new.train) == (0.5, 0.25, CONFIG.train)
    with pytest.raises(ConfigError, match=r"optim\.lrr"):
        change(CONFIG, {"optim.lrr": 0.5})
    condition = {"train.precision": ("fp32",)}
    before = {"dropout": Float(low=0.0, high=1.0, when=condition)}
    after = merge(before, {"dropout": Choice(values=(0.1, 0.2))})
    assert after == {"dropout": Choice(values=(0.1, 0.2), when=condition)}


def test_settings_named_twice_are_refused_and_others_kept_in_their_order() -> None:
    space = parse_all(["optim.lr=0.1|0.2", "train.epochs=1|2"], CONFIG)
    assert list(space) == ["optim.lr", "train.epochs"]
    with pytest.raises(ConfigError, match=r"names optim.lr twice, the second time as 'optim\.lr=0"):
        parse_all(["optim.lr=0.1|0.2", "train.epochs=1|2", "optim.lr=0.3"], CONFIG)
