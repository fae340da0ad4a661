"""The base of classifications: loss, weights, maps of evidence and int8, against torch and scikit-learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from assay.bundle.bundle import Bundle
from assay.bundle.card import Card
from assay.bundle.quantize import QuantizeConfig
from assay.bundle.seal import seal
from assay.data.dataset import Dataset
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.inputs.transforms import TransformConfig
from assay.errors import ConfigError
from assay.metrics.decide import DecideConfig, Decision
from assay.train.classification import (
    Classification,
    ClassificationConfig,
    ClassLossConfig,
    pooled,
    share_right,
)
from assay.train.task import BatchRows

CLASSES = ("red", "green", "blue")
TRUTH = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0, 1], np.int32)
TRAIN = np.array([0, 1, 2, 3, 4, 5, 6, 8])
"""Five, two and one of the classes."""
STILL = TransformConfig(hflip=0.0, vflip=0.0, affine=0.0, brightness=0.0, contrast=0.0)
CONFIG = ClassificationConfig(
    image=ImageConfig(height_px=16, width_px=24, normalise="constants"), transform=STILL
)


class Colours(Classification):
    """Channels as they are, one that is always `loud`, and places of four pixels."""

    loud = 0.0
    terms: tuple[str, ...] = ()

    def __init__(self, config: Any, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.net = nn.Conv2d(3, 4, 1)
        self.add_head(4)
        with torch.no_grad():
            self.net.weight.copy_(torch.eye(4, 3)[..., None, None])
            self.net.bias.copy_(torch.tensor([0.0, 0.0, 0.0, self.loud]))
            self.head.weight.copy_(4 * torch.eye(3, 4))
            self.head.bias.copy_(torch.tensor([3e-3, -2e-3, 1e-3]))

    def features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.net(images), 4)

    def penalties(
        self, features: Tensor, logits: Tensor, batch: Any, progress: float, phase: str
    ) -> dict[str, Tensor]:
        return {name: progress * features.square().mean() for name in self.terms}


class Loud(Colours):
    """A channel that nothing reads drowns the others in 8 bits."""

    loud = 1e5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images of `dataset` lie."""
    return tmp_path_factory.mktemp("colours")


@pytest.fixture(scope="module")
def dataset(dataset_of: Callable[..., Dataset], folder: Path) -> Dataset:
    """Images with more of their own colour, longer than the frame."""
    rng, images = np.random.default_rng(0), []
    for label in TRUTH:
        image = rng.integers(60, 180, (20, 60, 3), dtype=np.uint8)
        image[..., label] += 30
        images.append(image)
    return dataset_of(folder, images, CLASSES, TRUTH, TRAIN)


def batch_of(task: Classification, rows: np.ndarray, train: bool = True, key: int = 3) -> Any:
    keys = np.arange(len(rows), dtype=np.uint64) + np.uint64(key)
    return type(task).prepare(task.config, task.dataset, BatchRows(rows, keys, train))


def task_of(dataset: Dataset, kind: type[Colours] = Colours, **fields: Any) -> Colours:
    return kind(replace(CONFIG, **fields), dataset)


# Input


@pytest.mark.parametrize("kind", ["image", "imagenet", "constants"])
def test_what_is_trained_on_is_what_is_served(dataset: Dataset, kind: Any) -> None:
    """Unchanged images, in training and in judging, are the arrays that a bundle makes."""
    image = replace(CONFIG.image, normalise=kind)
    task = task_of(dataset, image=image)
    expected = np.stack([ImageInput(image).array(dataset.pixels[row]) for row in range(12)])
    for train in (True, False):
        images = task.normalised(batch_of(task, np.arange(12), train)).numpy()
        np.testing.assert_allclose(images, expected, atol=1e-5)


