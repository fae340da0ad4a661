"""Layers of a laser powder bed drawn from a seed, with the true masks of the planted defects.

    <folder>/
        build_01/layer_001.png          the camera's image after the laser, 8-bit grey
        truth/build_01/layer_001.png    its true mask: 0 sound, 255 defect
        layers.csv                      image and build of each
        truth.json                      config, and the mask of each image; written last

A build has parts of its own, whose cross-sections, like the light, change slowly from layer to
layer, and some defects last for up to three layers. So adjacent layers are near-duplicates, and only
a split by build keeps them on one side. Each layer is drawn from keys of its own and does not depend
on what else is drawn.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from assay.errors import ConfigError, ManifestError
from assay.shapes import Bool, Float32, UInt8

TABLE, TRUTH = "layers.csv", "truth.json"

_FORMAT = 1  # raise it when the same config draws other pixels
_LASTING = 3  # layers that a defect lasts at most
_HATCH_TURN = 67.0  # degrees from layer to layer, so that no direction comes back soon


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Layers of several builds; about a quarter of them are free of defects."""

    seed: int = 0
    """Key of everything that is drawn."""
    size_px: int = 256
    """Side of an image in pixels; defects and grain keep their sizes, parts grow with it."""
    num_builds: int = 20
    """Builds, each with parts, light and wear of its own."""
    layers_per_build: int = 8
    """Consecutive layers of a build."""
    clean_share: float = 0.25
    """Share of layers without defects."""
    contrast: float = 1.0
    """Factor on the depth of all defects, 0: the truth marks them but nothing is to be seen."""


class Layer(NamedTuple):
    """A drawn layer and where its planted defects are."""

    pixels: UInt8[np.ndarray, "h w"]
    truth: Bool[np.ndarray, "h w"]


def draw_layers(folder: Path, config: LayersConfig) -> Path:
    """Write the images, their true masks, `truth.json` and the table `layers.csv`, whose path is returned.

    A second call with the same config returns at once; the truth is written last.

    Raises:
        ConfigError: The folder holds layers drawn with another config.
    """
    drawn_from = {"format": _FORMAT, **dataclasses.asdict(config)}
    if (folder / TRUTH).exists():
        if json.loads((folder / TRUTH).read_text())["config"] == drawn_from:
            return folder / TABLE
        raise ConfigError(
            f"{folder} holds synthetic layers drawn with another config; "
            "name another folder, or remove this one."
        )
    images = {}
    for build in range(config.num_builds):
        for layer in range(config.layers_per_build):
            drawn = draw_layer(config, build, layer)
            image = f"build_{build + 1:02d}/layer_{layer + 1:03d}.png"
            images[image] = f"truth/{image}"
            _write(folder / image, drawn.pixels)
            _write(folder / images[image], np.uint8(255) * drawn.truth)
    lines = ["image,build", *(f"{image},{Path(image).parent}" for image in images)]
    (folder / TABLE).write_text("\n".join(lines) + "\n")
    partial = folder / f"{TRUTH}.{os.getpid()}"
    partial.write_text(json.dumps({"config": drawn_from, "images": images}))
    partial.replace(folder / TRUTH)
    return folder / TABLE


def read_truth(folder: Path) -> dict[str, Path]:
    """The true mask of each image of `draw_layers`, by the image's path below the folder.

    Raises:
        ManifestError: the folder does not hold them.
    """
    try:
        images = json.loads((folder / TRUTH).read_text())["images"]
    except (OSError, ValueError):
        raise ManifestError(
            f"{folder / TRUTH} is missing or damaged, and the true masks with it; run the task there again, which draws the layers."
        ) from None
    return {image: folder / mask for image, mask in images.items()}


