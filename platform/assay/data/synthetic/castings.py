"""Grey images of pump impellers drawn from a seed, sound and defective, with the true masks.

    <folder>/
        images/{train,test}/{defect,sound}/0001.png   8-bit grey; the set to point data.root at
        masks/{train,test}/{defect,sound}/0001.png    0 sound, 255 defect; of sound castings all 0
        truth.json                                    config; casting, kind and size of each image; written last

A casting is a turned flange with a lip, a dark channel with blades, a hub and its bore. Pose, lamp,
grain, and what looks like a defect and is none (tool marks, stains, dust), are drawn alike for both
classes. A defective casting has one defect, of five kinds and three sizes. Numbers in file names are
drawn, so that they tell neither the casting nor its kind.

With `leak` the set has the flaw of the published one: each casting is copied (flip, rotation by any
angle, crop, brightness, JPEG) before train and test are drawn, so that most test images have a copy
of their casting in train.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Seed, Settings
from assay.data.synthetic.defects import PLANT
from assay.data.synthetic.draw_once import draw_once, write_image
from assay.data.synthetic.impeller import draw_surface, light_surface
from assay.shapes import Bool, UInt8

SIZES = {"small": 1.0, "medium": 1.5, "large": 2.0}
"""Sizes of defects, and their factor on length and width."""

_FORMAT = 1  # raise it when the same config draws other pixels


_FINE = 2  # fine pixels to a pixel, each way


@dataclass(frozen=True, kw_only=True)
class CastingsConfig(Settings, section="castings"):
    """Castings of one design, half of them defective."""

    seed: Seed = 0
    """Key of everything that is drawn."""
    size_px: Annotated[int, Interval(ge=64, le=4096)] = 96
    """Side of an image in pixels; castings and defects grow with it."""
    num_train: Annotated[int, Interval(ge=2, le=1_000_000)] = 1600
    """Images to train on."""
    num_test: Annotated[int, Interval(ge=2, le=1_000_000)] = 400
    """Images to test on."""
    leak: bool = False
    """Copy each casting before train and test are drawn, so that copies of one lie in both."""
    copies: Annotated[int, Interval(ge=2, le=1000)] = 20
    """Images of a casting, where it is copied."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        return {} if self.leak else {"copies": "castings.leak is off"}


class Casting(NamedTuple):
    """A drawn casting and where its defect is."""

    pixels: UInt8[np.ndarray, "h w"]
    truth: Bool[np.ndarray, "h w"]


class Planted(NamedTuple):
    """What an image of `draw_castings` shows."""

    casting: int
    """Number of the casting; images of one are copies."""
    kind: str
    """One of the kinds in `PLANT`, or "" if sound."""
    size: str
    """One of `SIZES`, or "" if sound."""


def draw_castings(folder: Path, config: CastingsConfig) -> None:
    """Write images, masks and `truth.json`.

    A second call with the same config returns at once; the truth is written last.

    Raises:
        ConfigError: The folder holds castings drawn with another config.
    """

    def draw_images() -> dict[str, Any]:
        images = {}
        for name, number, copy in _list_images(config):
            kind, size = defect_of(number)
            path = f"{name.replace('*', 'defect' if kind else 'sound')}.png"
            casting = draw_casting(config, number)
            if config.leak:
                casting = copy_casting(config, number, copy, casting)
            write_image(folder / "images" / path, casting.pixels)
            write_image(folder / "masks" / path, np.uint8(255) * casting.truth)
            images[path] = Planted(number, kind, size)._asdict()
        return {"images": images}

    draw_once(folder, {"format": _FORMAT, **dataclasses.asdict(config)}, draw_images)


def defect_of(number: int) -> tuple[str, str]:
    """Return kind and size of the defect that a casting has; every second one is sound."""
    if number % 2:
        return "", ""
    return [*PLANT][number // 2 % len(PLANT)], [*SIZES][number // 10 % len(SIZES)]


def draw_casting(config: CastingsConfig, number: int, planted: bool = True) -> Casting:
    """Draw a casting; without what is planted, the same one as if it were sound."""
    rng = np.random.default_rng([config.seed, 0, number])
    surface = draw_surface(rng, _FINE * config.size_px)
    truth = np.zeros(surface.radius.shape, bool)
    kind, size = defect_of(number)
    if kind and planted:
        defect_rng = np.random.default_rng([config.seed, 1, number])
        truth = PLANT[kind](defect_rng, surface, SIZES[size])
    lit = light_surface(np.random.default_rng([config.seed, 2, number]), surface)
    shape = (config.size_px, config.size_px)
    level = cv2.resize(cv2.GaussianBlur(lit, (0, 0), 1.0), shape, interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng([config.seed, 3, number]).standard_normal(shape, np.float32)
    covered = cv2.resize(truth.astype(np.float32), shape, interpolation=cv2.INTER_AREA)
    return Casting(np.rint(255 * level + 2.5 * noise).clip(0, 255).astype(np.uint8), covered > 0.3)


def copy_casting(config: CastingsConfig, number: int, copy: int, casting: Casting) -> Casting:
    """Copy a casting as augmented sets do: flipped, turned by any angle, cropped, lit anew, through JPEG."""
    rng = np.random.default_rng([config.seed, 4, number, copy])
    pixels, truth = casting.pixels, casting.truth.astype(np.uint8)
    if rng.random() < 0.5:
        pixels, truth = pixels[:, ::-1], truth[:, ::-1]
    middle = (config.size_px - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), rng.uniform(0, 360), rng.uniform(1, 1.12))
    turn[:, 2] += rng.uniform(-0.03, 0.03, 2) * config.size_px  # with the scale: a crop
    shape = pixels.shape[::-1]
    pixels = cv2.warpAffine(pixels, turn, shape, borderMode=cv2.BORDER_REPLICATE)
    truth = cv2.warpAffine(truth, turn, shape, flags=cv2.INTER_NEAREST)
    lit = np.rint(pixels * rng.uniform(0.85, 1.15) + rng.uniform(-8, 8)).clip(0, 255)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 95))]
    encoded = cv2.imencode(".jpg", lit.astype(np.uint8), quality)[1]
    decoded: Any = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    return Casting(decoded, truth > 0)


def _list_images(config: CastingsConfig) -> list[tuple[str, int, int]]:
    """Return path (* for the class), casting and copy of each image, in the order of train and test."""
    total = config.num_train + config.num_test
    copies = config.copies if config.leak else 1
    order = np.random.default_rng([config.seed, 5]).permutation(total).tolist()
    names = [f"train/*/{i + 1:04d}" for i in range(config.num_train)]
    names += [f"test/*/{i + 1:04d}" for i in range(config.num_test)]
    return [(name, i // copies, i % copies) for name, i in zip(names, order, strict=True)]
