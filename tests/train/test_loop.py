"""The loop trains, resumes exactly, chooses by the named rule, and says what it did."""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from assay.data.order import uniform_order
from assay.errors import ConfigError, RunError
from assay.experiment.identity import identity, recipe
from assay.nn.optim import lr_factor
from assay.runs import telemetry
from assay.runs.folder import Run
from assay.runs.telemetry import Telemetry
from assay.train.best import load_best
from assay.train.loop import Loop
from assay.train.monitor import MAX_NONFINITE
from assay.train.source import TaskSource, load_task
from assay.train.worker import work as train_to_the_end

TASK = load_task(TaskSource.read(Path(__file__).parents[1] / "toy.py"))
toy = sys.modules[TASK.__module__]
config_of, loop_of = toy.make_config, toy.make_loop
STEPS = 20
"""Updates of the toy's default run: 4 epochs of 21 rows in batches of 5, 5, 5, 5 and 1."""
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


def work(folder: Path, config, change=lambda stream: stream, every: int = 0):
    """A run of one worker with a checkpoint after each `every` steps."""
    job = toy.make_job(folder, config, checkpoint_steps=every)
    return train_to_the_end(job, change(job.stream()))


def lines_of(folder: Path, kind: str = "") -> list[dict]:
    """Lines of metrics.jsonl; of equal kind and step the last."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {(line["kind"], line["step"]): line for line in lines if kind in ("", line["kind"])}
    return list(last.values())


def computed(folder: Path) -> dict:
    """What a run computed, by kind and step: every field that is no measurement of time."""
    return {
        (line["kind"], line["step"]): {k: v for k, v in line.items() if k not in MEASURED}
        for line in lines_of(folder)
        if line["kind"] != "start"
    }


def best_of(folder: Path) -> bytes:
    return (folder / "best" / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def config():
    """Dropout, and a layer that joins in the middle."""
    return config_of(dropout=0.2)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, config) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    position = work(folder, config, every=1)
    assert (position.step, position.done) == (STEPS, True)
    return folder


def test_the_loss_falls_and_what_was_learned_holds_on_val(straight):
    losses = [line["loss"] for line in lines_of(straight, "epoch")]
    assert losses[-1] < 0.6 * losses[0]
    assert max(line["accuracy"] for line in lines_of(straight, "val")) > 0.8


def test_the_rate_of_every_step_is_the_schedules(straight, config):
    for line in lines_of(straight, "step"):
        expected = config.optim.lr * lr_factor(config.optim, (line["step"] - 1) / STEPS)
        assert line["lr"] == pytest.approx(expected, rel=1e-5)


def test_a_run_killed_after_every_single_step_equals_one_never_killed(tmp_path, straight, config):
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
    tmp_path, straight, config, every, stop
):
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, lambda stream: toy.stopping(stream, stop), every)
    work(tmp_path, config, every=every)
    assert computed(tmp_path) == computed(straight)
    assert best_of(tmp_path) == best_of(straight)
    starts = [json.loads(t) for t in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    starts = [line["step"] for line in starts if line["kind"] == "start"]
    assert starts == [0, (stop // every * every if every and stop % 5 else stop - stop % 5)]


def test_checkpoints_fall_due_at_epoch_ends_without_val_too(tmp_path):
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


def plant_val(monkeypatch, accuracies: list[float], nlls: list[float]) -> None:
    values: dict[str, Iterator[float]] = {"accuracy": iter(accuracies), "nll": iter(nlls)}
    for name, planted in values.items():
        monkeypatch.setattr(f"assay.train.task.{name}", lambda *_, p=planted: next(p))


@pytest.mark.parametrize(
    ("select", "accuracies", "nlls", "best"),
    [
        ("score", [0.5, 0.7, 0.7, 0.7, 0.6], [1.0, 0.9, 0.8, 0.85, 0.1], 2),
        ("score", [0.7, 0.7, 0.7, 0.7, 0.7], [0.5, 0.5, 0.5, 0.5, 0.5], 0),
        ("nll", [0.5, 0.7, 0.9, 0.7, 0.6], [1.0, 0.9, 0.8, 0.85, 0.1], 4),
        ("nll", [0.5, 0.7, 0.6, 0.5, 0.6], [0.3, 0.3, 0.3, 0.3, 0.3], 1),
        ("score", [0.5, 0.5, 0.5, 0.4, 0.4], [math.nan, 0.9, math.inf, 0.1, 0.1], 1),
        ("nll", [0.9, 0.5, 0.5, 0.4, 0.4], [math.nan, 0.9, 0.8, 0.9, 0.9], 2),
    ],
)
def test_the_named_rule_chooses_the_epoch_and_its_weights(
    tmp_path, monkeypatch, select, accuracies, nlls, best
):
    plant_val(monkeypatch, accuracies, nlls)
    loop = loop_of(tmp_path, config_of(train={"epochs": 5, "select": select}))
    weights: list[dict[str, torch.Tensor]] = []
    loop.heartbeat = lambda _: weights.append(
        {k: v.clone() for k, v in loop.task.state_dict().items()}
    )
    assert loop.fit().best_epoch == best
    fresh = TASK(loop.task.config, loop.task.dataset)
    load_best(fresh, tmp_path)
    for epoch, state in enumerate(weights):
        same = all(torch.equal(fresh.state_dict()[k], v) for k, v in state.items())
        assert same == (epoch == best)


def test_patience_ends_the_run_for_good(tmp_path, monkeypatch):
    plant_val(monkeypatch, [0.5, 0.6, 0.6, 0.5, 0.9, 0.9], [1.0] * 6)
    config = config_of(train={"epochs": 6, "patience": 2})
    position = work(tmp_path, config)
    assert (position.epoch, position.step, position.best_epoch) == (4, 20, 1)
    assert position.done
    assert work(tmp_path, config).step == 20
    assert len(lines_of(tmp_path, "val")) == 4


def test_patience_may_ask_for_a_least_improvement(tmp_path, monkeypatch):
    """Steps of .01 are no improvement, but together they are; the best weights follow every one."""
    plant_val(monkeypatch, [0.5, 0.51, 0.52, 0.56, 0.565, 0.57], [1.0] * 6)
    train = {"epochs": 6, "patience": 3, "min_improvement": 0.05}
    position = work(tmp_path / "counted", config_of(train=train))
    assert (position.epoch, position.best_epoch) == (6, 5)
    plant_val(monkeypatch, [0.5, 0.51, 0.52, 0.53, 0.565, 0.57], [1.0] * 6)
    position = work(tmp_path / "stopped", config_of(train=train))
    assert (position.epoch, position.best_epoch) == (4, 3)


def test_patience_survives_a_resume(tmp_path, monkeypatch):
    plant_val(monkeypatch, [0.6, 0.5, 0.5, 0.9], [1.0] * 4)
    config = config_of(train={"patience": 2})
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, lambda stream: toy.stopping(stream, 12))
    assert work(tmp_path, config).epoch == 3


class MonitorState(TASK):
    """Notes its weights after each step and the mode of each call."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.snapshots: list[torch.Tensor] = []
        self.modes: list[tuple[str, bool]] = []

    def forward(self, batch, progress, phase="main"):
        self.modes.append(("train", self.body[2].training))
        return super().forward(batch, progress, phase)

    def predict(self, batch):
        self.modes.append(("predict", self.body[2].training))
        return super().predict(batch)

    def after_step(self, progress: float) -> None:
        self.snapshots.append(self.head.weight.detach().clone())


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


