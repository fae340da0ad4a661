"""The base of tasks that answer with a vector, learnt from unlabelled views of each image.

A task gives the network (`embed`) and the loss over views (`losses`). The base owns views, judging by
neighbours and by logistic regression, guards against collapse, and export.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from assay.bundle.embed import EmbeddingAnswer
from assay.config import to_dict
from assay.data.dataset import Dataset
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.inputs.normalise import normalise
from assay.data.inputs.views import ViewConfig, ViewInput
from assay.errors import ConfigError, PredictionsError
from assay.metrics import embeddings
from assay.metrics.frozen_heads import FrozenHead, Ship, has_views
from assay.metrics.measures import Measure
from assay.metrics.predictions import class_names, rows_of, sets_of
from assay.metrics.scores.classes import accuracy, nll
from assay.metrics.scores.neighbours import (
    effective_rank,
    has_partner,
    neighbour_logits,
    partner_hits,
)
from assay.nn.export import write_graph
from assay.train.classification import GRAPH as CLASSES
from assay.train.classification import batch_rows
from assay.train.frozen_head import FrozenLinear
from assay.train.monitor import Limit
from assay.train.task import Batch, BatchRows, Task, TaskMetrics
from assay.train.task_config import TaskConfig

GRAPH = "embed"
SCORE = "partner_found"
"""Main score of images without labels."""
MEASURES = {
    SCORE: Measure("Partner found", "images whose nearest other image is of the same group"),
    **embeddings.MEASURES,
}
MIN_STD = 1e-3
"""Mean deviation of unit vectors' entries over a batch below which all embeddings are one."""

