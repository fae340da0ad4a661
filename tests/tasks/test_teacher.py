"""What was pretrained is what other tasks begin with: a run of pretrain.py, its teacher, and casting.py from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from assay.errors import ConfigError
from assay.experiment.earlier import find
from assay.experiment.options import parse
from assay.experiment.places import absolute
from assay.experiment.run import StoredImages, complete, prepare, read_data
from assay.nn.backbone import BackboneConfig, create_backbone
from assay.nn.mask_net import MaskNetConfig, create_mask_net
from assay.nn.networks import NetworkConfig
from assay.nn.self_supervised.vit import MaskedVit, VitConfig
from assay.runs.folder import Run
from assay.train.source import TaskSource, load_task

TASKS = Path(__file__).parents[2] / "tasks"
SMOKE = ["--preset", "smoke", "--workers", "0", "--train.epochs", "1"]
FEW = {
    "casting": ["--castings.num-train", "20", "--castings.num-test", "8"],
    "pretrain": ["--units.num-units", "16"],
}


def read(name: str, storage: Path) -> tuple[TaskSource, StoredImages]:
    source = TaskSource.read(TASKS / f"{name}.py")
    task: Any = load_task(source)
    config, resources, _ = parse(task, [*SMOKE, *FEW[name]])
    return source, read_data(source, task.manifest(config, storage), config, resources, storage)


def trained(source: TaskSource, data: StoredImages, *options: str) -> Run:
    config, resources, _ = parse(load_task(source), [*SMOKE, *FEW[source.name], *options])
    run = find(source, config, data.manifest, data.storage, stage="test")
    with run.lease():
        complete(prepare(data, config, source.name), run, resources, stage="test")
    return run


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pretrained(storage: Path) -> Path:
    """The folder of a run on images of 32 pixels."""
    return trained(*read("pretrain", storage)).folder


def teacher_of(folder: Path, size: tuple[int, int] = (32, 32)) -> MaskedVit:
    """The teacher's backbone as the run's weights have it, name by name."""
    state = load_file(folder / "best" / "weights.safetensors")
    prefix = "teacher.backbone."
    model = MaskedVit(VitConfig(backbone="32x2x8"), size)
    model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    return model.eval()


def test_every_kind_of_task_embeds_as_the_teacher_does(pretrained: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = teacher_of(pretrained)(images)[0]
        backbone, width = BackboneConfig(backbone="32x2x8", weights=str(pretrained)).build(32)
        assert width == 32
        torch.testing.assert_close(backbone.eval()(images), expected)
        network = NetworkConfig(network="32x2x8", weights=str(pretrained)).build(32, 32)
        torch.testing.assert_close(network.eval()(images), expected)
        student = MaskedVit(VitConfig(backbone="32x2x8", weights=str(pretrained)), (32, 32))
        torch.testing.assert_close(student.eval()(images)[0], expected)


def test_casting_learns_a_head_on_the_teacher(pretrained: Path, storage: Path) -> None:
    """The backbone stays what the teacher is, its positions laid over a larger frame."""
    options = ["--model.network", "32x2x8", "--model.weights", str(pretrained)]
    source, data = read("casting", storage)
    run = trained(source, data, *options, "--regime.regime", "features")
    state = load_file(run.folder / "best" / "weights.safetensors")
    teacher = teacher_of(pretrained).vit.state_dict()
    for name, tensor in teacher.items():
        if name != "pos_embed":
            assert torch.equal(state[f"network.net.{name}"], tensor), name
    grid = teacher["pos_embed"][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(grid, (8, 8), mode="bicubic", antialias=True)
    positions = state["network.net.pos_embed"]
    torch.testing.assert_close(
        positions[:, 1:], larger.flatten(2).transpose(1, 2), atol=1e-5, rtol=0
    )


def test_layer_scales_are_folded_into_a_network_without_and_registers_are_refused(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    images, size, name = torch.randn(2, 3, 32, 32), (32, 32), "vit_tiny_patch16_224"
    plain = VitConfig(backbone=name, layer_scale=0.1, drop_path=0.0)
    scaled = MaskedVit(plain, size).eval()
    for block in scaled.vit.blocks:
        torch.nn.init.uniform_(block.ls1.gamma)
        torch.nn.init.uniform_(block.ls2.gamma)
    for folder, model in (("a", scaled), ("b", MaskedVit(replace(plain, registers=2), size))):
        (tmp_path / folder / "best").mkdir(parents=True)
        state = {f"teacher.backbone.{k}": v for k, v in model.state_dict().items()}
        save_file(state, tmp_path / folder / "best" / "weights.safetensors")
    backbone = create_backbone(name, weights=str(tmp_path / "a"), img_size=32).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), scaled(images)[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"1 not its own \(reg_token\)"):
        create_backbone(name, weights=str(tmp_path / "b"), img_size=32)
    more = {"teacher.backbone.vit.norm_pre.weight": torch.ones(192)}
    save_file(load_file(tmp_path / "a" / "best" / "weights.safetensors") | more, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"more than vit_tiny_patch16_224 \(norm_pre\.weight\)"):
        create_backbone(name, weights=str(tmp_path / "c"), img_size=32)
    # and a mask's encoder, of timm's own size
    net: Any = create_mask_net(
        MaskNetConfig(arch="dpt", encoder=f"tu-{name}", weights=str(tmp_path / "a")), 1
    )
    whole = timm.create_model(name, num_classes=0)
    grid = scaled.vit.pos_embed[:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(grid, (14, 14), mode="bicubic", antialias=True)
    assert net.encoder.model.pos_embed.shape == whole.pos_embed.shape
    torch.testing.assert_close(
        net.encoder.model.pos_embed[:, 1:], larger.flatten(2).transpose(1, 2), atol=1e-5, rtol=0
    )


def test_a_distilled_student_is_taken_and_not_who_taught_it(tmp_path: Path) -> None:
    """Of one architecture, and with groups in the place of batches, of which there are no statistics."""
    student, teacher = (create_backbone("test_resnet", norm=norm) for norm in ("group", "batch"))
    state = {f"backbone.{k}": v for k, v in student.state_dict().items()}
    state |= {f"teacher.{k}": v for k, v in teacher.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "a.safetensors")
    other = create_backbone("test_resnet", weights=str(tmp_path / "a.safetensors"))
    for name, tensor in student.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_weights_of_a_run_are_doubted_where_images_are_normalised_otherwise(
    pretrained: Path,
) -> None:
    task: Any = load_task(TaskSource.read(TASKS / "casting.py"))
    options = ["--model.network", "32x2x8", "--model.weights", str(pretrained)]
    options += ["--regime.regime", "full"]
    config, _, _ = parse(task, [*SMOKE, *options])
    assert config.doubts() == []
    (doubt,) = replace(config, image=replace(config.image, normalise="imagenet")).doubts()
    assert doubt.endswith("give --image.normalise image.")


def test_a_runs_place_is_made_absolute_and_words_are_left(
    pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have other working directories."""
    monkeypatch.chdir(pretrained.parent)
    task: Any = load_task(TaskSource.read(TASKS / "casting.py"))
    for given, expected in ((pretrained.name, str(pretrained)), ("hub", "hub"), ("none", "none")):
        config, _, _ = parse(
            task, [*SMOKE, "--model.network", "vit_b_16", "--model.weights", given]
        )
        assert absolute(config).model.weights == expected


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nor the folder of a run with best/weights"):
        create_backbone("32x2x8", weights=str(tmp_path))
    assert np.array(create_backbone("32x2x8")(torch.zeros(1, 3, 224, 224)).shape).tolist() == [
        1,
        32,
    ]
