"""Augmentation in two parts that can be applied to small patches of a huge image.

Geometry is one affine matrix per image, so that flips, rotation, shift, zoom, fitting and cutting
compose into a single bilinear sampling of the source. Photometric changes are a few numbers drawn
per image, applied to whatever patches are cut.

Matrices are float64 (2, 3) and map a pixel (x, y) of what is wanted to the pixel it is taken from;
pixel centres are at integer coordinates. A *canvas* is the square, zero-padded frame that every
image is fitted into.

    patch --crop_matrix--> canvas --Augment.matrix--> un-augmented canvas --fit--> source
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, floor, radians, sin
from types import MappingProxyType
from typing import Literal, get_args

import cv2
import numpy as np

from assay.errors import ConfigError
from assay.shapes import Float, Float32, Float64, Int, UInt8, UInt16

NoiseKind = Literal["gaussian", "salt_pepper"]
Noise = Literal["none", "gaussian", "salt_pepper"]
_NOISES: tuple[Noise, ...] = get_args(Noise)
_RANGES = ("scale", "brightness", "contrast", "gamma", "saturation", "resample")
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Ranges that `draw` samples from; the defaults change nothing.

    A name ending in _p is the probability that its group of changes is applied to an image.
    """

    hflip: float = 0.0
    """Probability of a left-right flip."""
    vflip: float = 0.0
    """Probability of a top-bottom flip."""
    rotation_deg: float = 0.0
    """Largest rotation to either side, degrees."""
    rotation_p: float = 0.0
    """Probability of a rotation."""
    translate: float = 0.0
    """Largest shift along x and along y, fraction of the canvas side."""
    affine_translate: float = 0.0
    """Largest second, independent shift (that of a random affine), fraction of the canvas side."""
    scale_low: float = 1.0
    """Smallest zoom about the centre; below 1 the image gets smaller."""
    scale_high: float = 1.0
    """Largest zoom about the centre."""
    scale_p: float = 0.0
    """Probability of a zoom."""
    exposure_p: float = 0.0
    """Probability of brightness, contrast, gamma and saturation changing together."""
    brightness_low: float = 1.0
    """Smallest factor on the pixel values."""
    brightness_high: float = 1.0
    """Largest factor on the pixel values."""
    contrast_low: float = 1.0
    """Smallest factor on the distance from the image's grey mean."""
    contrast_high: float = 1.0
    """Largest factor on the distance from the image's grey mean."""
    gamma_low: float = 1.0
    """Smallest exponent on pixel values in [0, 1]; below 1 brightens."""
    gamma_high: float = 1.0
    """Largest exponent on pixel values in [0, 1]."""
    saturation_low: float = 1.0
    """Smallest factor on the distance from each pixel's own grey."""
    saturation_high: float = 1.0
    """Largest factor on the distance from each pixel's own grey."""
    resample_p: float = 0.0
    """Probability of resampling: below 1 down and up again, above 1 up and cut at the centre."""
    resample_low: float = 1.0
    """Smallest resampling factor."""
    resample_high: float = 1.0
    """Largest resampling factor."""
    noise_p: float = 0.0
    """Probability of noise."""
    noise_max: float = 0.0
    """Gaussian: largest standard deviation, in [0, 1]; salt and pepper: share of pixels hit."""
    noise_kinds: tuple[NoiseKind, ...] = ("gaussian", "salt_pepper")
    """Kinds of noise, one of which is drawn per image."""

    def __post_init__(self) -> None:
        """Refuse probabilities outside [0, 1] and ranges that are empty or not positive."""
        for name in ("hflip", "vflip", "rotation_p", "scale_p", "exposure_p", "resample_p",
                     "noise_p", "noise_max", "translate", "affine_translate"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")
        for name in _RANGES:
            low, high = self.range(name)
            if not 0 < low <= high:
                raise ConfigError(f"{name} goes from {low} to {high}; give 0 < low <= high.")
        if not self.noise_kinds:
            raise ConfigError("noise_kinds is empty; name a kind, or set noise_p to 0.")

    def range(self, name: str) -> tuple[float, float]:
        """Lowest and highest value of one of the drawn factors."""
        return getattr(self, f"{name}_low"), getattr(self, f"{name}_high")


PRESETS = MappingProxyType(
    {
        "none": AugmentConfig(),
        "readme": AugmentConfig(
            hflip=0.5,
            vflip=0.5,
            translate=0.25,
            rotation_deg=180.0,
            rotation_p=0.5,
            exposure_p=0.3,
            brightness_low=0.75,
            brightness_high=1.25,
            contrast_low=0.75,
            contrast_high=1.25,
            gamma_low=0.5,
            gamma_high=2.0,
            resample_p=0.1,
            resample_low=0.75,
            resample_high=1.25,
            noise_p=0.5,
        ),
        "main": AugmentConfig(
            hflip=0.5,
            vflip=0.5,
            rotation_deg=5.0,
            rotation_p=1.0,
            affine_translate=0.05,
            scale_low=0.5,
            scale_high=1.5,
            scale_p=1.0,
            exposure_p=1.0,
            brightness_low=0.7,
            brightness_high=1.3,
            contrast_low=0.7,
            contrast_high=1.3,
            saturation_low=0.7,
            saturation_high=1.3,
            noise_p=0.25,
            translate=0.1,
        ),
        "sweep": AugmentConfig(hflip=0.5, vflip=0.5, translate=0.25),
    }
)
"""The three pipelines of the source-identification reference: as its README states them, as its
main script and as its sweep script run them. CLAHE, part of the input contract and not of the
augmentation, went with them at clip limit 3 and a grid of 64, 64 and 128 tiles a side. Their noise
strength is a hyperparameter with default 0: set `noise_max` to have any."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Augment:
    """What was drawn for one image."""

    matrix: Float64[np.ndarray, "2 3"]
    """Pixel of the augmented canvas to pixel of the un-augmented canvas."""
    brightness: float = 1.0
    """Factor on the pixel values."""
    contrast: float = 1.0
    """Factor on the distance from the image's grey mean."""
    gamma: float = 1.0
    """Exponent on pixel values in [0, 1]."""
    saturation: float = 1.0
    """Factor on the distance from each pixel's own grey."""
    resample: float = 1.0
    """Side of the intermediate, smaller image relative to the patch, at most 1."""
    noise: Noise = "none"
    """Kind of noise."""
    noise_strength: float = 0.0
    """Standard deviation in [0, 1], or share of pixels hit."""
    noise_seed: int = 0
    """Seed of the noise, below 2**32."""

    def to_row(self) -> Float64[np.ndarray, "14"]:
        """Pack into one flat row of numbers, without loss."""
        numbers = (
            self.brightness,
            self.contrast,
            self.gamma,
            self.saturation,
            self.resample,
            _NOISES.index(self.noise),
            self.noise_strength,
            self.noise_seed,
        )
        return np.concatenate([self.matrix.ravel(), np.array(numbers, np.float64)])

    @classmethod
    def from_row(cls, row: Float64[np.ndarray, "14"]) -> "Augment":
        """Unpack what `to_row` packed."""
        brightness, contrast, gamma, saturation, resample, noise, strength, seed = row[6:].tolist()
        return cls(
            matrix=row[:6].reshape(2, 3).copy(),
            brightness=brightness,
            contrast=contrast,
            gamma=gamma,
            saturation=saturation,
            resample=resample,
            noise=_NOISES[int(noise)],
            noise_strength=strength,
            noise_seed=int(seed),
        )


IDENTITY = Augment(matrix=np.eye(2, 3))
IDENTITY.matrix.flags.writeable = False


def draw(config: AugmentConfig, canvas: int, rng: np.random.Generator) -> Augment:
    """Draw the augmentation of one image on a square canvas of `canvas` pixels a side.

    The image is flipped, rotated and zoomed about the centre, then shifted. The generator advances
    by the same number of draws whatever the configuration. A resampling factor above 1 (enlarge,
    cut at the centre) is a zoom of the finished canvas and goes into the matrix.
    """
    hflip, vflip, rotate, scale, exposure, resample, noise, kind, strength = rng.random(9).tolist()
    angle, *shifts = rng.uniform(-1.0, 1.0, 5).tolist()
    factor = {name: rng.uniform(*config.range(name)) for name in _RANGES}
    seed = int(rng.integers(2**32))

    linear = np.diag([-1.0 if hflip < config.hflip else 1.0, -1.0 if vflip < config.vflip else 1.0])
    if rotate < config.rotation_p:
        turn = radians(angle * config.rotation_deg)
        linear = linear @ np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    if scale < config.scale_p:
        linear /= factor["scale"]
    shift = config.translate * np.array(shifts[:2]) + config.affine_translate * np.array(shifts[2:])
    # Whole pixels, so that a shift alone does not blur.
    matrix = _about_centre(linear, canvas, np.rint(shift * canvas))

    resampled = factor["resample"] if resample < config.resample_p else 1.0
    if resampled > 1:
        matrix = compose(matrix, _about_centre(np.eye(2) / resampled, canvas, np.zeros(2)))
    exposed = exposure < config.exposure_p
    noise_kind: Noise = config.noise_kinds[int(kind * len(config.noise_kinds))]
    if noise >= config.noise_p or config.noise_max == 0:
        noise_kind = "none"
    return Augment(
        matrix=matrix,
        brightness=factor["brightness"] if exposed else 1.0,
        contrast=factor["contrast"] if exposed else 1.0,
        gamma=factor["gamma"] if exposed else 1.0,
        saturation=factor["saturation"] if exposed else 1.0,
        resample=min(resampled, 1.0),
        noise=noise_kind,
        noise_strength=config.noise_max * (strength if noise_kind == "gaussian" else 1.0),
        noise_seed=seed,
    )


def _about_centre(
    linear: Float64[np.ndarray, "2 2"], canvas: int, shift: Float64[np.ndarray, "2"]
) -> Float64[np.ndarray, "2 3"]:
    """Linear map about the canvas centre of what is seen after moving the content by `shift`."""
    centre = np.full(2, (canvas - 1) / 2)
    return np.column_stack([linear, centre - linear @ (centre + shift)])


def fit(
    height: int, width: int, canvas: int, mode: Literal["scale", "pad"]
) -> Float64[np.ndarray, "2 3"]:
    """Matrix from a square canvas to the source image that stands centred in it.

    Args:
        height: Source height in pixels.
        width: Source width in pixels.
        canvas: Side of the canvas in pixels.
        mode: "scale": the longer side fills the canvas. "pad": pixels keep their size; what does
            not fit is cut off at both ends.
    """
    if mode == "pad":
        left, top = (_margin(canvas, width), _margin(canvas, height))
        return np.array([[1.0, 0.0, -left], [0.0, 1.0, -top]])
    step = max(height, width) / canvas
    middle = (canvas - 1) / 2
    return np.array(
        [
            [step, 0.0, (width - 1) / 2 - step * middle],
            [0.0, step, (height - 1) / 2 - step * middle],
        ]
    )


def _margin(canvas: int, side: int) -> int:
    """Whole pixels before the image (negative: cut off), the smaller half when odd."""
    return (canvas - side) // 2 if canvas >= side else -((side - canvas) // 2)


def compose(
    outer: Float64[np.ndarray, "2 3"], inner: Float64[np.ndarray, "2 3"]
) -> Float64[np.ndarray, "2 3"]:
    """Matrix that applies `inner` to a pixel first, then `outer`."""
    composed: np.ndarray = outer @ np.vstack([inner, [0.0, 0.0, 1.0]])
    return composed


def crop_matrix(
    matrix: Float64[np.ndarray, "2 3"], x: float | int, y: float | int, step: float | int = 1.0
) -> Float64[np.ndarray, "2 3"]:
    """Matrix of the patch that begins at canvas pixel (x, y).

    Each patch pixel stands for a square of `step` canvas pixels, the first of which begins at the
    outer edge of canvas pixel (x, y): an overview is `crop_matrix(matrix, 0, 0, canvas / side)`.
    """
    half = (step - 1) / 2
    return compose(matrix, np.array([[step, 0.0, x + half], [0.0, step, y + half]]))


def warp(
    image: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"],
    matrix: Float64[np.ndarray, "2 3"],
    height: int,
    width: int,
) -> UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]:
    """Sample a (height, width) patch of the image, bilinear, zero outside.

    Whole-pixel shifts and flips copy pixels unchanged. Nothing is averaged: for steps well above 1
    (an overview) pass an image that was reduced before.
    """
    (xx, xy, x), (yx, yy, y) = matrix.tolist()
    right, bottom = width - 1, height - 1
    left, stop_x = _reach(xx * right, xy * bottom, x, image.shape[1])
    top, stop_y = _reach(yx * right, yy * bottom, y, image.shape[0])
    if left >= stop_x or top >= stop_y:
        return np.zeros((height, width, 3), image.dtype)
    # OpenCV computes coordinates in float32 and refuses sides of 32768: give it the window only.
    window = image[top:stop_y, left:stop_x]
    local = np.array([[xx, xy, x - left], [yx, yy, y - top]])
    return cv2.warpAffine(
        window, local, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )


