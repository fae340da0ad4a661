"""What files of search spaces say is drawn, by W&B's rules and our own, and what is searched in vain is said."""

import itertools
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import timm

from assay.errors import ConfigError
from assay.nn.backbone import timm_name
from assay.space import Choice, Float, Int, Rounded, change, grid, rounded, sample
from assay.sweep import space_file
from assay.sweep.search import SearchLaunch, _say_idle
from assay.sweep.space_text import check, parse_all
from assay.train.source import TaskSource, load_task

CONFIG = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py")).Config()


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_sweep_of_the_reference_keeps_its_names_and_each_of_them_acts(tmp_path: Path) -> None:
    """Its backbones by its own names, more patches than the warm-up draws, and probabilities of real changes."""
    task = load_task(TaskSource.read(Path(__file__).parents[2] / "tasks" / "fingerprint.py"))
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


def test_what_stands_for_a_metric_is_said(tmp_path: Path, capsys: Any) -> None:
    text = "metric: {name: val_f1, goal: maximize}\nparameters: {dropout: {values: [0.1, 0.2]}}"
    assert space_file.read(write(tmp_path, text), CONFIG, {}).objective == "score"
    assert "The metric 'val_f1' is val's main score" in capsys.readouterr().err


def test_a_file_of_our_own_has_the_parameters_alone(tmp_path: Path) -> None:
    text = "optim.lr: {min: 1e-4, max: 1e-2, distribution: log_uniform_values}\ndropout: 0.5\n"
    declared = space_file.read(write(tmp_path, text), CONFIG, {})
    assert declared.method is None
    assert declared.space["optim.lr"] == Float(low=1e-4, high=1e-2, log=True)
    assert declared.space["dropout"] == Choice(values=(0.5,))


def test_a_step_rounds_what_is_drawn_to_its_multiples_with_the_chances_that_this_gives(
    tmp_path: Path,
) -> None:
    """1 to 10 by 4: below 2 rounds to 0 (1 of 9), from 6 on to 8 (4 of 9); the ends of a range are not of it."""
    text = "train.eval_batch_size: {distribution: q_uniform, min: 1, max: 10, q: 4}"
    space = space_file.read(write(tmp_path, text), CONFIG, {}).space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [
        (sample(space, CONFIG, trial), trial.params) for trial in (study.ask() for _ in range(400))
    ]
    drawn = [values["train.eval_batch_size"] for values, _ in trials]
    shares = {value: drawn.count(value) / len(drawn) for value in set(drawn)}
    assert shares == pytest.approx({0: 1 / 9, 4: 4 / 9, 8: 4 / 9}, abs=0.06)
    assert all(type(value) is int for value in drawn)
    assert all(rounded(space, params) == values for values, params in trials)  # as it is reported
    [points] = [[point["train.eval_batch_size"] for point in grid(space, CONFIG)]]
    dimension = space["train.eval_batch_size"]
    assert isinstance(dimension, Rounded)
    assert (
        points == [dimension.round(dimension.before(float(point))) for point in points] == [0, 4, 8]
    )
    with pytest.raises(
        ConfigError, match=r"has 0 for train\.eval_batch_size, which the task refuses"
    ):
        check(space, CONFIG)


@pytest.mark.parametrize(
    ("spec", "dimension"),
    [
        ("{distribution: constant, value: 0.25}", Choice(values=(0.25,))),
        ("{distribution: categorical, values: [0.1, 0.2]}", Choice(values=(0.1, 0.2))),
        ("{min: 0, max: 1}", Int(low=0, high=1)),  # of W&B two whole ends make whole numbers
        ("{min: 0, max: 1, distribution: uniform}", Float(low=0.0, high=1.0)),
        ("{min: 0, max: 1.0}", Float(low=0.0, high=1.0)),
        ("{distribution: int_uniform, min: 0, max: 1}", Int(low=0, high=1)),
        ("{distribution: log_uniform, min: -3, max: -1}", (math.exp(-3), math.exp(-1))),
        ("{distribution: inv_log_uniform, min: 1, max: 3}", (math.exp(-3), math.exp(-1))),
        ("{distribution: inv_log_uniform_values, min: 0.1, max: 0.5}", (0.1, 0.5)),
        (
            "{distribution: q_log_uniform_values, min: 0.1, max: 0.5, q: 0.1}",
            Rounded(low=0.1, high=0.5, log=True, q=0.1, whole=False),
        ),
        (
            "{distribution: q_uniform, min: 0, max: 1}",
            Rounded(low=0.0, high=1.0, q=1.0, whole=False),
        ),
    ],
)
def test_distributions_of_wandb_are_drawn_as_wandb_draws_them(
    tmp_path: Path, capsys: Any, spec: str, dimension: Any
) -> None:
    """By the words of its documentation: log(1/X) is uniform between the ends of inv_log_uniform, for one."""
    space = space_file.read(write(tmp_path, f"dropout: {spec}"), CONFIG, {}).space
    if isinstance(dimension, tuple):
        low, high = dimension
        assert isinstance(space["dropout"], Float)
        assert space["dropout"].log
        assert (space["dropout"].low, space["dropout"].high) == pytest.approx((low, high))
        # who took the ends for values sees it
        is_said = f"between {low:.4g} and {high:.4g}, as the ends" in capsys.readouterr().err
        assert is_said == ("values" not in spec)
    else:
        assert space["dropout"] == dimension


def test_what_is_searched_in_vain_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that a choice of another may give an effect is not; neither is an option that was not given."""
    extrusion = load_task(TaskSource.read(Path(__file__).parents[2] / "tasks" / "extrusion.py"))
    config = change(extrusion.presets()["competition"], {"train.patience": 0})
    least = "train.min_improvement=0|0.1"
    weight, lr = "algorithm.weight=2..4", "optim.lr=1e-4|1e-3"
    for texts, launch, lines in (
        ([lr], SearchLaunch(), []),
        ([weight, lr], SearchLaunch(), ["algorithm.weight of the space", "algorithm.name is erm"]),
        ([weight, "algorithm.name=erm|irm"], SearchLaunch(), []),
        ([least, lr], SearchLaunch(), ["train.min_improvement of the space"]),
        ([least, "train.patience=0..3"], SearchLaunch(), []),
        ([lr], SearchLaunch(eta=0), ["--grace has no effect: --eta is 0"]),
        ([lr], SearchLaunch(objectives=("latency_ms",)), ["--eta has no", "--grace has no"]),
    ):
        _say_idle(parse_all(texts, config), config, launch, {"eta", "grace"})
        printed = capsys.readouterr().err
        assert all(line in printed for line in lines)
        assert bool(printed) == bool(lines)


def test_a_bracket_that_ends_at_max_iter_begins_where_wandb_begins(tmp_path: Path) -> None:
    """Brackets 27/3 and 27/9, as W&B's own example has them; a fourth would be below 1."""
    for s, grace in ((2, 3), (3, 1), (9, 1)):
        text = f"early_terminate: {{type: hyperband, max_iter: 27, s: {s}}}\nparameters: {{dropout: {{values: [0.1, 0.2]}}}}"
        declared = space_file.read(write(tmp_path, text), CONFIG, {})
        assert (declared.grace, declared.eta) == (grace, 3)
