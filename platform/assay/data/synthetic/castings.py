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
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval

from assay.config import Seed, Settings
from assay.data.synthetic.draw_once import TRUTH, draw_once, write_image
from assay.errors import ManifestError
from assay.shapes import Bool, Float, Float32, UInt8

KINDS = ("blow hole", "crack", "chip", "flash", "shrinkage")
"""Gas pit, hot tear, broken edge, fin at the parting line, cluster of small cavities."""
SIZES = {"small": 0.7, "medium": 1.0, "large": 1.5}
"""Sizes of defects, and their factor on length and width."""

_FORMAT = 1  # raise it when the same config draws other pixels


_FINE = 2  # fine pixels to a pixel, each way


# Radius (1: the flange's edge), height and reflectance of the turned profile. What follows the edge
# is the table.
_PROFILE = np.array(
    [
        (0.00, 0.00, 0.60), (0.185, 0.00, 0.42), (0.20, 0.20, 0.78), (0.27, 0.20, 0.80),
        (0.285, 0.00, 0.10), (0.52, 0.02, 0.09), (0.535, 0.16, 0.74), (0.60, 0.16, 0.76),
        (0.61, 0.10, 0.22), (0.635, 0.10, 0.25), (0.645, 0.15, 0.74), (0.97, 0.12, 0.76),
        (0.993, 0.08, 0.50), (1.007, 0.00, 0.62),
    ]
)  # fmt: skip


_NUM_BLADES = 6


_STEPS = 720  # of the angle, where something is given all round


@dataclass(frozen=True, kw_only=True)
class CastingsConfig(Settings, section="castings"):
    """Castings of one design, half of them defective."""

    seed: Seed = 0
    """Key of everything that is drawn."""
    size_px: Annotated[int, Interval(ge=32, le=4096)] = 128
    """Side of an image in pixels; castings and defects grow with it."""
    num_train: Annotated[int, Interval(ge=2, le=1_000_000)] = 900
    """Images to train on."""
    num_test: Annotated[int, Interval(ge=2, le=1_000_000)] = 300
    """Images to test on."""
    leak: bool = False
    """Copy each casting before train and test are drawn, so that copies of one lie in both."""
    copies: Annotated[int, Interval(ge=2, le=1000)] = 6
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
    """One of `KINDS`, or "" if sound."""
    size: str
    """One of `SIZES`, or "" if sound."""


class _Surface(NamedTuple):
    """A casting before it is lit, on fine pixels: places as radius and angle about the axis."""

    radius: Float32[np.ndarray, "h w"]
    angle: Float32[np.ndarray, "h w"]
    height: Float32[np.ndarray, "h w"]
    reflectance: Float32[np.ndarray, "h w"]
    pose: Float[np.ndarray, "2 3"]
    """From radii of the flange to fine pixels."""

    @property
    def scale(self) -> float:
        """Fine pixels in a radius of the flange."""
        return float(np.sqrt(np.linalg.det(self.pose[:, :2])))


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


def read_planted(folder: Path) -> dict[str, Planted]:
    """Read what each image of `draw_castings` shows, by its path below `images`.

    Raises:
        ManifestError: the folder does not hold it.
    """
    try:
        images = json.loads((folder / TRUTH).read_text())["images"]
    except (OSError, ValueError):
        raise ManifestError(
            f"{folder / TRUTH} is missing or damaged, and the planted truth with it; run the task there again, which draws the castings."
        ) from None
    return {path: Planted(**planted) for path, planted in images.items()}


def defect_of(number: int) -> tuple[str, str]:
    """Return kind and size of the defect that a casting has; every second one is sound."""
    if number % 2:
        return "", ""
    return KINDS[number // 2 % len(KINDS)], [*SIZES][number // 10 % len(SIZES)]


def draw_casting(config: CastingsConfig, number: int, planted: bool = True) -> Casting:
    """Draw a casting; without what is planted, the same one as if it were sound."""
    rng = np.random.default_rng([config.seed, 0, number])
    surface = _draw_surface(config, rng)
    truth = np.zeros(surface.radius.shape, bool)
    kind, size = defect_of(number)
    if kind and planted:
        defect_rng = np.random.default_rng([config.seed, 1, number])
        truth = _PLANT[kind](defect_rng, surface, SIZES[size])
    lit = _light(np.random.default_rng([config.seed, 2, number]), surface)
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
    return Casting(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), truth > 0)


