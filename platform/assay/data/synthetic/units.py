"""Units photographed from several sides, drawn from a seed: some sides show a unit's defect, others do not.

    <folder>/
        <kind>/<unit>-<view>.png    kind: sound, cracks, pits or scale
        truth.json                  config, and which images show a defect; written last

A unit is a plate of one tint with a slot and bolts of its own. Its defect is a texture on a part of the
plate. All photos of a unit bear its kind, also those from a side that shows none of it, so that no image can
be told by more than it shows, and a unit can be by all of its photos. Each photo is drawn from keys of its own
and does not depend on what else is drawn.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Seed, Settings, Share
from assay.data.synthetic.draw_once import draw_once, write_image
from assay.shapes import Bool, Float32, UInt8

SOUND = "sound"
KINDS = (SOUND, "cracks", "pits", "scale")

_FORMAT = 1  # raise it when the same config draws other pixels


_FACTOR = 2  # images are drawn so much larger, and averaged


@dataclass(frozen=True, kw_only=True)
class UnitsConfig(Settings, section="units"):
    """Units of four kinds in equal numbers; one is sound."""

    seed: Seed = 0
    """Key of everything that is drawn."""
    size_px: Annotated[int, Interval(ge=16, le=8192)] = 96
    """Side of an image in pixels."""
    num_units: Annotated[int, Interval(ge=1, le=100_000)] = 240
    """Units, of each kind in turn."""
    num_views: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Photos of a unit."""
    seen_share: Share = 0.7
    """Share of a defective unit's photos that show its defect, rounded; of one photo at least."""
    contrast: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Factor on the depth of defects, 0: nothing of them is to be seen."""


class UnitImage(NamedTuple):
    """A drawn photo and where its defect is."""

    pixels: UInt8[np.ndarray, "h w 3"]
    defect: Bool[np.ndarray, "h w"]


def draw_units(folder: Path, config: UnitsConfig) -> None:
    """Write the photos and `truth.json`.

    A second call with the same config returns at once; the truth is written last.

    Raises:
        ConfigError: The folder holds units drawn with another config.
    """

    def draw_photos() -> dict[str, Any]:
        seen = []
        for unit in range(config.num_units):
            for view in range(config.num_views):
                image = draw_unit(config, unit, view)
                path = f"{kind_of(unit)}/u{unit + 1:04d}-{view + 1}.png"
                write_image(folder / path, image.pixels)
                if image.defect.any():
                    seen.append(path)
        return {"seen": seen}

    draw_once(folder, {"format": _FORMAT, **dataclasses.asdict(config)}, draw_photos)


def kind_of(unit: int) -> str:
    """Return the kind of a unit."""
    return KINDS[unit % len(KINDS)]


def draw_unit(config: UnitsConfig, unit: int, view: int) -> UnitImage:
    """Draw one photo of a unit: its pixels, and the truth of its defect.

    Tint, slot and bolts are the unit's; side, light, table and grain are drawn for each photo.
    """
    rng = np.random.default_rng([config.seed, 1, unit, view])
    side = config.size_px * _FACTOR
    plate, relief, tint = _draw_plate(config, unit, side, _draw_pose(rng, side))
    zone = np.zeros_like(plate)
    kind = kind_of(unit)
    if kind != SOUND and view in _seen_views(config, unit):
        zone = plate * _draw_zone(rng, side)
        relief -= 70 * config.contrast * zone * _draw_texture(kind, rng, side)
    table = 60 + 25 * _draw_clouds(rng, side, side / 6)
    level = table + plate * (150 + relief - table)
    level = level * _draw_light(rng, side) + 5 * rng.standard_normal(level.shape, np.float32)
    pixels = level[..., None] * (1 + plate[..., None] * tint)
    small = cv2.resize(pixels, (config.size_px,) * 2, interpolation=cv2.INTER_AREA)
    shown = cv2.resize(zone, (config.size_px,) * 2, interpolation=cv2.INTER_AREA) > 0.5
    return UnitImage(np.rint(small).clip(0, 255).astype(np.uint8), shown)


def _seen_views(config: UnitsConfig, unit: int) -> set[int]:
    """Draw the sides that show a unit's defect."""
    rng = np.random.default_rng([config.seed, 2, unit])
    num = max(1, round(config.seen_share * config.num_views))
    return set(rng.permutation(config.num_views)[:num].tolist())