def test_a_step_that_is_not_finite_is_skipped_and_said(tmp_path, config):
    loop = loop_of(tmp_path, config, MonitorState)
    loop.telemetry = Telemetry(tmp_path)
    loop.stream = toy.changed(loop.stream, poison(4, 9, 10))
    loop.fit()
    loop.telemetry.close()
    assert all(torch.isfinite(w).all() for w in loop.task.snapshots)
    same = [
        bool(torch.equal(*pair))
        for pair in zip(loop.task.snapshots, loop.task.snapshots[1:], strict=False)
    ]
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


def test_a_flat_schedule_may_be_flat(tmp_path):
    assert loop_of(tmp_path, config_of(optim={"schedule": "constant"})).fit().done


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


def test_metrics_hold_every_documented_field_and_no_other(straight):
    common = {"kind", "step", "epoch", "time"}
    trained = PARTS | {
        "loss",
        "extra",
        "lr",
        "grad_norm",
        "samples_per_s",
        "data_wait",
        "memory_mb",
    }
    kinds = {
        "start": common | {"total", "threads"},
        "step": common | trained | {"step_s"},
        "val": common | {"accuracy", "nll", "val_s"},
        "epoch": common | trained | {"epoch_s"},
    }
    lines = lines_of(straight)
    for line in lines:
        assert set(line) == kinds[line["kind"]]
        assert all(math.isfinite(v) for k, v in line.items() if k != "kind")
    counts = {kind: sum(line["kind"] == kind for line in lines) for kind in kinds}
    assert counts == {"start": 1, "step": STEPS, "val": 4, "epoch": 4}
    assert telemetry.__doc__ is not None
    documented = telemetry.__doc__.replace(",", " ").split()
    for name in set.union(*kinds.values()) - {"extra"}:
        assert name in documented


