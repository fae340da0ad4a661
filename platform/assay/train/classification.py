"""The base of tasks that answer with a class: one image, one label.

A task gives `features`; the base owns input, loss, head, embedding, maps of evidence, export and int8.
Any method may be overridden.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Interval
from torch import Tensor, nn

from assay.bundle.quantize import QuantizeConfig
from assay.config import Settings, to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.inputs.normalise import EPS
from assay.data.inputs.transforms import TransformConfig, change
from assay.data.masks import overlay
from assay.errors import ConfigError
from assay.metrics.scores.classes import accuracy
from assay.nn.attribution import activation_maps
from assay.nn.export import GraphModule, write_graph
from assay.nn.macs import count_macs
from assay.train import robustness
from assay.train.int8 import add_int8
from assay.train.robustness import RobustnessConfig
from assay.train.task import Batch, BatchRows, Task, TaskMetrics
from assay.train.task_config import TaskConfig

GRAPH = "classify"


@dataclass(frozen=True, kw_only=True)
class ClassLossConfig(Settings, section="loss"):
    """How wrong an answer is."""

    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Probability mass spread over the other classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class of train weighs as much as any other."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TaskConfig):
    """What every classification of whole images holds; a task adds its own fields."""

    image: ImageConfig = field(default_factory=ImageConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    loss: ClassLossConfig = field(default_factory=ClassLossConfig)
    quantize: QuantizeConfig = field(default_factory=lambda: QuantizeConfig(variant="none"))
    robustness: RobustnessConfig = field(default_factory=RobustnessConfig)


class Classification(Task):
    """Whole images to classes.

    A subclass gives `features` and, with their number, calls `add_head` in its `__init__`.

    Raises:
        ConfigError: there are no two classes, or `decide` names another.
    """

    Config: ClassVar[type[TaskConfig]] = ClassificationConfig
    config: Any
    head: nn.Module
    graph: GraphModule | None
    """An exported graph in the network's place."""

    def __init__(
        self, config: TaskConfig, dataset: Dataset, classes: Sequence[str] | None = None
    ) -> None:
        super().__init__(config, dataset, classes)
        if len(self.classes) < 2:
            raise ConfigError(
                f"The images have {len(self.classes) or 'no'} class, and a classification learns to tell several apart; name where labels stand (--data.label), or give images of another class."
            )
        self.graph = None  # not on the class, where it would hide the module that takes its place

    def add_head(self, num_features: int) -> None:
        """Put a linear classifier on the features."""
        self.head = nn.Linear(num_features, len(self.classes))

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return frames (n h w 3), their mean and deviation, truth; changed at random in training."""
        view = ImageInput(config.image)
        frames, means, stds = [], [], []
        for row, key in zip(samples.rows.tolist(), samples.keys.tolist(), strict=True):
            pyramid = dataset.pixels[row]
            frame, covered = view.show(pyramid), view.covered(pyramid)
            if samples.train:
                light = pyramid.mean, pyramid.std
                frame, covered = change(config.transform, frame, covered, key & 0x7FFFFFFF, *light)
            mean, std = view.statistics(frame, covered)
            frames.append(frame)
            means.append(mean)
            stds.append(std)
        arrays = {"image": np.stack(frames), "mean": np.stack(means), "std": np.stack(stds)}
        return arrays | batch_rows(dataset, samples)

    def features(self, images: Tensor) -> Tensor:
        """Compute features of normalised images (n 3 h w): vectors (n d), or maps (n d h' w')."""
        raise NotImplementedError

    def penalties(
        self, features: Tensor, logits: Tensor, batch: Batch, progress: float, phase: str
    ) -> dict[str, Tensor]:
        """Return further terms of the loss, by name."""
        return {}

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Return the cross-entropy with what the task adds to it."""
        features = self.features(self.normalised(batch))
        logits = self.head(pooled(features))
        truth = self.truth(batch)
        terms = self.penalties(features, logits, batch, progress, phase)
        loss = self.row_losses(logits, truth).mean()
        for term in terms.values():
            loss = loss + term
        scalars = {f"{name}_loss": term for name, term in terms.items()}
        return {"loss": loss, "train_accuracy": share_right(logits, truth), **scalars}

    def normalised(self, batch: Batch) -> Tensor:
        """Return images (n 3 h w) less their mean, over their deviation, on the model's device."""
        image, mean, std = (self.to_device(batch[name]) for name in ("image", "mean", "std"))
        scaled = image.float() / 255 - mean[:, None, None]
        normalised: Tensor = (scaled / (std[:, None, None] + EPS)).permute(0, 3, 1, 2)
        return normalised

    def truth(self, batch: Batch) -> Tensor:
        """Return the classes of a batch, on the model's device."""
        return self.to_device(batch["truth"])

    @property
    def label_smoothing(self) -> float:
        """Probability mass that the loss spreads over the other classes."""
        return float(self.config.loss.label_smoothing)

    def row_losses(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the cross-entropy of each row, weighted by its class."""
        return nn.functional.cross_entropy(
            logits.float(),
            truth,
            reduction="none",
            weight=self._class_weights(),
            label_smoothing=self.label_smoothing,
        )

    def _class_weights(self) -> Tensor | None:
        """Return weights whose mean over train is 1, each class having the same sum; none unless balanced."""
        if self.config.loss.class_weights == "none":
            return None
        truth = self.dataset.truth[self.dataset.train]
        counts = np.bincount(truth, minlength=len(self.classes))
        weights = len(truth) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return torch.tensor(weights, dtype=torch.float32, device=self.device)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Predict logits, by the exported graph where there is one."""
        images = self.normalised(batch)
        if self.graph is not None:
            return {"logits": self.graph(images)}
        return {"logits": self.head(pooled(self.features(images)))}

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Predict the logits of corrupted images, those of all strengths side by side."""
        config = self.config
        return {
            f"logits_{kind}": robustness.corrupted_logits(self, batch, kind)
            for kind in config.robustness.kinds
        }

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge robustness."""
        return robustness.judge(predictions)

    def answer_columns(self, answer: Any, row: int) -> dict[str, np.ndarray]:
        """Return the logits that a bundle's answer was made from."""
        return {"logits": answer.logits}

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and, of maps, the evidence for each class at each place (n c h w).

        These are class activation maps (Zhou et al. 2016): the head applied at each place, whose
        mean over places is the logit less the bias.
        """
        features = self.features(images)
        if features.dim() < 4 or not isinstance(self.head, nn.Linear):
            return features, None
        return features, activation_maps(features, self.head.weight)

    def describe(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return logits, embedding and, where there is any, the evidence."""
        features, evidence = self.explain(images)
        embedding = pooled(features)
        outputs = self.head(embedding), embedding
        return outputs if evidence is None else (*outputs, evidence)

    @classmethod
    def draw(
        cls, config: Any, pixels: Pixels, row: int, answer: Callable[[], Any]
    ) -> np.ndarray | None:
        """Draw the image beside its evidence, on which the mask that evidence is judged by is outlined."""
        answered = answer()
        if answered.evidence is None:
            return None
        image = pixels[row].small(overlay.SIDE_PX)
        drawn = image.copy()
        answered.draw(drawn, np.divide(image.shape[1::-1], pixels[row].size[::-1]))
        mask = pixels.mask(row, "truth") if "truth" in pixels.masks else None
        return overlay.beside(image, drawn, mask)

    def costs(self) -> dict[str, int]:
        """Count parameters, and the multiply-accumulates of one image."""
        shape = (1, 3, self.config.image.height_px, self.config.image.width_px)
        image, mode = torch.zeros(shape, device=self.device), self.training
        self.eval()
        macs, trained = count_macs(lambda image: self.head(pooled(self.features(image))), image)
        self.train(mode)
        return {**super().costs(), "macs": macs, "trainable_macs": trained}

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write graph `classify` (image to logits, embedding and maps of evidence), and its int8 form."""
        config, graph = self.config, folder / f"{GRAPH}.onnx"
        shape = (3, config.image.height_px, config.image.width_px)
        with torch.no_grad():
            num_outputs = len(self.describe(torch.zeros(1, *shape, device=self.device)))
        names = ["logits", "embedding", "evidence"][:num_outputs]
        write_graph(graph, self, self.describe, ("image", shape), names)
        pipeline = {"kind": "image", "image": to_dict(config.image), "graphs": [GRAPH]}
        return add_int8(
            pipeline,
            graph,
            lambda: self._calibration(rows["train"]),
            lambda path: self._accuracy_with(path, rows["val"]),
            config.quantize,
        )

    def int8(self, folder: Path) -> "Classification | None":
        """Return this task with the int8 graph in the network's place."""
        path = folder / f"{GRAPH}_int8.onnx"
        return self._with(path) if path.exists() else None

    def _with(self, graph: Path) -> "Classification":
        other = type(self)(self.config, self.dataset)
        other.graph = GraphModule(graph)
        return other.eval()

    def _judged(self, rows: np.ndarray) -> Batch:
        keys = np.zeros(len(rows), np.uint64)
        return type(self).prepare(self.config, self.dataset, BatchRows(rows, keys, False))

    def _accuracy_with(self, graph: Path, rows: np.ndarray) -> float:
        other, size = self._with(graph), self.config.train.eval_batch_size
        with torch.no_grad():
            logits = [
                other.predict(self._judged(rows[i : i + size]))["logits"].numpy()
                for i in range(0, len(rows), size)
            ]
        return accuracy(np.concatenate(logits), self.dataset.truth[rows])

    def _calibration(self, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Return images of train, evenly chosen."""
        num = min(self.config.quantize.num_calibration, len(rows))
        chosen = rows[np.linspace(0, len(rows) - 1, num).astype(int)]
        view = ImageInput(self.config.image)
        return [{"image": view.array(self.pixels[row])[None]} for row in chosen.tolist()]


def batch_rows(dataset: Dataset, samples: BatchRows) -> Batch:
    """Return row, key (a signed 47-bit number) and truth of each sample."""
    return {
        "row": samples.rows,
        "key": samples.keys.astype(np.int64) & 0x7FFFFFFFFFFF,
        "truth": dataset.truth[samples.rows].astype(np.int64),
    }


def pooled(features: Tensor) -> Tensor:
    """Return vectors (n d) of features, the mean over places where they are maps."""
    return features.mean((2, 3)) if features.dim() == 4 else features


def share_right(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the share of right answers; several answers to an image stand next to each other."""
    return (logits.argmax(1) == truth.repeat_interleave(len(logits) // len(truth))).float().mean()
