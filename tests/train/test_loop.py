"""The loop trains, resumes exactly, and says what it refuses."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from assay.data.order import uniform_order
from assay.errors import ConfigError
from assay.experiment.identity import identity, recipe
from assay.nn.optim import lr_factor
from assay.runs.folder import Run
from assay.train.best import load_best
from assay.train.loop import Loop
from assay.train.source import TaskSource, load_task

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop
STEPS = 20
"""Updates of `straight`."""
PARTS = {f"{part}_s" for part in ("wait", "forward", "backward", "update")}
MEASURED = PARTS | {
    "time",
    "samples_per_s",
    "data_wait",
    "step_s",
    "epoch_s",
    "val_s",
    "memory_mb",
}


@pytest.fixture
def computed(lines_of):
    """What a run computed, by kind and step: every field that is no measurement of time."""
    return lambda folder: {
        (line["kind"], line["step"]): {k: v for k, v in line.items() if k not in MEASURED}
        for line in lines_of(folder)
        if line["kind"] != "start"
    }


def best_of(folder: Path) -> bytes:
    return (folder / "best" / "weights.safetensors").read_bytes()


def test_the_loss_falls_and_what_was_learned_holds_on_val(lines_of, straight):
    losses = [line["loss"] for line in lines_of(straight, "epoch")]
    assert losses[-1] < 0.6 * losses[0]
    assert max(line["accuracy"] for line in lines_of(straight, "val")) > 0.8


def test_the_rate_of_every_step_is_the_schedules(lines_of, straight, config):
    for line in lines_of(straight, "step"):
        expected = config.optim.lr * lr_factor(config.optim, (line["step"] - 1) / STEPS)
        assert line["lr"] == pytest.approx(expected, rel=1e-5)


def test_a_run_killed_after_every_single_step_equals_one_never_killed(
    computed, work, tmp_path, straight, config
):
    launches = 0
    while True:
        launches += 1
        try:
            work(tmp_path, config, lambda stream: toy.stopping(stream, 1), every=1)
        except toy.StoppedError:
            continue
        break
    # the last step needs no further batch, so its launch is not stopped
    assert launches == STEPS
    assert computed(tmp_path) == computed(straight)
    assert best_of(tmp_path) == best_of(straight)
    assert same_predictions(tmp_path, straight)


def same_predictions(folder: Path, other: Path) -> bool:
    return pq.read_table(folder / "predictions.parquet").equals(
        pq.read_table(other / "predictions.parquet")
    )


@pytest.mark.parametrize(("every", "stop"), [(3, 8), (0, 12), (3, 5), (0, 3)])
def test_steps_after_the_last_checkpoint_are_repeated_exactly(
    computed, work, tmp_path, straight, config, every, stop
):
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, lambda stream: toy.stopping(stream, stop), every)
    work(tmp_path, config, every=every)
    assert computed(tmp_path) == computed(straight)
    assert best_of(tmp_path) == best_of(straight)
    starts = [json.loads(t) for t in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    starts = [line["step"] for line in starts if line["kind"] == "start"]
    assert starts == [0, (stop // every * every if every and stop % 5 else stop - stop % 5)]


def test_checkpoints_fall_due_at_epoch_ends_without_val_too(lines_of, work, tmp_path):
    config = config_of(train={"val_every": 3})
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, lambda stream: toy.stopping(stream, 5), every=5)
    assert [p.name for p in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000005"]
    work(tmp_path, config)
    assert [line["epoch"] for line in lines_of(tmp_path, "val")] == [2, 3]


def test_a_finished_run_is_not_trained_again(tmp_path, straight, config):
    def never(stream):
        def served(steps, train):
            assert not train
            return stream(steps, train)

        return served

    loop = loop_of(tmp_path, config)
    loop.fit()
    again = loop_of(tmp_path, config, stream=never(loop.stream))
    assert again.fit() == loop.position


def test_every_row_is_served_once_an_epoch_in_the_order_of_the_seed(tmp_path, config):
    served: list[np.ndarray] = []

    def note(index: int, batch):
        served.append(batch["row"])
        return batch

    loop = loop_of(tmp_path, config)
    loop.stream = toy.changed(loop.stream, note)
    loop.fit()
    assert [len(rows) for rows in served] == [5, 5, 5, 5, 1] * 4
    rows = loop.rows["train"]
    for epoch in range(4):
        of_epoch = np.concatenate(served[5 * epoch : 5 * epoch + 5])
        assert sorted(of_epoch) == sorted(rows)
        assert np.array_equal(of_epoch, np.concatenate(uniform_order(rows, 5, 0, epoch)))
    assert not np.array_equal(np.concatenate(served[:5]), np.concatenate(served[5:10]))


def test_a_flat_schedule_may_be_flat(tmp_path):
    assert loop_of(tmp_path, config_of(optim={"schedule": "constant"})).fit().done


def test_without_epochs_a_run_is_judged_untrained(lines_of, work, tmp_path):
    """A heuristic baseline."""
    config = config_of(train={"epochs": 0})
    position = work(tmp_path, config)
    assert (position.step, position.done) == (0, True)
    assert [line["kind"] for line in lines_of(tmp_path)] == ["val"]
    torch.manual_seed(config.train.seed)
    untrained = TASK(config, toy.make_job(tmp_path, config).dataset)
    trained = TASK(config, untrained.dataset)
    load_best(trained, tmp_path)
    for name, tensor in untrained.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor)
    splits = pq.read_table(tmp_path / "predictions.parquet")["split"].to_pylist()
    assert splits == ["val"] * 7 + ["test"] * 5
    measured = Run(tmp_path).record.measured
    assert measured is not None
    assert measured["num_trainable"] == 0 < measured["num_params"]
    assert work(tmp_path, config) == position


def test_a_task_that_works_ahead_is_shown_each_next_batch(tmp_path):
    shown, learnt = [], []

    class Ahead(TASK):
        def ahead(self, batch, progress):
            shown.append(id(batch))

        def forward(self, batch, progress, phase="main"):
            learnt.append((id(batch), len(shown)))
            return super().forward(batch, progress, phase)

    held = []
    job = toy.make_job(tmp_path, config_of(train={"epochs": 1}))
    stream = toy.changed(job.stream(), lambda i, batch: held.append(batch) or batch)
    loop = loop_of(tmp_path, config_of(train={"epochs": 1}), Ahead, stream)
    loop.fit()
    ids = [id(batch) for batch in held]
    assert shown == ids[1:]
    assert learnt == [(own, min(i + 1, len(ids) - 1)) for i, own in enumerate(ids)]


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_empty_set_is_refused_by_name(tmp_path, config, name):
    loop = loop_of(tmp_path, config)
    rows = loop.rows | {name: np.array([], dtype=np.int64)}
    with pytest.raises(ConfigError, match=f"no image in {name}"):
        Loop(loop.task, loop.task, rows, loop.stream, tmp_path)


def test_how_a_run_is_judged_is_no_part_of_it_and_seeds_share_a_recipe(tmp_path):
    base = config_of()
    job = toy.make_job(tmp_path, base)

    def of(config, kind=identity):
        return kind(job.source, config, job.manifest)

    judged = replace(base, decide=replace(base.decide, coverage=0.5))
    assert of(judged) == of(base)
    assert of(judged, recipe) == of(base, recipe)
    reseeded = config_of(train={"seed": 1})
    assert of(reseeded) != of(base)
    assert of(reseeded, recipe) == of(base, recipe)
    elsewhere = replace(base, split=replace(base.split, seed=1))
    for other in (elsewhere, config_of(train={"epochs": 5}), config_of(dropout=0.1)):
        assert of(other, recipe) != of(base, recipe)
    fewer = job.manifest.take(range(9))
    assert recipe(job.source, base, fewer) != of(base, recipe)