def _draw_pose(rng: np.random.Generator, side: int) -> Float32[np.ndarray, "2 3"]:
    """Draw a map from a plate of sides 2 about the origin to the image."""
    turn = rng.uniform(0, 2 * np.pi)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    squeeze = np.diag(rng.uniform(0.8, 1.0, 2))
    linear = rng.uniform(0.36, 0.42) * side * spin @ squeeze
    centre = side * (0.5 + rng.uniform(-0.06, 0.06, 2))
    return np.column_stack([linear, centre]).astype(np.float32)


def _draw_plate(
    config: UnitsConfig, unit: int, side: int, pose: np.ndarray
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"], Float32[np.ndarray, " 3"]]:
    """Draw where a unit's plate is (0 to 1), its relief of slot and bolts (grey levels), and its tint."""
    rng = np.random.default_rng([config.seed, 0, unit])
    height = rng.uniform(0.75, 1.0)
    plate, relief = (np.zeros((side, side), np.float32) for _ in range(2))
    _fill(plate, pose, _corners(0.0, 0.0, 1.0, height), 1.0)
    x, y = rng.uniform(-0.4, 0.4, 2) * (1, height)
    _fill(relief, pose, _corners(x, y, rng.uniform(0.1, 0.3), 0.07), -60.0)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for _ in range(rng.integers(2, 6)):
        bolt = rng.uniform(-0.85, 0.85, 2) * (1, height)
        ring = np.column_stack([np.cos(angle), np.sin(angle)])
        _fill(relief, pose, bolt + 0.09 * ring, 35.0)
        _fill(relief, pose, bolt + 0.04 * ring, -35.0)
    return plate, relief, rng.uniform(-0.15, 0.15, 3).astype(np.float32)


def _corners(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return np.array([x, y]) + signs * (half_width, half_height)


def _fill(canvas: np.ndarray, pose: np.ndarray, points: np.ndarray, value: float) -> None:
    shown = points @ pose[:, :2].T + pose[:, 2]
    cv2.fillPoly(canvas, [np.rint(shown).astype(np.int32)], value)


def _draw_zone(rng: np.random.Generator, side: int) -> Float32[np.ndarray, "h w"]:
    """Draw the part of the image that has a defect: about half of it, in a few blots."""
    clouds = _draw_clouds(rng, side, side / 5)
    return (clouds > np.quantile(clouds, 0.45)).astype(np.float32)


def _draw_texture(kind: str, rng: np.random.Generator, side: int) -> Float32[np.ndarray, "h w"]:
    """Draw how deep a defect is, 0 to 1, all over the image."""
    scale = side / 48
    if kind == "pits":
        noise = rng.random((side, side), np.float32)
        dots = (noise > 1 - 0.035 / scale**2).astype(np.float32)
        return np.minimum(cv2.GaussianBlur(dots, (0, 0), 0.6 * scale) * 6 * scale**2, 1)
    if kind == "cracks":  # where two fields cross 0
        fields = [_draw_clouds(rng, side, 2.2 * scale) for _ in range(2)]
        return np.maximum(*(np.exp(-((field / 0.22) ** 2)) for field in fields))
    clouds = _draw_clouds(rng, side, 2.2 * scale)
    return (clouds > 0.3).astype(np.float32)


def _draw_clouds(rng: np.random.Generator, side: int, width: float) -> Float32[np.ndarray, "h w"]:
    """Draw noise without structure finer than a width (pixels), of deviation 1."""
    step = max(int(width / 2), 1)
    coarse = rng.standard_normal((side // step + 3,) * 2, np.float32)
    clouds = cv2.GaussianBlur(coarse, (0, 0), width / step / 2)
    clouds = cv2.resize(clouds, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    clouds = clouds[:side, :side]
    return (clouds - clouds.mean()) / clouds.std()


def _draw_light(rng: np.random.Generator, side: int) -> Float32[np.ndarray, "h w"]:
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.15, 0.15, 2).astype(np.float32)
    light: Float32[np.ndarray, "h w"] = (
        np.float32(rng.uniform(0.75, 1.2)) + slope_x * ramp[None] + slope_y * ramp[:, None]
    )
    return light
