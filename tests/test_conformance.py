"""What every file in tasks/ must satisfy, on its `smoke` settings and its embedded data."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from assay.config import fingerprint, from_dict, to_dict
from assay.data.order import Step
from assay.experiment import resources
from assay.experiment.options import parse
from assay.nn.blocks import recompute
from assay.nn.optim import build_optimizer
from assay.train import checkpoint
from assay.train.accumulate import parts_of
from assay.train.loop import Loop
from assay.train.task import Batch

COUPLED = {"pretrain", "vectors", "masks"}
"""Tasks whose losses compare the images of a batch, or sum over all of them."""


def test_settings_are_named_documented_and_survive_json(system):
    module = sys.modules[system.task.__module__]
    assert module.__doc__
    assert system.task.__doc__
    presets = system.task.presets()
    assert "smoke" in presets
    prints = set()
    for config in presets.values():
        assert type(config) is system.task.Config
        values = json.loads(json.dumps(to_dict(config)))
        again = from_dict(system.task.Config, values)
        assert again == config
        assert to_dict(again) == to_dict(config)
        prints.add(fingerprint(values))
    assert len(prints) == len(presets)
    assert system.model().classes


def options_of(kind: Any, prefix: str = "--") -> Iterator[str]:
    """Every leaf of a configuration as its option."""
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(field.type):
            yield from options_of(field.type, f"{name}.")
        else:
            yield name


def test_help_shows_every_setting(system, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        parse(system.task, ["--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    options = [*options_of(system.task.Config), *options_of(resources.Resources)]
    assert len(options) > 25
    for option in options:
        assert f"{option} " in shown or f"{option}," in shown, option
    for preset in system.task.presets():
        assert preset in shown


@pytest.mark.parametrize("train", [True, False])
def test_prepare_depends_on_the_key_and_on_no_batch(system, train):
    rows = system.split.rows("train")
    together = system.batch(rows, train)
    again = system.batch(rows, train)
    alone = [system.batch(rows[i : i + 1], train, first_entry=i) for i in range(len(rows))]
    for name, values in together.items():
        assert len(values) == len(rows)
        assert np.array_equal(again[name], values), name
        assert np.array_equal(np.concatenate([b[name] for b in alone]), values), name
    other = system.batch(rows, train, first_entry=100)
    if train and system.config.train.epochs:
        changed = [name for name in together if not np.array_equal(other[name], together[name])]
        assert set(changed) - {"key"}


def test_the_loss_falls_on_a_few_images(learner, system):
    task = system.model().train()
    optimizer = build_optimizer(task, system.config.optim, task.param_groups(0.0))
    batch = system.batch(system.split.rows("train"), train=True)
    losses = []
    for _ in range(12):
        total = torch.zeros(())
        for phase in task.phases:
            optimizer.zero_grad()
            loss = task(batch, 0.0, phase)["loss"]
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(float(total))
    assert losses[-1] < 0.6 * losses[0], losses


def test_gradients_reach_every_trained_parameter(learner, system):
    task = system.model().train()
    batch = system.batch(system.split.rows("train"), train=True)
    for progress in (0.0, 0.9):
        for phase in task.phases:
            task(batch, progress, phase)["loss"].backward()
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    assert trained
    # a bias before a normalisation has no gradient by nature, a weight always has
    missed = [
        name
        for name, p in trained.items()
        if p.grad is None or (p.ndim > 1 and not p.grad.abs().max() > 0)
    ]
    assert not missed


def test_a_checkpoint_gives_back_model_and_optimiser(learner, system, tmp_path):
    """One step further, both stand at the same weights."""
    loops = [system.loop(tmp_path / name) for name in ("saved", "loaded")]
    saved, loaded = loops
    batch = system.batch(system.split.rows("train"), train=True)
    whole = Step(0, 0, batch["row"], np.arange(len(batch["row"])), len(batch["row"]))
    for _ in range(2):
        saved._update(whole, parts_of(batch, 1), None)
    path = checkpoint.save(tmp_path, 2, saved.wrapped, saved.updater.optimizer, {"step": 2})
    assert checkpoint.load(path, loaded.wrapped, loaded.updater.optimizer) == {"step": 2}
    loaded.position.step = 2
    for loop in loops:
        loop._update(whole, parts_of(batch, 1), None)
    for name, tensor in saved.task.state_dict().items():
        assert torch.equal(loaded.task.state_dict()[name], tensor), name


def learnt(loop: Loop, batch: Batch, num: int) -> list[torch.Tensor]:
    """The gradients of a batch in so many parts, late in a run, over all phases."""
    loop.wrapped.train()
    torch.manual_seed(0)
    for phase in loop.task.phases:
        loop.updater.learn(parts_of(batch, num), None, 0.9, phase, 1.0)
    return [p.grad for p in loop.task.parameters() if p.grad is not None]


def test_a_batch_in_parts_teaches_what_it_teaches_whole(learner, system, tmp_path):
    """Twice four images as eight at once, where no image is normalised by or compared with others."""
    loops = [system.loop(tmp_path / name) for name in ("whole", "parts")]
    norms = [m for m in loops[0].task.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms or system.source.name in COUPLED:
        pytest.skip("images of a batch depend on each other")
    batch = system.batch(system.split.rows("train"), train=True)
    pairs = zip(learnt(loops[0], batch, 1), learnt(loops[1], batch, 2), strict=True)
    for whole, parts in pairs:
        assert torch.allclose(parts, whole, rtol=1e-3, atol=1e-5 * max(whole.abs().max(), 1))


def test_recomputed_blocks_teach_the_same(learner, system, tmp_path):
    loops = [system.loop(tmp_path / name) for name in ("kept", "recomputed")]
    if not recompute(loops[1].task):
        pytest.skip("no repeated blocks")
    batch = system.batch(system.split.rows("train")[:4], train=True)
    pairs = zip(learnt(loops[0], batch, 1), learnt(loops[1], batch, 1), strict=True)
    assert all(torch.equal(kept, again) for kept, again in pairs)
    kept, again = (loop.task.state_dict() for loop in loops)
    assert all(torch.equal(again[name], tensor) for name, tensor in kept.items())
