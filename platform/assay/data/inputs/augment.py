"""Augmentation, drawn in two parts that can be applied to small patches of a huge image.

Geometry is one affine matrix per image, so that flips, rotation, shift, zoom, fitting and cutting
compose into a single bilinear sampling of the source. Photometric changes are a few numbers drawn
per image, applied to whatever patches are cut (see `photometric`).

Matrices are float64 (2, 3) and map a pixel (x, y) of what is wanted to the pixel it is taken from;
pixel centres are at integer coordinates. A *canvas* is the square, zero-padded frame that every
image is fitted into.

    patch --crop_matrix--> canvas --Augment.matrix--> un-augmented canvas --fit--> source
"""

from dataclasses import dataclass
from math import cos, radians, sin
from typing import Annotated, Literal, get_args

import numpy as np
from annotated_types import Interval, Len

from assay.config import Settings, Share
from assay.data.images.affine import _about_centre, compose
from assay.errors import ConfigError
from assay.shapes import Float64

NoiseKind = Literal["gaussian", "salt_pepper"]


Noise = Literal["none", "gaussian", "salt_pepper"]


_NOISES: tuple[Noise, ...] = get_args(Noise)


_RANGES = ("scale", "brightness", "contrast", "gamma", "saturation", "resample")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings, section="augment"):
    """Ranges that `draw_augment` samples from; the defaults change nothing.

    A name ending in _p is the probability that its group of changes is applied to an image.
    """

    hflip: Share = 0.0
    """Probability of a left-right flip."""
    vflip: Share = 0.0
    """Probability of a top-bottom flip."""
    rotation_deg: Annotated[float, Interval(ge=0, le=360)] = 0.0
    """Largest rotation to either side, degrees."""
    rotation_p: Share = 0.0
    """Probability of a rotation."""
    translate: Share = 0.0
    """Largest shift along x and along y, fraction of the canvas side."""
    affine_translate: Share = 0.0
    """Largest second, independent shift (that of a random affine), fraction of the canvas side."""
    scale_low: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Smallest zoom about the centre; below 1 the image gets smaller."""
    scale_high: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Largest zoom about the centre."""
    scale_p: Share = 0.0
    """Probability of a zoom."""
    exposure_p: Share = 0.0
    """Probability of brightness, contrast, gamma and saturation changing together."""
    brightness_low: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Smallest factor on the pixel values."""
    brightness_high: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Largest factor on the pixel values."""
    contrast_low: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Smallest factor on the distance from the image's grey mean."""
    contrast_high: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Largest factor on the distance from the image's grey mean."""
    gamma_low: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Smallest exponent on pixel values in [0, 1]; below 1 brightens."""
    gamma_high: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Largest exponent on pixel values in [0, 1]."""
    saturation_low: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Smallest factor on the distance from each pixel's own grey."""
    saturation_high: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Largest factor on the distance from each pixel's own grey."""
    resample_p: Share = 0.0
    """Probability of resampling: below 1 down and up again, above 1 up and cut at the centre."""
    resample_low: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Smallest resampling factor."""
    resample_high: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Largest resampling factor."""
    noise_p: Share = 0.0
    """Probability of noise."""
    noise_max: Share = 0.0
    """Gaussian: largest standard deviation, in [0, 1]; salt and pepper: share of pixels hit."""
    noise_kinds: Annotated[tuple[NoiseKind, ...], Len(1)] = ("gaussian", "salt_pepper")
    """Kinds of noise, one of which is drawn per image."""

    def __post_init__(self) -> None:
        """Refuse ranges that are empty."""
        super().__post_init__()
        for name in _RANGES:
            low, high = self.range(name)
            if low > high:
                raise ConfigError(
                    f"augment.{name}-low is {low} and augment.{name}-high {high}; give low <= high."
                )

    def idle(self) -> dict[str, str]:
        """Name settings without effect: probabilities of what changes nothing, and amounts of what is never drawn."""
        names: dict[str, str] = {}
        exposure = ("brightness", "contrast", "gamma", "saturation")
        for group, ranges in (
            ("scale", ("scale",)),
            ("exposure", exposure),
            ("resample", ("resample",)),
        ):
            ends = [f"{name}_{end}" for name in ranges for end in ("low", "high")]
            if all(self.range(name) == (1.0, 1.0) for name in ranges):
                names[f"{group}_p"] = (
                    f"augment.{ends[0].replace('_', '-')} to {ends[-1].replace('_', '-')} are 1"
                )
            if not getattr(self, f"{group}_p"):
                names |= dict.fromkeys(ends, f"augment.{group}-p is 0")
        if not self.rotation_p:
            names["rotation_deg"] = "augment.rotation-p is 0"
        if not self.rotation_deg:
            names["rotation_p"] = "augment.rotation-deg is 0"
        if not self.noise_p:
            names |= dict.fromkeys(("noise_max", "noise_kinds"), "augment.noise-p is 0")
        if not self.noise_max:
            names |= dict.fromkeys(("noise_p", "noise_kinds"), "augment.noise-max is 0")
        return names

    def range(self, name: str) -> tuple[float, float]:
        """Return the lowest and highest value of one of the drawn factors."""
        return getattr(self, f"{name}_low"), getattr(self, f"{name}_high")


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

    @property
    def is_geometric(self) -> bool:
        """No pixel's value is changed, only its place."""
        factors = (self.brightness, self.contrast, self.gamma, self.saturation, self.resample)
        return self.noise == "none" and all(factor == 1 for factor in factors)

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


def draw_augment(config: AugmentConfig, canvas: int, rng: np.random.Generator) -> Augment:
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
