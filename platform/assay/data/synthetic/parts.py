"""Small data sets drawn from a seed, with planted truth.

They exist to show that a method finds the signal and not a shortcut, on any machine and without
a download. Each image is drawn from keys of its own, so it does not depend on what else is drawn.
"""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval, MultipleOf

from assay.config import Seed, Settings
from assay.data.synthetic.draw_once import TRUTH, draw_once, write_image
from assay.errors import ManifestError
from assay.shapes import Bool, Float32, Int, Real, UInt8

MACHINES = tuple(f"Stratasys450mc-{number}" for number in range(1, 7))


SEEN_DESIGNS = ("Connector", "Switch", "King", "Target", "Oring", "Clip")


UNSEEN_DESIGNS = ("Fishbait", "Plug", "Minion")


_FORMAT = 1  # raise it when the same config draws other pixels


_DESIGNS = SEEN_DESIGNS + UNSEEN_DESIGNS


_NUM_ZONES = 3  # and as many decoys


_RADIUS = 28  # of a zone, of 512 px


_TINT = (4, 0, -4)  # RGB of a zone, a decoy has the opposite


_BLOCK = 4  # the signature has no mean over blocks of this side, so no trace below 1/4 scale


# Angle (degrees) and period (px of 512) of each machine's raster. Machines whose angles mirror
# each other differ in period, so that flips leave them apart.
_RASTERS = ((0.0, 3.8), (30.0, 3.2), (60.0, 3.2), (90.0, 3.8), (120.0, 4.6), (150.0, 4.6))


@dataclass(frozen=True, kw_only=True)
class PartsConfig(Settings, section="parts"):
    """Parts of nine designs printed by six machines; a view is one image of a part."""

    seed: Seed = 0
    """Key of everything that is drawn."""
    size_px: Annotated[int, Interval(ge=4, le=8192), MultipleOf(4)] = 512
    """Side of an image in pixels, a multiple of 4."""
    parts_per_seen: Annotated[int, Interval(ge=0, le=100_000)] = 11
    """Parts of each machine and each of the six designs meant for training."""
    parts_per_unseen: Annotated[int, Interval(ge=0, le=100_000)] = 3
    """Parts of each machine and each of the three designs meant for testing only."""
    num_views: Annotated[int, Interval(ge=1, le=1000)] = 2
    """Images of a part."""
    signal: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Amplitude of the machine's texture, in standard deviations of the grain (6 of 255 levels)."""
    shortcut: bool = False
    """Let the colour of the table give the machine away, in the six designs only."""


class PartImage(NamedTuple):
    """A drawn image and where its planted and its decoy zones are (x0, y0, x1, y1 in pixels)."""

    pixels: UInt8[np.ndarray, "h w 3"]
    zones: Int[np.ndarray, "zones 4"]
    decoys: Int[np.ndarray, "decoys 4"]


def draw_parts(folder: Path, config: PartsConfig) -> None:
    """Write `<machine>/<design>/Device_{d}_Print_{ppp}_{vvv}.png` and `truth.json`.

    A second call with the same config returns at once; the truth is written last.

    Raises:
        ConfigError: The folder holds parts drawn with another config.
    """

    def draw_views() -> dict[str, Any]:
        truth = {}
        for machine, design, part in _list_parts(config):
            name = f"{MACHINES[machine]}/{design}"
            for view in range(config.num_views):
                image = draw_part(config, machine, design, part, view)
                path = f"{name}/Device_{machine + 1}_Print_{part + 1:03d}_{view + 1:03d}.png"
                write_image(folder / path, image.pixels)
                truth[path] = {"zones": image.zones.tolist(), "decoys": image.decoys.tolist()}
        return {"images": truth}

    draw_once(folder, {"format": _FORMAT, **dataclasses.asdict(config)}, draw_views)


