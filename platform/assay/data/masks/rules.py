"""Masks made by a rule: where an image is darker, or brighter, than a threshold of some kind.

Also the settings of masks in general, which ship with a bundle: numpy and OpenCV are all it needs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from annotated_types import Interval, Len

from assay.config import Settings
from assay.data.images.decode import Plane, Rgb
from assay.data.masks.patterns import FIELDS, MOST_FOLDERS, unknown_fields
from assay.data.spellings import fold_name
from assay.errors import ConfigError
from assay.levels import LEVELS, VOID
from assay.shapes import Bool, UInt8


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Settings, section="masks"):
    """Where masks come from: files of the user's, or a heuristic."""

    classes: Annotated[tuple[str, ...], Len(1, VOID - 1)] = ("defect",)
    """Names of the classes; a mask's value is a class's place in this list, from 1."""
    files: str = ""
    """Given masks: pattern of their paths below the data's root with {folder} and {name} of the image, {parent} (last
    part of folder), {kind} (a class; other kinds are counted and left out) and *; masks are images, LabelMe's .json or
    VOC's .xml (boxes are marked whole); or one COCO .json for all; empty: made by a heuristic."""
    values: Literal["binary", "index", "alpha"] = "binary"
    """What given masks hold: binary (above 127, of 16 bits above half), index (the class's number), alpha (above 128)."""
    void: Annotated[int, Interval(ge=0, le=65535)] = 0
    """index: value of pixels that nobody judged (255 in VOC); they neither teach nor are judged; 0: none."""
    missing: Literal["refuse", "empty"] = "refuse"
    """An image without a given mask: refuse it, or take it as free of defects."""
    orientation: Literal["same", "stored", "upright"] = "same"
    """Where an image has another EXIF orientation than its mask: refuse it, or the masks were drawn on the pixels as
    stored, or on the image as it is seen."""
    maker: Literal["fixed", "otsu", "adaptive", "vote"] = "vote"
    """The heuristic; vote: at least 2 of 3 (the channels where they differ, else the three makers)."""
    dark: bool = True
    """Defects are dark; no-dark: they are bright, and the image is inverted first."""
    threshold: Annotated[int, Interval(ge=1, le=255)] = 40
    """fixed: marked below this grey level of 255, after the image's range was stretched to 0..255."""
    block_px: Annotated[int, Interval(ge=3, le=9999)] = 101
    """adaptive: side of the square whose mean a pixel is compared with, odd (pixels)."""
    offset: Annotated[int, Interval(ge=1, le=255)] = 25
    """adaptive: grey levels below that mean from which a pixel is marked."""
    open_px: Annotated[int, Interval(ge=0, le=999)] = 3
    """Marks thinner than this are removed (pixels; 0: none)."""
    close_px: Annotated[int, Interval(ge=0, le=999)] = 3
    """Gaps thinner than this are closed (pixels; 0: none)."""
    min_area_px: Annotated[int, Interval(ge=0, le=1_000_000_000)] = 25
    """Connected marks of fewer pixels are removed."""

    def __post_init__(self) -> None:
        """Refuse classes that no mask could hold and a block without a middle."""
        super().__post_init__()
        joined = next((name for name in self.classes if "," in name), None)
        if joined is not None:
            apart = " ".join(part.strip() for part in joined.split(","))
            raise ConfigError(
                f"masks.classes has {joined!r}, which is one class to a program; write them apart, without commas: {apart}."
            )
        folded = {fold_name(name) for name in self.classes}
        if "" in folded or len(folded) != len(self.classes):
            raise ConfigError(
                f"masks.classes is {self.classes}; give each class a name of its own."
            )
        if 0 < self.void <= len(self.classes):
            raise ConfigError(
                f"masks.void is {self.void}, the number of the class {self.classes[self.void - 1]!r}; give a value that is no class."
            )
        self._check_files()
        if self.block_px % 2 == 0:
            raise ConfigError(f"masks.block-px is {self.block_px}; give an odd number of pixels.")

    def _check_files(self) -> None:
        unknown, num_kinds = unknown_fields(self.files), self.files.count("{kind}")
        if unknown or num_kinds > 1 or self.files.count("{folder}") > MOST_FOLDERS:
            raise ConfigError(
                f"masks.files is {self.files!r}; allowed: {', '.join(FIELDS)}, {{kind}} once, {{folder}} {MOST_FOLDERS} times; correct the pattern."
            )
        if num_kinds and (self.values == "index" or self.is_export):
            what = "its marks have labels" if self.is_export else "masks.values is 'index'"
            raise ConfigError(
                f"masks.files has {{kind}} and {what}, which name the class twice; use one of them."
            )
        names_class = num_kinds or self.values == "index" or self.is_coco or self.is_export
        if len(self.classes) > 1 and not (self.files and names_class):
            raise ConfigError(
                f"masks.classes has {len(self.classes)} names, but the masks tell only one class; put {{kind}} into "
                "masks.files, set masks.values index, give a COCO file, or name one class."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect; the rule of masks that are given draws the baseline still."""
        names: dict[str, str] = {}
        if not self.files:
            names |= dict.fromkeys(
                ("values", "void", "missing", "orientation"),
                "masks.files is empty, so a rule makes them",
            )
        elif self.is_coco or self.is_export:
            names |= dict.fromkeys(("values", "void"), "masks.files names files of marks")
        elif self.values != "index":
            names["void"] = f"masks.values is {self.values}"
        if self.maker not in ("fixed", "vote"):
            names["threshold"] = f"masks.maker is {self.maker}"
        if self.maker not in ("adaptive", "vote"):
            names |= dict.fromkeys(("block_px", "offset"), f"masks.maker is {self.maker}")
        return names

    @property
    def is_coco(self) -> bool:
        """Whether the masks are given by one COCO file."""
        return self.files.lower().endswith(".json") and not self._is_pattern

    @property
    def is_export(self) -> bool:
        """Whether each image has a file of marks: LabelMe's JSON or VOC's XML."""
        return self.files.lower().endswith((".json", ".xml")) and self._is_pattern

    @property
    def _is_pattern(self) -> bool:
        return any(field in self.files for field in FIELDS)


def make(pixels: Rgb, config: MaskConfig) -> tuple[Bool[np.ndarray, "h w"], float]:
    """Mark defects by the heuristic; return the mask, and the agreement of the voters.

    The image's range is stretched to 8 bits, each channel or the grey image on its own; what has one
    value only is not marked. The agreement is the same for every maker: pixels that all three voters
    mark over pixels that any of them marks, before cleaning, and 1 if there are none. The voters are
    the three channels under the fixed threshold where the channels differ, else the three makers on
    the grey image. A heuristic knows one class.
    """
    if not config.dark:
        pixels = pixels.max() - pixels
    red = pixels[:, :, 0]
    is_grey = all(np.array_equal(red, pixels[:, :, i]) for i in (1, 2))
    grey = red if is_grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if is_grey:
        voters = [_mark(grey, maker, config) for maker in ("fixed", "otsu", "adaptive")]
    else:
        voters = [_mark(pixels[:, :, i], "fixed", config) for i in range(3)]
    votes = np.stack(voters).sum(0, dtype=np.uint8)
    num_any = np.count_nonzero(votes)
    agreement = np.count_nonzero(votes == 3) / num_any if num_any else 1.0
    mask = votes >= 2 if config.maker == "vote" else _mark(grey, config.maker, config)
    return _clean(mask, config), agreement


def _mark(plane: Plane, maker: str, config: MaskConfig) -> Bool[np.ndarray, "h w"]:
    """Mark pixels darker than the maker's threshold."""
    plane = np.ascontiguousarray(plane)
    if plane.min() == plane.max():
        return np.zeros(plane.shape, dtype=bool)
    levels = cv2.normalize(plane, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    if maker == "fixed":
        return levels < config.threshold
    below = cv2.THRESH_BINARY_INV
    if maker == "otsu":
        return cv2.threshold(levels, 0, 1, below + cv2.THRESH_OTSU)[1] > 0
    mean, size, offset = cv2.ADAPTIVE_THRESH_MEAN_C, config.block_px, config.offset
    return cv2.adaptiveThreshold(levels, 1, mean, below, size, offset) > 0


def _clean(mask: Bool[np.ndarray, "h w"], config: MaskConfig) -> Bool[np.ndarray, "h w"]:
    cleaned = mask.astype(np.uint8)
    for step, px in ((cv2.MORPH_OPEN, config.open_px), (cv2.MORPH_CLOSE, config.close_px)):
        if px > 1:
            # an ellipse of 3 pixels would be a cross
            shape = cv2.MORPH_RECT if px <= 3 else cv2.MORPH_ELLIPSE
            cleaned = cv2.morphologyEx(cleaned, step, cv2.getStructuringElement(shape, (px, px)))
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(cleaned, connectivity=8)
    is_large = stats[:, cv2.CC_STAT_AREA] >= config.min_area_px
    is_large[0] = False  # the background
    return is_large[numbers]


def rule_levels(
    pixels: Rgb, config: MaskConfig, num_classes: int
) -> UInt8[np.ndarray, "classes h w"]:
    """Give the rule's mask as levels of `levels`: sure of what it marks, the first class, and of the rest."""
    mask, _ = make(pixels, config)
    levels = np.zeros((num_classes, *mask.shape), dtype=np.uint8)
    levels[0][mask] = LEVELS - 1
    return levels