def test_epoch_lines_are_means_of_their_steps(straight):
    steps = lines_of(straight, "step")
    for line in lines_of(straight, "epoch"):
        epoch_steps = [s for s in steps if s["epoch"] == line["epoch"]]
        assert len(epoch_steps) == 5
        assert line["step"] == epoch_steps[-1]["step"]
        for name in ("loss", "extra", "lr", "grad_norm"):
            assert line[name] == pytest.approx(np.mean([s[name] for s in epoch_steps]), rel=1e-4)
        assert line["epoch_s"] >= sum(s["step_s"] for s in epoch_steps) * 0.99
        assert line["samples_per_s"] == pytest.approx(21 / line["epoch_s"], rel=1e-3)


def test_a_rate_counts_only_what_this_launch_served(tmp_path):
    config = config_of(train={"epochs": 1})
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, lambda stream: toy.stopping(stream, 4), every=1)
    work(tmp_path, config)
    (line,) = lines_of(tmp_path, "epoch")
    assert line["samples_per_s"] == pytest.approx(1 / line["epoch_s"], rel=1e-3)


def test_judging_is_deterministic_in_eval_mode_and_training_goes_back_to_train_mode(tmp_path):
    loop = loop_of(tmp_path, config_of(dropout=0.5), MonitorState)
    loop.fit()
    assert set(loop.task.modes) == {("train", True), ("predict", False)}
    called = "".join(name[0] for name, _ in loop.task.modes)
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


def test_what_a_run_costs_is_noted_and_its_time_is_of_all_launches(tmp_path):
    """A launch that sleeps and breaks off after a checkpoint, and one that ends the run."""

    def slow(index: int, batch):
        time.sleep(0.1)
        return batch

    config = config_of(train={"epochs": 2})
    slowly = lambda stream: toy.stopping(toy.changed(stream, slow), 6)  # noqa: E731
    with pytest.raises(toy.StoppedError):
        work(tmp_path, config, slowly, every=5)
    assert Run(tmp_path).record.measured is None
    began = time.perf_counter()
    work(tmp_path, config)
    measured = Run(tmp_path).record.measured
    assert measured is not None
    layers = (6 * 16 + 16) + (6 * 16 + 16) + (16 * 3 + 3) + 16
    assert measured["num_params"] == measured["num_trainable"] == layers
    assert 0.5 <= measured["train_s"] <= 0.5 + time.perf_counter() - began + 2