def _list_images(config: CastingsConfig) -> list[tuple[str, int, int]]:
    """Return path (* for the class), casting and copy of each image, in the order of train and test."""
    total = config.num_train + config.num_test
    copies = config.copies if config.leak else 1
    order = np.random.default_rng([config.seed, 5]).permutation(total).tolist()
    names = [f"train/*/{i + 1:04d}" for i in range(config.num_train)]
    names += [f"test/*/{i + 1:04d}" for i in range(config.num_test)]
    return [(name, i // copies, i % copies) for name, i in zip(names, order, strict=True)]


def _draw_surface(config: CastingsConfig, rng: np.random.Generator) -> _Surface:
    """Turn, cast and pose a sound casting, with tool marks, stains and dust."""
    side = _FINE * config.size_px
    turn, scale = rng.uniform(0, 2 * np.pi), 0.4 * side * rng.uniform(0.93, 1.03)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    axis = np.array([np.cos(tilt := rng.uniform(0, np.pi)), np.sin(tilt)])
    linear = scale * (np.eye(2) - rng.uniform(0, 0.05) * np.outer(axis, axis)) @ spin
    centre = side * (0.5 + rng.uniform(-0.04, 0.04, 2))
    y, x = np.mgrid[:side, :side].astype(np.float32)
    inverse = np.linalg.inv(linear).astype(np.float32)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u, v = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy
    angle = np.arctan2(v, u)
    # the edge is not quite round: it was cast, not turned
    radius = np.hypot(u, v) / (1 + 0.005 * _around(_ripple(rng, 24), angle))
    bore, middle = 1 + rng.uniform(-0.03, 0.03, 2)
    warped = np.interp(_PROFILE[:, 0], [0, 0.2, 0.6, 1, 2], [0, 0.2 * bore, 0.6 * middle, 1, 2])
    height, reflectance = (_across(warped, values, radius) for values in _PROFILE[:, 1:].T)
    blade = np.cos(_NUM_BLADES * (angle + 2.2 * radius)) * ((radius > 0.3) & (radius < 0.51))
    height += 0.03 * blade.clip(0.6, 1) - 0.018
    reflectance += 0.1 * (blade.clip(0.75, 1) - 0.75) / 0.25
    pose = np.concatenate([linear, centre[:, None]], axis=1)
    surface = _Surface(radius, angle, height, reflectance, pose)
    _mark(rng, surface)
    return surface


def _mark(rng: np.random.Generator, surface: _Surface) -> None:
    """Add what is no defect: turning grooves, tool arcs, as-cast grain, stains and dust."""
    radius, reflectance = surface.radius, surface.reflectance
    machined = reflectance > 0.6
    grooves = _across(np.linspace(0, 1.5, 300), rng.standard_normal(300), radius)
    reflectance += np.float32(0.03) * grooves * (machined & (radius < 1))
    reflectance += 0.03 * cv2.GaussianBlur(rng.standard_normal(radius.shape, np.float32), (0, 0), 1)
    for _ in range(rng.poisson(3)):
        along = rng.uniform(-np.pi, np.pi) + np.linspace(0, rng.uniform(0.2, 1), 20)
        arc = _line(surface, np.full(20, rng.uniform(0.67, 0.95)), along, rng.uniform(0.01, 0.025))
        reflectance[arc] *= rng.choice([0.6, 0.75, 1.25])
    for _ in range(rng.poisson(2)):
        blot = _blob(rng, surface, rng.uniform(0.2, 1), rng.uniform(0.06, 0.16), 0.35)
        soft = cv2.GaussianBlur(blot.astype(np.float32), (0, 0), 0.02 * len(blot))
        reflectance *= 1 - rng.uniform(0.06, 0.2) * soft
    for _ in range(rng.poisson(8)):
        speck = _blob(rng, surface, rng.uniform(0.05, 1.2), rng.uniform(0.008, 0.02), 0.3)
        reflectance[speck] = reflectance[speck] * 0.6 + rng.choice([0.0, 0.38])


def _plant_blow_hole(
    rng: np.random.Generator, surface: _Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Open a round gas pit: its floor is in shadow, its wall away from the lamp is lit."""
    at = rng.uniform(0.69, 0.92) if rng.random() < 0.75 else rng.uniform(0.55, 0.58)
    return _sink(surface, _blob(rng, surface, at, 0.045 * size, 0.15), 0.05 * size, 0.4)


def _plant_crack(
    rng: np.random.Generator, surface: _Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Tear the flange along a wandering line that runs across the tool marks."""
    num = 9
    radius = np.linspace(0, 0.19 * size, num) * rng.choice([-1, 1])
    radius += rng.uniform(0.74, 0.86) - radius.mean() + rng.normal(0, 0.006, num)
    angle = rng.uniform(-np.pi, np.pi) + np.cumsum(rng.normal(0, 0.04, num))
    return _sink(surface, _line(surface, radius, angle, 0.022 * size**0.5), 0.02, 0.35)


def _plant_chip(
    rng: np.random.Generator, surface: _Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Break a piece off the edge; the fracture is rough and lies lower."""
    depth = 0.06 * size * _bump(rng, 0.1 * size)
    mask = (surface.radius > 1 - _around(depth, surface.angle)) & (surface.radius < 1)
    _roughen(rng, surface, mask, 0.03, 0.3)
    return mask


def _plant_flash(
    rng: np.random.Generator, surface: _Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Leave a thin ragged fin of metal outside the edge."""
    width = 0.055 * size * _bump(rng, 0.3 * size)
    mask = (surface.radius < 1 + _around(width, surface.angle)) & (surface.radius >= 1)
    _roughen(rng, surface, mask, 0.04, 0.25)
    return mask


def _plant_shrinkage(
    rng: np.random.Generator, surface: _Surface, size: float
) -> Bool[np.ndarray, "h w"]:
    """Open a cluster of small ragged cavities."""
    radius, angle = rng.uniform(0.7, 0.9), rng.uniform(-np.pi, np.pi)
    mask = np.zeros(surface.radius.shape, bool)
    for _ in range(round(9 * size)):
        at, turn = rng.normal(radius, 0.035 * size), rng.normal(angle, 0.035 * size / radius)
        mask |= _blob(rng, surface, at, rng.uniform(0.01, 0.024), 0.4, turn)
    return _sink(surface, mask & (surface.radius < 0.96), 0.03, 0.45)


def _sink(
    surface: _Surface, mask: Bool[np.ndarray, "h w"], depth: float, factor: float
) -> Bool[np.ndarray, "h w"]:
    surface.height[mask] -= depth
    surface.reflectance[mask] *= factor
    return mask


def _roughen(
    rng: np.random.Generator,
    surface: _Surface,
    mask: Bool[np.ndarray, "h w"],
    height: float,
    reflectance: float,
) -> None:
    grain = rng.standard_normal(int(mask.sum())).astype(np.float32)
    surface.height[mask] = height + 0.01 * grain
    surface.reflectance[mask] = reflectance + 0.12 * np.abs(grain)


def _light(rng: np.random.Generator, surface: _Surface) -> Float32[np.ndarray, "h w"]:
    """Light a surface from one side: slopes, the fans that turned metal reflects, a shadow on the table."""
    radius, angle, height, reflectance, _ = surface
    side, scale = len(height), np.float32(surface.scale)
    towards = rng.uniform(-np.pi, np.pi)
    lamp = np.array([np.cos(towards), np.sin(towards)], np.float32)
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(height, (0, 0), 0.8) * scale)
    facing = 1 - 0.45 * (slope_x * lamp[0] + slope_y * lamp[1]).clip(-1.2, 1.2)
    grid = np.linspace(-np.pi, np.pi, _STEPS, endpoint=False)
    fans = 0.04 * _ripple(rng, 360) - 0.15
    for at in rng.uniform(-np.pi, np.pi, 2):
        sharp = rng.uniform(4, 30)
        fans += rng.uniform(0.15, 0.4) * np.exp(sharp * (np.abs(np.cos(grid - at)) - 1))
    turned = (reflectance > 0.3) & (radius < 0.97) & (radius > 0.19)
    on_table = radius >= 1.0
    shadow = cv2.warpAffine(
        (~on_table).astype(np.float32),
        np.array([[1, 0, -0.03 * side * lamp[0]], [0, 1, -0.03 * side * lamp[1]]]),
        (side, side),
    )
    shade = 0.4 * cv2.GaussianBlur(shadow, (0, 0), 0.025 * side) * on_table
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    slope = np.float32(rng.uniform(0.03, 0.12)) * lamp
    level = np.float32(rng.uniform(0.85, 1.1)) + slope[0] * ramp[None] + slope[1] * ramp[:, None]
    lit = reflectance * (1 + _around(fans, angle) * turned) * facing * (1 - shade) * level
    return lit.astype(np.float32)


def _places(
    surface: _Surface, radius: Float[np.ndarray, " n"], angle: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2"]:
    """Return where points of the casting are (x, y in fine pixels)."""
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    places: np.ndarray = points @ surface.pose[:, :2].T + surface.pose[:, 2]
    return places


def _line(
    surface: _Surface,
    radius: Float[np.ndarray, " n"],
    angle: Float[np.ndarray, " n"],
    width: float,
) -> Bool[np.ndarray, "h w"]:
    """Draw a line through points of the casting, of a width in radii of the flange."""
    canvas = np.zeros(surface.radius.shape, np.uint8)
    points = np.rint(8 * _places(surface, radius, angle)).astype(np.int32)
    cv2.polylines(canvas, [points], False, 1, max(1, round(width * surface.scale)), cv2.LINE_8, 3)
    return canvas > 0


def _blob(
    rng: np.random.Generator,
    surface: _Surface,
    radius: float,
    size: float,
    uneven: float,
    angle: float | None = None,
) -> Bool[np.ndarray, "h w"]:
    """Draw a disc with an uneven outline, at a radius of the casting; anywhere round it if no angle is given."""
    angle = rng.uniform(-np.pi, np.pi) if angle is None else angle
    centre = _places(surface, np.array([radius]), np.array([angle]))[0]
    around = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    outline = np.full(20, size * surface.scale)
    for waves in (2, 3, 5):
        outline *= 1 + uneven * rng.uniform(0, 1) * np.cos(waves * around + rng.uniform(0, 6.3))
    corners = centre + outline[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    canvas = np.zeros(surface.radius.shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint(8 * corners).astype(np.int32)], 1, cv2.LINE_8, 3)
    return canvas > 0


def _across(
    radii: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    radius: Float32[np.ndarray, "h w"],
) -> Float32[np.ndarray, "h w"]:
    """Look up a function of the radius, given at rising radii with straight lines between them."""
    table = np.interp(np.linspace(0, 2, 4001), radii, values).astype(np.float32)
    return table[(radius * np.float32(2000)).astype(np.int32).clip(0, 4000)]


def _around(
    values: Float[np.ndarray, "720"], angle: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w"]:
    """Look up a periodic function of the angle, given at equal steps from -pi."""
    steps = ((angle + np.float32(np.pi)) * np.float32(_STEPS / (2 * np.pi))).astype(np.int32)
    return values.astype(np.float32)[steps % _STEPS]


def _ripple(rng: np.random.Generator, num: int) -> Float[np.ndarray, "720"]:
    """Draw a periodic function of the angle: straight lines between so many random values of -1 to 1."""
    steps = np.arange(_STEPS) * num / _STEPS
    return np.interp(steps, np.arange(num), rng.uniform(-1, 1, num), period=num)


def _bump(rng: np.random.Generator, half: float) -> Float[np.ndarray, "720"]:
    """Draw a ragged bump of about this half width (radians) and height 1, somewhere round the edge."""
    grid = np.linspace(-np.pi, np.pi, _STEPS, endpoint=False)
    distance = np.abs((grid - rng.uniform(-np.pi, np.pi) + np.pi) % (2 * np.pi) - np.pi)
    bump: np.ndarray = np.sqrt((1 - distance / half).clip(0)) * (1 + 0.4 * _ripple(rng, 180))
    return bump


_PLANT = {
    "blow hole": _plant_blow_hole,
    "crack": _plant_crack,
    "chip": _plant_chip,
    "flash": _plant_flash,
    "shrinkage": _plant_shrinkage,
}
