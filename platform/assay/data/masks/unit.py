"""Coordinates of marks are pixels, and a file that gives them in per cent is told by where all of its marks lie.

Marks in per cent lie within 0 to 100 in both directions and, together, reach nearly 100. Marks in pixels
of larger images do so only by chance: the furthest of them ends anywhere, so that it ends between where it
does and 100, in both directions, with the chance (100 - x) / width * (100 - y) / height. One mark that
reaches further says that the file is in pixels.
"""

from collections.abc import Iterable

import numpy as np

from assay.data.masks.marks import Mark, MarkedImage
from assay.errors import MaskError

FULL = 100.0
"""What the far side of an image has for a coordinate in per cent."""

SLIP = 1.0
"""How far outside the image, in per cent, a corner may lie: hands slip."""

RARE = 1e-3
"""Chance below which marks in pixels are not believed to end where these do."""


def check_unit(images: Iterable[MarkedImage], file: str) -> int:
    """Return how many marks lie within 100 pixels of the corner of larger images, and may be in per cent; 0 if one does not.

    Images are asked for only until one has a mark that lies further off.

    Args:
        images: those of one file, or of files of one export.
        file: what errors call it.

    Raises:
        MaskError: the marks fill the range of per cent as those in pixels would not.
    """
    ends, sides = [], []
    for image in images:
        for points in filter(None, map(_points, image.marks)):
            corners = np.array(points)
            if corners.min() < -SLIP or corners.max() > FULL + SLIP:
                return 0
            ends.append(corners.max(axis=0))
            sides.append(image.size[::-1])
    if not ends:
        return 0
    side, end = np.mean(sides, axis=0), np.max(ends, axis=0)
    if (side <= FULL + SLIP).all():
        return 0
    chance = np.prod(np.minimum((FULL + SLIP - end) / side, 1))
    if end.max() > FULL / 2 and chance < RARE:
        raise MaskError(
            f"All {len(ends)} marks that were looked at in {file} lie within 0 and 100 and reach to {end[0]:.6g}, {end[1]:.6g} in images of {side[0]:.0f} x "
            f"{side[1]:.0f} pixels, as coordinates in per cent do; give them in pixels, or as run lengths or mask images if they are."
        )
    return len(ends)


def _points(mark: Mark) -> list[np.ndarray]:
    """Return the corners of a mark's polygons; none of run lengths, nor of what `draw` will refuse."""
    try:
        points = [pair for flat in mark.shape for pair in np.array(flat, float).reshape(-1, 2)]
    except (ValueError, TypeError, OverflowError):
        return []
    return points if np.isfinite(points).all() else []
