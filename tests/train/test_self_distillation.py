"""Student and teacher: the loss against its paper written out crop by crop, the teacher, guards and order."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import timm
import torch
from safetensors.torch import save_file

from assay.config import fingerprint, to_dict
from assay.data.dataset import Column, Dataset
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.views import ViewConfig
from assay.errors import CheckpointError, ConfigError, RunError
from assay.nn.optim import OptimConfig, build_optimizer
from assay.nn.self_supervised.head import HeadConfig
from assay.nn.self_supervised.schedules import TeacherConfig
from assay.nn.self_supervised.vit import VitConfig
from assay.nn.weights import load_weights
from assay.train import checkpoint
from assay.train.monitor import Monitor
from assay.train.self_distillation import (
    DistillationLossConfig,
    SelfDistillation,
    SelfDistillationConfig,
)
from assay.train.task import BatchRows
from assay.train.task_config import TrainConfig

CONFIG = SelfDistillationConfig(
    image=ImageConfig(height_px=32, width_px=32),
    views=ViewConfig(num_global=2, num_local=2, global_px=32, local_px=16),
    model=VitConfig(backbone="32x2x8", drop_path=0.0),
    head=HeadConfig(num_prototypes=24, hidden=32, bottleneck=16),
    train=TrainConfig(batch_size=4),
    optim=OptimConfig(lr=1e-3, weight_decay=0.04, schedule="cosine"),
)


@pytest.fixture(scope="module")
def dataset(
    dataset_of: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """Two photos of each of six parts."""
    rng, parts, images = np.random.default_rng(0), np.arange(12) // 2, []
    for row in range(12):
        image = rng.integers(0, 120 + 10 * row, (40, 40, 3), dtype=np.uint8)
        cv2.circle(image, rng.integers(8, 32, 2).tolist(), 7, (200, 20 * row, 50), -1)
        images.append(image)
    groups = [f"part {part}" for part in parts]
    return dataset_of(
        tmp_path_factory.mktemp("images"), images, "ab", parts % 2, np.arange(12), groups
    )


def task_of(dataset: Dataset, **changes: Any) -> SelfDistillation:
    torch.manual_seed(0)
    return SelfDistillation(replace(CONFIG, **changes), dataset).train()


def batch_of(task: SelfDistillation, rows: np.ndarray) -> Any:
    keys = np.arange(len(rows), dtype=np.uint64) + np.uint64(11)
    return type(task).prepare(task.config, task.dataset, BatchRows(rows, keys, True))


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


def shown(net: Any, image: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Class token, its logits, and the logits of all patches of one image alone."""
    hidden = None if mask is None else torch.from_numpy(mask)[None]
    with torch.no_grad():
        classes, patches = net.backbone(torch.from_numpy(image)[None], hidden)
        logits = net.head(torch.cat([classes, patches[0]])).numpy()
    return classes[0].numpy(), logits[0], logits[1:]


def test_groups_of_single_images_are_served_as_images_are(dataset: Dataset) -> None:
    assert not task_of(dataset, balance="groups").doubts()
    alone = replace(dataset, group=Column.of([str(row) for row in range(len(dataset))]))
    assert not task_of(alone).doubts()
    views = replace(CONFIG.views, cross_view=0.5)
    (doubt,) = task_of(alone, balance="groups", views=views).doubts()
    assert "--views.cross-view and --balance groups have no effect" in doubt


