"""Files of search spaces, W&B's and our own: how they are read, and what they cannot mean is refused."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import ConfigError
from assay.space import Choice, Float, Int, Rounded, value_of
from assay.strict_yaml import read_yaml
from assay.sweep import space_file
from assay.sweep.search import SearchLaunch, _with_file
from assay.sweep.space_text import check, parse
from assay.train.source import TaskSource, load_task

CONFIG = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py")).Config()
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
        "dropout": Rounded(low=0.0, high=0.5, q=0.1, whole=False),
        "train.eval_batch_size": Int(low=1, high=3),
    }
    check(declared.space, CONFIG)
    assert len(declared.space["dropout"].levels()) == 6


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (("bayes", "annealing"), "annealing"),
        (("val_loss", "test_acc"), "val alone"),
        (("val_loss", "train_loss"), "val alone"),
        (("val_loss", "' '"), "val alone"),
        (("hyperband", "envelope"), "ASHA"),
        (("program", "quit_after"), "quit_after"),
        (("log_uniform_values", "normal"), "normal"),
        (("values: [4, 8]", "values: [4], probabilities: [1]"), "categorical_w_probabilities"),
        (("  lr:", "  learning_speed:"), "learning_speed"),
        (("parameters:", "parameters: [1"), "is missing or damaged"),
    ],
)
def test_what_a_file_cannot_mean_is_refused_by_name(
    tmp_path: Path, change: tuple[str, str], phrase: str
) -> None:
    with pytest.raises(ConfigError, match=phrase):
        space_file.read(write(tmp_path, WANDB.replace(*change)), CONFIG, NAMES)


def test_an_option_of_the_command_counts_more_than_the_files(tmp_path: Path) -> None:
    """Also one that is given as it would be anyway."""
    declared = space_file.read(write(tmp_path, WANDB), CONFIG, NAMES)
    launch = _with_file(SearchLaunch(trials=20, eta=3), declared, {"trials"})
    assert (launch.trials, launch.eta, launch.grace) == (20, 4, 2)
    assert (launch.sampling, launch.objectives) == ("tpe", ("nll",))


def test_hyphens_name_a_setting_as_underscores_do(tmp_path: Path) -> None:
    text = "train.batch-size: {values: [4, 8]}\nweight-decay: 0.1"
    space = space_file.read(write(tmp_path, text), CONFIG, NAMES).space
    assert set(space) == {"train.batch_size", "optim.weight_decay"}
    assert parse("train.batch-size=4|8", CONFIG)[0] == "train.batch_size"
    with pytest.raises(ConfigError, match="named twice"):
        space_file.read(
            write(tmp_path, "dropout: 0.1\ntrain.seed: 1\ntrain-seed: 2"),
            CONFIG,
            {"train-seed": "train.seed"},
        )
    with pytest.raises(ConfigError, match=r"settings have .*val-every") as refused:
        value_of(CONFIG, "train.val_evry")
    assert "pydantic" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("metric: val_loss\nparameters: {dropout: 0.1}", "metric is 'val_loss'"),
        ("metric: {name: val_accuracy}\nparameters: {dropout: 0.1}", "goal: maximize"),
        ("metric: {name: val_loss, target: 1}\nparameters: {dropout: 0.1}", "'target'"),
        ("method: [a]\nparameters: {dropout: 0.1}", "method"),
        ("early_terminate: true\nparameters: {dropout: 0.1}", "hyperband"),
        ("early_terminate: {type: hyperband, min_iter: x}\nparameters: {dropout: 0.1}", "min_iter"),
        ("run_cap: abc\nparameters: {dropout: 0.1}", "run_cap"),
        ("parameters: [1, 2]", "no mapping of settings"),
        ("parameters: {}", "no mapping of settings"),
        ("- 1", "no mapping of settings"),
        ("1: 2\nzz: 3", "no name of a setting"),
        ("1: 2\nzz: 3\nparameters: {}", "'1' is not understood"),
        ("dropout: {values: 4}", "values 4"),
        ("dropout: {values: []}", "list of numbers"),
        ("dropout: {values: [0.1, 0.2, 1.0e-1]}", "value 0.1 twice"),
        (
            "parameters: {optim.lr: 0.1, optim: {parameters: {lr: {min: 0.1, max: 0.2}}}}",
            "optim.lr stands there twice",
        ),
        (
            "early_terminate: {type: hyperband, min_iter: 1, strict: 3}\nparameters: {dropout: 0.1}",
            "hyperband",
        ),
        ("dropout: {values: [null]}", "list of numbers"),
        ("dropout: {values: [[1]]}", "list of numbers"),
        ("dropout: {min: 0.1}", "min and max"),
        ("dropout: {min: 0.1, max: 0.2, maxx: 1}", "maxx"),
        ("dropout: {min: true, max: 2}", "give numbers"),
        ("dropout: {distribution: normal, mu: 0, sigma: 1}", "'normal', which is not drawn"),
        ("dropout: {distribution: q_beta}", "'q_beta', which is not drawn"),
        ("dropout: {distribution: [uniform], min: 0, max: 1}", "which is not drawn"),
        ("dropout: {distribution: log_uniform, min: 1.0e-4, max: 1000.}", "log_uniform_values"),
        ("dropout: {distribution: log_uniform, min: -1000, max: 1}", "log_uniform_values"),
        ("dropout: {distribution: q_uniform, min: 0, max: 1, q: 1.0e-9}", "step"),
        ("dropout: {distribution: q_uniform, min: 0, max: 1, q: 0}", "step"),
        ("train.epochs: {distribution: q_uniform, min: 1, max: 9, q: 0.5}", "whole number"),
        ("train.epochs: {min: 1, max: 1e16}", "give numbers"),
        ("parameters: &a {x: {parameters: *a}}", "stands in what it stands for"),
        (
            "a: &a [x, x]\n"
            + "".join(
                f"{n}: &{n} [*{p}, *{p}, *{p}]\n" for p, n in itertools.pairwise("abcdefghijkl")
            ),
            "more than 10000 values",
        ),
        ("dropout: 0.1\ndropout: 0.2", "'dropout' stands twice"),
        ("dropout:\t0.1\n\tx: 1", "is missing or damaged"),
        ("[" * 100_000, "is missing or damaged"),
        ("dropout: !!python/object/apply:os.system [true]", "is missing or damaged"),
        ("dropout: 2020-01-01", "list of numbers"),
        ("x" * 2_000_000, "longer than 1 MB"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_by_what_is_wrong(
    tmp_path: Path, text: str, phrase: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        space_file.read(write(tmp_path, text), CONFIG, NAMES)
    assert phrase in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (
            "train.epochs: {min: 1, max: 100000000000}",
            "train.epochs",
        ),  # and nothing so long is made
        ("optim.lr: {values: [.nan, 1e-3]}", "nan"),
        ("optim.lr: {values: [nan, 1e-3]}", "nan"),
        ("optim.lr: {values: [.inf, 1e-3]}", "inf"),
        ("train.batch_size: {values: [8, 1e9]}", "batch-size"),
    ],
)
def test_values_that_the_task_refuses_are_refused_before_a_trial_is(
    tmp_path: Path, text: str, phrase: str
) -> None:
    declared = space_file.read(write(tmp_path, text), CONFIG, NAMES)
    with pytest.raises(ConfigError, match=phrase):
        check(declared.space, CONFIG)


@pytest.mark.parametrize("text", ["012", "1:30", "1_0", "0x10", "0b11", "1:30.5", "1_0.5"])
def test_numbers_that_yaml_reads_as_others_are_refused(tmp_path: Path, text: str) -> None:
    """YAML 1.1 takes 012 for 10 and 1:30 for 90."""
    with pytest.raises(
        ConfigError, match=f"the number '{text}' at line 1 is not written in decimal"
    ):
        read_yaml(write(tmp_path, f"model.k: {{values: [{text}, 2]}}"), "mend it")


def test_numbers_in_decimal_are_what_they_say(tmp_path: Path) -> None:
    path = write(tmp_path, "[0, -12, +3, 0.5, .5, -1.5e+3, .inf]")
    assert read_yaml(path, "mend it") == [0, -12, 3, 0.5, 0.5, -1500.0, float("inf")]


def test_files_that_are_no_text_are_refused(tmp_path: Path, damages: Any) -> None:
    for damage in damages(write(tmp_path, WANDB)):
        if damage != "half":
            with pytest.raises(ConfigError):
                space_file.read(tmp_path / "sweep.yaml", CONFIG, NAMES)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*space_file.KEYS, "normal", "hyperband"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "value",
                    "values",
                    "min",
                    "max",
                    "q",
                    "distribution",
                    "parameters",
                    "dropout",
                    "lr",
                    "name",
                    "type",
                    "s",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from([*space_file.UNDERSTOOD, "dropout", "optim.lr"]), TREES, max_size=4
    ),
    st.booleans(),
)
def test_no_content_of_a_file_raises_anything_but_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], is_sweep: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"parameters": content} if is_sweep else content))
    try:
        check(space_file.read(path, CONFIG, NAMES).space, CONFIG)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=200)
@given(st.data())
def test_no_damage_to_the_text_of_a_file_raises_anything_but_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(WANDB.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 9)))
        content[start:end] = data.draw(
            st.binary(max_size=4)
            | st.sampled_from([b"&a ", b"*a", b"\t", b": ", b"{", b"- ", b"!!"])
        )
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(content)
    try:
        space_file.read(path, CONFIG, NAMES)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
