"""The base of embeddings: views, terms of the loss, guards against collapse, and settings that are refused."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.data.dataset import Column, Dataset
from assay.data.inputs.image import ImageInput
from assay.data.inputs.views import ViewInput
from assay.errors import ConfigError, RunError
from assay.metrics.decide import DecideConfig
from assay.nn.optim import OptimConfig
from assay.train.embedding import MIN_STD, Embedding, draw_partner
from assay.train.monitor import Monitor
from assay.train.source import TaskSource, load_task
from assay.train.task_config import TrainConfig

Channels = load_task(TaskSource.read(Path(__file__).parents[1] / "toy_embedding.py"))
toy = sys.modules[Channels.__module__]
CONFIG, batch_of = toy.CONFIG, toy.batch_of


class Collapsed(Channels):
    """All images are one vector, but for what rounding leaves."""

    def embed(self, images: Tensor) -> Tensor:
        return self.scale + 1e-5 * super().embed(images)


def test_views_are_normalised_by_their_own_pixels_and_frames_as_served(dataset: Dataset) -> None:
    batch = batch_of(Channels(CONFIG, dataset), np.array([3, 8]))
    assert batch["global"].shape == (2, 2, 3, 16, 16)
    assert batch["local"].shape == (2, 1, 3, 8, 8)
    for index, row in enumerate((3, 8)):
        drawn = ViewInput(CONFIG.views).draw(dataset.pixels[row], 11 + index)
        for name, crops in zip(("global", "local"), drawn, strict=True):
            for view, crop in zip(batch[name][index], crops / 255.0, strict=True):
                deviation = np.maximum(crop.std((0, 1)), 1 / 255)
                expected = (crop - crop.mean((0, 1))) / (deviation + 1e-6)
                np.testing.assert_allclose(view, expected.transpose(2, 0, 1), atol=1e-3)
    np.testing.assert_array_equal(batch["row"], [3, 8])
    judged = batch_of(Channels(CONFIG, dataset), np.array([3, 8]), train=False)
    assert "global" not in judged
    for array, row in zip(judged["image"], (3, 8), strict=True):
        np.testing.assert_array_equal(array, ImageInput(CONFIG.image).array(dataset.pixels[row]))


def test_partners_are_other_images_of_the_part_in_train(dataset: Dataset) -> None:
    """Train is rows 0 to 5, two of each of three parts."""
    assert [draw_partner(dataset, row, 7, 1.0) for row in range(6)] == [1, 0, 3, 2, 5, 4]
    assert draw_partner(replace(dataset, train=np.array([0, 2, 3])), 0, 7, 1.0) is None
    assert draw_partner(dataset, 6, 7, 1.0) is None  # whose other image is not in train
    drawn = [draw_partner(dataset, 0, key, 0.3) is not None for key in range(400)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.08)
    assert {draw_partner(dataset, 0, key, 0.0) for key in range(50)} == {None}


def test_the_second_large_view_is_of_another_image_of_the_part(dataset: Dataset) -> None:
    still = {"jitter": 0.0, "grey": 0.0, "blur_global": (0.0, 0.0), "solarise": 0.0}
    views = replace(CONFIG.views, cross_view=1.0, **still)
    task = Channels(replace(CONFIG, views=views), dataset)
    batch = batch_of(task, np.array([2, 3]))
    for index, (row, partner) in enumerate(((2, 3), (3, 2))):
        key = 11 + index
        large, _ = ViewInput(views).draw(dataset.pixels[row], key, dataset.pixels[partner])
        shown = large / 255.0
        deviation = np.maximum(shown.std((1, 2)), 1 / 255)[:, None, None]
        expected = (shown - shown.mean((1, 2))[:, None, None]) / (deviation + 1e-6)
        np.testing.assert_allclose(
            batch["global"][index], expected.transpose(0, 3, 1, 2), atol=1e-3
        )


@pytest.mark.parametrize("name", ["global", "local"])
def test_crops_that_are_larger_than_every_image_are_refused(dataset: Dataset, name: str) -> None:
    """Images are 24 x 32."""
    for side, refused in ((32, False), (40, True)):
        config = replace(CONFIG, views=replace(CONFIG.views, **{f"{name}_px": side}))
        if not refused:
            Channels(config, dataset).begin(np.arange(6))
            continue
        with pytest.raises(ConfigError, match=rf"views.{name}-px is 40, and no image is longer"):
            Channels(config, dataset).begin(np.arange(6))
        judged = replace(config, train=replace(config.train, epochs=0))
        Channels(judged, dataset).begin(np.arange(6))


def test_there_may_be_no_small_views(dataset: Dataset) -> None:
    config = replace(CONFIG, views=replace(CONFIG.views, num_local=0))
    batch = batch_of(Channels(config, dataset), np.array([3, 8]))
    assert batch["local"].shape == (2, 0, 3, 8, 8)
    assert Channels(config, dataset)(batch, 0.0)["loss"].isfinite()


def test_the_loss_is_the_sum_of_its_terms(dataset: Dataset) -> None:
    config = replace(CONFIG, image=replace(CONFIG.image, normalise="imagenet"))
    task = Channels(config, dataset)
    batch = batch_of(task, np.arange(6))
    outputs = task(batch, 0.0)
    assert outputs.keys() == {"loss", "embedding_std", "near_loss", "far_loss"}
    assert outputs["far_loss"].item() == pytest.approx(3)
    total = outputs["near_loss"].item() + 3
    assert outputs["loss"].item() == pytest.approx(total)
    vectors = task.embed(torch.from_numpy(batch["global"][:, 1])).detach().numpy()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = units.std(0, ddof=1).mean()
    assert outputs["embedding_std"].item() == pytest.approx(expected, rel=1e-4)
    # a watch, and no term: what is watched has no gradient
    assert not outputs["embedding_std"].requires_grad


@pytest.mark.parametrize(("kind", "stops"), [(Collapsed, True), (Channels, False)])
def test_a_collapse_is_stopped(dataset: Dataset, kind: type[Embedding], stops: bool) -> None:
    config = replace(CONFIG, image=replace(CONFIG.image, normalise="imagenet"))
    task = kind(config, dataset)
    monitor = Monitor(OptimConfig(), task.limits(), 10**6, task.classes, pytest.fail)
    outputs = task(batch_of(task, np.arange(12)), 0.0)
    scalars = {name: outputs[name].item() for name in monitor.limited}
    assert (scalars["embedding_std"] < MIN_STD) == stops
    for step in range(1, 50):
        monitor.check_update(step, 1.0, 1.0, False, scalars)
    if stops:
        with pytest.raises(RunError, match=r"embedding_std is .* all images are embedded alike"):
            monitor.check_update(50, 1.0, 1.0, False, scalars)
    else:
        monitor.check_update(50, 1.0, 1.0, False, scalars)


def test_a_batch_of_one_is_no_collapse(dataset: Dataset) -> None:
    task = Collapsed(CONFIG, dataset)
    assert task(batch_of(task, np.array([2])), 0.0)["embedding_std"].item() == 1.0


def test_second_views_of_another_image_need_groups_of_several(dataset: Dataset) -> None:
    crossing = replace(CONFIG, views=replace(CONFIG.views, cross_view=0.5))
    alone = replace(dataset, group=Column.of([str(row) for row in range(12)]))
    for config, images in ((crossing, dataset), (CONFIG, alone)):
        assert not Channels(config, images).doubts()
    (doubt,) = Channels(crossing, alone).doubts()
    assert "--views.cross-view has no effect" in doubt
    assert not Channels(replace(crossing, train=TrainConfig(epochs=0)), alone).doubts()


def test_attention_needs_groups_of_several_images(dataset: Dataset) -> None:
    alone = replace(dataset, group=Column.of([str(row) for row in range(12)]))
    with pytest.raises(ConfigError, match="--ship attention learns from groups"):
        Channels(replace(CONFIG, ship="attention"), alone)


def test_classes_that_decide_names_are_there_before_training(dataset: Dataset) -> None:
    Channels(replace(CONFIG, decide=DecideConfig(positive="b")), dataset)
    stranger = replace(CONFIG, decide=DecideConfig(positive="d"))
    with pytest.raises(ConfigError, match=r"names the class 'd'.* the classes are: a, b, c"):
        Channels(stranger, dataset)
    with pytest.raises(ConfigError, match="the classes are: none, as images bear no label"):
        Channels(stranger, replace(dataset, classes=()))


def test_a_head_needs_classes(dataset: Dataset) -> None:
    unlabelled = replace(dataset, classes=(), truth=np.zeros(12, np.int32))
    with pytest.raises(ConfigError, match="--ship logistic answers with a class"):
        Channels(replace(CONFIG, ship="logistic"), unlabelled)
