"""Adaptation judged apart: a trained model meets the first minutes of a new printer, without labels.

Of each domain that was not trained on, the first frames in order of time are adapted to; what the adapted
model answers to all later ones stands beside what the model answers to the same as it is. The model that
is judged, compared and shipped is never the adapted one: adaptation has seen the printer (transductive).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Interval
from torch import Tensor, nn

from assay.config import Settings
from assay.data.times import time_column
from assay.metrics.estimate import Estimate, interval
from assay.metrics.measures import Measure
from assay.metrics.predictions import rows_of, sets_of
from assay.nn.adapt import recalibrate, tent
from assay.shapes import Int64
from assay.train.classification import pooled
from assay.train.task import Batch, BatchRows, Task, TaskMetrics

Method = Literal["recalibrate", "tent"]

LATER = "later"
"""Column: whether a row is of a new domain and later than what was adapted to."""

MEASURES = {
    "not_adapted": Measure("Not adapted", "accuracy on the frames that adapted models answer"),
    "adapted_recalibrate": Measure("Recalibrated", "accuracy with batch norm of the new domain"),
    "adapted_tent": Measure("TENT", "accuracy after less entropy on the new domain"),
}


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(Settings, section="adapt"):
    """How a trained model is adapted to new printers; changes nothing else that is judged."""

    methods: tuple[Method, ...] = ()
    """Statistics of batch norm from the new printer (recalibrate), and its scale and shift by less entropy (tent)."""
    minutes: Annotated[float, Interval(gt=0, le=10_080)] = 5.0
    """Of each new printer's first frames, in order of time."""
    batch_size: Annotated[int, Interval(ge=1, le=1_000_000)] = 32
    """Frames that are adapted to at a time."""
    lr: Annotated[float, Interval(gt=0, le=10)] = 1e-3
    """Learning rate of tent."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        if not self.methods:
            return dict.fromkeys(("minutes", "batch_size", "lr"), "adapt.methods names none")
        return {} if "tent" in self.methods else {"lr": "adapt.methods is without tent"}


class Answers(nn.Module):
    """A copy of a task's network and head, from images to logits."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.network, self.head = deepcopy(task.network), deepcopy(task.head)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits."""
        logits: Tensor = self.head(pooled(self.network(images)))
        return logits


class Adaptation:
    """A trained task's adapted copies, one for each method and new domain, made when a row of it is met.

    Args:
        task: with a network, a head and a domain column.
    """

    def __init__(self, task: Any) -> None:
        self.task, self.config = task, task.config.adapt
        data, domain = task.dataset, task.domain
        column = data.columns[time_column(task.config.frames.time)]
        self.times = np.array([float(value) for value in column.values])[column.codes]
        self.new = sorted({*domain.codes.tolist()} - {*domain.codes[data.train].tolist()})
        self.first = {code: self._first(code) for code in self.new}
        self.copies: dict[tuple[int, Method], Answers] = {}

    def _first(self, code: int) -> Int64[np.ndarray, " frames"]:
        """Return the rows of a domain's first minutes of frames, in order of time."""
        rows = np.flatnonzero(self.task.domain.codes == code)
        rows = rows[np.argsort(self.times[rows], kind="stable")]
        group = self.task.dataset.group.codes[rows]
        gaps = np.diff(self.times[rows])[group[1:] == group[:-1]]
        every_s = float(np.median(gaps)) if len(gaps) else 1.0
        return rows[: max(1, round(self.config.minutes * 60 / every_s))]

    def columns(self, batch: Batch) -> dict[str, Tensor]:
        """Return which rows are judged, and the logits of each method for them (0 for others)."""
        codes = self.task.domain.codes[batch["row"]]
        judged = np.isin(codes, self.new)
        for code in self.new:
            judged &= ~np.isin(batch["row"], self.first[code])
        columns = {LATER: torch.from_numpy(judged.astype(np.int64))}
        for method in self.config.methods:
            logits = torch.zeros(len(codes), len(self.task.classes))
            for code in np.unique(codes[judged]).tolist():
                rows = np.flatnonzero(judged & (codes == code))
                part = {name: values[rows] for name, values in batch.items()}
                logits[rows] = self._copy(code, method)(self.task.normalised(part)).float().cpu()
            columns[f"adapted_{method}"] = logits
        return columns

    def _copy(self, code: int, method: Method) -> Answers:
        if (code, method) not in self.copies:
            model, batches = Answers(self.task), self._batches(self.first[code])
            with torch.enable_grad():  # predicting has switched it off
                if method == "recalibrate":
                    recalibrate(model, batches)
                else:
                    tent(model, batches, self.config.lr)
            self.copies[code, method] = model
        return self.copies[code, method]

    def _batches(self, rows: Int64[np.ndarray, " frames"]) -> list[Tensor]:
        """Return the normalised images of rows, in batches."""
        task: Task = self.task
        size = self.config.batch_size
        batches = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            samples = BatchRows(part, np.zeros(len(part), np.uint64), False)
            batches.append(self.task.normalised(task.prepare(task.config, task.dataset, samples)))
        return batches


def judge_adapted(predictions: pa.Table) -> TaskMetrics:
    """Estimate accuracy with and without adaptation on the same rows of each set that has any; over groups."""
    if LATER not in predictions.column_names:
        return TaskMetrics()
    adapted = [name for name in predictions.column_names if name.startswith("adapted_")]
    metrics: dict[str, dict[str, Estimate]] = {}
    for name in sets_of(predictions):
        rows = rows_of(predictions, name)
        rows = rows.filter(pa.array(rows[LATER].to_numpy() == 1))
        if not len(rows):
            continue
        truth, group = rows["truth"].to_numpy(), np.array(rows["group"].to_pylist())
        metrics[name] = {}
        for key, column in {
            "not_adapted": "logits",
            **dict(zip(adapted, adapted, strict=True)),
        }.items():
            right = np.array(rows[column].to_pylist()).argmax(1) == truth
            metrics[name][key] = interval(right.astype(float), group)
    why = "Adaptation is not judged, as no frame of a domain that is not trained on comes after the first minutes that are adapted to; lower --adapt.minutes, or hold a domain out (--split.unseen-domain)."
    return TaskMetrics(metrics=metrics, measures=MEASURES, warnings=[] if metrics else [why])
