"""Layers of a laser powder bed drawn from a seed, with the true masks of the planted defects.

    <folder>/
        layers/build_01/layer_001.png   the camera's image after the laser, 8-bit grey
        truth/build_01/layer_001.png    its true mask: 0 sound, 255 defect
        truth.json                      config, and the images' names; written last

A build has parts of its own, whose cross-sections, like the light, change slowly from layer to
layer, and some defects last for up to three layers. So adjacent layers are near-duplicates, and only
a split by build keeps them on one side. Each layer is drawn from keys of its own and does not depend
on what else is drawn.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Seed, Settings, Share
from assay.data.synthetic.draw_once import draw_once, write_image
from assay.shapes import Bool, Float, Float32, UInt8

_FORMAT = 1  # raise it when the same config draws other pixels


_LASTING = 3  # layers that a defect lasts at most


_HATCH_TURN = 67.0  # degrees from layer to layer, so that no direction comes back soon


@dataclass(frozen=True, kw_only=True)
class LayersConfig(Settings, section="bed"):
    """Layers of several builds; about a quarter of them are free of defects."""

    seed: Seed = 0
    """Key of everything that is drawn."""
    size_px: Annotated[int, Interval(ge=64, le=8192)] = 256
    """Side of an image in pixels; defects and grain keep their sizes, parts grow with it."""
    num_builds: Annotated[int, Interval(ge=1, le=100_000)] = 30
    """Builds, each with parts, light and wear of its own."""
    layers_per_build: Annotated[int, Interval(ge=1, le=100_000)] = 6
    """Consecutive layers of a build."""
    clean_share: Share = 0.25
    """Share of layers without defects."""
    contrast: Annotated[float, Interval(ge=0, le=100)] = 1.0
    """Factor on the depth of all defects, 0: the truth marks them but nothing is to be seen."""


class _Defect(NamedTuple):
    """Where a planted defect is, and how much darker it is than what is around it (grey levels)."""

    mask: Bool[np.ndarray, "h w"]
    depth: Float32[np.ndarray, "h w"]


class Layer(NamedTuple):
    """A drawn layer and where its planted defects are."""

    pixels: UInt8[np.ndarray, "h w"]
    truth: Bool[np.ndarray, "h w"]


def draw_layers(folder: Path, config: LayersConfig) -> None:
    """Write the images, their true masks and `truth.json`.

    A second call with the same config returns at once; the truth is written last.

    Raises:
        ConfigError: The folder holds layers drawn with another config.
    """

    def draw_builds() -> dict[str, Any]:
        for build in range(config.num_builds):
            for layer in range(config.layers_per_build):
                pixels, truth = draw_layer(config, build, layer)
                name = f"build_{build + 1:02d}/layer_{layer + 1:03d}.png"
                write_image(folder / "layers" / name, pixels)
                write_image(folder / "truth" / name, np.uint8(255) * truth)
        return {}

    draw_once(folder, {"format": _FORMAT, **dataclasses.asdict(config)}, draw_builds)


def draw_layer(config: LayersConfig, build: int, layer: int) -> Layer:
    """Draw one layer of one build: its pixels, and the truth of its defects.

    Pores lie in melted parts; streaks run along the recoater's way, which is the image's height;
    the recoater's lines, where its blade jumped, run across; spatter has a bright core and a dark
    rim and falls anywhere. Their depth reaches from plain to faint. The rest is nuisance: grain,
    hatch, uneven light, exposure and noise.
    """
    rng = np.random.default_rng([config.seed, 2, build, layer])
    part = _draw_parts(config, build, layer)
    relief = _draw_surface(config, build, layer, rng, part)
    truth = np.zeros(part.shape, bool)
    for defect in _draw_defects(config, build, layer):
        truth |= defect.mask
        relief -= config.contrast * defect.depth
    lit = cv2.GaussianBlur(relief, (0, 0), 0.6) * _draw_light(config, build, layer, rng)
    noise = 5 * rng.standard_normal(lit.shape, np.float32)
    return Layer(np.rint(lit + noise).clip(0, 255).astype(np.uint8), truth)


def _draw_parts(config: LayersConfig, build: int, layer: int) -> Float32[np.ndarray, "h w"]:
    """Draw where the laser melted, 0 to 1: outlines that turn, swell and bend a little with each layer."""
    rng = np.random.default_rng([config.seed, 0, build])
    cell = config.size_px / 2
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    canvas = np.zeros((config.size_px, config.size_px), np.uint8)
    for quarter in range(4):
        middle = cell * (0.5 + np.array([quarter % 2, quarter // 2]))
        centre = middle + rng.uniform(-0.08, 0.08, 2) * cell
        turn = angle + rng.uniform(0, 2 * np.pi) + rng.uniform(-0.03, 0.03) * layer
        power = rng.choice([2.0, 8.0])  # round or square
        radius = (np.abs(np.cos(turn)) ** power + np.abs(np.sin(turn)) ** power) ** (-1 / power)
        for waves in (2, 3, 5):
            phase = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.06, 0.06) * layer
            radius *= 1 + rng.uniform(0, 0.22) / waves**0.5 * np.cos(waves * angle + phase)
        radius *= rng.uniform(0.24, 0.4) * cell * (1 + rng.uniform(-0.01, 0.01) * layer)
        _fill_outline(canvas, centre, radius, 255, cv2.LINE_AA)
        if rng.random() < 1 / 3:
            _fill_outline(canvas, centre, 0.45 * radius, 0, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def _draw_surface(
    config: LayersConfig,
    build: int,
    layer: int,
    rng: np.random.Generator,
    part: Float32[np.ndarray, "h w"],
) -> Float32[np.ndarray, "h w"]:
    """Draw grainy powder, and parts with their hatch and contour, in grey levels."""
    build_rng = np.random.default_rng([config.seed, 1, build])
    powder, melt, start = build_rng.uniform([125, 6, 0], [145, 30, 180]).tolist()
    period, swing = build_rng.uniform([5, 4], [7, 9]).tolist()

    def noise(sigma: float) -> Float32[np.ndarray, "h w"]:
        smooth = cv2.GaussianBlur(rng.standard_normal(part.shape, np.float32), (0, 0), sigma)
        scaled: Float32[np.ndarray, "h w"] = smooth / smooth.std()
        return scaled

    grain = 8 * noise(0.8) + 3.5 * noise(2.5) - 14 * (noise(1.4) - 1.8).clip(0)
    direction = math.radians(start + _HATCH_TURN * layer)
    y, x = np.mgrid[: config.size_px, : config.size_px].astype(np.float32)
    across = x * math.cos(direction) + y * math.sin(direction) + 0.6 * noise(6.0)
    hatch = swing * np.sin(2 * np.pi / period * across) + 7 * noise(0.9) + 3 * noise(2.5)
    contour = 25 * cv2.GaussianBlur(4 * part * (1 - part), (0, 0), 1.0)
    surface: Float32[np.ndarray, "h w"] = powder + (1 - part) * grain + part * (melt + hatch)
    return surface + contour


def _draw_light(
    config: LayersConfig, build: int, layer: int, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """Light a layer: a lamp at one side that drifts over the build, the lens's vignette, a layer's exposure."""
    build_rng = np.random.default_rng([config.seed, 3, build])
    slope, drift = build_rng.uniform(-0.15, 0.15, 2), build_rng.uniform(-0.01, 0.01, 2)
    slope_x, slope_y = (slope + drift * layer).astype(np.float32)
    ramp = np.linspace(-1, 1, config.size_px, dtype=np.float32)
    vignette = np.float32(build_rng.uniform(0.06, 0.14))
    field = 1 + slope_x * ramp[None] + slope_y * ramp[:, None]
    field -= vignette * (ramp[None] ** 2 + ramp[:, None] ** 2)
    light: Float32[np.ndarray, "h w"] = field * np.float32(rng.uniform(0.92, 1.08))
    return light


def _is_clean(config: LayersConfig, build: int, layer: int) -> bool:
    return np.random.default_rng([config.seed, 4, build, layer]).random() < config.clean_share


def _draw_defects(config: LayersConfig, build: int, layer: int) -> list[_Defect]:
    """Draw the defects that began in this layer or last from those before; a clean layer ends them all."""
    defects = []
    for first in range(layer, max(layer - _LASTING, -1), -1):
        if _is_clean(config, build, first):
            break
        rng = np.random.default_rng([config.seed, 5, build, first])
        part = _draw_parts(config, build, first)
        for draw_defect, mean, lasting in _KINDS:
            for _ in range(rng.poisson(mean)):
                defect, num_layers = draw_defect(rng, part), rng.integers(1, lasting + 1)
                if first + num_layers > layer:
                    defects.append(defect)
    return defects


def _draw_pore(rng: np.random.Generator, part: Float32[np.ndarray, "h w"]) -> _Defect:
    """Draw a dark blob inside a part, where powder stayed unmelted or gas was caught."""
    inside = cv2.distanceTransform((part > 0.5).astype(np.uint8), cv2.DIST_L2, 5) > 8
    centres = np.argwhere(inside)[:, ::-1]
    centre = centres[rng.integers(len(centres))]
    mask = _draw_blob(rng, part.shape, centre, rng.uniform(2.5, 6))
    return _Defect(mask, _log_uniform(rng, 22.0, 75.0) * _soften(mask, 0.7))


def _draw_spatter(rng: np.random.Generator, part: Float32[np.ndarray, "h w"]) -> _Defect:
    """Draw a metal droplet: its top shines, its rim is in shadow."""
    centre = rng.uniform(8, len(part) - 8, 2)
    radius = rng.uniform(3, 6)
    mask = _draw_blob(rng, part.shape, centre, radius)
    top = _draw_blob(rng, part.shape, centre, 0.4 * radius)
    shade = _soften(mask, 0.7) - 2 * _soften(top, 0.7)
    return _Defect(mask, _log_uniform(rng, 30.0, 75.0) * shade)


def _draw_streak(rng: np.random.Generator, part: Float32[np.ndarray, "h w"]) -> _Defect:
    """Draw a groove that a particle at the recoater's blade left along its way."""
    size = len(part)
    run = int(rng.uniform(0.25, 1) * size)
    top = int(rng.integers(0, size - run + 1))
    middle = rng.uniform(6, size - 6) + 1.5 * _draw_wave(rng, size)
    mask = np.abs(np.arange(size)[None] - middle[:, None]) <= rng.uniform(1.4, 2.6)
    mask[:top] = mask[top + run :] = False
    depth = _log_uniform(rng, 22.0, 60.0) * (1 + 0.3 * _draw_wave(rng, size))
    return _Defect(mask, depth[:, None] * _soften(mask, 0.7))