def test_val_is_prepared_once(tmp_path, config):
    looks = []
    inner = toy.make_job(tmp_path, config).stream()

    def counted(steps, train):
        looks.extend([] if train else [len(steps)])
        return inner(steps, train)

    loop_of(tmp_path, config, stream=counted).fit()
    assert looks == [3]


def test_without_epochs_a_run_is_judged_untrained(tmp_path):
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
    assert work(tmp_path, config) == position


def test_predictions_come_from_the_best_weights_not_the_last(tmp_path, monkeypatch):
    plant_val(monkeypatch, [0.9, 0.5, 0.5, 0.5], [1.0] * 4)
    config = config_of()
    work(tmp_path, config)
    loop = loop_of(tmp_path / "again", config)
    load_best(loop.task, tmp_path)
    expected = loop.val.predict()["logits"]
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert np.array_equal(np.array(table["logits"].to_pylist()[:7], np.float32), expected)


def test_the_table_is_computed_in_float32_whatever_training_computes_in(tmp_path):
    config = config_of(train={"precision": "bf16"})
    work(tmp_path, config)
    loop = loop_of(tmp_path / "again", config)
    load_best(loop.task, tmp_path)
    looked_at = loop.val.predict()["logits"]
    with torch.no_grad():
        parts = [loop.task.predict(batch)["logits"] for batch in loop.stream(loop.val.steps, False)]
    exact = torch.cat(parts).numpy()
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert np.array_equal(np.array(table["logits"].to_pylist()[:7], np.float32), exact)
    assert not np.array_equal(looked_at, exact)


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


def test_waiting_for_data_is_measured(tmp_path):
    def slow(index: int, batch):
        time.sleep(0.05)
        return batch

    class Slow(TASK):
        def forward(self, batch, progress, phase="main"):
            time.sleep(0.05)
            return super().forward(batch, progress, phase)

    shares = {}
    for name, task, change in (("data", TASK, slow), ("model", Slow, lambda i, batch: batch)):
        folder = tmp_path / name
        loop = loop_of(folder, config_of(train={"epochs": 1}), task)
        loop.telemetry = Telemetry(folder)
        loop.stream = toy.changed(loop.stream, change)
        loop.fit()
        loop.telemetry.close()
        shares[name] = np.median([line["data_wait"] for line in lines_of(folder, "step")])
        (epoch,) = lines_of(folder, "epoch")
        shares[f"{name}, epoch"] = epoch["data_wait"]
    assert shares["data"] > shares["model"] + 0.3
    assert shares["data, epoch"] > shares["model, epoch"] + 0.3


def test_the_parts_explain_an_update(tmp_path):
    """Also one that takes a millisecond, where what is done for each update counts."""
    loop = loop_of(tmp_path, config_of(train={"epochs": 12}))
    loop.telemetry = Telemetry(tmp_path)
    loop.fit()
    loop.telemetry.close()
    steps = lines_of(tmp_path, "step")
    explained = [sum(line[part] for part in PARTS) / line["step_s"] for line in steps]
    assert np.median(explained) > 0.95
    assert max(explained) <= 1


@pytest.mark.parametrize("name", ["train", "val"])
def test_an_empty_set_is_refused_by_name(tmp_path, config, name):
    loop = loop_of(tmp_path, config)
    rows = loop.rows | {name: np.array([], dtype=np.int64)}
    with pytest.raises(ConfigError, match=f"no image in {name}"):
        Loop(loop.task, loop.task, rows, loop.stream, tmp_path)


def test_best_weights_of_another_model_are_refused(tmp_path, straight, config):
    dataset = toy.make_job(tmp_path, config).dataset
    with pytest.raises(RunError, match="no best weights yet"):
        load_best(TASK(config, dataset), tmp_path)
    with pytest.raises(RunError, match="do not fit this model"):
        load_best(TASK(config, replace(dataset, classes=("a", "b"))), straight)


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
