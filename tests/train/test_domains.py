"""Every algorithm in a whole loop: it resumes exactly, its average is what ships, and an explosion stops."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from assay.errors import ConfigError, RunError
from assay.nn.domains.base import Sizes
from assay.nn.domains.build import build_algorithm
from assay.nn.domains.config import OF_FEATURES, PUBLISHED, AlgorithmConfig
from assay.nn.optim import Multiplier
from assay.train.best import load_best
from assay.train.classification import Classification
from assay.train.domains import DomainsConfig
from assay.train.source import TaskSource, load_task

Frames = load_task(TaskSource.read(Path(__file__).parents[1] / "toy_domains.py"))
toy = sys.modules[Frames.__module__]
config_of, task_of, loop_of, batch_of = toy.config_of, toy.task_of, toy.loop_of, toy.batch_of
CONFIG, StoppedError = toy.CONFIG, toy.StoppedError


@pytest.mark.parametrize(
    ("name", "average"),
    [(name, "last") for name in sorted(PUBLISHED) if name not in ("groupdro", "fishr", "mixup")]
    + [("groupdro", "swad"), ("fishr", "ema"), ("mixup", "uniform")],
)
def test_a_run_that_was_killed_equals_one_that_was_not(tmp_path, name, average):
    """What an algorithm and an average remember is in the checkpoint, and what they draw follows the step."""
    config = config_of(name, average, head_lr=2.0)
    straight = loop_of(tmp_path / "straight", config)
    assert straight.fit().done
    with pytest.raises(StoppedError):
        loop_of(tmp_path / "killed", config, stop=5, every=1).fit()
    resumed = loop_of(tmp_path / "killed", config)
    assert resumed.fit().done
    expected, state = straight.task.state_dict(), resumed.task.state_dict()
    assert set(state) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=key)
    first, second = (
        load_file(tmp_path / run / "best" / "weights.safetensors") for run in ("straight", "killed")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_erm_is_the_plain_classification():
    task = task_of(config_of())
    batch = batch_of(task)
    task.eval()
    expected = Classification.forward(task, batch, 0.5)
    outputs = task(batch, 0.5)
    torch.testing.assert_close(outputs["loss"], expected["loss"])
    assert outputs["train_accuracy"] == expected["train_accuracy"]


@pytest.mark.parametrize("weights", ["uniform", "ema", "swad"])
def test_the_average_is_judged_and_shipped_and_the_run_goes_on_without_it(tmp_path, weights):
    config = config_of(average=weights, train={"epochs": 6, "select": "nll"})
    # the valley begins at the first look, as val's loss falls to the end
    config = replace(config, average=replace(config.average, converged_looks=1, tolerance=9.0))
    loop = loop_of(tmp_path, config)
    judged: list[Tensor] = []
    predict = loop.val.predict

    def spy():
        judged.append(loop.task.head.weight.detach().clone())
        return predict()

    loop.val.predict = spy  # type: ignore[method-assign]
    loop.fit()
    assert len(judged) == 6 * (2 if weights == "swad" else 1)
    last = loop.task.head.weight.detach()
    with loop.task.average.in_place(loop.task):
        average = loop.task.head.weight.detach().clone()
    assert (average - last).abs().max() > 1e-4
    torch.testing.assert_close(judged[-1], average)
    fresh = task_of(loop.task.config)
    load_best(fresh, tmp_path)
    best = judged[(2 if weights == "swad" else 1) * (loop.position.best_epoch + 1) - 1]
    torch.testing.assert_close(fresh.head.weight.detach(), best)


def test_the_sources_explosion_is_stopped(tmp_path):
    """003: domain loss .11, 24.5, 106, 154 within an epoch of an unbounded adversary; 3 ln 3 is 3.3."""
    optim = {"lr": 0.3, "grad_clip": 0.0}
    loop = loop_of(
        tmp_path, config_of("dann-source", optim=optim, train={"epochs": 100, "val_every": 100})
    )
    with pytest.raises(RunError) as stopped:
        loop.fit()
    assert str(stopped.value).startswith("domain_loss is ")
    assert f"above {3 * math.log(3):.4g} for 50 updates: the adversary explodes" in str(
        stopped.value
    )
    assert loop.position.step < loop.total


def test_a_discriminator_far_from_chance_is_said(tmp_path):
    """Without reversal the discriminator learns what the features need not hide."""
    brief = {"epochs": 60, "val_every": 60}
    config = config_of("dann", ceiling=0.0, optim={"lr": 0.003}, train=brief)
    loop = loop_of(tmp_path, config)
    warnings: list[str] = []
    loop.monitor.warn = warnings.append
    loop.fit()
    (warning,) = warnings
    assert warning.startswith("late_domain_accuracy is ")
    assert "above 0.6667" in warning
    assert "chance is 0.333" in warning


def test_statistics_that_are_frozen_stay(tmp_path):
    loop = loop_of(tmp_path, config_of(domains={"batch_norm": "frozen"}))
    before = loop.task.net[1].running_mean.clone()
    loop.fit()
    assert torch.equal(loop.task.net[1].running_mean, before)
    loop = loop_of(tmp_path / "moving", config_of())
    loop.fit()
    assert not torch.equal(loop.task.net[1].running_mean, before)


def test_heads_have_rates_of_their_own():
    groups = task_of(config_of("coral", head_lr=10.0, body_lr=0.1)).param_groups(0.0)
    heads = {"head.": Multiplier(lr=10.0), "algorithm.": Multiplier(lr=10.0)}
    assert groups == {"": Multiplier(lr=0.1), **heads}
    groups = task_of(config_of("dann", discriminator_lr=0.5)).param_groups(0.0)
    heads = {"head.": Multiplier(), "algorithm.": Multiplier(lr=0.5)}
    assert groups == {"": Multiplier(), **heads}


@pytest.mark.parametrize(
    "name", ["erm", "irm", "vrex", "groupdro", "mixup", "mixstyle", "sagnet", "fishr"]
)
def test_a_network_at_rest_stays_as_it_is_while_its_classifier_learns(tmp_path, name):
    loop = loop_of(tmp_path, config_of(name, body_lr=0.0))
    before = {key: value.clone() for key, value in loop.task.named_parameters()}
    assert loop.fit().done
    moved = {
        key for key, value in loop.task.named_parameters() if not torch.equal(value, before[key])
    }
    assert {"head.weight", "head.bias"} <= moved
    assert not [key for key in moved if key.startswith("net.")]


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_penalty_of_features_is_refused_where_they_stay_as_they_are(name):
    with pytest.raises(ConfigError, match=rf"--algorithm.name {name} changes the features"):
        AlgorithmConfig(name=name, body_lr=0.0)


@pytest.mark.parametrize("name", sorted({*PUBLISHED} - {"mixup", "mixstyle"}))
def test_only_a_penalty_of_features_has_no_gradient_for_the_classifier(name):
    """The penalty alone: the loss less the mean risk of the domains, which any of them has in common."""
    task = task_of(config_of(name)).eval()
    batch = batch_of(task)
    outputs = task(batch, 1.0)
    reference = task_of(config_of(name)).eval()
    reference.load_state_dict(task.state_dict())
    reference.algorithm = build_algorithm(AlgorithmConfig(), Sizes(8, 8 * 4 * 4, 2, 4))
    plain = reference(batch, 1.0)["loss"]
    (of_all,) = torch.autograd.grad(outputs["loss"], task.head.weight)
    (of_risk,) = torch.autograd.grad(plain, reference.head.weight)
    alike = torch.allclose(of_all, of_risk, rtol=1e-4, atol=1e-6)
    assert alike == (name in (*OF_FEATURES, "erm"))


@pytest.mark.parametrize(
    ("name", "fields", "share"),
    [("erm", {}, 0.0), ("coral", {}, 0.0), ("fishr", {}, 0.3), ("irm", {"anneal": 0.5}, 0.5)],
)
def test_a_loss_settles_where_its_penalty_sets_in(name, fields, share):
    assert task_of(config_of(name, **fields)).loss_settles == share


def test_what_a_sweep_draws_are_the_algorithms_own_settings():
    space = Frames.space(config_of("vrex"))
    assert set(space) == {
        "optim.lr",
        "optim.weight_decay",
        "algorithm.weight",
        "algorithm.anneal",
    }


def test_modules_that_the_task_lacks_are_refused_as_it_is_built():
    task_of(config_of("mixstyle"))
    with pytest.raises(ConfigError, match=r"mix-after names 'net\.9'.* in or below net, head"):
        task_of(replace(CONFIG, algorithm=AlgorithmConfig(name="mixstyle", mix_after=("net.9",))))


def test_settings_without_effect_are_named():
    idle = CONFIG.idle()
    assert "algorithm.weight" in idle
    assert "domains.rows_per_group" not in idle
    assert "rows_per_group" in DomainsConfig(order="uniform").idle()
