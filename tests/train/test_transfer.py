"""Regimes on real networks: what is said to be trained is what moves, and what rests costs nothing."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.data.inputs.image import ImageConfig
from assay.errors import ConfigError
from assay.metrics.estimate import Estimate
from assay.metrics.measures import Measure
from assay.nn.networks import NetworkConfig
from assay.nn.optim import OptimConfig, build_optimizer, set_rates
from assay.nn.regimes import RegimeConfig
from assay.train.batches import batches
from assay.train.loop import Loop
from assay.train.task import BatchRows, TaskMetrics
from assay.train.task_config import TrainConfig
from assay.train.transfer import Transfer, TransferConfig

REGIMES = get_args(get_type_hints(RegimeConfig)["regime"])
TRUTH = np.arange(12, dtype=np.int32) % 2
SIDE = 32
CONFIG = TransferConfig(
    image=ImageConfig(height_px=SIDE, width_px=SIDE),
    model=NetworkConfig(network="test_resnet"),
    train=TrainConfig(epochs=4, batch_size=4, eval_batch_size=4),
    optim=OptimConfig(schedule="constant", lr=1e-3),
)
ROWS = {"train": np.arange(8), "val": np.arange(8, 12)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Noise, with a bright disc in every second image; sizes and modes differ from file to file."""
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    store = Store(str(folder / "store"))
    for row, label in enumerate(TRUTH):
        height, width = 40 + 3 * row, 48 - row
        image = rng.integers(40, 120, (height, width, 3), dtype=np.uint8)
        if label:
            cv2.circle(image, (width // 2, height // 2), 9, (230, 230, 230), -1)
        channels = (image[..., 0], image, np.dstack([image, np.full(image.shape[:2], 255, "u1")]))
        path = folder / f"{row}.png"
        deep = channels[row % 3].astype(np.uint16) * 257 if row in (4, 6) else channels[row % 3]
        cv2.imwrite(str(path), deep)
        store.build(f"{row:032x}", path)
    contents = [f"{row:032x}" for row in range(len(TRUTH))]
    return Dataset(
        classes=("plain", "disc"),
        truth=TRUTH,
        mask_classes=(),
        group=Column.of(contents),
        domains={},
        columns={},
        train=ROWS["train"],
        pixels=Pixels(store, contents),
    )


def task_of(dataset: Dataset, regime: Any = "full", **fields: Any) -> Transfer:
    torch.manual_seed(0)
    return Transfer(replace(CONFIG, regime=RegimeConfig(regime=regime), **fields), dataset)


def loop_of(task: Transfer, folder: Path) -> Loop:
    stream = lambda steps, train: batches(Transfer, task.config, task.dataset, steps, train)  # noqa: E731
    return Loop(task, task, ROWS, stream, folder)


@pytest.mark.parametrize("name", REGIMES)
def test_the_number_that_is_said_is_the_number_that_moved(
    dataset: Dataset, tmp_path: Path, name: Any
) -> None:
    """After a run of eight updates, by the loop that trains every run; buffers stay too, but from scratch."""
    task = task_of(dataset, name)
    before = {key: tensor.clone() for key, tensor in task.state_dict().items()}
    said = task.costs()
    loop_of(task, tmp_path).fit()
    moved = {key for key, old in before.items() if not torch.equal(task.state_dict()[key], old)}
    parameters = dict(task.named_parameters())
    assert said["num_params"] == sum(p.numel() for p in parameters.values())
    assert said["num_trainable"] == sum(p.numel() for key, p in parameters.items() if key in moved)
    whole = {key for key in before if key.startswith("network.")}
    buffers = whole - parameters.keys()
    assert moved - parameters.keys() == (buffers if name == "scratch" else set())
    weights = whole & parameters.keys()
    assert (moved & weights == weights) == (name not in ("features", "partial"))
    assert bool(moved & whole) == (name != "features")


def test_costs_are_those_of_a_network_counted_by_hand(dataset: Dataset) -> None:
    """LUNA: 3x3 convolutions at falling sizes, and the head on 18 x 18 places of 64 channels."""
    luna = {"model": NetworkConfig(network="luna")}
    channels, macs = (3, 8, 16, 32, 64), []
    for index, (chans_in, chans) in enumerate(pairwise(channels)):
        places = (SIDE >> index) ** 2
        macs.append(9 * places * (chans_in * chans + chans * chans))
    head = 2 * 64 * 18**2
    costs = task_of(dataset, "scratch", **luna).costs()
    assert costs["macs"] == costs["trainable_macs"] == sum(macs) + head
    assert costs["num_params"] == 115_088
    assert task_of(dataset, "features", **luna).costs()["trainable_macs"] == head
    costs = task_of(dataset, "partial", **luna).costs()
    assert costs["trainable_macs"] == macs[-1] + head
    assert costs["num_trainable"] == 9 * (32 * 64 + 64 * 64) + 2 * 64 + head + 2


def test_nothing_is_remembered_for_what_is_frozen(dataset: Dataset) -> None:
    """Before lp-ft unfreezes, no graph reaches below the head; later it does."""
    task = task_of(dataset, "lp-ft")
    keys = np.arange(4, dtype=np.uint64)
    batch = Transfer.prepare(task.config, dataset, BatchRows(ROWS["train"][:4], keys, True))
    for progress, is_reached in ((0.0, False), (0.5, True)):
        task.train().zero_grad()
        task(batch, progress)["loss"].backward()
        grads = [parameter.grad is not None for parameter in task.network.parameters()]
        assert all(grads) if is_reached else not any(grads)
        assert task.head.weight.grad is not None
        layers = [m for m in task.network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert layers
        assert not any(layer.training for layer in layers)
        assert task.patience_begins == 0.3


def test_features_do_not_jump_where_they_are_unfrozen(dataset: Dataset) -> None:
    """What the head learnt from is what it is given after: the same loss right before and right after."""
    for name in ("lp-ft", "gradual"):
        task = task_of(dataset, name)
        keys = np.arange(4, dtype=np.uint64)
        batch = Transfer.prepare(task.config, dataset, BatchRows(ROWS["train"][:4], keys, True))
        before, after = (task.train()(batch, progress)["loss"].item() for progress in (0.0, 0.6))
        assert before == after


def test_luna_as_published_goes_through_the_softmax_twice(dataset: Dataset) -> None:
    """Its loss has a floor at log(1 + 1 / e) = .3133 for two classes, and its answers are the softmax's."""
    task = task_of(dataset, "scratch", model=NetworkConfig(network="luna-softmax"))
    sure = torch.tensor([[100.0, -100.0], [-100.0, 100.0]])
    losses = task.row_losses(sure, torch.tensor([0, 1])).tolist()
    assert losses == pytest.approx([np.log(1 + np.exp(-1))] * 2)
    plain = task_of(dataset, "scratch", model=NetworkConfig(network="luna"))
    assert plain.row_losses(sure, torch.tensor([0, 1])).tolist() == pytest.approx([0, 0])


def test_a_head_alone_learns_faster_and_only_then(dataset: Dataset) -> None:
    regime = RegimeConfig(regime="features", head_lr=7.0)
    alone = Transfer(replace(CONFIG, regime=regime), dataset)
    optim, groups = OptimConfig(lr=0.01, schedule="constant", warmup=0.0), alone.param_groups(0.0)
    optimizer = build_optimizer(alone, optim, groups)
    set_rates(optimizer, optim, groups, 0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.07] * len(rates))
    full = replace(regime, regime="full", body_lr=1.0)
    both = Transfer(replace(CONFIG, regime=full), dataset)
    assert both.param_groups(0.0)["head."].lr == 1.0


def test_scratch_takes_no_weights_and_other_regimes_without_are_doubted(dataset: Dataset) -> None:
    hub = replace(CONFIG, model=NetworkConfig(network="test_resnet", weights="hub"))
    words = r"--regime.regime scratch begins with random weights, and --model.weights is hub; give"
    with pytest.raises(ConfigError, match=words):
        Transfer.fetch(hub)
    with pytest.raises(ConfigError, match=words):
        Transfer(hub, dataset)
    assert CONFIG.doubts() == []
    (doubt,) = replace(CONFIG, regime=RegimeConfig(regime="features")).doubts()
    assert "--model.weights is none" in doubt


def test_more_blocks_than_the_network_has_are_refused(dataset: Dataset) -> None:
    task = task_of(dataset)
    num = len(task.network.blocks())
    regime = RegimeConfig(regime="partial", blocks=num + 1)
    with pytest.raises(ConfigError, match=f"the network has {num} blocks; give 1 to {num}"):
        Transfer(replace(CONFIG, regime=regime), dataset)


def test_what_two_parts_judge_stands_side_by_side() -> None:
    one, two = (Estimate(value=v, low=v, high=v, num=2, num_groups=2) for v in (0.25, 0.75))
    first = TaskMetrics(metrics={"val": {"a": one}, "test": {"a": one}}, warnings=["A."])
    second = TaskMetrics(metrics={"val": {"b": two}}, measures={"b": Measure("B", "b")})
    both = first | second
    assert both.metrics == {"val": {"a": one, "b": two}, "test": {"a": one}}
    assert (both.warnings, both.measures.keys()) == (["A."], {"b"})