def test_training_changes_images_by_their_keys_and_judging_does_not(dataset: Dataset) -> None:
    task = task_of(dataset, transform=TransformConfig())
    rows = np.array([4, 7])
    first, again, other = (batch_of(task, rows, key=key)["image"] for key in (3, 3, 2**47 + 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    judged = [batch_of(task, rows, train=False, key=key) for key in (3, 9)]
    np.testing.assert_array_equal(judged[0]["image"], judged[1]["image"])
    np.testing.assert_array_equal(judged[0]["row"], rows)
    np.testing.assert_array_equal(judged[0]["truth"], TRUTH[rows])
    # a key beside its row, to draw by
    huge = np.array([2**64 - 1], np.uint64)
    (key,) = Colours.prepare(CONFIG, dataset, BatchRows(rows[:1], huge, False))["key"]
    assert 0 <= key < 2**47


# Loss


def entropy(logits: Tensor, truth: np.ndarray, weights: np.ndarray, smoothing: float) -> float:
    """Mean over rows of weighted cross-entropy against a smoothed truth, written out."""
    log_probs = logits.log_softmax(1).detach().numpy()
    target = (1 - smoothing) * np.eye(3)[truth] + smoothing / 3
    return float(-(target * weights * log_probs).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_weights_are_scikit_learns_and_weigh_the_loss(
    dataset: Dataset, smoothing: float
) -> None:
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=TRUTH[TRAIN])
    assert balanced[TRUTH[TRAIN]].mean() == pytest.approx(1)
    for name, weights in (("balanced", balanced), ("none", np.ones(3))):
        loss = ClassLossConfig(class_weights=name, label_smoothing=smoothing)  # type: ignore
        task = task_of(dataset, loss=loss)
        batch = batch_of(task, np.arange(12))
        outputs = task(batch, 0.5)
        logits = task.predict(batch)["logits"]
        expected = entropy(logits, TRUTH, weights, smoothing)
        assert outputs["loss"].item() == pytest.approx(expected, rel=1e-5)
        right = (logits.argmax(1).numpy() == TRUTH).mean()
        assert outputs["train_accuracy"].item() == pytest.approx(right)


def test_each_class_of_train_pulls_as_much_as_any_other(dataset: Dataset) -> None:
    """With logits of zero the gradient on the biases is the classes' weights less their shares."""
    task = task_of(dataset, loss=ClassLossConfig(class_weights="balanced"))
    nn.init.zeros_(task.head.weight)
    nn.init.zeros_(task.head.bias)
    task(batch_of(task, TRAIN), 0.0)["loss"].backward()
    np.testing.assert_allclose(task.head.bias.grad.numpy(), 0, atol=1e-6)


@pytest.mark.parametrize("classes", [(), ("red",)])
def test_there_is_nothing_to_tell_apart_without_two_classes(
    dataset: Dataset, classes: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=r"The images have (no|1) class.*--data\.label"):
        task_of(replace(dataset, classes=classes))


@pytest.mark.parametrize("decide", [{"positive": "none"}, {"costs": ("none>other=2",)}])
def test_decisions_on_classes_that_are_not_there_are_refused_before_training(
    dataset: Dataset, decide: Any
) -> None:
    task_of(dataset, decide=DecideConfig(positive=CLASSES[0]))
    with pytest.raises(ConfigError, match="decide names the class 'none'"):
        task_of(dataset, decide=DecideConfig(**decide))


def test_a_class_that_train_lacks_does_not_lighten_the_others(dataset: Dataset) -> None:
    few = replace(dataset, train=np.array([0, 1, 2, 5]))
    task = task_of(few, loss=ClassLossConfig(class_weights="balanced"))
    weights = compute_class_weight("balanced", classes=np.arange(2), y=TRUTH[few.train])
    logits = torch.zeros(4, 3)
    losses = task.row_losses(logits, torch.from_numpy(TRUTH[few.train]).long()).numpy()
    np.testing.assert_allclose(losses, np.log(3) * weights[TRUTH[few.train]], rtol=1e-5)


def test_penalties_enter_the_loss_and_are_logged_by_name(dataset: Dataset) -> None:
    class Bounded(Colours):
        terms = ("size", "turn")

    plain, task = task_of(dataset), task_of(dataset, Bounded)
    batch = batch_of(task, np.arange(12))
    outputs, without = task(batch, 0.5), plain(batch, 0.5)
    term = 0.5 * task.features(task.normalised(batch)).square().mean().item()
    assert outputs.keys() == {"loss", "train_accuracy", "size_loss", "turn_loss"}
    assert outputs["size_loss"].item() == pytest.approx(term)
    assert outputs["loss"].item() == pytest.approx(without["loss"].item() + 2 * term)
    outputs["turn_loss"].backward()
    assert task.net.weight.grad.abs().max() > 0
    assert without.keys() == {"loss", "train_accuracy"}


def test_the_share_of_right_answers_counts_several_to_an_image() -> None:
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 2, 1, 0])]
    assert share_right(logits, torch.tensor([0, 1, 2, 2, 1, 1])).item() == pytest.approx(5 / 6)
    # three answers each to two images
    assert share_right(logits, torch.tensor([0, 2])).item() == pytest.approx(2 / 6)


