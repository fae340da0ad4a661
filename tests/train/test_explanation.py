"""Explanations judged: a network whose evidence is planted, masks in the frame, curves by brute force."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.bundle.classify import Answer
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.inputs.image import ImageConfig
from assay.data.inputs.transforms import TransformConfig
from assay.data.manifest import DataConfig, read_manifest
from assay.data.masks.overlay import GAP_PX, HIT
from assay.errors import MaskError
from assay.metrics.localization import removals
from assay.train.classification import Classification, ClassificationConfig
from assay.train.explanation import (
    ExplainConfig,
    add_truth,
    explain_columns,
    frame_mask,
    judge_columns,
)
from assay.train.task import BatchRows
from assay.train.worker import predictions_table

SIDE = 16


@dataclass(frozen=True, kw_only=True)
class BrightConfig(ClassificationConfig):
    """Bright spots."""

    explain: ExplainConfig = field(default_factory=ExplainConfig)
    image: ImageConfig = field(
        default_factory=lambda: ImageConfig(
            height_px=SIDE, width_px=SIDE, normalise="constants", mean=(0.0,) * 3, std=(1.0,) * 3
        )
    )
    transform: TransformConfig = field(default_factory=TransformConfig)


class Bright(Classification):
    """A class is how bright an image is, the other how little; its maps are the pixels."""

    Config = BrightConfig

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.unused = nn.Parameter(torch.zeros(1))
        self.add_head(3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-9.0] * 3, [9.0] * 3]))
            self.head.bias.copy_(torch.tensor([1.0, -1.0]))

    def features(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black images, of spots with a white square, with masks of it beside them: the first two fit, the third lies elsewhere."""
    folder = tmp_path_factory.mktemp("spots")
    for i, label in enumerate(["spot", "spot", "spot", "none", "none"]):
        image, mask = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        image[0, 0] = i + 1  # so that no two are the same, nor a mask
        if label == "spot":
            image[4:8, 5:11] = 255
            mask[4:8, 5:11] = 255
        if i == 2:
            mask = np.roll(mask, 8, axis=0)
        for path, pixels in ((f"images/{label}", image), ("masks", mask)):
            if path == "masks" and label == "none":
                continue
            (folder / path).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / path / f"{i}.png"), pixels)
    return folder


def task_of(root: Path, tmp_path: Path, explain: ExplainConfig) -> tuple[Bright, Any]:
    manifest = read_manifest(DataConfig(root=root / "images"), tmp_path / "hashes.sqlite")
    manifest = add_truth(manifest, root / "images", explain, tmp_path)
    store = Store(str(tmp_path / "store"))
    for content, path in manifest.files.items():
        store.build(content, Path(path))
    pixels = Pixels(store, manifest.column("content"), manifest.masks)
    task = Bright(BrightConfig(explain=explain), Dataset.of(manifest, pixels)).eval()
    return task, manifest


def batch_of(task: Bright) -> Any:
    rows = np.arange(len(task.dataset))
    samples = BatchRows(rows, np.zeros(len(rows), np.uint64), False)
    return type(task).prepare(task.config, task.dataset, samples)


def columns_of(task: Bright) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {
            name: values.numpy() for name, values in explain_columns(task, batch_of(task)).items()
        }


MASKS = ExplainConfig(masks="../masks/{name}.png")


def test_evidence_is_compared_with_each_images_mask(root: Path, tmp_path: Path) -> None:
    task, manifest = task_of(root, tmp_path, MASKS)
    columns = columns_of(task)
    by_name = {Path(path).stem: i for i, path in enumerate(manifest.column("image"))}
    rows = [by_name[str(i)] for i in range(5)]
    share = 24 / SIDE**2
    np.testing.assert_allclose(columns["evidence_pointing"][rows], [1, 1, 0, 0, 0])
    np.testing.assert_allclose(columns["evidence_iou"][rows][:, 3], [1, 1, 0, 0, 0])
    np.testing.assert_allclose(columns["evidence_iop"][rows][:, 7], [1, 1, 0, 0, 0])
    np.testing.assert_allclose(columns["evidence_chance"][rows], [share] * 3 + [0] * 2)
    assert columns["evidence_energy"][rows[0]] > 0.99
    assert columns.keys() == {k for k in columns if k.startswith("evidence_")}
    table = predictions_table(
        manifest,
        task.classes,
        "test",
        columns | {"row": np.arange(5), "logits": np.zeros((5, 2), np.float32)},
    )
    findings = judge_columns(table)
    pointing = findings.metrics["test"]["evidence_pointing"]
    assert (pointing.value, pointing.num) == (pytest.approx(2 / 3), 3)
    assert [figure.title for figure in findings.figures] == ["Evidence against masks"]


def test_nothing_is_computed_without_masks_and_steps_or_of_an_int8_graph(
    root: Path, tmp_path: Path
) -> None:
    task, manifest = task_of(root, tmp_path, ExplainConfig())
    assert columns_of(task) == {}
    table = predictions_table(
        manifest,
        task.classes,
        "test",
        {"row": np.arange(5), "logits": np.zeros((5, 2), np.float32)},
    )
    assert judge_columns(table).metrics == {"test": {}}
    task, _ = task_of(root, tmp_path, MASKS)
    task.graph = nn.Identity()  # type: ignore[assignment]
    assert columns_of(task) == {}