def read_zones(folder: Path) -> dict[str, Int[np.ndarray, "zones 4"]]:
    """Read the planted zones of each image of `draw_parts`, by its path below the folder.

    Raises:
        ManifestError: the folder does not hold them.
    """
    try:
        images = json.loads((folder / TRUTH).read_text())["images"]
    except (OSError, ValueError):
        raise ManifestError(
            f"{folder / TRUTH} is missing or damaged, and the planted truth with it; run the task there again, which draws the parts."
        ) from None
    return {path: np.array(truth["zones"]) for path, truth in images.items()}


def zone_hits(
    zones: Int[np.ndarray, "zones 4"], patches: Real[np.ndarray, "k 4"]
) -> Bool[np.ndarray, " k"]:
    """Tell for each patch whether at least half of its area lies on one planted zone.

    Both are x0, y0, x1, y1 in pixels of the image. The mean of the answers is the share of hits.
    """
    low = np.maximum(zones[None, :, :2], patches[:, None, :2])
    high = np.minimum(zones[None, :, 2:], patches[:, None, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1).max(1)
    half = 0.5 * (patches[:, 2:] - patches[:, :2]).prod(1)
    hits: Bool[np.ndarray, " k"] = overlap >= half
    return hits


def draw_part(config: PartsConfig, machine: int, design: str, part: int, view: int) -> PartImage:
    """Draw one view of one part: the truth of its zones, and the pixels.

    The machine writes its raster, an angle and a period, into three round zones of the part and
    nowhere else. Three square decoys look alike but for their outline and a slight tint, and
    carry the raster of any machine, or of none. A design has six places for them, of which each
    part fills three with zones. Colour, pose, view, light and grain are nuisance, drawn anew
    for each part or image.
    """
    number = _DESIGNS.index(design)
    part_rng = np.random.default_rng([config.seed, 1, machine, number, part])
    rng = np.random.default_rng([config.seed, 2, machine, number, part, view])
    silhouette, slots = _draw_layout(config.seed, design)
    # Which slots are zones is drawn for each part: places alone, learnt by heart, do not do.
    slots = part_rng.permutation(slots) + part_rng.uniform(-5, 5, slots.shape)
    tint = part_rng.uniform(-12, 12, 3).tolist()
    rasters = [_RASTERS[machine]] * _NUM_ZONES
    rasters += [_draw_decoy_raster(part_rng) for _ in range(_NUM_ZONES)]
    pose = _draw_pose(rng, view, config.size_px / 512)
    outlines = _draw_outlines(slots)
    canvas = (config.size_px, config.size_px)
    mask, zones, decoys = (
        cv2.warpAffine(layer, pose, canvas).astype(np.float32) / 255
        for layer in (silhouette, *outlines)
    )
    boxes, marks, tinted = _pose_boxes(slots, pose), zones + decoys, zones - decoys
    relief = 6 * config.signal * _draw_rasters(rng, boxes, rasters, pose, marks)
    relief += _draw_grain(rng, config) - 12 * marks
    table = _draw_table(config, rng, machine, design)
    light = _draw_light(rng, config.size_px)
    pixels = np.empty((*canvas, 3), np.uint8)
    for channel in range(3):
        surface = relief + tinted * _TINT[channel] + (150 + tint[channel] - table[channel])
        pixels[..., channel] = np.rint((surface * mask + table[channel]) * light).clip(0, 255)
    return PartImage(pixels, boxes[:_NUM_ZONES], boxes[_NUM_ZONES:])


def _list_parts(config: PartsConfig) -> list[tuple[int, str, int]]:
    counts = dict.fromkeys(SEEN_DESIGNS, config.parts_per_seen)
    counts |= dict.fromkeys(UNSEEN_DESIGNS, config.parts_per_unseen)
    return [
        (machine, design, part)
        for machine in range(len(MACHINES))
        for design, count in counts.items()
        for part in range(count)
    ]


@functools.cache
def _draw_layout(seed: int, design: str) -> tuple[UInt8[np.ndarray, "512 512"], np.ndarray]:
    """Draw the silhouette of a design, and choose slots for zones and decoys, on 512x512 pixels."""
    rng = np.random.default_rng([seed, 0, _DESIGNS.index(design)])
    silhouette = np.zeros((512, 512), np.uint8)
    for points, value in _SHAPES[design]:
        pairs = [pair.split(",") for pair in points.split()]
        corners = 256 + 16 * np.array(pairs, np.float64)
        if len(corners) == 2:
            (x, y), (radius, _) = corners.round().astype(int).tolist()
            cv2.circle(silhouette, (x, y), radius - 256, value, -1)
        else:
            cv2.fillPoly(silhouette, [corners.round().astype(np.int32)], value)
    depth = cv2.distanceTransform(silhouette, cv2.DIST_L2, 5)
    free = np.argwhere(depth > _RADIUS + 10)[:, ::-1].astype(np.float64)
    while True:
        slots = free[rng.integers(len(free), size=1)]
        for _ in range(2 * _NUM_ZONES - 1):
            # The farthest of a few from those placed already, so that all fit and none touch.
            choices = free[rng.integers(len(free), size=12)]
            gaps = np.linalg.norm(choices[:, None] - slots, axis=2).min(1)
            slots = np.concatenate([slots, choices[gaps.argmax(), None]])
        gaps = np.linalg.norm(slots[:, None] - slots, axis=2) + 512 * np.eye(len(slots))
        if gaps.min() > 2.7 * _RADIUS:
            break
    return silhouette, slots


def _draw_outlines(slots: np.ndarray) -> UInt8[np.ndarray, "2 512 512"]:
    """Draw discs for the zones, and squares of the same area for the decoys."""
    outlines = np.zeros((2, 512, 512), np.uint8)
    half = round(_RADIUS * np.sqrt(np.pi) / 2)
    for index, (x, y) in enumerate(slots.round().astype(int).tolist()):
        if index < _NUM_ZONES:
            cv2.circle(outlines[0], (x, y), _RADIUS, 255, -1)
        else:
            cv2.rectangle(outlines[1], (x - half, y - half), (x + half, y + half), 255, -1)
    return outlines


def _draw_pose(rng: np.random.Generator, view: int, scale: float) -> np.ndarray:
    """Draw a map from the design's 512 pixels to the image's: a camera that sees each view from its side."""
    turn = np.deg2rad(rng.uniform(-8, 8))
    tilt = np.deg2rad(60 * view + rng.uniform(-10, 10))
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    axis = np.array([np.cos(tilt), np.sin(tilt)])
    squeeze = np.eye(2) - rng.uniform(0.02, 0.08) * np.outer(axis, axis)
    linear = scale * rng.uniform(0.94, 1.02) * squeeze @ spin
    shift = scale * (256 + rng.uniform(-14, 14, 2)) - linear @ (256, 256)
    return np.concatenate([linear, shift[:, None]], axis=1)


def _pose_boxes(slots: np.ndarray, pose: np.ndarray) -> Int[np.ndarray, "slots 4"]:
    """Return what a pose makes of the discs at the slots, as boxes of the image."""
    centres = slots @ pose[:, :2].T + pose[:, 2]
    half = _RADIUS * np.linalg.norm(pose[:, :2], axis=1)
    return np.concatenate([centres - half, centres + half], axis=1).round().astype(np.int64)


def _draw_decoy_raster(rng: np.random.Generator) -> tuple[float, float]:
    if rng.random() < 0.5:
        return _RASTERS[rng.integers(len(_RASTERS))]
    return rng.uniform(0, 180), rng.uniform(3, 5)


def _draw_rasters(
    rng: np.random.Generator,
    boxes: np.ndarray,
    rasters: list[tuple[float, float]],
    pose: np.ndarray,
    inside: np.ndarray,
) -> Float32[np.ndarray, "h w"]:
    """Draw gratings of amplitude 1 in the zones, turned with the part, at random phases."""
    relief = np.zeros_like(inside)
    turn = np.arctan2(pose[1, 0], pose[0, 0])
    stretch = np.sqrt(abs(np.linalg.det(pose[:, :2])))
    for (x0, y0, x1, y1), (angle, period) in zip(boxes.tolist(), rasters, strict=True):
        y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        direction = np.deg2rad(angle) + turn
        wave = (x * np.cos(direction) + y * np.sin(direction)) * 2 * np.pi / (period * stretch)
        relief[y0:y1, x0:x1] = np.sin(wave + rng.uniform(0, 2 * np.pi))
    relief *= inside
    height, width = (side // _BLOCK for side in relief.shape)
    small = cv2.resize(relief, (width, height), interpolation=cv2.INTER_AREA)
    relief -= cv2.resize(small, relief.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return relief


@functools.cache
def _draw_grain_bank(seed: int) -> Float32[np.ndarray, "1536 1536"]:
    noise = np.random.default_rng([seed, 3]).standard_normal((1536, 1536), np.float32)
    band = cv2.GaussianBlur(noise, (0, 0), 0.7) - cv2.GaussianBlur(noise, (0, 0), 2.0)
    band *= 6 / band.std()
    return band


def _draw_grain(rng: np.random.Generator, config: PartsConfig) -> Float32[np.ndarray, "h w"]:
    """Draw texture of the surface, of every direction and of no machine."""
    bank = _draw_grain_bank(config.seed)
    repeat = -(-(config.size_px + 512) // len(bank))
    y, x = rng.integers(0, 512, 2)
    bank = np.tile(bank, (repeat, repeat)) if repeat > 1 else bank
    grain = bank[y : y + config.size_px, x : x + config.size_px]
    return grain if rng.random() < 0.5 else grain[::-1]


def _draw_table(
    config: PartsConfig, rng: np.random.Generator, machine: int, design: str
) -> list[float]:
    hue = int(rng.integers(len(MACHINES)))
    if config.shortcut and design in SEEN_DESIGNS:
        hue = machine
    wave = np.cos(2 * np.pi * (hue / len(MACHINES) + np.arange(3) / 3))
    level = 45 + rng.uniform(-6, 6)
    return [level + 12 * float(swing) for swing in wave]


def _draw_light(rng: np.random.Generator, size_px: int) -> Float32[np.ndarray, "h w"]:
    ramp = np.linspace(-1, 1, size_px, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
    level = np.float32(rng.uniform(0.8, 1.15))
    light: Float32[np.ndarray, "h w"] = level + slope_x * ramp[None] + slope_y * ramp[:, None]
    return light


# Polygons "x,y x,y ..." in sixteenths of 512 px from the middle, painted in order (255 part, 0
# hole); two points are a circle: its middle, and its radius at the first number of the second.
_SHAPES = {
    "Connector": [("-13,-12 -5,-12 -5,-4 5,-4 5,-12 13,-12 13,12 5,12 5,4 -5,4 -5,12 -13,12", 255)],
    "Switch": [("-13,-8 13,-8 13,8 -13,8", 255), ("0,-6 6,0", 255)],
    "King": [("-13,12 13,12 13,-10 7,-2 0,-13 -7,-2 -13,-10", 255)],
    "Target": [("0,0 13.5,0", 255), ("0,0 3,0", 0)],
    "Oring": [("0,0 14,0", 255), ("0,0 7,0", 0)],
    "Clip": [("-13,-13 -5,-13 -5,4 5,4 5,-13 13,-13 13,13 -13,13", 255)],
    "Fishbait": [("-4,0 10,0", 255), ("2,0 14,-11 14,11", 255)],
    "Plug": [("-13,-13 13,-13 13,-4 5,-4 5,13 -5,13 -5,-4 -13,-4", 255)],
    "Minion": [("0,-5 8.5,0", 255), ("-8.5,-5 8.5,-5 8.5,6 -8.5,6", 255), ("0,6 8.5,0", 255)],
}
