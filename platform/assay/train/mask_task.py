"""The base of tasks that answer with a mask, judged tile by tile.

A task gives what marks (`net`, from normalised images to logits) and says where masks come from (`manifest`). The
base owns levels, counts, thresholds, pictures, export and int8. Any method may be overridden.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from assay.bundle.quantize import QuantizeConfig
from assay.bundle.segment import coarse_probs
from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.data.images.pixels import Pixels
from assay.data.inputs import tiles
from assay.data.inputs.tiles import TileConfig
from assay.data.masks import overlay
from assay.errors import RunError
from assay.metrics import masks
from assay.metrics.predictions import class_names
from assay.metrics.scores.masks import component_columns, pixel_columns, validate_masks
from assay.nn.export import GraphModule, check_any_size, write_graph
from assay.train.int8 import add_int8
from assay.train.task import Batch, BatchRows, Task, TaskMetrics
from assay.train.task_config import TaskConfig

GRAPH = "segment"


@dataclass(frozen=True, kw_only=True)
class MaskTaskConfig(TaskConfig):
    """What every task with masks holds; a task adds its own fields."""

    tiles: TileConfig = field(default_factory=TileConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    _undecided: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("decide.coverage", "decide.costs", "decide.positive", "decide.recall"),
        "masks are answered pixel by pixel, as decide.pixel-recall says",
    )


class MaskTask(Task):
    """Masks of images, from tiles.

    Args:
        config: the task's settings.
        dataset: images and masks.
        net: from images (n 3 h w) to logits (n classes h w).
    """

    Config: ClassVar[type[TaskConfig]] = MaskTaskConfig
    config: Any

    def __init__(self, config: MaskTaskConfig, dataset: Dataset, net: nn.Module) -> None:
        super().__init__(config, dataset, dataset.mask_classes)
        self.net = net

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return the rows alone, as tiles are cut later."""
        return {"row": samples.rows, "key": samples.keys.astype(np.int64) & 0x7FFFFFFFFFFF}

    def check_tiles(self) -> None:
        """Refuse a network that cannot be shown the tiles that are asked for.

        Raises:
            ConfigError: it takes tiles of one size alone.
        """
        if self.config.tiles.size == "fit":
            check_any_size(self.net, tiles.STRIDE_PX, "--tiles.size fixed")

    def logits(self, normalised: Tensor) -> Tensor:
        """Return logits (n classes h w) of normalised images."""
        logits: Tensor = self.net(normalised.contiguous(memory_format=torch.channels_last))
        return logits

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and an embedding (n d) of each image."""
        raise NotImplementedError

    def levels(self, row: int) -> np.ndarray:
        """Return levels (classes h w) of every pixel of a row's image."""

        def network(normalised: np.ndarray) -> np.ndarray:
            logits = self.logits(self.to_device(normalised))
            array: np.ndarray = logits.float().cpu().numpy()
            if not np.isfinite(array).all():  # a level would hide it
                raise RunError(
                    "The logits of a mask are not finite, so the weights have grown beyond all numbers; lower --optim.lr, or set --optim.grad-clip or --train.precision fp32."
                )
            return array

        return tiles.level_map(self.pixels[row], network, len(self.classes), self.config.tiles)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Count pixels inside and outside each mask, by their level."""
        return self._counts(batch, pixel_columns)

    def predict_once(self, batch: Batch) -> dict[str, Tensor]:
        """Count components found and false alarms, by threshold."""
        return self._counts(batch, component_columns)

    def _counts(
        self, batch: Batch, count: Callable[[np.ndarray, np.ndarray, str], dict[str, np.ndarray]]
    ) -> dict[str, Tensor]:
        rows = [self._counts_of(self.levels(row), row, count) for row in batch["row"].tolist()]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    def _counts_of(
        self,
        levels: np.ndarray,
        row: int,
        count: Callable[[np.ndarray, np.ndarray, str], dict[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """Count in one image against its masks of every kind."""
        columns: dict[str, np.ndarray] = {}
        for kind in self.pixels.masks:
            columns |= count(levels, self.pixels.mask(row, kind), kind)
        return columns

    def answer_columns(self, answer: Any, row: int) -> dict[str, np.ndarray]:
        """Count pixels by level, as a bundle's answer has them."""
        return self._counts_of(answer.levels, row, pixel_columns)

    def golden(self, row: int) -> dict[str, float]:
        """Return mean probabilities in the cells of a coarse grid over a row's image."""
        return coarse_probs(self.classes, self.levels(row))

    def validate(self, columns: Batch) -> dict[str, float]:
        """Score val by micro IoU at the best threshold, by the masks that training learns from; NLL per pixel."""
        return validate_masks(columns, len(self.classes))

    @classmethod
    def score(cls, config: Any, predictions: pa.Table, fitted: pa.Table | None = None) -> pa.Table:
        """Add the IoU of each image, at thresholds that val chose."""
        if fitted is not None:
            return masks.score(predictions, masks.thresholds_of(fitted))
        num, least = len(class_names(predictions)), config.decide.pixel_recall
        return masks.score(predictions, masks.fit_thresholds(predictions, num, least))

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge pixels, images, components, false alarms, calibration."""
        classes = class_names(predictions)
        metrics, figures = masks.findings(predictions, classes)
        warnings = masks.warnings(predictions, classes)
        return TaskMetrics(
            metrics=metrics, figures=figures, measures=masks.MEASURES, warnings=warnings
        )

    @classmethod
    def draw(
        cls, config: Any, pixels: Pixels, row: int, answer: Callable[[], Any]
    ) -> np.ndarray | None:
        """Draw the image, and the answer over it against the mask that is judged by."""
        kind = "truth" if "truth" in pixels.masks else "label"
        image = pixels[row].cut((0, 0, *pixels[row].size[::-1]))
        marks = {"answer": answer().mask} | cls.other_marks(config, pixels, row)
        return overlay.panels(image, np.asarray(pixels.mask(row, kind)), marks)

    @classmethod
    def other_marks(cls, config: Any, pixels: Pixels, row: int) -> dict[str, np.ndarray]:
        """Return masks by name that are drawn beside the answer."""
        return {}

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write graph `segment` (normalised tiles to logits and embedding), and its int8 form where it holds on val."""
        config, graph = self.config, folder / f"{GRAPH}.onnx"
        side = None if config.tiles.size == "fit" else config.tiles.tile_px
        feed, ends = ("tiles", (3, side, side)), ["logits", "embedding"]
        write_graph(graph, self, self.describe, feed, ends, tiles.STRIDE_PX)
        return add_int8(
            {"kind": "tiles", "tiles": to_dict(config.tiles), "graphs": [GRAPH]},
            graph,
            lambda: self._calibration(rows["train"]),
            lambda path: self._iou_with(path, rows["val"]),
            config.quantize,
        )

    def int8(self, folder: Path) -> "MaskTask | None":
        """Return this task with the int8 graph in the network's place."""
        path = folder / f"{GRAPH}_int8.onnx"
        return self._with(path) if path.exists() else None

    def _with(self, graph: Path) -> "MaskTask":
        other = type(self)(self.config, self.dataset)  # type: ignore[call-arg]
        other.net = GraphModule(graph)
        return other.eval()

    def _iou_with(self, graph: Path, rows: np.ndarray) -> float:
        columns = self._with(graph).predict({"row": rows})
        arrays = {name: tensor.numpy() for name, tensor in columns.items()}
        return validate_masks(arrays, len(self.classes))["iou"]

    def _calibration(self, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Return squares of training images, spread evenly over all of them and over each."""
        most = self.config.quantize.num_calibration
        num = min(most, len(rows))
        feeds: list[dict[str, np.ndarray]] = []
        for row in rows[np.linspace(0, len(rows) - 1, num).astype(int)].tolist():
            cut = self._tiles_of(row, replace(self.config.tiles, size="fixed"))
            each = min(math.ceil(most / num), len(cut))
            chosen = np.linspace(0, len(cut) - 1, each).astype(int)
            feeds.extend({"tiles": cut[i][None]} for i in chosen.tolist())
        return feeds[:most]

    def _tiles_of(self, row: int, config: TileConfig) -> list[np.ndarray]:
        """Return the normalised tiles (3 h w) that an image is cut into."""
        normalised: list[np.ndarray] = []

        def collect(batch: np.ndarray) -> np.ndarray:
            normalised.extend(batch)
            return np.zeros((len(batch), len(self.classes), *batch.shape[2:]), np.float32)

        tiles.level_map(self.pixels[row], collect, len(self.classes), config)
        return normalised
