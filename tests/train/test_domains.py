"""Every algorithm in a whole loop: it resumes exactly, its average is what ships, and an explosion stops."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.split_config import SplitConfig
from assay.errors import ConfigError, RunError
from assay.nn.averaging import AverageConfig
from assay.nn.domains.base import Sizes
from assay.nn.domains.build import build_algorithm
from assay.nn.domains.config import OF_FEATURES, PUBLISHED, AlgorithmConfig
from assay.nn.optim import Multiplier, OptimConfig
from assay.train.batches import batches
from assay.train.best import load_best
from assay.train.classification import Classification
from assay.train.domains import DomainClassification, DomainClassificationConfig, DomainsConfig
from assay.train.loop import Loop
from assay.train.task import BatchRows
from assay.train.task_config import TaskConfig, TrainConfig

PRINTERS = ("a", "b", "c", "new")
PER_PRINTER, PER_PRINT = 12, 3
NUM = PER_PRINTER * len(PRINTERS)
TRAIN = np.array([row for row in range(3 * PER_PRINTER) if row % 4])
VAL = np.array([row for row in range(3 * PER_PRINTER) if not row % 4])


def dataset_of(train: np.ndarray = TRAIN, **domains: list[str]) -> Dataset:
    """Four printers, the last held out; prints of three frames, each of one class."""
    printers = [PRINTERS[row // PER_PRINTER] for row in range(NUM)]
    prints = [f"{row // PER_PRINT:03d}" for row in range(NUM)]
    named = domains or {"printer": printers}
    return Dataset(
        classes=("sound", "faulty"),
        truth=np.array([row // PER_PRINT % 2 for row in range(NUM)], np.int32),
        mask_classes=(),
        group=Column.of(prints),
        domains={name: Column.of(texts) for name, texts in named.items()},
        columns={},
        train=train,
        pixels=Pixels(Store(""), []),
    )


class Frames(DomainClassification):
    """A small net; the class is in the red, the printer in the green."""

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3)
        )
        self.add_head(8, num_flat=8 * 4 * 4)

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> dict[str, np.ndarray]:
        image = np.stack(
            [np.random.default_rng(int(r)).integers(60, 120, (8, 8, 3)) for r in samples.rows]
        )
        truth = dataset.truth[samples.rows].astype(np.int64)
        image[..., 0] += 40 * truth[:, None, None]
        image[..., 1] += 40 * (samples.rows // PER_PRINTER)[:, None, None]
        ones = np.ones((len(truth), 3), np.float32)
        return {
            "image": image.astype(np.uint8),
            "mean": 0.4 * ones,
            "std": 0.2 * ones,
            "row": samples.rows,
            "truth": truth,
        }

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features


CONFIG = DomainClassificationConfig(
    train=TrainConfig(epochs=3, batch_size=9, eval_batch_size=5),
    optim=OptimConfig(lr=0.01, schedule="constant"),
)


def config_of(
    name: Any = "erm", average: str = "last", **fields: Any
) -> DomainClassificationConfig:
    places = {"mix_after": ("net.2",)} if name == "mixstyle" else {}
    sections = {key: fields.pop(key) for key in ("train", "optim", "domains") if key in fields}
    settings = {"begins": 0.2, "converged_looks": 2} if average == "swad" else {}
    return replace(
        CONFIG,
        algorithm=AlgorithmConfig(name=name, **places | fields),
        average=AverageConfig(weights=average, **settings),  # type: ignore[arg-type]
        **{key: replace(getattr(CONFIG, key), **value) for key, value in sections.items()},
    )


def task_of(config: DomainClassificationConfig, dataset: Dataset | None = None) -> Frames:
    torch.manual_seed(0)
    return Frames(config, dataset or dataset_of())


class StoppedError(Exception):
    """A planted end of the process."""


def loop_of(
    folder: Path, config: DomainClassificationConfig, stop: int = 10**6, every: int = 0
) -> Loop:
    """A loop that breaks off before a training batch."""
    task = task_of(config)

    def stream(steps, train):
        for index, batch in enumerate(batches(Frames, config, task.dataset, steps, train)):
            if train and index == stop:
                raise StoppedError
            yield batch

    return Loop(task, task, {"train": TRAIN, "val": VAL}, stream, folder, checkpoint_steps=every)


def batch_of(task: Frames, rows: np.ndarray = TRAIN) -> dict[str, np.ndarray]:
    return Frames.prepare(task.config, task.dataset, rows_of(rows))


def rows_of(rows: np.ndarray) -> BatchRows:
    return BatchRows(rows, np.zeros(len(rows), np.uint64), True)


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


def test_domains_held_out_do_not_count_and_change_no_shape():
    """A sweep measures a task without its split, and loads the run's weights into it."""
    config = config_of("dann")
    task, unsplit = task_of(config), task_of(config, dataset_of(np.zeros(0, np.int64)))
    unsplit.load_state_dict(task.state_dict())
    assert task.num_domains == 3
    assert task.limits()[0].high == pytest.approx(3 * math.log(3))


