"""The search space: what is written is what is drawn, and what cannot be run is refused."""

import itertools
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import ConfigError
from assay.nn.backbone import timm_name
from assay.space import Choice, Float, Int, change, grid, sample, value_of
from assay.sweep import space_file
from assay.sweep.space_text import check, merge, parse
from assay.train.source import TaskSource, load_task

CONFIG = load_task(TaskSource.read(Path(__file__).with_name("toy.py"))).Config()
NUMBERS = st.floats(1e-6, 1e6, allow_nan=False)


def ask() -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()


@given(st.tuples(NUMBERS, NUMBERS).filter(lambda ends: ends[0] < ends[1]), st.booleans())
def test_a_range_is_read_as_it_is_written(ends: tuple[float, float], log: bool) -> None:
    name, dimension = parse(f"optim.lr={ends[0]!r}..{ends[1]!r}{',log' if log else ''}", CONFIG)
    assert (name, dimension) == ("optim.lr", Float(low=ends[0], high=ends[1], log=log))


@given(st.lists(st.integers(-9, 9) | NUMBERS | st.booleans(), min_size=1, max_size=5))
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
    ],
)
def test_what_no_sweep_may_choose_is_refused(text: str) -> None:
    name, dimension = parse(text, CONFIG)
    with pytest.raises(ConfigError):
        check({name: dimension}, CONFIG)


@given(low=st.floats(1e-5, 1), factor=st.floats(1.5, 1e4), log=st.booleans())
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


WANDB = """
program: train.py
method: bayes
metric: {name: val_loss, goal: minimize}
run_cap: 40
early_terminate: {type: hyperband, min_iter: 2, eta: 4}
parameters:
  lr: {min: 1e-5, max: 1e-2, distribution: log_uniform_values}
  weight_decay: {min: -9.0, max: -2.0, distribution: log_uniform}
  batch_size: {values: [4, 8]}
  num_epochs: {value: 3}
  dropout: {min: 0.0, max: 0.5, q: 0.1, distribution: q_uniform}
  train: {parameters: {eval_batch_size: {min: 1, max: 3}}}
"""
NAMES = {
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "batch_size": "train.batch_size",
    "num_epochs": "train.epochs",
}


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_wandb_sweep_is_read_by_its_own_rules(tmp_path: Path) -> None:
    declared = space_file.read(write(tmp_path, WANDB), CONFIG, NAMES)
    assert declared.method == "tpe"
    assert (declared.objective, declared.trials, declared.grace, declared.eta) == ("nll", 40, 2, 4)
    decay = Float(low=math.exp(-9), high=math.exp(-2), log=True)
    assert declared.space == {
        "optim.lr": Float(low=1e-5, high=1e-2, log=True),
        "optim.weight_decay": decay,
        "train.batch_size": Choice(values=(4, 8)),
        "train.epochs": Choice(values=(3,)),
        "dropout": Float(low=0.0, high=0.5, step=0.1),
        "train.eval_batch_size": Int(low=1, high=3),
    }
    check(declared.space, CONFIG)
    assert len(declared.space["dropout"].levels()) == 6


def test_a_sweep_of_the_reference_keeps_its_names_and_each_of_them_acts(tmp_path: Path) -> None:
    """Its backbones by its own names, more patches than the warm-up draws, and probabilities of real changes."""
    task = load_task(TaskSource.read(Path(__file__).parents[1] / "tasks" / "fingerprint.py"))
    config: Any = task.presets()["sweep"]
    text = """
        method: random
        parameters:
          model_name: {values: [eva02, vit_b_16, dinov3-vits16]}
          test_samples: {values: [4, 8, 16, 24]}
          scale_mod: {values: [0.1, 0.5]}
          contrast_mod: {values: [0.1, 0.5]}
          sensor_noise: {values: [0.05, 0.1]}
          sigma: {values: [0.01, 0.05]}
          clahe_grid: {values: [64, 128]}
    """
    space = space_file.read(write(tmp_path, text), config, task.aliases).space
    check(space, config)
    published = set(timm.list_models(pretrained=True))
    for values in itertools.product(*(dimension.levels() for dimension in space.values())):
        chosen = dict(zip(space, values, strict=True))
        changed: Any = change(config, chosen)
        assert timm_name(changed.model.backbone) in published
        assert changed.model.num_drawn == chosen["model.k"] * max(8 // chosen["model.k"], 1)
        assert not changed.idle().keys() & chosen.keys()


def test_a_file_of_our_own_has_the_parameters_alone(tmp_path: Path) -> None:
    text = "optim.lr: {min: 1e-4, max: 1e-2, distribution: log_uniform_values}\ndropout: 0.5\n"
    declared = space_file.read(write(tmp_path, text), CONFIG, {})
    assert declared.method is None
    assert declared.space["optim.lr"] == Float(low=1e-4, high=1e-2, log=True)
    assert declared.space["dropout"] == Choice(values=(0.5,))


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (("bayes", "annealing"), "annealing"),
        (("val_loss", "test_acc"), "val alone"),
        (("hyperband", "envelope"), "ASHA"),
        (("program", "quit_after"), "quit_after"),
        (("log_uniform_values", "normal"), "normal"),
        (("values: [4, 8]", "values: [4], probabilities: [1]"), "chances"),
        (("  lr:", "  learning_speed:"), "learning_speed"),
        (("parameters:", "parameters: [1"), "cannot be read"),
    ],
)
def test_what_a_file_cannot_mean_is_refused_by_name(
    tmp_path: Path, change: tuple[str, str], phrase: str
) -> None:
    with pytest.raises(ConfigError, match=phrase):
        space_file.read(write(tmp_path, WANDB.replace(*change)), CONFIG, NAMES)