def _draw_recoater_line(rng: np.random.Generator, part: Float32[np.ndarray, "h w"]) -> _Defect:
    """Draw a shallow band across the recoater's way, where its blade jumped."""
    size = len(part)
    middle = rng.uniform(8, size - 8) + 0.8 * _draw_wave(rng, size)
    mask = np.abs(np.arange(size)[:, None] - middle[None]) <= rng.uniform(2.5, 5.5)
    depth = _log_uniform(rng, 17.0, 40.0) * (1 + 0.3 * _draw_wave(rng, size))
    return _Defect(mask, depth[None] * _soften(mask, 1.2))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


def _soften(mask: Bool[np.ndarray, "h w"], sigma: float) -> Float32[np.ndarray, "h w"]:
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)


def _draw_wave(rng: np.random.Generator, size: int) -> Float32[np.ndarray, " size"]:
    """Draw a smooth curve along the image that swings about 0, mostly within 1."""
    position = np.arange(size) / 256
    rate, phase = rng.uniform(0.4, 2.5, (3, 1)), rng.random((3, 1))
    wave: np.ndarray = np.sin(2 * np.pi * (rate * position + phase)).sum(0) / 2
    return wave.astype(np.float32)


def _draw_blob(
    rng: np.random.Generator, shape: tuple[int, ...], centre: np.ndarray, radius: float
) -> Bool[np.ndarray, "h w"]:
    """Draw a disc with an uneven outline."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outline = np.full_like(angle, radius)
    for waves in (1, 2, 3):
        outline *= 1 + rng.uniform(0, 0.25) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return _fill_outline(np.zeros(shape, np.uint8), centre, outline, 1, cv2.LINE_8) > 0


def _fill_outline(
    canvas: UInt8[np.ndarray, "h w"],
    centre: np.ndarray,
    radius: Float[np.ndarray, " angles"],
    value: int,
    line: int,
) -> UInt8[np.ndarray, "h w"]:
    """Fill the outline whose radius at equal angles is given, to a sixteenth of a pixel."""
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    corners = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return cv2.fillPoly(canvas, [np.rint(16 * corners).astype(np.int32)], value, line, 4)


# How a kind is drawn, how many begin in a layer on average, and how many layers one lasts at most.
_KINDS = (
    (_draw_pore, 4.0, 3),
    (_draw_streak, 0.6, 3),
    (_draw_spatter, 3.0, 1),
    (_draw_recoater_line, 0.35, 2),
)