def test_batches_balance_printers_and_keep_prints_apart():
    dataset, config = dataset_of(), config_of()
    for batch in Frames.order(config, dataset, TRAIN, 0):
        printers = dataset.domains["printer"].codes[batch]
        assert np.bincount(printers).tolist() == [3, 3, 3]
        assert len(np.unique(dataset.group.codes[batch])) == 9
    uniform = config_of(domains={"order": "uniform"})
    served = np.concatenate(Frames.order(uniform, dataset, TRAIN, 0))
    assert sorted(served) == sorted(TRAIN)


NEW = np.arange(3 * PER_PRINTER, 3 * PER_PRINTER + 6)
"""The first two prints of the printer held out, to be seen without their labels."""


def unlabelled(name: Any, labels: int = 0) -> Frames:
    """A task that sees the new printer; `labels` turns the labels of all its frames."""
    config = config_of(name, train={"batch_size": 12})
    split = SplitConfig(unseen_domain="printer", unlabelled="train")
    truth = dataset_of().truth.copy()
    truth[3 * PER_PRINTER :] = (truth[3 * PER_PRINTER :] + labels) % 2
    return task_of(replace(config, split=split), replace(dataset_of(), truth=truth, unlabelled=NEW))


@pytest.mark.parametrize("name", ["dann", "dann-alternating", "coral", "mmd"])
def test_frames_without_labels_are_one_more_domain_and_their_labels_count_nowhere(name):
    task = unlabelled(name)
    assert task.num_domains == 4
    orders = Frames.order(task.config, task.dataset, TRAIN, 0)
    for batch in orders:
        assert np.bincount(task.domain.codes[batch]).tolist() == [3, 3, 3, 3]
        assert set(batch) <= {*TRAIN, *NEW}
    results = []
    for labels in (0, 1):
        other = unlabelled(name, labels)
        images = Frames.prepare(task.config, task.dataset, rows_of(orders[0]))
        batch = images | {"truth": other.dataset.truth[orders[0]].astype(np.int64)}
        for phase in other.phases:
            torch.manual_seed(2)
            outputs = other(batch, 0.5, phase)
            outputs["loss"].backward()
        results.append((outputs, [p.grad for p in other.parameters() if p.grad is not None]))
    (first, gradients), (second, others) = results
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(g, o) for g, o in zip(gradients, others, strict=True))


def test_the_answers_to_frames_without_labels_teach_nothing():
    """Not by their risk, nor by a consistency, nor in the accuracy: the head learns what it learns without them."""
    config = AlgorithmConfig(name="dann", weight=0.0, consistency="variance")
    task = unlabelled("dann")
    task.config = replace(task.config, algorithm=config)
    task.algorithm.config = config
    task.eval()
    with_new = task(batch_of(task, np.concatenate([NEW, TRAIN[:9]])), 0.5)
    without = task(batch_of(task, TRAIN[:9]), 0.5)
    for key in ("loss", "train_accuracy", "consistency_loss"):
        torch.testing.assert_close(with_new[key], without[key])
    alone = task(batch_of(task, NEW), 0.5)
    assert "train_accuracy" not in alone
    assert alone["loss"] == 0


