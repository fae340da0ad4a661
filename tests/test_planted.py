"""Bugs of published systems, planted in a toy task or in the loop, and what each meets there.

The numbers 000 to 004 are the systems of the design notes: 000 patch selection over many machines,
001 self-supervision, 002 layer segmentation, 003 domain-adversarial classification, 004 eight
models on castings. Splits that differ between workers are planted in test_distributed.py; rates, losses and
predictions that stop a run in test_planted_stops.py.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from assay.errors import RunError
from assay.nn.optim import Multiplier
from assay.runs.folder import Run
from assay.train.loop import Loop
from assay.train.monitor import MAX_WITHOUT_GRADIENT, Limit
from assay.train.source import TaskSource, load_task
from assay.train.worker import work

TASK = load_task(TaskSource.read(Path(__file__).with_name("toy.py")))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop
LONG = {"epochs": 30}
"""150 updates: enough for everything that must last for a while."""


def watched(loop: Loop) -> list[str]:
    """The warnings of a loop trained to its end."""
    warnings: list[str] = []
    loop.monitor.warn = warnings.append
    assert loop.fit().done
    return warnings


def test_a_sound_task_meets_nothing(tmp_path):
    """Whatever rests for a while, warms up or is looked at only once."""
    for optim in ({}, {"optimizer": "lamb"}, {"schedule": "cosine", "warmup": 0.0}):
        config = config_of(optim=optim, train=LONG, dropout=0.3, rests_until=0.8)
        assert watched(loop_of(tmp_path / str(len(optim)), config)) == []
    assert watched(loop_of(tmp_path / "brief", config_of(train={"epochs": 1}))) == []
    job = toy.make_job(tmp_path / "run", config_of())
    assert work(job, job.stream()).done
    assert not Run(job.folder).record.warnings
    assert '"warning"' not in (job.folder / "metrics.jsonl").read_text()


class Argmax(TASK):
    """003's print-consistency loss: counted from argmax and made a tensor again."""

    leaf = True

    def forward(self, batch, progress, phase="main"):
        said = self.predict(batch)["logits"].argmax(1)
        share = (said == said.mode().values).float().mean()
        return {"loss": torch.tensor(1 - float(share), requires_grad=self.leaf)}


@pytest.mark.parametrize("leaf", [True, False])
def test_a_loss_without_gradient_stops_at_the_first_update(tmp_path, leaf):
    """003: backward passes without complaint where the new tensor asks for a gradient."""
    loop = loop_of(tmp_path, config_of(), type("Planted", (Argmax,), {"leaf": leaf}))
    with pytest.raises(RunError, match=r"The loss of phase 'main' carries no gradient.*argmax"):
        loop.fit()
    assert loop.position.step == 0


def test_a_term_without_gradient_is_named_though_the_rest_learns(tmp_path):
    """003: the very same term beside a cross-entropy; one that has a gradient at times is not named."""

    class Planted(TASK):
        def forward(self, batch, progress, phase="main"):
            made = super().forward(batch, progress, phase)
            dead = Argmax.forward(self, batch, progress, phase)["loss"]
            rests = made["loss"].detach() if progress > 0.5 else made["loss"]
            terms = {"class_loss": rests, "print_loss": dead}
            return made | terms | {"loss": made["loss"] + 4 * dead}

    Planted.leaf = False
    (warning,) = watched(loop_of(tmp_path, config_of(), Planted))
    assert warning.startswith("The loss term print_loss never carried a gradient")


def test_a_loss_that_nothing_depends_on_stops(tmp_path):
    """002: Dice is 0 with zero gradient for as long as no pixel is positive."""

    class Planted(TASK):
        def forward(self, batch, progress, phase="main"):
            made = super().forward(batch, progress, phase)
            return made | {"loss": made["loss"] * 0}

    with pytest.raises(RunError, match=f"No parameter had a gradient in {MAX_WITHOUT_GRADIENT}"):
        loop_of(tmp_path, config_of(), Planted).fit()


@pytest.mark.parametrize("dead", [True, False])
def test_a_phase_may_rest_with_zero_gradient_and_not_without_one(tmp_path, dead):
    class Phased(TASK):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.phases = ("main", "second")

        def forward(self, batch, progress, phase="main"):
            loss = super().forward(batch, progress, phase)["loss"]
            if phase == "second":
                loss = loss.detach() if dead else loss * 0
            return {"loss": loss}

    loop = loop_of(tmp_path, config_of(), Phased)
    if dead:
        with pytest.raises(RunError, match="The loss of phase 'second' carries no gradient"):
            loop.fit()
    else:
        assert watched(loop) == []


