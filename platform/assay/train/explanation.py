"""The explanation of a classifier's answers, judged: its evidence against masks, and what its answer hangs on.

A task calls three functions: `add_truth` in its `manifest`, `explain_columns` in its `predict_once`,
and `judge_columns` in its `judge`. Masks are looked at here alone; nothing learns from them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pyarrow as pa
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from assay.config import Settings
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.manifest import Manifest
from assay.data.masks.prepare import read_masks
from assay.data.masks.rules import MaskConfig
from assay.metrics import localization
from assay.metrics.predictions import rows_of, sets_of
from assay.shapes import Bool, Float, UInt8
from assay.train.classification import Classification, pooled
from assay.train.task import Batch, TaskMetrics

KIND = "truth"
BLUR = 8
"""What insertion begins with are means over squares of this side (pixels), smoothed."""


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Settings, section="explain"):
    """How explanations are judged."""

    masks: str = ""
    """Pattern of masks of what makes an image its class, as ../masks/{folder}/{name}.png (see masks.files of segment.py); evidence is judged by them, and an image without one is left out; empty: none."""
    num_steps: Annotated[int, Interval(ge=0, le=1000)] = 0
    """Steps of the deletion and insertion curves, each of which judges every image four times more; 0: no curves."""


def add_truth(manifest: Manifest, root: Path, config: ExplainConfig, storage: Path) -> Manifest:
    """Return a manifest with the masks that evidence is judged by.

    Args:
        manifest: The images.
        root: The folder that the pattern starts from, or a table in it.
        config: Says which masks, if any.
        storage: The folder of the runs, below which copies of masks are kept.

    Raises:
        MaskError: a mask cannot be used, or none marks anything.
    """
    if not config.masks:
        return manifest
    rule = MaskConfig(files=config.masks, missing="empty")
    return read_masks(manifest, root, {KIND: rule}, storage)


def explain_columns(task: Classification, batch: Batch) -> dict[str, Tensor]:
    """Compare the evidence of each row with its mask, and follow its answer along both curves.

    Masks are compared with the evidence for the true class, which is what they show; curves follow
    the class that is answered. Nothing of an int8 graph, or where there is neither mask nor curve.
    """
    num_steps, has_masks = task.config.explain.num_steps, KIND in task.pixels.masks
    if task.graph is not None or not (num_steps or has_masks):
        return {}
    images = task.normalised(batch)
    logits, _, *rest = task.describe(images)
    if not rest:
        return {}
    (evidence,) = rest
    columns: dict[str, np.ndarray] = {}
    if has_masks:
        columns |= _compare(
            task, batch["row"], _stretch(_of_class(evidence, batch["truth"]), images)
        )
    if num_steps:
        columns |= _follow(task, batch["row"], images, logits, evidence)
    return {name: torch.from_numpy(values) for name, values in columns.items()}


def judge_columns(predictions: pa.Table) -> TaskMetrics:
    """Judge what `explain_columns` gave, of each set of the split."""
    return TaskMetrics(
        metrics={
            name: localization.measure(rows_of(predictions, name)) for name in sets_of(predictions)
        },
        figures=localization.figures(predictions),
        measures=localization.MEASURES,
    )


def frame_mask(
    config: ImageConfig, image: ImagePyramid, mask: UInt8[np.ndarray, "h w"]
) -> Bool[np.ndarray, "rows columns"]:
    """Put a mask into the frame as its image is; of marks that shrink below a pixel the core stays."""
    view = ImageInput(config)
    frame = np.zeros((config.height_px, config.width_px), np.float32)
    x0, y0, x1, y1 = np.rint(view.source_box(image)).astype(int)
    sides = (config.width_px, config.height_px) * 2
    left, top, right, bottom = np.rint(view.frame_box(image) * sides).astype(int)
    window, place = mask[y0:y1, x0:x1], frame[top:bottom, left:right]
    if window.size and place.size:
        marked = (window > 0).astype(np.float32)
        place[:] = cv2.resize(marked, place.shape[::-1], interpolation=cv2.INTER_AREA)
    inside: np.ndarray = frame > frame.max() / 2
    return inside


def _of_class(evidence: Tensor, classes: np.ndarray | Tensor) -> Tensor:
    """Return the map (n h w) of one class of each row."""
    numbers = torch.as_tensor(classes, device=evidence.device)
    return evidence[torch.arange(len(evidence), device=evidence.device), numbers]


def _stretch(maps: Tensor, images: Tensor) -> Float[np.ndarray, "n height width"]:
    """Stretch maps (n h w) to the size of the images, as they are drawn."""
    size, kind = images.shape[2:], "bilinear"
    return functional.interpolate(maps[:, None].float(), size, mode=kind)[:, 0].cpu().numpy()


def _compare(
    task: Classification, rows: np.ndarray, maps: Float[np.ndarray, "n h w"]
) -> dict[str, np.ndarray]:
    compared = [
        localization.columns(
            shares, frame_mask(task.config.image, task.pixels[row], task.pixels.mask(row, KIND))
        )
        for row, shares in zip(rows.tolist(), maps, strict=True)
    ]
    return {name: np.stack([columns[name] for columns in compared]) for name in compared[0]}


def _follow(
    task: Classification, rows: np.ndarray, images: Tensor, logits: Tensor, evidence: Tensor
) -> dict[str, np.ndarray]:
    """Return the probability of each row's answer by the share of pixels removed, or shown."""
    answers, num_steps = logits.argmax(1), task.config.explain.num_steps
    chosen = _of_class(evidence, answers)
    random = [np.random.default_rng(row).random(chosen.shape[1:]) for row in rows.tolist()]
    orders = {"": chosen, "_random": torch.from_numpy(np.stack(random))}
    blurred = _blur(images)
    curves = {}
    for suffix, maps in orders.items():
        marks = [localization.removals(shares, num_steps) for shares in _stretch(maps, images)]
        steps = torch.from_numpy(np.stack(marks, 1)).to(images.device)[:, :, None]
        for name, hidden, shown in (
            ("deletion", images, torch.zeros_like(images)),
            ("insertion", blurred, images),
        ):
            probs = [_probs(task, torch.where(step, shown, hidden), answers) for step in steps]
            curves[name + suffix] = torch.stack(probs, 1).cpu().numpy()
    return curves


def _probs(task: Classification, images: Tensor, answers: Tensor) -> Tensor:
    probs = task.head(pooled(task.features(images))).float().softmax(1)
    return probs.gather(1, answers[:, None])[:, 0]


def _blur(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    coarse = functional.adaptive_avg_pool2d(images, (-(-height // BLUR), -(-width // BLUR)))
    return functional.interpolate(coarse, images.shape[2:], mode="bilinear")