@pytest.mark.parametrize(
    "name", sorted({*PUBLISHED} - {"dann", "dann-alternating", "coral", "mmd"})
)
def test_what_needs_labels_refuses_frames_without(name):
    split = SplitConfig(unseen_domain="printer", unlabelled="train")
    with pytest.raises(ConfigError, match=f"algorithm.name is {name}, where dann, dann-alternat"):
        replace(config_of(name), split=split)
    replace(config_of(name), split=replace(split, unlabelled="drop"))
    with pytest.raises(ConfigError, match=r"and domains\.order is uniform, so that images"):
        replace(config_of("dann", domains={"order": "uniform"}), split=split)
    with pytest.raises(ConfigError, match="this task has no loss of domains"):
        TaskConfig(split=split)


@pytest.mark.parametrize(("name", "least"), [("coral", 6), ("irm", 6), ("dann", 3), ("erm", 1)])
def test_batches_that_are_too_small_to_compare_domains_are_doubted(name, least):
    """Of three domains; CORAL says nothing of domains with one row each."""
    assert task_of(config_of(name, train={"batch_size": least})).doubts() == []
    if least > 1:
        task = task_of(config_of(name, train={"batch_size": least - 1}))
        (doubt,) = task.doubts()
        assert f"train.batch-size is {least - 1}, and {name}" in doubt
        assert f"give {least} or more" in doubt
    if name == "coral":
        outputs = task(batch_of(task, np.array([0, PER_PRINTER, 2 * PER_PRINTER])), 0.5)
        assert outputs["distance_loss"] == 0


def test_a_consistency_of_single_rows_is_doubted():
    assert config_of().doubts() == []
    (doubt,) = config_of(consistency="variance").doubts()
    assert "--domains.rows-per-group 2" in doubt
    assert config_of(consistency="variance", domains={"rows_per_group": 2}).doubts() == []
    assert config_of(consistency="variance", domains={"order": "uniform"}).doubts() == []


def test_statistics_that_are_frozen_stay(tmp_path):
    loop = loop_of(tmp_path, config_of(domains={"batch_norm": "frozen"}))
    before = loop.task.net[1].running_mean.clone()
    loop.fit()
    assert torch.equal(loop.task.net[1].running_mean, before)
    loop = loop_of(tmp_path / "moving", config_of())
    loop.fit()
    assert not torch.equal(loop.task.net[1].running_mean, before)


@pytest.mark.parametrize("consistency", ["variance", "divergence"])
def test_a_consistency_adds_its_term(consistency):
    plain = task_of(config_of()).eval()
    task = task_of(config_of(consistency=consistency, consistency_weight=3.0)).eval()
    outputs, expected = task(batch_of(task), 0.5), plain(batch_of(task), 0.5)
    term = outputs["consistency_loss"]
    assert term > 0
    torch.testing.assert_close(outputs["loss"], expected["loss"] + term)


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


def test_domains_that_are_not_clear_are_refused():
    texts = ["x"] * NUM
    with pytest.raises(ConfigError, match="All images of train are of one domain"):
        task_of(config_of("coral"), dataset_of(printer=texts))
    task_of(config_of("erm"), dataset_of(printer=texts))
    both = {"printer": texts, "camera": texts}
    with pytest.raises(
        ConfigError, match=r"domains\.column is '', and the domains are printer, camera"
    ):
        task_of(config_of(), dataset_of(**both))
    with pytest.raises(ConfigError, match=r"domains\.column is 'lens'"):
        task_of(config_of(domains={"column": "lens"}))
    task_of(config_of(domains={"column": "camera"}), dataset_of(**both))
    without = replace(dataset_of(), domains={})
    with pytest.raises(ConfigError, match="The images have no domain"):
        task_of(config_of(), without)


def test_settings_without_effect_are_named():
    idle = CONFIG.idle()
    assert "algorithm.weight" in idle
    assert "domains.rows_per_group" not in idle
    assert "rows_per_group" in DomainsConfig(order="uniform").idle()