def _reach(along_x: float, along_y: float, start: float, side: int) -> tuple[int, int]:
    """Source pixels [first, stop) of one axis that bilinear sampling of a patch can touch."""
    low = start + min(along_x, 0.0) + min(along_y, 0.0)
    high = start + max(along_x, 0.0) + max(along_y, 0.0)
    return max(floor(low) - 1, 0), min(floor(high) + 3, side)


def photometric(
    patches: UInt8[np.ndarray, "n h w 3"], augment: Augment, mean: float, key: int
) -> UInt8[np.ndarray, "n h w 3"]:
    """Apply what was drawn to patches of one image, before normalisation.

    In this order: brightness, contrast, gamma (one table), saturation, resampling, noise. Values
    are rounded once per table, not after every step. Patches come back themselves if nothing was
    drawn.

    Args:
        patches: Patches cut from the image.
        augment: What was drawn for the image.
        mean: Grey mean of the whole image in [0, 1], about which contrast changes.
        key: Number >= 0 of this cut, so that different cuts get different noise.
    """
    num, height, width, _ = patches.shape
    if not patches.size:
        return patches
    if not augment.brightness == augment.contrast == augment.gamma == 1:
        patches = cv2.LUT(patches.reshape(num * height, -1), _tone(augment, mean))
    if augment.saturation != 1:
        keep = augment.saturation * np.eye(3) + (1 - augment.saturation) * _GREY
        patches = cv2.transform(patches.reshape(num * height, width, 3), keep)
    patches = patches.reshape(num, height, width, 3)
    if augment.resample < 1:
        patches = _resample(patches, augment.resample)
    if augment.noise != "none":
        rng = np.random.default_rng((augment.noise_seed, key))
        patches = _NOISE[augment.noise](patches, augment.noise_strength, rng)
    return patches


