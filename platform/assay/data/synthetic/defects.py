"""The five kinds of defect of `castings`, planted into a surface before it is lit.

Each changes height and reflectance and returns the mask of what it changed. A size of 1 is small.
"""

from collections.abc import Callable

import numpy as np

from assay.data.synthetic.impeller import STEPS, Surface, around, blob, line, ripple
from assay.shapes import Bool, Float


def _plant_blow_hole(
    rng: np.random.Generator, surface: Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Open a round gas pit: its floor is in shadow, its wall away from the lamp is lit."""
    at = rng.uniform(0.69, 0.92) if rng.random() < 0.75 else rng.uniform(0.55, 0.58)
    return _sink(surface, blob(rng, surface, at, 0.07 * size, 0.15), 0.08 * size, 0.25)


def _plant_crack(
    rng: np.random.Generator, surface: Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Tear the flange along a wandering line that runs across the tool marks."""
    num = 9
    radius = np.linspace(0, 0.24 * size, num) * rng.choice([-1, 1])
    radius += rng.uniform(0.74, 0.86) - radius.mean() + rng.normal(0, 0.006, num)
    angle = rng.uniform(-np.pi, np.pi) + np.cumsum(rng.normal(0, 0.04, num))
    return _sink(surface, line(surface, radius, angle, 0.035 * size**0.5), 0.03, 0.25)


def _plant_chip(rng: np.random.Generator, surface: Surface, size: float) -> Bool[np.ndarray, "h w"]:
    """Break a piece off the edge; the fracture is rough and lies lower."""
    depth = 0.08 * size * _bump(rng, 0.16 * size)
    mask = (surface.radius > 1 - around(depth, surface.angle)) & (surface.radius < 1)
    _roughen(rng, surface, mask, 0.03, 0.3)
    return mask


def _plant_flash(
    rng: np.random.Generator, surface: Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Leave a thin ragged fin of metal outside the edge."""
    width = 0.06 * size * _bump(rng, 0.45 * size)
    mask = (surface.radius < 1 + around(width, surface.angle)) & (surface.radius >= 1)
    _roughen(rng, surface, mask, 0.04, 0.25)
    return mask


def _plant_shrinkage(
    rng: np.random.Generator, surface: Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Open a cluster of small ragged cavities."""
    radius, angle = rng.uniform(0.7, 0.9), rng.uniform(-np.pi, np.pi)
    mask = np.zeros(surface.radius.shape, bool)
    for _ in range(round(14 * size)):
        at, turn = rng.normal(radius, 0.05 * size), rng.normal(angle, 0.05 * size / radius)
        mask |= blob(rng, surface, at, rng.uniform(0.014, 0.03), 0.4, turn)
    return _sink(surface, mask & (surface.radius < 0.96), 0.03, 0.3)


def _sink(
    surface: Surface, mask: Bool[np.ndarray, "h w"], depth: float, factor: float
) -> Bool[np.ndarray, "h w"]:
    surface.height[mask] -= depth
    surface.reflectance[mask] *= factor
    return mask


def _roughen(
    rng: np.random.Generator,
    surface: Surface,
    mask: Bool[np.ndarray, "h w"],
    height: float,
    reflectance: float,
) -> None:
    grain = rng.standard_normal(int(mask.sum())).astype(np.float32)
    surface.height[mask] = height + 0.01 * grain
    surface.reflectance[mask] = reflectance + 0.12 * np.abs(grain)


def _bump(rng: np.random.Generator, half: float) -> Float[np.ndarray, "720"]:
    """Draw a ragged bump of about this half width (radians) and height 1, somewhere round the edge."""
    grid = np.linspace(-np.pi, np.pi, STEPS, endpoint=False)
    distance = np.abs((grid - rng.uniform(-np.pi, np.pi) + np.pi) % (2 * np.pi) - np.pi)
    bump: np.ndarray = np.sqrt((1 - distance / half).clip(0)) * (1 + 0.4 * ripple(rng, 180))
    return bump


PLANT: dict[str, Callable[[np.random.Generator, Surface, float], Bool[np.ndarray, "h w"]]] = {
    "blow hole": _plant_blow_hole,
    "crack": _plant_crack,
    "chip": _plant_chip,
    "flash": _plant_flash,
    "shrinkage": _plant_shrinkage,
}