# Evidence


def test_evidence_is_the_logit_place_by_place(dataset: Dataset) -> None:
    task = task_of(dataset).eval()
    images = task.normalised(batch_of(task, np.arange(12), False))
    with torch.no_grad():
        logits, embedding, evidence = task.describe(images)
    assert evidence.shape == (12, 3, 4, 6)
    torch.testing.assert_close(evidence.mean((2, 3)) + task.head.bias, logits)
    torch.testing.assert_close(embedding, pooled(task.features(images)))
    vectors = torch.rand(2, 4)
    assert pooled(vectors) is vectors


class Vectors(Colours):
    """A network that gives no maps."""

    def features(self, images: Tensor) -> Tensor:
        return self.net(images).mean((2, 3))


class Attending(Vectors):
    """A network that looks at places, for no class in particular."""

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        places = nn.functional.avg_pool2d(images.square().sum(1, keepdim=True), 8)
        return self.features(images), places.expand(-1, 3, -1, -1)


def decision() -> Decision:
    return Decision(
        temperature=1.0,
        coverage=0.9,
        quantile=0.9,
        costs=None,
        positive=None,
        threshold=None,
        num=9,
        num_groups=9,
    )


def bundle_of(task: Classification, folder: Path, rows: dict[str, np.ndarray], image: Path) -> Any:
    folder.mkdir()
    pipeline = task.eval().export(folder, rows)
    seal(folder, Card(classes=list(CLASSES), pipeline=pipeline, decision=decision()), image)
    return pipeline


@pytest.mark.parametrize("kind", [Colours, Vectors, Attending])
def test_a_bundle_answers_as_the_task_does(
    dataset: Dataset, folder: Path, tmp_path: Path, kind: type[Colours]
) -> None:
    task = task_of(dataset, kind)
    pipeline = bundle_of(task, tmp_path / "bundle", {}, folder / f"{0:032x}.png")
    assert "int8" not in pipeline
    assert task.int8(tmp_path / "bundle") is None
    bundle = Bundle(tmp_path / "bundle")
    with torch.no_grad():
        expected = task.predict(batch_of(task, np.arange(12), False))["logits"].numpy()
    answers = bundle.predict_each([dataset.pixels[row] for row in range(12)])
    for row, answer in enumerate(answers):
        np.testing.assert_allclose(answer.logits, expected[row], atol=1e-4)
        np.testing.assert_array_equal(task.answer_columns(answer, row)["logits"], answer.logits)
        np.testing.assert_allclose(answer.boxes, [[0, 0, 60, 20]], atol=1e-9)
        assert (answer.evidence is None) == (kind is Vectors)
        assert answer.evidence_label == (answer.label if kind is Colours else None)
        explained = answer.form("none", explain=True)["evidence"]
        assert (explained is None) == (kind is Vectors)
        assert answer.form("none")["evidence"] is None