MOST_SIZES = 1000
"""Images, evenly chosen, whose size is looked at."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(TaskConfig):
    """What every embedding holds; a task adds its own fields."""

    image: ImageConfig = field(default_factory=ImageConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    ship: Ship = "embedding"
    """What the bundle answers with: a vector; or a class, by what val has chosen on the frozen backbone: a logistic regression, a linear head on tokens, or a head that is learnt from groups and weighs their images (attention). The report's main numbers are then that head's."""


class Embedding(Task):
    """Whole images to vectors."""

    Config: ClassVar[type[TaskConfig]] = EmbeddingConfig
    config: Any
    reference: ClassVar[tuple[str, ...]] = ("train",)
    """Sets that are predicted besides, for what is judged to be compared with."""

    def __init__(self, config: Any, dataset: Dataset, classes: Sequence[str] | None = None) -> None:
        super().__init__(config, dataset, classes)
        if config.ship != "embedding" and len(self.classes) < 2:
            raise ConfigError(
                f"--ship {config.ship} answers with a class, and the images have {len(self.classes) or 'no'} class; give labels (--data.label), or --ship embedding."
            )
        if config.ship == "attention" and not has_views(dataset.truth, dataset.group.codes):
            raise ConfigError(
                "--ship attention learns from groups of several images and of one class each, and the images have no such groups; name what groups them (--data.group), or --ship logistic."
            )
        self.frozen_head: FrozenLinear | None = None

    @classmethod
    def prepare(cls, config: Any, dataset: Dataset, samples: BatchRows) -> Batch:
        """Return normalised views (n g 3 s s, n l 3 t t) to train on, frames (n 3 h w) to judge by."""
        rows, keys = samples.rows.tolist(), samples.keys.tolist()
        frame = ImageInput(config.image)
        if not samples.train:
            images = [frame.array(dataset.pixels[row]) for row in rows]
            return {"image": np.stack(images)} | batch_rows(dataset, samples)
        drawn = []
        for row, key in zip(rows, keys, strict=True):
            partner = draw_partner(dataset, row, key, config.views.cross_view)
            other = None if partner is None else dataset.pixels[partner]
            drawn.append(ViewInput(config.views, frame).draw(dataset.pixels[row], key, other))
        names = ("global", "local")
        batch = {
            name: np.stack([_normalised(views, frame) for views in crops])
            for name, crops in zip(names, zip(*drawn, strict=True), strict=True)
        }
        return batch | batch_rows(dataset, samples)

    def refuse_sets(self, rows: Mapping[str, np.ndarray]) -> None:
        """Refuse sets without labels that have no two images of a group, which would be found out when all is learnt.

        Raises:
            PredictionsError: there is one.
        """
        if len(self.classes) < 2:
            for name, members in rows.items():
                _refuse_lonely(name, has_partner(self.dataset.group.codes[members]))

    def doubts(self) -> Sequence[str]:
        """Say which settings need several images of a group, where train has no two."""
        train = self.dataset.group.codes[self.dataset.train]
        asking = self.of_groups() if self.config.train.epochs else []
        if not asking or has_partner(train).any():
            return []
        return [
            f"{' and '.join(asking)} ha{'ve' if len(asking) > 1 else 's'} no effect, as no group of train has several images; name what groups them (--data.group)."
        ]

    def of_groups(self) -> list[str]:
        """Name settings in use that several images of a group are needed for."""
        return ["--views.cross-view"] if self.config.views.cross_view else []

    def begin(self, rows: np.ndarray) -> None:
        """Refuse crops that are larger than every image (of those looked at), whose pixels would be made up.

        Raises:
            ConfigError: they are, and are to be learnt from.
        """
        views = self.config.views
        sides = {"global": views.global_px} | ({"local": views.local_px} if views.num_local else {})
        looked_at = rows[np.linspace(0, len(rows) - 1, min(MOST_SIZES, len(rows))).astype(int)]
        frame = ImageInput(self.config.image)
        boxes = [frame.looked_at(self.pixels[row]) for row in looked_at.tolist()]
        largest = max(int((box[2:] - box[:2]).max()) for box in boxes)
        for name, side in sides.items():
            if side > largest and self.config.train.epochs:
                raise ConfigError(
                    f"views.{name}-px is {side}, and no image is longer than {largest} pixels where it is looked at, so that crops would be of pixels that are made up; give {largest} or less."
                )

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings (n d) of normalised images (n 3 h w)."""
        raise NotImplementedError

    def seen_by(self, head: FrozenHead, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (n f) that a head looks at, and embeddings (n d)."""
        embedding = self.embed(images)
        return embedding, embedding

    def losses(self, batch: Batch, progress: float, phase: str) -> tuple[dict[str, Tensor], Tensor]:
        """Return terms of the loss by name, whose sum is minimised; and embeddings (n d) of a view of each image."""
        raise NotImplementedError

    def forward(self, batch: Batch, progress: float, phase: str = "main") -> dict[str, Tensor]:
        """Sum the task's losses; watch the spread of what is embedded."""
        terms, vectors = self.losses(batch, progress, phase)
        units = torch.nn.functional.normalize(vectors.detach().float(), dim=1)
        spread = units.std(0).mean() if len(units) > 1 else units.new_ones(())
        named = {f"{name}_loss": term for name, term in terms.items()}
        return {"loss": torch.stack(list(terms.values())).sum(), "embedding_std": spread, **named}

    def limits(self) -> Sequence[Limit]:
        """Stop where all images have one embedding."""
        why = "all images are embedded alike, so nothing is learnt: lower the learning rate, or see whether the loss keeps views of different images apart"
        return [Limit("embedding_std", low=MIN_STD, for_updates=50, why=why)]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Predict embeddings."""
        return {"embedding": self.embed(self.to_device(batch["image"]))}

    def answer_columns(self, answer: Any, row: int) -> dict[str, np.ndarray]:
        """Return the embedding, as a bundle's answer has it."""
        return {"embedding": answer.embedding}

    def golden(self, row: int) -> dict[str, float]:
        """Return the embedding of a row's image at unit length."""
        samples = BatchRows(np.array([row]), np.zeros(1, np.uint64), False)
        columns = self.predict(self.prepare(self.config, self.dataset, samples))
        return EmbeddingAnswer(columns["embedding"][0].float().cpu().numpy()).golden()

    def validate(self, columns: Batch) -> dict[str, float]:
        """Score val by its neighbours in other groups; without labels by finding the other images of a group."""
        vectors = columns["embedding"].astype(np.float64)
        rank = effective_rank(vectors)
        group = self.dataset.group.codes[columns["row"]]
        if len(self.classes) < 2:
            hits, partnered = partner_hits(vectors, group)
            share = float(hits.sum() / max(partnered.sum(), 1))
            return {SCORE: share, "nll": 1 - share, "effective_rank": rank}
        truth = self.dataset.truth[columns["row"]]
        same = group[:, None] == group
        logits = neighbour_logits(vectors, vectors, truth, len(self.classes), same)
        return {
            "neighbour_accuracy": accuracy(logits, truth),
            "nll": nll(logits, truth),
            "effective_rank": rank,
        }

    @classmethod
    def score(cls, config: Any, predictions: pa.Table, fitted: pa.Table | None = None) -> pa.Table:
        """Add what train's neighbours, and what is fitted to train, answer (see `metrics.embeddings`); train's rows go.

        Without labels each row's score says whether the nearest other row of its set is of its group.
        """
        names = class_names(predictions)
        if {"logits", "score"} & set(predictions.column_names):
            return predictions  # judged before
        bank = rows_of(predictions, "train")
        rows = predictions.filter(pc.not_equal(predictions["split"], "train"))
        if len(names) < 2:
            return _score_groups(rows)
        return embeddings.answer(rows, bank, config.ship)

    @classmethod
    def judge(cls, config: Any, predictions: pa.Table, storage: Path) -> TaskMetrics:
        """Judge, beside the neighbours, what else has learnt from train's embeddings, and how few labels are enough."""
        if embeddings.NOTE not in (predictions.schema.metadata or {}):
            return TaskMetrics(measures=MEASURES)
        metrics, figures = embeddings.findings(predictions, config.decide.positive)
        return TaskMetrics(metrics=metrics, figures=figures, measures=MEASURES)

    def adopt(self, predictions: pa.Table) -> None:
        """Take the head that ships, if one does."""
        if self.config.ship != "embedding":
            self.frozen_head = FrozenLinear(FrozenHead.of_table(predictions)).to(self.device)

    def export(self, folder: Path, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write graph `embed` (image to embedding); or, of a head, `classify` (image to logits, embedding and attention)."""
        image = self.config.image
        feed = "image", (3, image.height_px, image.width_px)
        if self.frozen_head is None:
            write_graph(folder / f"{GRAPH}.onnx", self, self.embed, feed, ["embedding"])
            return {"kind": "embedding", "image": to_dict(image), "graphs": [GRAPH]}
        names = ["logits", "embedding", "attention"]
        write_graph(folder / f"{CLASSES}.onnx", self, self._classify, feed, names)
        return {"kind": "image", "image": to_dict(image), "graphs": [CLASSES]}

    def _classify(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.frozen_head is not None
        features, embedding = self.seen_by(self.frozen_head.head, images)
        logits, attention = self.frozen_head(features)
        return logits, embedding, attention


def draw_partner(dataset: Dataset, row: int, key: int, probability: float) -> int | None:
    """Draw another row of train that shows the same part; None with the rest of the probability, or where there is none."""
    rng = np.random.default_rng([key, 1])
    if rng.random() >= probability:
        return None
    codes, train = dataset.group.codes, dataset.train
    others = train[(codes[train] == codes[row]) & (train != row)]
    return int(rng.choice(others)) if len(others) else None


def _normalised(views: np.ndarray, frame: ImageInput) -> np.ndarray:
    """Return views (n s s 3) normalised as the frame is (n 3 s s)."""
    arrays = []
    for view in views:
        whole = np.ones(view.shape[:2], np.uint8)
        arrays.append(normalise(view[None], *frame.statistics(view, whole))[0])
    empty = np.zeros((0, 3, *views.shape[1:3]), np.float32)
    return np.stack(arrays) if arrays else empty


def _score_groups(rows: pa.Table) -> pa.Table:
    """Add score and weight by what is nearest in each row's set; a row alone in its group weighs nothing."""
    group = np.unique(rows["group"].to_pylist(), return_inverse=True)[1]
    sets, vectors = np.array(rows["split"].to_pylist()), _vectors(rows)
    score, weight = np.zeros(len(rows)), np.zeros(len(rows))
    for name in sets_of(rows):
        among = np.flatnonzero(sets == name)
        score[among], weight[among] = partner_hits(vectors[among], group[among])
        _refuse_lonely(name, weight[among])
    table = rows.append_column("score", pa.array(score)).append_column("weight", pa.array(weight))
    notes = {b"score": SCORE.encode()}
    return table.replace_schema_metadata((rows.schema.metadata or {}) | notes)


def _refuse_lonely(name: str, partnered: np.ndarray) -> None:
    if not partnered.any():
        raise PredictionsError(
            f"The images of {name} have no labels, and no group of several images, so nothing says which embeddings should be near; give labels, or groups (--data.group)."
        )


def _vectors(rows: pa.Table) -> np.ndarray:
    return np.array(rows["embedding"].to_pylist(), dtype=np.float64)