def _tone(augment: Augment, mean: float) -> UInt8[np.ndarray, "256"]:
    values = np.clip(np.arange(256) / 255 * augment.brightness, 0, 1)
    pivot = min(mean * augment.brightness, 1.0)
    values = np.clip(pivot + augment.contrast * (values - pivot), 0, 1)
    return np.rint(255 * values**augment.gamma).astype(np.uint8)


def _resample(patches: UInt8[np.ndarray, "n h w 3"], factor: float) -> UInt8[np.ndarray, "n h w 3"]:
    height, width = patches.shape[1:3]
    small = max(1, round(width * factor)), max(1, round(height * factor))
    return np.stack([cv2.resize(cv2.resize(patch, small), (width, height)) for patch in patches])


def _gaussian(
    patches: UInt8[np.ndarray, "n h w 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "n h w 3"]:
    noise = rng.standard_normal(patches.shape, np.float32)
    noise *= 255 * strength
    rows = patches.shape[0] * patches.shape[1], -1
    noisy = cv2.add(patches.reshape(rows), noise.reshape(rows), dtype=cv2.CV_8U)
    return noisy.reshape(patches.shape)


def _salt_pepper(
    patches: UInt8[np.ndarray, "n h w 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "n h w 3"]:
    where = rng.random(patches.shape[:3], np.float32)
    noisy = patches.copy()
    noisy[where < strength / 2] = 255
    noisy[where >= 1 - strength / 2] = 0
    return noisy


_NOISE = {"gaussian": _gaussian, "salt_pepper": _salt_pepper}


def clahe(
    image: UInt8[np.ndarray, "h w 3"], clip_limit: float, grid: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Contrast-limited adaptive histogram equalisation of the lightness (CIELAB L).

    Args:
        image: RGB image.
        clip_limit: Largest histogram bin relative to a flat histogram; 0 is no limit.
        grid: Tiles along each side.
    """
    return _equalise(image, clip_limit, grid, grid)


def _equalise(
    image: UInt8[np.ndarray, "h w 3"], clip_limit: float, num_x: int, num_y: int
) -> UInt8[np.ndarray, "h w 3"]:
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness = cv2.createCLAHE(clip_limit, (num_x, num_y)).apply(cv2.extractChannel(lab, 0))
    return cv2.cvtColor(cv2.insertChannel(lightness, lab, 0), cv2.COLOR_LAB2RGB)


def clahe_region(
    read: Callable[[int, int, int, int], UInt8[np.ndarray, "rows columns 3"]],
    height: int,
    width: int,
    x0: int,
    y0: int,
    x1: int,
    y1: int,
    clip_limit: float,
    grid: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels [y0, y1) x [x0, x1) of the whole image's `clahe`, from those tiles that decide them.

    A pixel is interpolated between the tables of the four tiles whose centres surround it, so that
    less than a tile and a half is read on each side (at a padded edge also what the padding
    mirrors). The lightness differs by 1 of 255 at most, where OpenCV's float32 positions round
    otherwise; in a saturated colour that can be 3 grey levels of one channel.

    Args:
        read: Gives the raw pixels of a box (x0, y0, x1, y1) inside the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        x0: First column, inside the image.
        y0: First row, inside the image.
        x1: Column after the last, at most width.
        y1: Row after the last, at most height.
        clip_limit: As for `clahe`.
        grid: As for `clahe`.
    """
    # If either side is not divisible OpenCV pads both, a divisible one by one pixel per tile.
    is_padded = bool(height % grid or width % grid)
    tile_x, tile_y = width // grid + is_padded, height // grid + is_padded
    first_x, stop_x = _tiles(x0, x1, tile_x, grid)
    first_y, stop_y = _tiles(y0, y1, tile_y, grid)
    columns = _mirror(np.arange(first_x * tile_x, stop_x * tile_x), width)
    rows = _mirror(np.arange(first_y * tile_y, stop_y * tile_y), height)
    left, top = int(columns.min()), int(rows.min())
    raw = read(left, top, int(columns.max()) + 1, int(rows.max()) + 1)
    tiles = raw.take(rows - top, 0).take(columns - left, 1)
    pixels = _equalise(tiles, clip_limit, stop_x - first_x, stop_y - first_y)
    x, y = x0 - first_x * tile_x, y0 - first_y * tile_y
    return pixels[y : y + y1 - y0, x : x + x1 - x0]


def _tiles(start: int, stop: int, tile: int, grid: int) -> tuple[int, int]:
    """Tiles [first, stop) whose tables reach the pixels [start, stop) of one axis."""
    first = (2 * start - tile) // (2 * tile)
    last = (2 * (stop - 1) - tile) // (2 * tile) + 1
    return max(first, 0), min(last + 1, grid)


def _mirror(positions: Int[np.ndarray, "n"], side: int) -> Int[np.ndarray, "n"]:
    """Positions beyond the last pixel folded back without repeating it (reflect-101)."""
    period = max(2 * (side - 1), 1)
    folded = positions % period
    mirrored: np.ndarray = np.minimum(folded, period - folded)
    return mirrored


def normalise(
    patches: UInt8[np.ndarray, "n h w 3"],
    mean: Float[np.ndarray, "3"],
    std: Float[np.ndarray, "3"],
    eps: float = 1e-6,
) -> Float32[np.ndarray, "n h w 3"]:
    """Normalise by the image's own statistics: (value / 255 - mean) / (std + eps).

    Args:
        patches: Patches of one image.
        mean: Mean per channel of the image, in [0, 1].
        std: Standard deviation per channel of the image, in [0, 1].
        eps: Keeps an image of one colour finite.
    """
    if not patches.size:
        return np.zeros(patches.shape, np.float32)
    table = (np.arange(256)[:, None] / 255 - mean) / (std + eps)
    num, height, width, _ = patches.shape
    rows = patches.reshape(num * height, width, 3)
    return cv2.LUT(rows, table[None].astype(np.float32)).reshape(patches.shape)
