"""The input of self-supervision: several crops of one image, each changed in its own way.

Crops are cut from the image's pyramid at the resolution that they need, so that a small crop of a
huge image shows its finest structure. Area, ratio and changes are those of DINOv2 (Oquab et al.
2023) by default. The first large crop may be of one image and the others of another of the same part.
"""

from dataclasses import dataclass
from math import exp, log
from typing import Annotated

import numpy as np
from annotated_types import Interval

from assay.config import Settings, Share
from assay.data.images.pyramid import ImagePyramid
from assay.data.inputs.image import ImageConfig, ImageInput
from assay.data.inputs.transforms import change_colours
from assay.errors import ConfigError
from assay.shapes import Float64, UInt8

AreaShare = Annotated[float, Interval(gt=0, le=1)]
"""A part of an image that is not empty."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Settings, section="views"):
    """How many crops an image gives, how large, and how much they are changed."""

    num_global: Annotated[int, Interval(ge=1, le=100)] = 2
    """Crops that show much of the image."""
    num_local: Annotated[int, Interval(ge=0, le=100)] = 8
    """Crops that show little of it."""
    global_px: Annotated[int, Interval(ge=8, le=8192)] = 224
    """Side of the first (pixels)."""
    local_px: Annotated[int, Interval(ge=8, le=8192)] = 98
    """Side of the others (pixels)."""
    global_area: tuple[AreaShare, AreaShare] = (0.32, 1.0)
    """Least and largest share of the image's area in the first; of a long image, as far as `ratio` allows."""
    local_area: tuple[AreaShare, AreaShare] = (0.05, 0.32)
    """The same in the others."""
    ratio: Annotated[float, Interval(ge=1, le=10)] = 4 / 3
    """Largest ratio of a crop's sides in the image, either way."""
    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    vflip: Share = 0.0
    """Probability of a vertical flip."""
    degrees: Annotated[float, Interval(ge=0, le=180)] = 0.0
    """Rotation of a crop by up to this either way (degrees), for parts that lie as they fall; beyond the image its edge repeats."""
    jitter: Share = 0.8
    """Probability of changed brightness, contrast, saturation and hue."""
    grey: Share = 0.2
    """Probability of a crop without colour."""
    blur: Share = 0.5
    """Probability of a blurred small crop."""
    blur_global: tuple[Share, Share] = (1.0, 0.1)
    """The same of the first large crop, and of each further one."""
    solarise: Share = 0.2
    """Probability that a further large crop has its bright half inverted."""
    cross_view: Share = 0.0
    """Probability that the further large crops are of another image of the same part, where train has one."""

    def __post_init__(self) -> None:
        """Refuse areas that are empty."""
        super().__post_init__()
        for name in ("global_area", "local_area"):
            low, high = getattr(self, name)
            if low > high:
                option = f"views.{name.replace('_', '-')}"
                raise ConfigError(f"{option} goes from {low} to {high}; give the smaller first.")

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        names: dict[str, str] = {}
        if not self.num_local:
            names |= dict.fromkeys(("local_px", "local_area", "blur"), "views.num-local is 0")
        if self.num_global == 1:
            names |= dict.fromkeys(("solarise", "cross_view"), "views.num-global is 1")
        return names


class ViewInput:
    """Draws the crops of an image.

    Args:
        config: their numbers, sizes and changes.
        frame: says which part of an image is looked at; left out: all of it.
    """

    def __init__(self, config: ViewConfig, frame: ImageInput | None = None) -> None:
        self.config, self.frame = config, frame or ImageInput(ImageConfig())

    def draw(
        self, pyramid: ImagePyramid, key: int, partner: ImagePyramid | None = None
    ) -> tuple[UInt8[np.ndarray, "g s s 3"], UInt8[np.ndarray, "l t t 3"]]:
        """Draw the large and the small crops of an image, a function of images and key alone.

        Args:
            pyramid: The image.
            key: Of what is drawn.
            partner: Another image of the part, of which the large crops after the first are.
        """
        config, rng = self.config, np.random.default_rng(key)
        first, further = config.blur_global
        large = [self._crop(pyramid, config.global_px, config.global_area, rng, first, 0.0)]
        for _ in range(config.num_global - 1):
            image, colours = partner or pyramid, (further, config.solarise)
            large.append(self._crop(image, config.global_px, config.global_area, rng, *colours))
        small = [
            self._crop(pyramid, config.local_px, config.local_area, rng, config.blur, 0.0)
            for _ in range(config.num_local)
        ]
        empty = np.zeros((0, config.local_px, config.local_px, 3), np.uint8)
        return np.stack(large), np.stack(small) if small else empty

    def _crop(
        self,
        pyramid: ImagePyramid,
        side: int,
        area: tuple[float, float],
        rng: np.random.Generator,
        blur: float,
        solarise: float,
    ) -> UInt8[np.ndarray, "s s 3"]:
        """Cut a box of random area, ratio and place, turn and flip it, and change its colours."""
        config, (left, top, right, bottom) = self.config, self.frame.looked_at(pyramid)
        height, width = int(bottom - top), int(right - left)
        share, ratio = rng.uniform(*area), exp(rng.uniform(-1, 1) * log(config.ratio))
        box = _box(height, width, share, ratio, config.ratio)
        start = rng.random(2) * ((width, height) - box)
        flips = np.where(rng.random(2) < (config.hflip, config.vflip), -1, 1)
        linear = np.diag(flips * box / side)
        if config.degrees:  # an unturned crop draws as many numbers as it ever did
            angle = np.deg2rad(rng.uniform(-1, 1) * config.degrees)
            sine, cosine = np.sin(angle), np.cos(angle)
            linear = np.array([[cosine, -sine], [sine, cosine]]) @ linear
        # the middle of the crop is the middle of the box; pixels' centres lie half a pixel off their edges
        middle = (left, top) + start + box / 2 - 0.5
        matrix = np.column_stack([linear, middle - linear.sum(1) * (side - 1) / 2])
        crop = np.ascontiguousarray(pyramid.view(matrix, side, side, repeat_edge=True))
        seed = int(rng.integers(1 << 31))
        return change_colours(crop, config.jitter, config.grey, blur, solarise, seed)


def _box(
    height: int, width: int, share: float, ratio: float, max_ratio: float
) -> Float64[np.ndarray, "2"]:
    """Return width and height of a box with this share of an image's area, its ratio changed until it fits.

    Where no box within the largest ratio has that area, as in a long and narrow image, it is as
    large as the image allows.
    """
    aspect = width / height
    ratio = min(max(ratio, share * aspect), aspect / share)
    ratio = min(max(ratio, 1 / max_ratio), max_ratio)
    box = np.sqrt(share * width * height * np.array([ratio, 1 / ratio]))
    fitted: np.ndarray = box * min(1.0, width / box[0], height / box[1])
    return fitted