def test_a_pattern_of_no_mask_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MaskError):
        task_of(root, tmp_path, ExplainConfig(masks="../elsewhere/{name}.png"))


def test_curves_are_the_answers_probability_step_by_step(root: Path, tmp_path: Path) -> None:
    """Of an answer by brightness all evidence is in the square: in a few steps it is gone, or there."""
    task, _ = task_of(root, tmp_path, ExplainConfig(num_steps=8))
    columns, batch = columns_of(task), batch_of(task)
    assert columns.keys() == {"deletion", "deletion_random", "insertion", "insertion_random"}
    images = task.normalised(batch)
    for row in range(5):
        image = images[row].numpy()
        answer = int(task.predict(batch)["logits"][row].argmax())
        sign = 1 if answer == 1 else -1
        evidence = sign * 9 * image.sum(0)
        for step, marked in enumerate(removals(evidence, 8)):
            light = 9 * 3 * (image[0] * ~marked).mean()
            logits = np.array([1 - light, light - 1])
            prob = np.exp(logits[answer]) / np.exp(logits).sum()
            assert columns["deletion"][row, step] == pytest.approx(prob, abs=1e-5)
    ends = columns["deletion"][:, -1]
    np.testing.assert_allclose(columns["deletion_random"][:, -1], ends)
    np.testing.assert_allclose(columns["insertion"][:, -1], columns["deletion"][:, 0], atol=1e-6)
    np.testing.assert_allclose(columns["insertion"][:, 0], columns["insertion_random"][:, 0])
    spots = task.dataset.truth == task.classes.index("spot")
    again = columns_of(task)
    for name, values in columns.items():
        np.testing.assert_array_equal(again[name], values)
    assert spots.sum() == 3


@pytest.mark.parametrize("fit", ["scale", "crop", "stretch", "pad"])
def test_a_mask_stands_in_the_frame_where_its_image_does(fit: Any) -> None:
    config = ImageConfig(height_px=32, width_px=48, fit=fit)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 24:44] = 1
    blank = np.zeros((64, 64, 3), np.uint8)
    marked = frame_mask(config, ImagePyramid.of(blank), mask)
    assert marked.shape == (32, 48)
    # the step of a pixel of the frame in the image, and where its first pixel stands, by hand
    steps = {"scale": (2, 2), "crop": (4 / 3, 4 / 3), "stretch": (2, 4 / 3), "pad": (1, 1)}[fit]
    middle = np.argwhere(marked).mean(0) + 0.5
    expected = [(24 - 32) / steps[0] + 16, (34 - 32) / steps[1] + 24]
    np.testing.assert_allclose(middle, expected, atol=1)
    area = 320 / (steps[0] * steps[1])
    if fit != "pad":
        assert marked.sum() == pytest.approx(area, rel=0.15)


def test_a_mark_of_one_pixel_stays_in_a_small_frame() -> None:
    config = ImageConfig(height_px=16, width_px=16)
    mask, blank = np.zeros((128, 128), np.uint8), np.zeros((128, 128, 3), np.uint8)
    assert not frame_mask(config, ImagePyramid.of(blank), mask).any()
    mask[40, 81] = 1
    marked = frame_mask(config, ImagePyramid.of(blank), mask)
    np.testing.assert_array_equal(np.argwhere(marked), [[5, 10]])


def test_the_report_shows_an_image_beside_its_evidence(root: Path, tmp_path: Path) -> None:
    task, manifest = task_of(root, tmp_path, MASKS)
    row = next(i for i, name in enumerate(manifest.column("image")) if name.endswith("spot/0.png"))
    evidence = np.zeros((4, 4), np.float32)
    evidence[1, 2] = 2.0

    def answer(evidence: np.ndarray | None) -> Answer:
        verdict: dict[str, Any] = {
            "label": "spot",
            "probs": {},
            "set": ("spot",),
            "rejected": False,
        }
        return Answer(
            **verdict,
            boxes=np.array([[0.0, 0.0, SIDE, SIDE]]),
            attn=np.ones(1),
            logits=np.zeros(2),
            evidence=evidence,
        )

    def drawn(evidence: np.ndarray | None) -> np.ndarray | None:
        return Bright.draw(task.config, task.pixels, row, lambda: answer(evidence))

    assert drawn(None) is None
    picture = drawn(evidence)
    assert picture is not None
    assert picture.shape == (SIDE, 2 * SIDE + GAP_PX, 3)
    image, beside = picture[:, :SIDE].astype(int), picture[:, SIDE + GAP_PX :].astype(int)
    np.testing.assert_array_equal(image, task.pixels[row].pixels)
    assert (beside[3, 5:11] == HIT).all()  # above the mask
    assert beside[6, 10, 2] < 200 < image[6, 10, 2]  # white turns orange at the place of evidence
    np.testing.assert_array_equal(beside[12:], image[12:])
