"""Robustness: what the accuracy of a task of whole images is when its pictures are corrupted.

The best weights answer each judged image again under each corruption and strength, once; the columns
`logits_<kind>` hold the logits of all strengths side by side. Nothing is trained on corrupted images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from assay.config import Settings
from assay.data.inputs.corrupt import AMOUNTS, MEANINGS, Kind, corrupt
from assay.data.inputs.image import ImageInput
from assay.metrics.estimate import Estimate, interval
from assay.metrics.figure import Figure, Series
from assay.metrics.measures import Measure
from assay.metrics.predictions import class_names, rows_of, sets_of
from assay.shapes import Float
from assay.train.task import Batch, Task, TaskMetrics


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(Settings, section="robustness"):
    """Corruptions that a trained task is judged under; each costs five more answers to every judged image."""

    kinds: tuple[Kind, ...] = ()
    """Corruptions of the frame that the network is shown, each at five strengths; none: not judged."""


def corrupted_logits(task: Task, batch: Batch, kind: Kind) -> Float[Tensor, "n logits"]:
    """Predict the logits of a batch of `Classification.prepare` at each strength, side by side."""
    strengths = range(1, len(AMOUNTS[kind]) + 1)
    batches = (_corrupted(task, batch, kind, strength) for strength in strengths)
    return torch.cat([task.predict(changed)["logits"] for changed in batches], dim=1)


def _corrupted(task: Task, batch: Batch, kind: Kind, strength: int) -> Batch:
    """Corrupt the frames, and measure anew what they are normalised by; where they are padded they stay 0."""
    config: Any = task.config
    view = ImageInput(config.image)
    frames, means, stds = [], [], []
    for image, row in zip(batch["image"], batch["row"].tolist(), strict=True):
        covered = view.covered(task.pixels[row])
        key = int(np.random.default_rng([config.train.seed, row]).integers(2**31))
        frame = corrupt(image, kind, strength, key) * covered[..., None]
        mean, std = view.statistics(frame, covered)
        frames.append(frame)
        means.append(mean)
        stds.append(std)
    return {**batch, "image": np.stack(frames), "mean": np.stack(means), "std": np.stack(stds)}


def judge(predictions: pa.Table) -> TaskMetrics:
    """Judge each set by its mean accuracy over the strengths of each kind, and draw the accuracy by strength."""
    kinds = [kind for kind in AMOUNTS if f"logits_{kind}" in predictions.column_names]
    if not kinds:
        return TaskMetrics()
    metrics: dict[str, dict[str, Estimate]] = {}
    figures = []
    for name in sets_of(predictions):
        rows = rows_of(predictions, name)
        num_classes, group = len(class_names(rows)), np.array(rows["group"].to_pylist())
        hits = {kind: _hits(rows, kind, num_classes) for kind in kinds}
        metrics[name] = {
            f"accuracy_{kind}": interval(hits[kind][:, 1:].mean(axis=1), group) for kind in kinds
        }
        if name != "val":
            figures.append(_figure(name, hits, group))
    measures = {
        f"accuracy_{kind}": Measure(
            f"Under {kind}", f"accuracy, mean of five strengths; {MEANINGS[kind]}"
        )
        for kind in kinds
    }
    return TaskMetrics(metrics=metrics, figures=figures, measures=measures)


def _hits(rows: pa.Table, kind: Kind, num_classes: int) -> Float[np.ndarray, "num 6"]:
    """Return which rows are answered rightly, uncorrupted and at each strength."""
    plain = np.array(rows["logits"].to_pylist())[:, None]
    logits = np.array(rows[f"logits_{kind}"].to_pylist()).reshape(len(plain), -1, num_classes)
    answers = np.concatenate([plain, logits], axis=1).argmax(axis=2)
    return (answers == rows["truth"].to_numpy()[:, None]) * 1.0


def _figure(name: str, hits: dict[Kind, Float[np.ndarray, "num 6"]], group: np.ndarray) -> Figure:
    amounts = "; ".join(
        f"{kind} {', '.join(f'{amount:g}' for amount in AMOUNTS[kind])} ({MEANINGS[kind]})"
        for kind in hits
    )
    estimates = {kind: [interval(column, group) for column in hits[kind].T] for kind in hits}
    num, num_groups = len(group), len(np.unique(group))
    return Figure(
        title=f"Accuracy of corrupted images, {name}",
        kind="line",
        x="strength (0: as they are)",
        y="accuracy",
        y_range=[0.0, 1.0],
        series={
            kind: Series.from_estimates([float(i) for i in range(len(values))], values)
            for kind, values in estimates.items()
        },
        caption=f"n = {num} images in {num_groups} groups; bands: 95 % over groups. Strengths 1 to 5: {amounts}.",
    )