@pytest.mark.parametrize("fit", ["scale", "crop", "stretch", "pad"])
def test_evidence_is_drawn_where_it_is_in_the_image(
    dataset: Dataset, folder: Path, tmp_path: Path, fit: Any
) -> None:
    """A green square of a long image on black ground: its place in the image is warmed, no other."""
    image = ImageConfig(height_px=64, width_px=64, fit=fit, normalise="constants")
    task = task_of(dataset, image=image)
    bundle_of(task, tmp_path / "bundle", {}, folder / f"{0:032x}.png")
    pixels = np.zeros((48, 160, 3), np.uint8)
    x, y = 92, 20
    pixels[y : y + 16, x : x + 16, 1] = 255
    (answer,) = Bundle(tmp_path / "bundle").predict_each([ImagePyramid.of(pixels)])
    assert answer.label == "green"
    canvas = np.full((96, 320, 3), 100, np.uint8)  # shown at twice the size
    answer.draw(canvas, np.array([2.0, 2.0]))
    warmth = np.abs(canvas.astype(int) - 100).sum(2)
    centre = (np.argwhere(warmth > 0.6 * warmth.max()) + 0.5).mean(0) / 2
    np.testing.assert_allclose(centre, [y + 8, x + 8], atol=4)  # of places of up to ten pixels
    assert warmth[:, : 2 * (x - 24)].max() <= 0.1 * warmth.max()


# Int8

INT8 = QuantizeConfig(variant="int8", num_calibration=5, max_drop=0.0, max_kept=0)
ROWS = {"train": TRAIN, "val": np.array([7, 9, 10, 11])}


def test_an_int8_graph_ships_where_it_holds(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    task = task_of(dataset, quantize=INT8, train=replace(CONFIG.train, eval_batch_size=3))
    pipeline = bundle_of(task, tmp_path / "bundle", ROWS, folder / f"{0:032x}.png")
    assert pipeline["int8"] == ["classify_int8"]
    report = pipeline["quantized"]
    # judged by the graphs, which answer as the task does: all of val rightly
    with torch.no_grad():
        batch = batch_of(task, np.arange(12), False)
        expected = task.predict(batch)["logits"]
        assert (expected.argmax(1).numpy() == TRUTH).all()
        variant = task.int8(tmp_path / "bundle")
        assert variant is not None
        assert variant.graph is not None
        small = variant.predict(batch)["logits"]
        exact = task._with(tmp_path / "bundle" / "classify.onnx").predict(batch)["logits"]
    assert report["fp32"]["score"] == report["int8"]["score"] == 1.0
    torch.testing.assert_close(exact, expected, atol=1e-4, rtol=1e-4)
    assert 0 < (small - expected).abs().max() < 0.2
    answers = Bundle(tmp_path / "bundle", variant="int8").predict_each(
        [dataset.pixels[row] for row in range(12)]
    )
    np.testing.assert_allclose([answer.logits for answer in answers], small.numpy(), atol=1e-4)
    assert all(answer.evidence is not None for answer in answers)


def test_an_int8_graph_that_falls_behind_is_refused(
    dataset: Dataset, folder: Path, tmp_path: Path
) -> None:
    task = task_of(dataset, Loud, quantize=INT8)
    pipeline = bundle_of(task, tmp_path / "bundle", ROWS, folder / f"{0:032x}.png")
    assert "int8" not in pipeline
    assert "The score on val falls from 1.0000" in pipeline["refused"]
    assert task.int8(tmp_path / "bundle") is None
    assert not (tmp_path / "bundle" / "classify_int8.onnx").exists()


def test_calibration_takes_images_of_train_evenly_and_each_once(dataset: Dataset) -> None:
    task = task_of(dataset, quantize=replace(INT8, num_calibration=4))
    feeds = task._calibration(TRAIN)
    expected = [ImageInput(CONFIG.image).array(dataset.pixels[row])[None] for row in (0, 2, 4, 8)]
    for feed, array in zip(feeds, expected, strict=True):
        np.testing.assert_array_equal(feed["image"], array)
    many = task_of(dataset, quantize=replace(INT8, num_calibration=99))._calibration(TRAIN)
    assert len(many) == len(TRAIN)
