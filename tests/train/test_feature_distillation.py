"""Features of a frozen network: the loss written out, what learns and what does not, and a teacher that knows something."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from assay.data.dataset import Dataset
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.views import ViewConfig
from assay.errors import ConfigError
from assay.nn.backbone import create_backbone
from assay.nn.self_supervised.features import feature_loss
from assay.train.feature_distillation import (
    FeatureDistillation,
    FeatureDistillationConfig,
    FrozenConfig,
    StudentConfig,
)
from assay.train.task import BatchRows

CONFIG = FeatureDistillationConfig(
    image=ImageConfig(height_px=32, width_px=32),
    views=ViewConfig(num_global=2, num_local=0, global_px=32),
    model=StudentConfig(backbone="texture_small"),
    teacher=FrozenConfig(backbone="test_resnet", weights="none"),
)


@pytest.fixture(scope="module")
def dataset(
    dataset_of: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 90 + 30 * row, (40, 40, 3), dtype=np.uint8) for row in range(6)]
    return dataset_of(
        tmp_path_factory.mktemp("images"), images, "ab", np.arange(6) % 2, np.arange(6)
    )


def batch_of(dataset: Dataset, config: Any = CONFIG) -> Any:
    keys = np.arange(6, dtype=np.uint64)
    return FeatureDistillation.prepare(config, dataset, BatchRows(np.arange(6), keys, True))


def test_the_loss_is_smooth_l1_from_the_teachers_whitened_features() -> None:
    rng = np.random.default_rng(1)
    projected, teacher = 3 * rng.normal(size=(4, 5)), 7 + 2 * rng.normal(size=(4, 5))
    losses = []
    for ours, theirs in zip(projected, teacher, strict=True):
        white = (theirs - theirs.mean()) / math.sqrt(theirs.var() + 1e-5)
        for gap in np.abs(ours - white):
            losses.append(gap**2 / 4 if gap < 2 else gap - 1)
    assert max(losses) > 1  # both forms occur
    assert min(losses) < 1
    loss = feature_loss(torch.from_numpy(projected), torch.from_numpy(teacher))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    # the scale and the offset of a teacher do not matter
    again = feature_loss(torch.from_numpy(projected), torch.from_numpy(100 * teacher - 3))
    assert again.item() == pytest.approx(loss.item(), rel=1e-3)


def test_the_teacher_stays_as_it_is_and_gives_no_gradient(dataset: Dataset) -> None:
    task = FeatureDistillation(CONFIG, dataset).train()
    assert not any(module.training for module in task.teacher.modules())
    before = {name: tensor.clone() for name, tensor in task.teacher.state_dict().items()}
    task(batch_of(dataset), 0.0)["loss"].backward()
    for name, tensor in task.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert task.project.weight.grad.abs().max() > 0
    projected = feature_loss(torch.zeros(2, 3), torch.randn(2, 3, requires_grad=True))
    assert not projected.requires_grad


def test_both_see_each_large_crop(dataset: Dataset) -> None:
    torch.manual_seed(0)
    task, batch = FeatureDistillation(CONFIG, dataset).eval(), batch_of(dataset)
    losses = []
    for image in range(6):
        for view in range(2):
            crop = torch.from_numpy(batch["global"][image : image + 1, view])
            losses.append(feature_loss(task.project(task.backbone(crop)), task.teacher(crop)))
    expected = torch.stack(losses).mean().item()
    terms, embeddings = task.losses(batch, 0.0, "main")
    assert terms["features"].item() == pytest.approx(expected, rel=1e-4)
    first = task.embed(torch.from_numpy(batch["global"][:, 0]))
    assert torch.allclose(embeddings, first, atol=1e-5)


def test_weights_of_a_convolutional_teacher_are_taken_whole(
    dataset: Dataset, lite0: Path, tmp_path: Path
) -> None:
    teacher = FrozenConfig(backbone="tf_efficientnet_lite0", weights=str(lite0))
    config = replace(CONFIG, teacher=teacher)
    FeatureDistillation.fetch(config)
    task = FeatureDistillation(config, dataset)
    assert task.project.out_features == 1280
    assert "normalise" not in "".join(config.doubts())  # the images' own statistics are anyone's
    missing = replace(config, teacher=replace(teacher, weights=str(tmp_path / "no.safetensors")))
    with pytest.raises(ConfigError, match=r"--teacher.weights is .* which is no file"):
        FeatureDistillation.fetch(missing)


def test_frames_and_crops_of_a_size_that_no_network_takes_are_refused(dataset: Dataset) -> None:
    student = replace(CONFIG, model=StudentConfig(backbone="test_vit"))
    for changes, option in (
        ({"views": replace(CONFIG.views, global_px=40)}, r"views\.global-px"),
        ({"image": ImageConfig(height_px=40, width_px=32)}, r"image\.height-px"),
    ):
        with pytest.raises(ConfigError, match=f"test_vit does not take images of.*{option}"):
            FeatureDistillation(replace(student, **changes), dataset)


def test_small_crops_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"views\.num-local is 3"):
        replace(CONFIG, views=replace(CONFIG.views, num_local=3))


def test_a_teacher_that_was_shown_images_otherwise_is_doubted() -> None:
    teacher = FrozenConfig(backbone="resnet18.a1_in1k", weights="hub")
    image = ImageConfig(normalise="constants")
    (doubt,) = replace(CONFIG, teacher=teacher, image=image).doubts()
    assert "resnet18" in doubt


@pytest.mark.parametrize(
    ("student", "is_doubted"),
    [
        ({"backbone": "resnet18", "weights": "hub"}, True),
        ({"backbone": "resnet18", "weights": "hub", "norm": "frozen"}, False),
        ({"backbone": "resnet18", "weights": "none"}, False),
        ({"backbone": "vit_tiny_patch16_224", "weights": "hub"}, False),
    ],
)
def test_weights_whose_statistics_group_norm_leaves_out_are_doubted(
    student: dict[str, str], is_doubted: bool
) -> None:
    doubts = replace(CONFIG, model=StudentConfig(**student)).doubts()
    assert any("give --model.norm frozen" in doubt for doubt in doubts) == is_doubted


def test_a_head_on_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="ship is 'linear'"):
        replace(CONFIG, ship="linear")


def test_a_pruned_student_comes_near_to_what_it_was_pruned_from(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Teacher and student have the same weights, but for the blocks that the student has lost."""
    torch.manual_seed(0)
    weights = str(tmp_path / "whole.safetensors")
    whole = create_backbone("32x4x8", img_size=32).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, weights)
    config = replace(
        CONFIG,
        model=StudentConfig(backbone="32x4x8", weights=weights, keep_blocks=2),
        teacher=FrozenConfig(backbone="32x4x8", weights=weights),
    )
    task = FeatureDistillation(config, dataset).train()
    assert [len(network.blocks) for network in (task.backbone, task.teacher)] == [2, 4]
    for ours, theirs in ((0, 0), (1, 3)):
        of_teacher = task.teacher.blocks[theirs].state_dict()
        for name, tensor in task.backbone.blocks[ours].state_dict().items():
            assert torch.equal(tensor, of_teacher[name]), name
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=2e-3)
    batch, losses = batch_of(dataset, config), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = task(batch, 0.0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
