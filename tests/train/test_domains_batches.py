"""Domains of a batch: printers in equal parts, frames without labels, and what is too little or not clear."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assay.data.split_config import SplitConfig
from assay.errors import ConfigError
from assay.nn.domains.config import PUBLISHED, AlgorithmConfig
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TaskConfig

Frames = load_task(TaskSource.read(Path(__file__).parents[1] / "toy_domains.py"))
toy = sys.modules[Frames.__module__]
config_of, dataset_of, task_of, batch_of, rows_of = (
    toy.config_of,
    toy.dataset_of,
    toy.task_of,
    toy.batch_of,
    toy.rows_of,
)
PER_PRINTER, NUM, TRAIN = toy.PER_PRINTER, toy.NUM, toy.TRAIN


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


@pytest.mark.parametrize("consistency", ["variance", "divergence"])
def test_a_consistency_adds_its_term(consistency):
    plain = task_of(config_of()).eval()
    task = task_of(config_of(consistency=consistency, consistency_weight=3.0)).eval()
    outputs, expected = task(batch_of(task), 0.5), plain(batch_of(task), 0.5)
    term = outputs["consistency_loss"]
    assert term > 0
    torch.testing.assert_close(outputs["loss"], expected["loss"] + term)


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
