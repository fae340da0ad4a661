"""Pretraining: the recipes against the tables that they are published in, and the synthetic units."""

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from assay.cli.task import main
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.store import Store
from assay.nn.optim import lr_factor
from assay.train.source import TaskSource, load_task

FILE = Path(__file__).parents[2] / "tasks" / "pretrain.py"
TASK: Any = load_task(TaskSource.read(FILE))
PRESETS = TASK.presets()

DINOV2 = {
    # dinov2/configs/ssl_default_config.yaml, in its own names and order; data/augmentations.py at the end
    "model.backbone": "vit_large_patch16_224",  # student.arch, patch_size
    "model.weights": "none",
    "model.drop_path": 0.3,
    "model.layer_scale": 1e-5,
    "model.registers": None,
    "loss.dino": 1.0,
    "head.num_prototypes": 65_536,
    "head.bottleneck": 256,
    "head.num_layers": 3,
    "head.hidden": 2048,
    "loss.koleo": 0.1,
    "loss.ibot": 1.0,
    "loss.mask_probability": 0.5,
    "loss.mask_ratio": (0.1, 0.5),
    "head.separate": False,
    "head.unit_length": False,
    "head.batch_norm": False,
    "train.batch_size": 64 * 32,
    "train.seed": 0,
    "train.precision": "fp16",
    "loss.centering": "centering",
    "teacher.momentum": 0.992,
    "teacher.final_momentum": 1.0,
    "teacher.start_temperature": 0.04,
    "teacher.temperature": 0.07,
    "teacher.warmup": 30 / 100,
    "optim.optimizer": "adamw",
    "optim.weight_decay": 0.04,
    "optim.decays": "weights",
    "rates.final_weight_decay": 0.4,
    "optim.lr": 0.004 * sqrt(64 * 32 / 1024),
    "optim.warmup": 10 / 100,
    "optim.start_factor": 0.0,
    "optim.schedule": "cosine",
    "optim.grad_clip": 3.0,
    "rates.freeze_prototypes": 1 / 100,
    "rates.patch_embed_lr": 0.2,
    "rates.layer_decay": 0.9,
    "loss.student_temperature": 0.1,
    "loss.gram": 0.0,
    "views.num_global": 2,
    "views.num_local": 8,
    "views.global_px": 224,
    "views.local_px": 96,
    "views.global_area": (0.32, 1.0),
    "views.local_area": (0.05, 0.32),
    "views.ratio": 4 / 3,
    "views.degrees": 0.0,
    "views.hflip": 0.5,
    "views.vflip": 0.0,
    "views.jitter": 0.8,
    "views.grey": 0.2,
    "views.blur_global": (1.0, 0.1),
    "views.solarise": 0.2,
    "views.blur": 0.5,
    "views.cross_view": 0.0,
    "balance": "images",
    "image.normalise": "imagenet",
    "image.height_px": 224,
    "image.width_px": 224,
}
FORK = DINOV2 | {
    "model.backbone": "vit_base_patch14_dinov2",
    "model.weights": "hub",
    "model.layer_scale": None,  # as the weights have it
    "views.global_px": 518,
    "views.local_px": 98,
    "image.height_px": 518,
    "image.width_px": 518,
    "train.batch_size": 64 * 6,
    "train.epochs": 100,
    "train.seed": 17,
    "train.val_every": 3,
    "optim.lr": 1e-4 * sqrt(64 * 6 / 1024),
}


def value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("name", "table"), [("official", DINOV2), ("fork", FORK)])
def test_recipes_are_true_in_every_parameter(name: str, table: dict[str, Any]) -> None:
    config = PRESETS[name]
    for option, expected in table.items():
        assert value(config, option) == pytest.approx(expected), option
    sections = {option.split(".")[0] for option in table if "." in option}
    for section in sections - {"train", "image", "optim"}:
        of_section = vars(value(config, section))
        assert {f"{section}.{field}" for field in of_section} <= table.keys()
    assert config.optim.lr * lr_factor(config.optim, 1.0) == pytest.approx(1e-6)


def test_the_official_run_has_as_many_updates_as_published() -> None:
    config = PRESETS["official"]
    updates = 1_281_167 // config.train.batch_size * config.train.epochs
    assert updates == pytest.approx(100 * 1250, rel=0.002)


def test_the_fork_reads_the_sources_groups() -> None:
    assert PRESETS["fork"].data.group == ("group_id",)
    assert PRESETS["fork"].data.label == "label"


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    storage = tmp_path_factory.mktemp("units")
    config = replace(PRESETS["smoke"], units=replace(PRESETS["smoke"].units, num_units=4))
    manifest = TASK.manifest(config, storage)
    store = Store(str(storage / "store"))
    for content, path in manifest.files.items():
        store.build(content, Path(path))
    pixels = Pixels(store, manifest.column("content"))
    return Dataset.of(manifest, pixels, np.arange(len(manifest)))


def test_units_are_groups_of_their_photos(units: Dataset) -> None:
    assert units.classes == ("cracks", "pits", "scale", "sound")
    assert np.bincount(units.group.codes).tolist() == [2] * 4
    assert units.domains["view"].values == ("1", "2")


def test_the_baseline_is_the_backbone_as_it_begins(units: Dataset) -> None:
    config = PRESETS["smoke"]
    (start,) = TASK.baselines(config).values()
    assert start == replace(config, train=replace(config.train, epochs=0))
    assert TASK.baselines(start) == {}


def test_images_of_which_nothing_can_be_judged_are_refused_before_anything_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one folder, each of a part of its own: what each refusal says is done leads to the next."""
    rng, folder = np.random.default_rng(0), tmp_path / "images" / "all"
    folder.mkdir(parents=True)
    for number in range(12):
        cv2.imwrite(str(folder / f"{number}-0.png"), rng.integers(0, 255, (32, 32, 3), np.uint8))
    options = ["--preset", "smoke", "--data.root", str(folder.parent), "--workers", "0"]
    options += ["--storage", str(tmp_path / "runs"), "--data.domains"]
    for phrase, more in {
        "at least two classes are needed, or --data.label ''": [],
        "no labels, and no group of several images": ["--data.label", ""],
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(str(FILE), [*options, *more])
        assert ended.value.code == 2
        assert phrase in capsys.readouterr().err
    assert not [*(tmp_path / "runs").glob("*/checkpoints"), *(tmp_path / "runs").glob("*/best")]
