"""What is compared: settings, variants, shares and seeds; what cannot be is one sentence."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from assay.data.split_config import SplitConfig
from assay.errors import ConfigError
from assay.experiment.options import parse_with, say_doubts
from assay.experiment.resources import Resources
from assay.space import change
from assay.sweep.comparison import ComparisonLaunch, _settings, plan, sweep
from assay.sweep.fixed import FixedTrials, combine, manifest_of, variants_of
from assay.sweep.trial import Outcome, Trial
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TaskConfig, TrainConfig

SOURCE = TaskSource.read(Path(__file__).parents[1] / "toy.py")
BASE = load_task(SOURCE).Config()


def test_variants_are_combined_with_settings() -> None:
    variants = variants_of(BASE, ["low: optim.lr=1e-3 head_lr=0.1", "high: optim.lr=0.1"])
    assert [v.optim.lr for v in variants.values()] == [1e-3, 0.1]
    assert [v.head_lr for v in variants.values()] == [0.1, BASE.head_lr]
    settings = combine(variants, ["dropout=0.0|0.5"])
    assert list(settings) == [
        "low, dropout 0.0",
        "low, dropout 0.5",
        "high, dropout 0.0",
        "high, dropout 0.5",
    ]
    assert settings["high, dropout 0.5"].dropout == 0.5
    assert settings["high, dropout 0.5"].optim.lr == 0.1


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(TaskConfig):
    """Settings of a task that reads weights."""

    weights: str = "none"


def test_a_setting_of_variants_is_not_overruled() -> None:
    launch = ComparisonLaunch(
        variants=("a: optim.weight-decay=0.1", "b: optim.lr=0.2"),
        settings=("optim.weight_decay=0|0.3",),
    )
    with pytest.raises(ConfigError, match=r"both give values to optim\.weight_decay"):
        _settings(SOURCE, load_task(SOURCE), BASE, launch)


def test_what_is_compared_and_has_no_effect_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    combine({"": replace(BASE, train=replace(BASE.train, epochs=0))}, ["optim.lr=0.1|0.2"])
    assert "optim.lr has no effect in 'lr 0.1': train.epochs is 0" in capsys.readouterr().err
    combine({"": BASE}, ["optim.lr=0.1|0.2"])
    assert not capsys.readouterr().err


def test_choices_may_stand_apart() -> None:
    settings = combine({"": WeightsConfig()}, ["weights = a.pt | b.pt"])
    assert [each.weights for each in settings.values()] == ["a.pt", "b.pt"]  # type: ignore[attr-defined]


def test_a_value_may_look_like_a_range_or_an_address() -> None:
    texts = ["near: weights=../a.pt", "far: weights=s3://b/a.pt"]
    weights = {name: v.weights for name, v in variants_of(WeightsConfig(), texts).items()}  # type: ignore[attr-defined]
    assert weights == {"near": "../a.pt", "far": "s3://b/a.pt"}


def test_every_setting_has_each_seed_and_share_and_sees_as_many_images() -> None:
    settings = {"a": BASE, "b": combine({"": BASE}, ["dropout=0.1|0.2"])["dropout 0.1"]}
    trainings = plan(settings, [1.0], 3)
    assert [(t.setting, t.seed) for t in trainings] == [(n, s) for s in range(3) for n in "ab"]
    assert [t.config.train.seed for t in trainings] == [0, 0, 1, 1, 2, 2]
    assert all(t.config.split == BASE.split for t in trainings)  # the same val and test for all


@pytest.mark.parametrize(
    ("texts", "phrase"),
    [
        (["a optim.lr=1"], "NAME: SETTING=VALUE"),
        (["a: optim.lr"], "NAME: SETTING=VALUE"),
        ([": optim.lr=1"], "NAME: SETTING=VALUE"),
        (["a: optim.lr=1", "a: optim.lr=2"], "'a' twice"),
        (["a: optim.lr=1 optim.lr=2"], "a setting twice in 'a: optim.lr=1 optim.lr=2'"),
        (["a: optim.rate=1"], r"no setting 'optim\.rate'"),
        (["a: optim.lr=-1"], r"optim\.lr"),
        (["a: split.seed=1"], "not searched"),
        (["a: train.seed=1"], "not searched"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(texts: list[str], phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        variants_of(BASE, texts)


@dataclass(frozen=True, kw_only=True)
class ThinSplit(SplitConfig):
    """Sets of which train may be thinned."""

    train_share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ThinConfig(TaskConfig):
    """Settings of a task whose train may be thinned."""

    split: ThinSplit = field(default_factory=ThinSplit)


def test_a_share_is_trained_on_for_as_many_images() -> None:
    config = ThinConfig(train=TrainConfig(epochs=6, val_every=2))
    trainings = plan({"a": config}, [0.1, 1.0], 1)
    assert [(t.share, t.config.split.train_share) for t in trainings] == [(1.0, 1.0), (0.1, 0.1)]  # type: ignore[attr-defined]
    assert trainings[0].config == config  # the run that the task's own command finds
    assert [t.config.train.epochs for t in trainings] == [6, 60]
    assert [t.config.train.val_every for t in trainings] == [2, 20]
    assert trainings[1].name == "a, 10 % of train, seed 0"


def test_what_is_trained_on_the_largest_share_alone_is_shipped_for_its_latency() -> None:
    settings = {"a": BASE, "b": BASE}
    assert {t.stage for t in plan(settings, [1.0], 2)} == {"test"}
    assert {t.stage for t in plan(settings, [1.0], 2, latency=True)} == {"bundle"}


def test_trainings_of_two_stages_are_counted_on(capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial("a", {}, BASE, Path("a"))
    trials = FixedTrials([trial], 8, 4)
    trials.tell(trial, Outcome("finished"))
    assert capsys.readouterr().err.startswith("5 of 8: a")


def test_settings_with_other_images_are_refused(tmp_path: Path) -> None:
    segment = load_task(TaskSource.read(Path(__file__).parents[2] / "tasks" / "segment.py"))
    config = segment.presets()["smoke"]
    variants = variants_of(config, ["same: optim.lr=1e-3", "other: bed.seed=7"])
    with pytest.raises(ConfigError, match="'other' has other images than 'same'"):
        manifest_of(segment, variants, tmp_path)


def test_settings_that_leave_test_empty_are_refused_before_they_train(tmp_path: Path) -> None:
    source = TaskSource.read(Path(__file__).parents[2] / "tasks" / "segment.py")
    config = change(load_task(source).presets()["smoke"], {"split.test": 0.0})
    launch = ComparisonLaunch(settings=("optim.lr=1e-3|1e-2",))
    with pytest.raises(ConfigError, match=r"split\.test of '.*' is 0"):
        sweep(source, config, Resources(storage=str(tmp_path)), launch)


def test_shares_are_of_the_comparison_alone() -> None:
    """What is called 100 % of train would be half of it."""
    base = replace(BASE, split=SplitConfig(train_share=0.5))
    launch = ComparisonLaunch(train_shares=(0.3, 1.0))
    with pytest.raises(ConfigError, match=r"train-share is 0\.5, .*--train-shares; set it to 1"):
        sweep(SOURCE, base, Resources(), launch)


def test_a_setting_that_cannot_be_is_told_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"'b' cannot be: .*setting 'train\.batch_size' is 1\.5"):
        variants_of(BASE, ["a: train.batch_size=2", "b: train.batch_size=1.5"])
    with pytest.raises(ConfigError, match=r"split\.unseen takes several values.*--split\.unseen\."):
        change(BASE, {"split.unseen": "King"})
    with pytest.raises(ConfigError, match=r"--settings dropout=0\.1 names one value alone"):
        combine({"": BASE}, ["dropout=0.1"])


def test_one_setting_on_one_share_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match=r"one setting \(toy\).*--settings"):
        plan({"toy": BASE}, [1.0, 1.0], 3)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_is_a_part_of_train(share: float) -> None:
    with pytest.raises(ConfigError, match=r"train-shares .* above 0 and at most 1"):
        ComparisonLaunch(train_shares=(share,))


def test_doubts_are_of_what_is_compared_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The base is doubtful itself, and no training is of it."""
    source = TaskSource.read(Path(__file__).parents[2] / "tasks" / "casting.py")
    words = ["--regime.regime", "full", "--model.network", "test_resnet"]
    base, _, _ = parse_with(load_task(source), words, ComparisonLaunch())
    assert base.doubts()
    scratch = "regime.regime=scratch"
    sound = variants_of(base, [f"a: {scratch} optim.lr=1e-3", f"b: {scratch} optim.lr=1e-4"])
    say_doubts(sound.values())
    assert capsys.readouterr().err == ""
    doubtful = variants_of(base, ["a: regime.regime=lp-ft", "b: regime.regime=full"])
    say_doubts([*doubtful.values(), base])
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" keeps")[0] for line in told] == [
        "--regime.regime lp-ft",
        "--regime.regime full",
    ]