def test_the_loss_is_that_of_the_paper_written_out(dataset: Dataset) -> None:
    """Crop by crop and patch by patch; the centre, of images before, is not 0."""
    task = task_of(dataset)
    for assign in (task.assign, task.assign_places):
        assign.center.normal_(std=0.1)
    for parameter in task.student.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # so that it is not the teacher
    centers = task.assign.center.clone().numpy(), task.assign_places.center.clone().numpy()
    batch, num = batch_of(task, np.arange(5)), 5
    assert 0 < batch["mask"].sum() < batch["mask"].size
    progress, expected = 0.15, Counter[str]()  # temperature is halfway from .04 to .07
    nearest: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for i in range(num):
        teacher = [shown(task.teacher, batch["global"][i, g]) for g in range(2)]
        probs = [np.exp(log_softmax((seen[1] - centers[0]) / 0.055)) for seen in teacher]
        for g in range(2):
            mask = batch["mask"][i, g]
            classes, logits, places = shown(task.student, batch["global"][i, g], mask)
            nearest[g].append(classes / np.linalg.norm(classes))
            cost = -(probs[1 - g] * log_softmax(logits / 0.1)).sum()
            expected["dino_global"] += cost / num / (2 + 2 * 2)
            for place in np.flatnonzero(mask):
                known = np.exp(log_softmax((teacher[g][2][place] - centers[1]) / 0.055))
                cost = -(known * log_softmax(places[place] / 0.1)).sum()
                expected["ibot"] += cost / mask.sum() / (2 * num)
        for small in batch["local"][i]:
            _, logits, _ = shown(task.student, small)
            for known in probs:
                expected["dino_local"] -= (known * log_softmax(logits / 0.1)).sum() / num / 6
    for half in nearest.values():
        for i, unit in enumerate(half):
            others = [np.linalg.norm(unit - other) for j, other in enumerate(half) if j != i]
            expected["koleo"] -= 0.1 * np.log(min(others)) / num
    outputs = task(batch, progress)
    for name, value in expected.items():
        assert outputs[f"{name}_loss"].item() == pytest.approx(value, rel=2e-3, abs=1e-4), name
    assert outputs["loss"].item() == pytest.approx(sum(expected.values()), rel=1e-3)


def test_only_the_student_learns_and_the_teacher_follows(dataset: Dataset) -> None:
    task = task_of(dataset)
    before = task.teacher.head.layers[0].weight.clone()
    task(batch_of(task, np.arange(4)), 0.0)["loss"].backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.student.parameters())
    task.student.head.layers[0].weight.data += 1
    task.after_step(0.0)
    moved = task.teacher.head.layers[0].weight - before
    assert torch.allclose(moved, torch.full_like(moved, 1 - 0.992), atol=1e-6)
    task.after_step(1.0)  # at the end it stands still
    assert torch.equal(task.teacher.head.layers[0].weight - before, moved)


def test_the_teacher_is_what_is_embedded(dataset: Dataset) -> None:
    task = task_of(dataset).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = task.embed(images)
        for parameter in task.student.parameters():
            parameter.zero_()
        assert torch.equal(task.embed(images), before)
        task.teacher.backbone.vit.norm.bias += 1
        assert torch.allclose(task.embed(images), before + 1)


def test_every_parameter_has_its_rates_and_prototypes_rest_at_first(dataset: Dataset) -> None:
    task = task_of(dataset, head=replace(CONFIG.head, separate=True))
    groups = task.param_groups(0.0)
    optimizer = build_optimizer(task, task.config.optim, groups)
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name, prefix = names[id(parameter)], group["prefix"]
            assert name.startswith(prefix)
            assert (groups[prefix].lr == 0) == (".prototypes." in name), name
            if ".blocks.0." in name:
                assert groups[prefix].lr == pytest.approx(0.9**2)
    assert task.param_groups(0.5)["student.patch_head.prototypes."].lr == 1


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ({"ibot": 0.0, "koleo": 0.0}, {"dino_global", "dino_local"}),
        ({"dino": 0.0}, {"ibot", "koleo"}),
        ({"mask_probability": 0.0, "gram": 2.0}, {"dino_global", "dino_local", "koleo", "gram"}),
    ],
)
def test_terms_without_weight_are_left_out(
    dataset: Dataset, loss: dict[str, float], terms: set[str]
) -> None:
    task = task_of(dataset, loss=DistillationLossConfig(**loss))
    outputs = task(batch_of(task, np.arange(4)), 0.2)
    assert {name.removesuffix("_loss") for name in outputs if name.endswith("_loss")} == terms
    outputs["loss"].backward()
    named = [(n, p) for n, p in task.named_parameters() if p.requires_grad and "head" not in n]
    # the small crops' positions alone may be left out
    assert [name for name, parameter in named if parameter.grad is None] == []


