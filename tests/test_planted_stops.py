"""Rates, losses and predictions of published systems that stop a run (their numbers: see test_planted.py)."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.errors import RunError
from assay.nn.optim import set_rates
from assay.train.monitor import CONSTANT_LOOKS, EXPLODED_UPDATES, LEVEL_UPDATES, Limit
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).with_name("toy.py")))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop
LONG = {"epochs": 30}
"""150 updates: enough for everything that must last for a while."""


def test_a_schedule_in_updates_that_steps_by_epoch_stops_at_its_top(tmp_path, monkeypatch):
    """000: OneCycle sized in batches, stepped once in a while: the rate stays at about lr / 25."""

    def per_epoch(optimizer, config, prefixes, progress):
        return set_rates(optimizer, config, prefixes, int(progress * 4) / 20)

    monkeypatch.setattr("assay.train.update.set_rates", per_epoch)
    loop = loop_of(tmp_path, config_of())
    with pytest.raises(RunError, match=r"0\.1 times --optim\.lr at update 7 of 20, where.*highest"):
        loop.fit()
    assert loop.position.step == 6


@pytest.mark.parametrize(
    ("plant", "factor", "place"),
    [("assay.nn.optim.lr_factor", 0.5, "highest"), ("assay.train.update.set_rates", 1, "lowest")],
)
def test_a_schedule_that_never_steps_stops(tmp_path, monkeypatch, plant, factor, place):
    """004: ExponentialLR that a typing error left unused; rates that never reach the optimiser."""
    monkeypatch.setattr(plant, lambda *arguments: factor)
    with pytest.raises(RunError, match=f"The learning rate is {factor} times .* at its {place}"):
        loop_of(tmp_path, config_of()).fit()


def test_a_model_that_ignores_its_images_stops(tmp_path):
    """002: all is background, whatever the layer; here the features are lost on the way."""

    class Planted(TASK):
        def _logits(self, batch, awake):
            return super()._logits(batch | {"x": batch["x"] * 0}, awake)

    loop = loop_of(tmp_path, config_of(train={"epochs": 9}), Planted)
    with pytest.raises(
        RunError, match=f"same for all 7 rows of val at {CONSTANT_LOOKS} looks in a row"
    ):
        loop.fit()
    assert loop.position.epoch == CONSTANT_LOOKS


def test_a_softmax_in_the_model_stops_at_the_first_look(tmp_path):
    """004: LUNA ends in a softmax, and cross-entropy takes another: its loss stays above .31."""

    class Planted(TASK):
        def _logits(self, batch, awake):
            return super()._logits(batch, awake).softmax(1)

    loop = loop_of(tmp_path, config_of(), Planted)
    with pytest.raises(RunError, match="would go through a softmax twice"):
        loop.fit()
    assert loop.position.epoch == 1


class Noisy(TASK):
    """000: the perturbation of the scores stays on when it is judged."""

    def predict(self, batch):
        made = super().predict(batch)
        return made | {"logits": made["logits"] + 0.01 * torch.randn_like(made["logits"])}


def test_noise_in_judging_stops_at_the_first_look(tmp_path):
    with pytest.raises(RunError, match=r"predicted logits of val change by .* predicted again"):
        loop_of(tmp_path, config_of(), Noisy).fit()


def test_any_column_must_hold_still(tmp_path):
    class Planted(TASK):
        def predict(self, batch):
            return super().predict(batch) | {"cells": torch.randperm(len(batch["row"]) + 9)[:-9]}

    with pytest.raises(RunError, match="predicted cells of val change by 1 of their size"):
        loop_of(tmp_path, config_of(), Planted).fit()


class Batched(TASK):
    """003: never put into eval(): batch normalisation by the batch at hand."""

    def _logits(self, batch, awake):
        logits = super()._logits(batch, awake)
        return (
            functional.batch_norm(logits, None, None, training=True) if len(logits) > 1 else logits
        )


def test_a_prediction_that_depends_on_its_neighbours_stops(tmp_path):
    with pytest.raises(RunError, match=r"logits of val change by .* other rows stand beside"):
        loop_of(tmp_path, config_of(), Batched).fit()


@pytest.mark.parametrize("place", ["predict", "part", "loop"])
def test_modules_in_training_mode_stop_at_the_first_look(tmp_path, monkeypatch, place):
    """003: a model never put into eval(); by the task, in a part that does not listen, by the loop."""

    class Planted(TASK):
        def predict(self, batch):
            if place == "predict":
                self.train()
            return super().predict(batch)

        def eval(self):
            return self if place == "loop" else super().eval()

    class Deaf(nn.Dropout):
        def train(self, mode: bool = True):
            return super().train(True)

    loop = loop_of(tmp_path, config_of(dropout=0.5), Planted)
    if place == "part":
        loop.task.body[2] = Deaf()
    expected = r"body\.2 judged" if place == "part" else "the task, body"
    with pytest.raises(RunError, match=f"{expected}.* val in training mode"):
        loop.fit()


WILD = {"lr": 0.5, "grad_clip": 0.0}


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


class Adversary(TASK):
    """003: a gradient-reversal layer before a single linear domain head, and no ceiling."""

    bound = math.inf

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.domain = nn.Linear(16, 2)

    def forward(self, batch, progress, phase="main"):
        made = super().forward(batch, progress, phase)
        x = torch.from_numpy(batch["x"])
        features = Reverse.apply(self.body(x) * self.scale + self.late(x))
        domain = functional.cross_entropy(self.domain(features), torch.from_numpy(batch["row"] % 2))
        return made | {"loss": made["loss"] + 0.6 * domain, "domain_loss": domain}

    def limits(self):
        why = "the adversary explodes; lower the weight of its reversed gradient."
        return (Limit("domain_loss", high=self.bound, for_updates=10, why=why),)


def test_an_exploding_adversary_stops_at_the_bound_that_its_task_sets(tmp_path):
    """003: domain loss .11, 24.5, 106, 154 within an epoch; the bound is 3 ln D."""
    planted = type("Planted", (Adversary,), {"bound": 3 * math.log(2)})
    loop = loop_of(tmp_path, config_of(train=LONG, optim=WILD), planted)
    with pytest.raises(RunError) as stopped:
        loop.fit()
    assert str(stopped.value).startswith("domain_loss is ")
    assert "above 2.079 for 10 updates: the adversary explodes;" in str(stopped.value)


def test_an_exploding_loss_stops_without_any_bound(tmp_path):
    """003: the same adversary, of which the task says nothing."""
    loop = loop_of(tmp_path, config_of(train={"epochs": 60}, optim=WILD), Adversary)
    with pytest.raises(RunError, match=f"for {EXPLODED_UPDATES} updates, it began at 1"):
        loop.fit()
    assert LEVEL_UPDATES + EXPLODED_UPDATES < loop.position.step < 299


def test_a_loss_that_is_not_finite_stops(tmp_path):
    """001 raises at once; here a single bad batch is survived, and three are not."""

    class Planted(TASK):
        def forward(self, batch, progress, phase="main"):
            made = super().forward(batch, progress, phase)
            return made | {"loss": made["loss"] * (math.inf if progress > 0.4 else 1)}

    with pytest.raises(RunError, match="not finite in 3 updates in a row up to step"):
        loop_of(tmp_path, config_of(), Planted).fit()
