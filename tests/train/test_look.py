"""Looks at val change nothing."""

import sys
from pathlib import Path

import numpy as np
import torch

from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop


def test_judging_is_deterministic_in_eval_mode_and_training_goes_back_to_train_mode(tmp_path):
    modes: list[tuple[str, bool]] = []

    class Noted(TASK):
        def forward(self, batch, progress, phase="main"):
            modes.append(("train", self.body[2].training))
            return super().forward(batch, progress, phase)

        def predict(self, batch):
            modes.append(("predict", self.body[2].training))
            return super().predict(batch)

    loop = loop_of(tmp_path, config_of(dropout=0.5), Noted)
    loop.fit()
    assert set(modes) == {("train", True), ("predict", False)}
    called = "".join(name[0] for name, _ in modes)
    # the first look predicts its first batch twice more
    assert called == "tttttppppp" + "tttttppp" * 3
    first, second = loop.val.predict(), loop.val.predict()
    assert np.array_equal(first["logits"], second["logits"])
    assert np.array_equal(first["row"], loop.rows["val"])
    assert np.array_equal(first["first"], loop.rows["val"])


def test_looking_at_val_changes_nothing_of_the_training(tmp_path):
    """Dropout draws the same numbers whether or not val was looked at before."""
    often, rarely = (
        loop_of(tmp_path / str(n), config_of(dropout=0.5, train={"val_every": n})) for n in (1, 4)
    )
    often.fit()
    rarely.fit()
    for name, tensor in often.task.state_dict().items():
        assert torch.equal(rarely.task.state_dict()[name], tensor)


def test_val_is_prepared_once(tmp_path, config):
    looks = []
    inner = toy.make_job(tmp_path, config).stream()

    def counted(steps, train):
        looks.extend([] if train else [len(steps)])
        return inner(steps, train)

    loop_of(tmp_path, config, stream=counted).fit()
    assert looks == [3]