def draw_layer(config: LayersConfig, build: int, layer: int) -> Layer:
    """Draw one layer of one build: its pixels, and the truth of its defects.

    Pores lie in melted parts; streaks run along the recoater's way, which is the image's height;
    the recoater's lines, where its blade jumped, run across; spatter has a bright core and a dark
    rim and falls anywhere. Their depth reaches from plain to faint. The rest is nuisance: grain,
    hatch, uneven light, exposure and noise.
    """
    rng = np.random.default_rng([config.seed, 2, build, layer])
    part = _parts(config, build, layer)
    relief = _surface(config, build, layer, rng, part)
    truth = np.zeros(part.shape, bool)
    for mask, depth in _defects(config, build, layer):
        truth |= mask
        relief -= config.contrast * depth
    lit = cv2.GaussianBlur(relief, (0, 0), 0.6) * _light(config, build, layer, rng)
    noise = 5 * rng.standard_normal(lit.shape, np.float32)
    return Layer(np.rint(lit + noise).clip(0, 255).astype(np.uint8), truth)


def _write(path: Path, pixels: UInt8[np.ndarray, "h w"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _parts(config: LayersConfig, build: int, layer: int) -> Float32[np.ndarray, "h w"]:
    """Where the laser melted, 0 to 1: outlines that turn, swell and bend a little with each layer."""
    rng = np.random.default_rng([config.seed, 0, build])
    cell = config.size_px / 2
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    canvas = np.zeros((config.size_px, config.size_px), np.uint8)
    for place in range(4):
        centre = (
            cell * (0.5 + np.array([place % 2, place // 2])) + rng.uniform(-0.08, 0.08, 2) * cell
        )
        turn = angle + rng.uniform(0, 2 * np.pi) + rng.uniform(-0.03, 0.03) * layer
        power = rng.choice([2.0, 8.0])  # round or square
        radius = (np.abs(np.cos(turn)) ** power + np.abs(np.sin(turn)) ** power) ** (-1 / power)
        for waves in (2, 3, 5):
            phase = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.06, 0.06) * layer
            radius *= 1 + rng.uniform(0, 0.22) / waves**0.5 * np.cos(waves * angle + phase)
        radius *= rng.uniform(0.24, 0.4) * cell * (1 + rng.uniform(-0.01, 0.01) * layer)
        bore = rng.choice([0.0, 0.0, 0.45])
        ray = np.stack([np.cos(angle), np.sin(angle)], 1)
        for scale, value in ((1.0, 255), (bore, 0)):
            if scale:
                corners = 16 * (centre + scale * radius[:, None] * ray)
                cv2.fillPoly(canvas, [corners.round().astype(np.int32)], value, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


def _surface(
    config: LayersConfig,
    build: int,
    layer: int,
    rng: np.random.Generator,
    part: Float32[np.ndarray, "h w"],
) -> Float32[np.ndarray, "h w"]:
    """Grainy powder, and parts with their hatch and contour, in grey levels."""
    build_rng = np.random.default_rng([config.seed, 1, build])
    powder, melt, start = build_rng.uniform([125, 6, 0], [145, 30, 180])
    period, swing = build_rng.uniform([5, 4], [7, 9])

    def noise(sigma: float) -> Float32[np.ndarray, "h w"]:
        drawn = cv2.GaussianBlur(rng.standard_normal(part.shape, np.float32), (0, 0), sigma)
        return drawn / drawn.std()

    grain = 8 * noise(0.8) + 3.5 * noise(2.5) - 14 * (noise(1.4) - 1.8).clip(0)
    direction = np.deg2rad(start + _HATCH_TURN * layer)
    y, x = np.mgrid[: config.size_px, : config.size_px].astype(np.float32)
    across = x * np.cos(direction) + y * np.sin(direction) + 0.6 * noise(6)
    hatch = swing * np.sin(2 * np.pi / period * across) + 7 * noise(0.9) + 3 * noise(2.5)
    contour = 4 * part * (1 - part)
    contour = cv2.GaussianBlur(contour, (0, 0), 1.0) * 25
    return powder + (1 - part) * grain + part * (melt + hatch) + contour


def _light(
    config: LayersConfig, build: int, layer: int, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """A lamp at one side that drifts over the build, the lens's vignette, a layer's exposure."""
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


def _defects(
    config: LayersConfig, build: int, layer: int
) -> list[tuple[Bool[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]]:
    """Masks and depths of the defects that began in this layer or last from those before.

    A clean layer ends what was there.
    """
    found = []
    for first in range(layer, max(layer - _LASTING, -1), -1):
        if _is_clean(config, build, first):
            break
        rng = np.random.default_rng([config.seed, 5, build, first])
        part = _parts(config, build, first)
        for draw, mean, lasting in _KINDS:
            for _ in range(rng.poisson(mean)):
                num_layers = rng.integers(1, lasting + 1)
                mask, depth = draw(rng, part)
                if first + num_layers > layer:
                    found.append((mask, depth))
    return found


def _depth(rng: np.random.Generator, faint: float, plain: float) -> float:
    return faint * (plain / faint) ** rng.random()


def _soft(mask: UInt8[np.ndarray, "h w"], sigma: float = 0.7) -> Float32[np.ndarray, "h w"]:
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)


def _pore(rng, part):
    free = cv2.distanceTransform((part > 0.5).astype(np.uint8), cv2.DIST_L2, 5) > 8
    places = np.argwhere(free)[:, ::-1]
    centre = places[rng.integers(len(places))]
    mask = _blob(rng, part.shape, centre, rng.uniform(2.5, 6))
    return mask > 0, _depth(rng, 22, 75) * _soft(mask)


def _blob(rng, shape, centre, radius):
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outline = radius * np.ones_like(angle)
    for waves in (1, 2, 3):
        outline *= 1 + rng.uniform(0, 0.25) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    corners = 16 * (centre + outline[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [corners.round().astype(np.int32)], 1, cv2.LINE_8, 4)
    return mask


def _spatter(rng, part):
    centre = rng.uniform(8, len(part) - 8, 2)
    radius = rng.uniform(3, 6)
    mask = _blob(rng, part.shape, centre, radius)
    core = _blob(rng, part.shape, centre, 0.4 * radius)
    depth = _depth(rng, 30, 75)
    return mask > 0, depth * _soft(mask) - 2 * depth * _soft(core)


def _strip(rng, length, width, wander, depth):
    """A strip of uneven depth down the image, given as a square field."""


def _streak(rng, part):
    size = len(part)
    run = int(rng.uniform(0.25, 1) * size)
    top = int(rng.integers(0, size - run + 1))
    middle = rng.uniform(6, size - 6) + _wave(rng, size, 1.5)
    half = rng.uniform(1.4, 2.6)
    mask = np.abs(np.arange(size)[None] - middle[:, None]) <= half
    mask[:top] = mask[top + run :] = False
    depth = _depth(rng, 22, 60) * (1 + _wave(rng, size, 0.3))[:, None]
    return mask, (depth * _soft(mask)).astype(np.float32)


def _recoater_line(rng, part):
    size = len(part)
    middle = rng.uniform(8, size - 8) + _wave(rng, size, 0.8)
    half = rng.uniform(2.5, 5.5)
    mask = np.abs(np.arange(size)[:, None] - middle[None]) <= half
    depth = _depth(rng, 17, 40) * (1 + _wave(rng, size, 0.3))[None]
    return mask, (depth * _soft(mask, 1.2)).astype(np.float32)


def _wave(rng, size, swing):
    """A smooth curve along the image that swings about 0."""
    place = np.arange(size) / 256
    waves = [np.sin(2 * np.pi * (rng.uniform(0.4, 2.5) * place + rng.random())) for _ in range(3)]
    return swing * sum(waves) / 2


_KINDS = ((_pore, 4, 3), (_streak, 0.6, 3), (_spatter, 3, 1), (_recoater_line, 0.35, 2))
