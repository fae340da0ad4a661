"""Updates that are not finite are skipped; clipping and precision."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import ConfigError, RunError
from assay.runs.telemetry import Telemetry
from assay.train.monitor import MAX_NONFINITE
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop


def poison(*indices: int):
    def change(index: int, batch):
        return batch | {"x": batch["x"] * np.float32("nan")} if index in indices else batch

    return change


def test_batch_normalisation_of_one_image_is_a_sentence(tmp_path, config):
    class Normalised(TASK):
        def forward(self, batch, progress, phase="main"):
            nn.BatchNorm1d(6)(torch.from_numpy(batch["x"]))
            return super().forward(batch, progress, phase)

    loop = loop_of(tmp_path, config, Normalised)  # 21 rows in fives
    with pytest.raises(ConfigError, match=r"here that is one.*--train\.batch-size that leaves no"):
        loop.fit()


def test_a_step_that_is_not_finite_is_skipped_and_said(lines_of, tmp_path, config):
    weights: list[torch.Tensor] = []

    class Noted(TASK):
        def after_step(self, progress: float) -> None:
            weights.append(self.head.weight.detach().clone())

    loop = loop_of(tmp_path, config, Noted)
    loop.telemetry = Telemetry(tmp_path)
    loop.stream = toy.changed(loop.stream, poison(4, 9, 10))
    loop.fit()
    loop.telemetry.close()
    assert all(torch.isfinite(w).all() for w in weights)
    same = [bool(torch.equal(*pair)) for pair in pairwise(weights)]
    assert [i + 1 for i, unmoved in enumerate(same) if unmoved] == [4, 9, 10]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    lost = [line["step"] for line in lines_of(tmp_path, "step") if line["loss"] is None]
    assert lost == [5, 10, 11]
    losses = [line["loss"] for line in lines_of(tmp_path, "step") if line["loss"] is not None]
    assert losses[-1] < losses[0]


def test_three_in_a_row_end_the_run(tmp_path, config):
    loop = loop_of(tmp_path, config)
    loop.stream = toy.changed(loop.stream, poison(2, 3, 4))
    with pytest.raises(RunError, match=f"{MAX_NONFINITE} updates in a row"):
        loop.fit()


def test_gradients_that_are_not_finite_count_like_losses(tmp_path, config):
    class Rooted(TASK):
        def forward(self, batch, progress, phase="main"):
            outputs = super().forward(batch, progress, phase)
            return outputs | {"loss": outputs["loss"] + (self.head.weight.sum() * 0).sqrt()}

    with pytest.raises(RunError, match="not finite"):
        loop_of(tmp_path, config, Rooted).fit()


def test_clipping_bounds_the_update_and_zero_means_none(tmp_path):
    """One plain step from equal weights: its length tells the norm after clipping."""
    moved = {}
    for clip in (0.0, 0.01):
        loop = loop_of(
            tmp_path / str(clip), config_of(train={"epochs": 1}, optim={"grad_clip": clip})
        )
        norms: list[float] = []
        step = loop.updater.optimizer.step

        def spy(*_: object, norms=norms, step=step, loop=loop) -> None:
            grads = [p.grad.norm() for p in loop.task.parameters() if p.grad is not None]
            norms.append(float(torch.stack(grads).norm()))
            step()

        loop.updater.optimizer.step = spy
        loop.fit()
        moved[clip] = max(norms)
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
    assert moved[0.0] > 0.1


def test_fp16_without_cuda_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        loop_of(tmp_path, config_of(train={"precision": "fp16"}))


def test_bf16_trains_on_a_cpu_in_bf16(tmp_path):
    kinds = []

    class Typed(TASK):
        def _logits(self, batch, awake):
            logits = super()._logits(batch, awake)
            kinds.append(logits.dtype)
            return logits

    loop = loop_of(tmp_path, config_of(train={"precision": "bf16"}), Typed)
    loop.fit()
    assert set(kinds) == {torch.bfloat16}
    assert loop.position.best[0] > 0.5
    assert loop.val.predict()["logits"].dtype == np.float32
    assert {p.dtype for p in loop.task.parameters()} == {torch.float32}