def test_a_supervised_run_learns_labels_alone_by_the_same_backbone(dataset: Dataset) -> None:
    """Cross-entropy of both large crops; the teacher is the mean of the backbone as ever; nothing else learns."""
    task = task_of(dataset, supervised=True)
    batch = batch_of(task, np.arange(5))
    expected = []
    assert task.classifier is not None
    for i in range(5):
        for crop in batch["global"][i]:
            logits = task.classifier(task.student.backbone(torch.from_numpy(crop)[None])[0])
            expected.append(-logits.log_softmax(1)[0, dataset.truth[i]].item())
    outputs = task(batch, 0.3)
    assert outputs["loss"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert outputs.keys() == {"loss", "class_loss", "embedding_std"}
    assert [limit.name for limit in task.limits()] == ["embedding_std"]
    outputs["loss"].backward()
    learns = {name for name, p in task.named_parameters() if p.requires_grad}
    assert learns == {name for name, p in task.named_parameters() if p.grad is not None}
    assert {name.rpartition(".vit.")[0] or name for name in learns} == {
        "student.backbone",
        "classifier.weight",
        "classifier.bias",
    }
    table = pa.table({"id": ["a"]})  # not answered, so that nothing else is said of it
    for config, num in ((task.config, 1), (CONFIG, 0)):
        assert len(SelfDistillation.judge(config, table, Path()).warnings) == num
    with pytest.raises(ConfigError, match="--supervised learns the labels"):
        task_of(replace(dataset, classes=()), supervised=True)


def test_the_anchor_stays_what_the_teacher_was(dataset: Dataset) -> None:
    task = task_of(dataset, loss=DistillationLossConfig(gram=1.0, ibot=0.0))
    batch = batch_of(task, np.arange(4))
    assert task(batch, 0.0)["gram_loss"].item() == pytest.approx(0, abs=1e-9)
    for parameter in task.student.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    task.after_step(0.0)
    assert task(batch, 0.0)["gram_loss"].item() > 1e-5


def test_there_may_be_no_small_crops(dataset: Dataset) -> None:
    task = task_of(dataset, views=replace(CONFIG.views, num_local=0))
    outputs = task(batch_of(task, np.arange(4)), 0.0)
    assert outputs["dino_local_loss"].item() == 0
    assert outputs["loss"].isfinite()


def test_masks_follow_from_each_images_key(dataset: Dataset) -> None:
    task = task_of(dataset)
    together = batch_of(task, np.arange(6))["mask"]
    assert together.shape == (6, 2, 16)
    keys = np.array([14], np.uint64)
    alone = type(task).prepare(CONFIG, dataset, BatchRows(np.array([3]), keys, True))["mask"]
    np.testing.assert_array_equal(alone[0], together[3])
    judged = type(task).prepare(CONFIG, dataset, BatchRows(np.array([3]), keys, False))
    assert "mask" not in judged


def test_batches_are_whole_and_groups_may_be_served_in_turn(dataset: Dataset) -> None:
    rows = np.arange(11)
    for balance in ("images", "groups"):
        config = replace(CONFIG, balance=balance)
        batches = SelfDistillation.order(config, dataset, rows, 0)
        assert [len(batch) for batch in batches] == [4, 4]
        if balance == "groups":
            assert len(set(dataset.group.codes[np.concatenate(batches)[:6]])) == 6
    small = SelfDistillation.order(CONFIG, dataset, np.arange(3), 0)
    assert sorted(np.concatenate(small)) == [0, 1, 2]  # less than a batch is one


def train(task: SelfDistillation, lr: float, num_steps: int) -> None:
    """Train as the loop does, watched by the monitors."""
    monitor = Monitor(OptimConfig(), task.limits(), 10**6, task.classes, pytest.fail)
    optimizer = build_optimizer(task, replace(task.config.optim, lr=lr), task.param_groups(0.5))
    batch = batch_of(task, np.arange(12))
    for step in range(1, num_steps + 1):
        optimizer.zero_grad()
        outputs = task(batch, 0.5)
        outputs["loss"].backward()
        optimizer.step()
        task.after_step(0.5)
        scalars = {name: outputs[name].item() for name in monitor.limited}
        monitor.check_update(step, 1.0, 1.0, False, scalars)


def test_a_collapse_is_stopped_and_a_sound_run_is_not(dataset: Dataset) -> None:
    """Without centring and KoLeo, and with a teacher that is the student, one answer serves all images."""
    loss = DistillationLossConfig(koleo=0.0, ibot=0.0)
    teacher = TeacherConfig(momentum=0.0, final_momentum=0.0)
    collapsing = task_of(dataset, loss=loss, teacher=teacher)
    collapsing.assign.momentum = 1.0  # the centre stays 0
    with pytest.raises(RunError, match=r"for 50 updates: .*lower --optim\.lr"):
        train(collapsing, 5e-3, 150)
    train(task_of(dataset), 1e-3, 100)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"views": ViewConfig(num_global=1, global_px=32, local_px=16)}, "give 2 or more"),
        ({"views": ViewConfig(global_px=30, local_px=16)}, "views.global-px is 30.*multiple of 8"),
        ({"views": ViewConfig(global_px=32, local_px=17)}, "views.local-px is 17"),
        ({"model": VitConfig(backbone="resnet50")}, "give a vision transformer"),
        ({"model": VitConfig(backbone="32x2x0")}, "give a vision transformer"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(CONFIG, **changes)


def test_a_frame_of_no_whole_patches_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="the frame is 36 x 32"):
        task_of(dataset, image=ImageConfig(height_px=36, width_px=32))


