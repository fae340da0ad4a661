"""What a user of a task script is told of its options: help, mistakes, and what has no effect."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.cli.task import main
from assay.errors import ConfigError
from assay.experiment.options import parse
from assay.train.source import TaskSource, load_task

SCRIPT = Path(__file__).parents[2] / "tasks" / "fingerprint.py"


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(str(SCRIPT), ["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for option in (
        "--data.root",
        "--model.backbone",
        "--optim.lr",
        "--train.epochs",
        "--workers",
        "--strategy",
        "--preset",
        "--again",
        "--config",
    ):
        assert option in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data.root", "/nowhere"], "does not exist"),
        (["--data.root", ""], "--data.root is empty"),
        (["--data.root=", "--workers", "0"], "--data.root is empty"),
        (["--store", " "], "--store is empty"),
        (["--preset", "nope"], "allowed: demo"),
        (["--preset", ""], "--preset is ''; allowed: demo"),
        (["--storage", "s3:/bucket"], "--storage is s3:/bucket; allowed"),
        (
            ["--data.group", "a", "--workers", "0", "--data.group", "b"],
            "--data.group is given twice",
        ),
        (["--model.backbone", "resnet1"], "resnet1"),
        (["--model.k", "10000"], "grid"),
        (["--model.weights", "/no/such.safetensors"], "such.safetensors"),
        (["--train.precision", "fp16"], "CUDA"),
        (["--device", "mps"], "Apple"),
        (["--config", "/nowhere.json"], "both name all settings"),
        (["--split.unseen-domain", "colour"], "colour"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
    run_script: Callable[..., tuple[str, str]],
) -> None:
    _, err = run_script(capsys, tmp_path / "runs", "--data.root", str(parts), *arguments, code=2)
    sentence = err.strip().splitlines()[-1]
    assert "Error: " in sentence
    assert expected in sentence
    assert "Traceback" not in err


def test_a_config_that_is_not_there_is_said() -> None:
    task = load_task(TaskSource.read(SCRIPT))
    with pytest.raises(ConfigError, match=r"nowhere\.json is missing or damaged"):
        parse(task, ["--config", "/nowhere.json"])


def test_the_last_of_two_numbers_counts_and_none_of_two_lists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = load_task(TaskSource.read(SCRIPT))
    assert parse(task, ["--train.epochs", "3", "--train.epochs=4"])[0].train.epochs == 4
    said = "--train.epochs is given twice, and its last value, 4, counts."
    assert said in capsys.readouterr().err.splitlines()
    assert not parse(task, ["--gpus", "--no-gpus"])[1].gpus
    assert "--gpus is given twice, and its last value, False" in capsys.readouterr().err
    for twice in (["--track", "wandb", "--track=tensorboard"], ["--data.keep", "a", "--data.keep"]):
        with pytest.raises(ConfigError, match="is given twice, and the second"):
            parse(task, twice)


@pytest.mark.parametrize(
    ("script", "words", "names"),
    [
        (
            "anomaly.py",
            ["--optim.lr", "1e-2", "--train.patience", "3"],
            ("optim.lr", "train.patience"),
        ),
        ("pretrain.py", ["--train.epochs", "0", "--optim.warmup", "0.2"], ("optim.warmup",)),
        (
            "pretrain.py",
            ["--supervised", "--loss.dino", "2", "--teacher.warmup", "0.5"],
            ("loss.dino", "teacher.warmup"),
        ),
        ("casting.py", ["--split.num-unseen", "2"], ("split.num-unseen",)),
        ("casting.py", ["--explain.masks", "{name}.png"], ("explain.masks",)),
        ("segment.py", ["--layers.channels", "triplet"], ("layers.channels",)),
        ("segment.py", ["--data.root", ".", "--bed.seed", "3"], ("bed.seed",)),
        ("distill.py", ["--data.root", ".", "--units.contrast", "2"], ("units.contrast",)),
    ],
)
def test_what_nothing_follows_is_said(
    capsys: pytest.CaptureFixture[str], script: str, words: list[str], names: tuple[str, ...]
) -> None:
    task = load_task(TaskSource.read(SCRIPT.with_name(script)))
    parse(task, ["--preset", "smoke", *words])
    said = capsys.readouterr().err
    for name in names:
        assert f"--{name} has no effect: " in said


def test_a_mistyped_option_exits_with_2() -> None:
    with pytest.raises(SystemExit) as left:
        main(str(SCRIPT), ["--model.backbon", "x"])
    assert left.value.code == 2


def test_an_absent_tracker_is_said(
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run_script: Callable[..., tuple[str, str]],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments = ["--data.root", str(parts), "--model.mode", "random", "--track", "tensorboard"]
    _, err = run_script(capsys, tmp_path / "runs", *arguments, code=2)
    assert "assay[tensorboard]" in err
