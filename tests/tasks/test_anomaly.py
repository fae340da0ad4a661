"""What tasks/anomaly.py promises beyond the conformance suite."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import huggingface_hub
import numpy as np
import pytest
import torch

from assay.cli.task import main
from assay.data.dataset import Column, Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.inputs.tiles import TileConfig
from assay.errors import ConfigError
from assay.nn.patch_memory import PatchMemoryConfig
from assay.runs.folder import Run
from assay.runs.results import read_result
from assay.train.source import TaskSource, load_task

SCRIPT = Path(__file__).parents[2] / "tasks" / "anomaly.py"
TASK = load_task(TaskSource.read(SCRIPT))


def parts(folder: Path, defective: range, num: int = 20, side: int = 64) -> Path:
    """Striped parts, of which some have a disc of another texture; masks of these alone."""
    rng = np.random.default_rng(0)
    for number in range(num):
        image = 120 + 40 * np.sin(np.arange(side) / 2) + rng.normal(0, 5, (side, side))
        mask = np.zeros((side, side), np.uint8)
        if number in defective:
            cv2.circle(mask, tuple(rng.integers(16, side - 16, 2).tolist()), 9, 255, -1)
            image = np.where(mask > 0, rng.normal(120, 40, mask.shape), image)
            (folder / "masks").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "masks" / f"{number:03d}.png"), mask)
        path = folder / "images" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
    return folder / "images"


def arguments(images: Path, *more: str) -> list[str]:
    size = ["--tiles.tile-px", "64", "--tiles.overlap-px", "0", "--model.memory", "300"]
    model = ["--model.backbone", "resnet18", "--model.weights", "none", "--model.stages", "1", "2"]
    data = ["--data.root", str(images), "--data.patterns", "{part}", "--data.group", "part"]
    masks = ["--masks.files", "../masks/{name}.png", "--split.test", "0.4", "--split.val", "0.3"]
    where = ["--data.domains", "part", "--workers", "0", "--storage", str(images.parent / "runs")]
    return ["--preset", "files", *data, *masks, *size, *model, *where, *more]


def test_what_is_unlike_good_parts_is_marked_though_none_like_it_was_seen(tmp_path: Path) -> None:
    main(str(SCRIPT), arguments(parts(tmp_path, range(0, 20, 3)), "--most-alarmed", "0.2"))
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if (path / "result.json").exists())
    test = read_result(folder).sets["test"].metrics
    assert test["image_auroc"].value > 0.95
    assert test["pixel_auroc"].value > 0.9
    assert test["aupro"].value > 0.7
    assert test["image_accuracy"].value > 0.8


def test_val_of_good_parts_alone_sets_the_threshold_without_complaint(tmp_path: Path) -> None:
    """As MVTec AD has it: nothing but good parts outside test."""
    images = parts(tmp_path, range(30, 36), 36)
    for image in sorted(images.iterdir()):
        name = "test" if int(image.stem) >= 26 else "train"
        (images / name).mkdir(exist_ok=True)
        image.rename(images / name / image.name)
    allowed = ["--most-alarmed", "0.2", "--masks.missing", "empty"]
    main(str(SCRIPT), arguments(images, *allowed))
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if (path / "result.json").exists())
    assert not Run(folder).record.warnings
    test = read_result(folder).sets["test"].metrics
    assert test["images_found"].num == 6
    assert test["image_auroc"].value > 0.95


class Planted(Pixels):
    """Images of noise; every third has a mark, and is as bright as asked."""

    def __init__(self, light: float) -> None:
        super().__init__(Store("nowhere"), [])
        self.light = light

    def __getitem__(self, row: int) -> ImagePyramid:
        noise = np.random.default_rng(row).integers(0, 200, (64, 64, 3))
        return ImagePyramid.of((noise * (1 if row % 3 else self.light)).astype(np.uint8))

    def mask(self, row: int, kind: str) -> np.ndarray:
        return np.full((64, 64), 0 if row % 3 else 1, np.uint8)


def test_marked_images_of_train_are_not_remembered() -> None:
    """Their pixels may be anything."""
    model = PatchMemoryConfig(backbone="test_resnet", weights="none", stages=(1, 2), memory=50)
    smoke: Any = TASK.presets()["smoke"]
    config = replace(smoke, model=model, tiles=TileConfig(tile_px=64, overlap_px=0))
    memories = []
    for light in (1.0, 0.2):
        groups, rows = Column.of([str(row // 2) for row in range(12)]), np.arange(12)
        truth = np.zeros(12, np.int32)
        dataset = Dataset((), truth, ("defect",), groups, {}, {}, rows, Planted(light))
        torch.manual_seed(0)
        task = TASK(config, dataset)
        task.begin(rows)
        memories.append((task.net.bank, task.net.bounds.data))
    for one, other in zip(*memories, strict=True):
        assert torch.equal(one, other)
    assert memories[0][0].abs().max() > 0


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--train.epochs", "3"), "remembered in one pass"),
        (("--model.weights", "gone.safetensors"), "which is no file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, more: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(str(SCRIPT), arguments(parts(tmp_path, range(0, 20, 3)), *more))
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_an_anomaly_has_no_kind() -> None:
    smoke: Any = TASK.presets()["smoke"]
    rows = np.arange(2)
    dataset = Dataset(
        (),
        np.zeros(2, np.int32),
        ("pit", "crack"),
        Column.of(["a", "b"]),
        {},
        {},
        rows,
        Planted(1.0),
    )
    with pytest.raises(ConfigError, match="are pit, crack, and an anomaly has no kind"):
        TASK(smoke, dataset)


def test_good_parts_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(str(SCRIPT), arguments(parts(tmp_path, range(20))))
    assert ended.value.code == 2
    assert "two parts are needed at least" in capsys.readouterr().err


def test_marks_that_a_rule_made_are_said_to_be() -> None:
    config: Any = TASK.presets()["files"]
    assert "what the rule --masks.maker" in config.doubts()[-1]
    given = replace(config, masks=replace(config.masks, files="../masks/{name}.png"))
    assert given.doubts() == config.doubts()[:-1]


def test_a_hub_out_of_reach_names_no_option_that_the_task_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--model\.weights FILE, or --model\.weights none\.$"):
        TASK.fetch(TASK.presets()["files"])