def test_losses_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is asked of the student"):
        DistillationLossConfig(dino=0.0, mask_probability=0.0)
    with pytest.raises(ConfigError, match=r"from 0\.5 to 0\.1"):
        DistillationLossConfig(mask_ratio=(0.5, 0.1))
    assert DistillationLossConfig(ibot=0.0).idle().keys() == {"mask_probability", "mask_ratio"}


def test_the_bundle_is_the_teacher(dataset: Dataset, tmp_path: Path) -> None:
    task = task_of(dataset).eval()
    for parameter in task.student.parameters():
        parameter.data.zero_()
    task.export(tmp_path, {})
    images = torch.randn(3, 3, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "embed.onnx")
    (vectors,) = session.run(None, {"image": images.numpy()})
    np.testing.assert_allclose(vectors, task.embed(images).detach().numpy(), atol=1e-4)


def test_the_teacher_of_a_run_is_what_other_tasks_begin_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Its best weights are a file of timm's backbone, whatever the student is."""
    model = VitConfig(backbone="vit_tiny_patch16_224", drop_path=0.0)
    task = task_of(dataset, model=model, loss=DistillationLossConfig(gram=1.0))
    for parameter in task.student.parameters():
        parameter.data += 1
    save_file(task.state_dict(), tmp_path / "weights.safetensors")
    other = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    load_weights(other, "vit_tiny_patch16_224", str(tmp_path / "weights.safetensors"))
    for name, tensor in task.teacher.backbone.vit.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_checkpoint_of_another_number_of_prototypes_is_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Which its name does not find either, as the number is part of what a run is."""
    begun, other = (
        task_of(dataset, head=replace(CONFIG.head, num_prototypes=num)) for num in (24, 33)
    )
    optimizers = [
        build_optimizer(task, CONFIG.optim, task.param_groups(0.0)) for task in (begun, other)
    ]
    other(batch_of(other, np.arange(4)), 0.0)["loss"].backward()  # 33 need not divide anything
    begun(batch_of(begun, np.arange(4)), 0.0)["loss"].backward()
    optimizers[0].step()
    path = checkpoint.save(tmp_path, 1, begun, optimizers[0], {"step": 1})
    with pytest.raises(CheckpointError, match="does not fit this model") as refused:
        checkpoint.load(path, other, optimizers[1])
    assert "\n" not in str(refused.value)
    assert fingerprint(to_dict(begun.config)) != fingerprint(to_dict(other.config))