def test_parameters_that_the_optimiser_does_not_hold_stop_the_run(tmp_path):
    """004: options that never arrive; here the layers are made anew after the optimiser."""
    loop = loop_of(tmp_path, config_of(train={"val_every": 4}))
    for name in ("body", "late", "head"):
        fresh = toy.Toy(loop.task.config, loop.task.dataset)
        setattr(loop.task, name, getattr(fresh, name))
    loop.task.scale = nn.Parameter(torch.ones(16))
    with pytest.raises(RunError, match="No parameter had a gradient"):
        loop.fit()


def test_everything_frozen_by_its_rates_stops(tmp_path):
    class Planted(TASK):
        def param_groups(self, progress):
            return {name: Multiplier(lr=0.0) for name in ("body.", "late.", "head.", "scale")}

    with pytest.raises(RunError, match="param_groups does not freeze all of it"):
        loop_of(tmp_path, config_of(), Planted).fit()


def test_a_part_that_never_joins_is_named(tmp_path):
    """000: position proposals in the model and in no forward pass; weight decay moves nothing either."""
    (warning,) = watched(loop_of(tmp_path, config_of(rests_until=2.0)))
    assert warning.startswith(
        "2 of 7 trained parameters never had a gradient: late.weight, late.bias;"
    )


def test_a_part_cut_off_by_a_zero_is_named_though_decay_moves_it(tmp_path):
    """Its gradient is a tensor of zeros, and its weights shrink from update to update."""

    class Planted(TASK):
        def _logits(self, batch, awake):
            return super()._logits(batch, False) + 0 * self.late(torch.from_numpy(batch["x"])).sum()

    loop = loop_of(tmp_path, config_of(), Planted)
    before = loop.task.late.weight.detach().clone()
    (warning,) = watched(loop)
    assert warning.startswith("1 of 7 trained parameters never had a gradient: late.weight;")
    assert not torch.equal(before, loop.task.late.weight)


def test_a_bias_before_a_normalisation_is_not_named(tmp_path):
    class Normed(TASK):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.body = nn.Sequential(
                nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 16)
            )
            self.bias = nn.Parameter(torch.zeros(1))

        def _logits(self, batch, awake):
            logits = super()._logits(batch, awake) + self.bias
            return logits - logits.mean(1, keepdim=True)

    assert watched(loop_of(tmp_path, config_of(), Normed)) == []


def test_a_model_that_says_one_class_to_all_is_named(tmp_path):
    """002: labels so sparse that background is always the better answer."""

    class Planted(TASK):
        def _logits(self, batch, awake):
            return super()._logits(batch, awake) + torch.tensor([0.0, 99.0, 0.0])

    warnings = watched(loop_of(tmp_path, config_of(), Planted))
    assert [text for text in warnings if text.startswith("At the last look")] == [
        "At the last look every row of val was said to be 'b', though val has several classes; "
        "train longer, or balance the classes."
    ]


def test_a_selection_that_collapses_is_named_or_stops(tmp_path):
    """000: nothing tells that every image is cut at the same cells."""

    class Collapsing(TASK):
        then = "stop"

        def forward(self, batch, progress, phase="main"):
            made = super().forward(batch, progress, phase)
            usage = torch.softmax(60 * progress * torch.arange(4.0), 0)
            entropy = -(usage * (usage + 1e-12).log()).sum() / math.log(4)
            return made | ({} if progress < 0.2 else {"selection_entropy": entropy})

        def limits(self):
            why = "every image is cut at the same cells; raise --model.sigma."
            return (Limit("selection_entropy", low=0.05, for_updates=5, then=self.then, why=why),)

    with pytest.raises(RunError, match=r"selection_entropy is .*, below 0\.05 for 5 updates"):
        loop_of(tmp_path / "stop", config_of(), Collapsing).fit()
    planted = type("Planted", (Collapsing,), {"then": "warn"})
    (warning,) = watched(loop_of(tmp_path / "warn", config_of(), planted))
    assert warning.endswith("every image is cut at the same cells; raise --model.sigma.")


def test_a_warning_is_kept_in_the_run_and_in_its_metrics_once(tmp_path):
    """Also where the run was resumed after the warning."""
    job = toy.make_job(tmp_path, config_of(rests_until=2.0), checkpoint_steps=19)
    for _ in range(2):
        assert work(job, job.stream()).done
        shutil.rmtree(tmp_path / "checkpoints" / "step-00000020")
    (kept,) = json.loads((tmp_path / "run.json").read_text())["warnings"]
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["kind"] == "warning"]
    assert [(line["step"], line["text"]) for line in told] == [(20, kept)] * 2
