"""From a bundle's answer to the form that goes over the wire."""

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from assay.bundle.answer import Answer, MaskAnswer, Verdict
from assay.serve.contract import Class, Defect, Mask, MaskFormat, Patch, View
from assay.shapes import Bool, UInt8


def class_of(verdict: Verdict) -> Class:
    """Put a verdict into its form."""
    return Class(
        label=verdict.label,
        probs=verdict.probs,
        set=list(verdict.set),
        rejected=verdict.rejected,
    )


def view_of(answer: Any, size: tuple[int, int], mask: MaskFormat) -> View:
    """Put what a bundle says of one image, of this height and width, into its form."""
    height, width = size
    if isinstance(answer, Answer):
        boxes = zip(answer.boxes.tolist(), answer.attn.tolist(), strict=True)
        patches = [Patch(box=box, score=score) for box, score in boxes]
        return View(height=height, width=width, answer=class_of(answer), patches=patches)
    masked: MaskAnswer = answer
    return View(
        height=height,
        width=width,
        mask=mask_of(masked.mask, masked.classes, mask),
        defects=[
            Defect(label=defect.label, area_px=defect.area_px, box=defect.box.tolist())
            for defect in masked.defects
        ],
    )


def mask_of(
    mask: UInt8[np.ndarray, "h w"], classes: Sequence[str], form: MaskFormat
) -> Mask | None:
    """Put a mask into its form; none if none is asked for."""
    if form == "none":
        return None
    if form == "png":
        return Mask(png=base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode())
    return Mask(rle={name: runs(mask == value) for value, name in enumerate(classes, 1)})


def runs(inside: Bool[np.ndarray, "h w"]) -> list[int]:
    """Count runs outside and inside in turn, column by column, the first outside (or 0)."""
    flat = inside.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0] if flat[:1].any() else [], [0], edges, [flat.size]])
    lengths: list[int] = np.diff(bounds).astype(int).tolist()
    return lengths
