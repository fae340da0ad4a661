"""What goes over the wire: one form for every task, which each answer fills itself (see `bundle.answer`).

A class fills `answer` and `patches`, and where that is asked for `evidence`; a mask fills `mask` and
`defects`; a vector fills `embedding`. Boxes are x0, y0, x1, y1 in the pixels of the upright image.
"""

import re
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from assay.bundle.aliases import Alias

MaskFormat: TypeAlias = Literal["png", "rle", "none"]


_OPTIONS = {
    r"pass --[^,]*, or ": "",
    r"--data\.(\w+)": r"the model's \1",
    r"overrule it by --force REASON, which is recorded": "let who keeps the registry overrule it",
    r"force the promotion by --force REASON": "let who keeps the registry force the promotion",
}
"""What names an option of the command line, which a request cannot give, and what its sender is told instead."""


def for_sender(why: str) -> str:
    """Say why something is refused to who has no command line."""
    for option, instead in _OPTIONS.items():
        why = re.sub(option, instead, why)
    return why


class Form(BaseModel):
    """Base of every form: values do not change, unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Class(Form):
    """What is answered for an image, or for a part by several."""

    label: str
    """The class to act on."""
    probs: dict[str, float]
    """Calibrated probability of each class."""
    set: list[str]
    """Classes it may be, at the bundle's coverage (conformal)."""
    rejected: bool
    """The set is several classes: a person should look."""


class Patch(Form):
    """A part of the image that was looked at."""

    box: list[float]
    score: float
    """Its share of attention."""


class Defect(Form):
    """A connected part of the mask."""

    label: str
    area_px: int
    box: list[int]


class Mask(Form):
    """Where defects are; a pixel of class i has the value i + 1, or its run in the class's counts."""

    png: str | None = None
    """Grey PNG of 8 bits in base64."""
    rle: dict[str, list[int]] | None = None
    """By class: lengths of runs outside and inside in turn, column by column (as COCO counts)."""


class Evidence(Form):
    """What speaks for the answer, and where."""

    png: str
    """Grey PNG of 8 bits in base64, to be stretched over the box: 0 nothing, 255 the strongest in this image."""
    box: list[float]
    label: str | None
    """The class that it speaks for; null where it is of none, as attention is."""


class View(Form):
    """What is said of one image."""

    height: int
    width: int
    answer: Class | None = None
    patches: list[Patch] = []
    embedding: list[float] | None = None
    """Where the image stands among others."""
    mask: Mask | None = None
    defects: list[Defect] = []
    evidence: Evidence | None = None
    """Only with explain=1, and null where the bundle's graph gives none."""


class PrintAlarm(Form):
    """What one kind of alarm says after a frame."""

    kind: Literal["cusum", "average"]
    value: float | None
    """What is compared with the threshold; null before a moving average's window is full."""
    threshold: float
    rings: bool
    """It exceeds the threshold, or has done so in this print."""
    first_frame: int | None
    """Frame, from 1, at which it rang first."""
    first_time: float | None
    """That frame's time, where it was sent with one."""


class Print(Form):
    """The print that a frame is of, after it."""

    id: str
    frames: int
    """Frames so far; 1 where it begins, or begins anew."""
    alarms: list[PrintAlarm]


class Model(Form):
    """Which bundle answered."""

    task: str
    alias: Alias
    version: str
    variant: Literal["fp32", "int8"]


class Reply(Form):
    """The answer to one request."""

    request: str
    """The request's id, as in the header x-request-id."""
    model: Model
    classes: list[str]
    answer: Class | None
    """For all views together; none where masks are drawn."""
    views: list[View]
    """In the order of the images sent."""
    print: Print | None = None
    """Only with print=ID."""
    milliseconds: float
    """From the whole body to the answer."""


class Refusal(Form):
    """Why there is no answer."""

    error: str
    request: str
