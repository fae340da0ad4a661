"""Mask files that a user gives: what values they hold, and what of them is marked.

A mask that would be misread marks nothing or everything and looks like a good one. So the values tell:
what is neither background nor a mark, nor the soft edge of one, is refused with the setting to give.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from assay.data.images.decode import Plane, Source, name, read, read_plane, traits
from assay.data.images.formats.samples import Traits
from assay.data.masks.rules import MaskConfig
from assay.errors import ImageError, MaskError
from assay.levels import VOID
from assay.shapes import Bool, Shaped, UInt8

MOST_VALUES = 8
"""Values of a mask that are told apart in what is counted and said; of more, the commonest."""

PLATEAU = 0.25
"""Share of the pixels between background and mark above which a few values are levels and no edges."""

SOLID = 0.7
"""The same for any number of values, as of one number for each part; edges enlarged eight times have .6."""

PICTURE = 0.5
"""Share of all pixels that are neither background nor mark above which a file is a picture and no mask."""

COLOURS = 0.1
"""Share of the marked pixels above which a second colour is one, and no fringe of the first; one of areas is in any case."""

HUE = 64
"""Levels of 255 by which colours of areas differ, each brought to full brightness, and are two."""

FAINT = 32
"""Levels of 255 under which JPEG leaves noise around a mark."""


def read_mask(source: Source, config: MaskConfig) -> UInt8[np.ndarray, "h w"]:
    """Read a given mask by `config.values`; what is marked in a binary or alpha mask is 1.

    Raises:
        MaskError: the file cannot be read, has no alpha channel, a value is no class, or its values
            are not what `config.values` says.
    """
    return read_given(source, config).mask


class GivenMask(NamedTuple):
    """A mask; the pixels of the commonest values of its file; whether its edges are soft; its marks too faint to count."""

    mask: UInt8[np.ndarray, "h w"]
    values: dict[int, int]
    is_soft: bool = False
    num_faint: int = 0


def read_given(source: Source, config: MaskConfig) -> GivenMask:
    """Read a given mask, and count what it holds.

    Raises:
        MaskError: as `read_mask`.
    """
    if config.values == "index":
        plane = _plane(source, "index")
        _check_lossless(source)
        _check_transparency(source, plane > 0)
        return GivenMask(_read_numbers(plane, source, config), _count(plane))
    if config.values == "alpha":
        plane = _plane(source, "alpha")
        if plane.min() == plane.max() == 255:
            raise MaskError(
                f"The alpha channel of the mask {name(source)} is 255 everywhere, so it is opaque and cuts nothing out; give "
                "--masks.values binary or index, or save it with transparency."
            )
        marked = plane > 128
    else:
        plane = _plane(source, "level")
        marked = plane > np.iinfo(plane.dtype).max // 2
        _check_colours(source, marked)
    is_soft = _check_levels(plane, marked, source, config.values)
    num_faint = _count_faint(plane, marked) if is_soft else 0
    return GivenMask(marked.astype(np.uint8), _count(plane), is_soft, num_faint)


def open_mask(path: Path, classes: Sequence[str]) -> UInt8[np.ndarray, "h w"]:
    """Read a mask that `prepare` wrote, or a person corrected.

    Raises:
        MaskError: the file cannot be read, a value is no class, a mark is transparent, as an eraser leaves it, values were changed by a
            compression, or a palette shows another mask than its numbers are.
    """
    plane = _plane(path, "index")
    _check_lossless(path)
    _check_transparency(path, plane > 0)
    is_palette = _traits(path).colour == "palette"
    if is_palette and ((plane > 0) != (_plane(path, "level") > 0)).any():
        raise MaskError(
            f"The mask {path} has a palette that is dark where its numbers mark, or light where they do not; save it as grey."
        )
    numbers = _take_numbers(np.where(plane == VOID, 0, plane), classes, path)
    numbers[plane == VOID] = VOID
    return numbers


def _plane(source: Source, plane: Literal["level", "index", "alpha"]) -> Plane:
    try:
        return read_plane(source, plane)
    except ImageError as error:
        said = str(error).replace("pass --data.page 0 for the first, or ", "")  # it is of images
        raise MaskError(
            f"{said} It is needed as a mask: mend it, or leave its image out."
        ) from None


def _traits(source: Source) -> Traits:
    try:
        return traits(source)
    except ImageError as error:
        raise MaskError(f"{error} Mend the file, or leave its image out.") from None


def _is_of_numbers(source: Source) -> bool:
    """Tell whether more than two entries of a palette are used, that are no levels of grey by their own numbers."""
    index = _plane(source, "index")
    return len(np.unique(index)) > 2 and not np.array_equal(index, _plane(source, "level"))


def _read_numbers(plane: Plane, source: Source, config: MaskConfig) -> UInt8[np.ndarray, "h w"]:
    """Take numbers of classes, and apart from them what nobody judged."""
    void = (plane == config.void) & (config.void > 0)
    if len(config.classes) == 1 and not config.void and {1, 255} <= {*np.unique(plane).tolist()}:
        raise MaskError(
            f"The mask {name(source)} holds the values 1 and 255, of which 255 commonly is the border that nobody judged; pass "
            "--masks.void 255 if it is, or save it as 0 or 1."
        )
    numbers = _take_numbers(np.where(void, 0, plane), config.classes, source)
    numbers[void] = VOID
    return numbers


def _take_numbers(plane: Plane, classes: Sequence[str], source: Source) -> UInt8[np.ndarray, "h w"]:
    """Take a plane of numbers of classes; of one class 255 is its number too."""
    if len(classes) == 1:
        plane = np.where(plane == 255, 1, plane)
    strange = plane[plane > len(classes)]
    if strange.size:
        allowed = ", ".join(f"{i} {name}" for i, name in enumerate(("background", *classes)))
        raise MaskError(
            f"The mask {name(source)} has the value {strange.min()} among {strange.size} pixels that are no class; allowed: {allowed}"
            f"{' (or 255)' * (len(classes) == 1)}. Redraw it with hard edges, set --masks.classes or --masks.values, or pass "
            f"--masks.void {strange.min()} if nobody judged these pixels."
        )
    return plane.astype(np.uint8)


def _check_lossless(source: Source) -> None:
    told = _traits(source)
    if told.is_lossy:
        raise MaskError(
            f"The mask {name(source)} is a lossy {told.format}, which does not keep numbers of classes exactly; save it as PNG, or give "
            "--masks.values binary if it is one of light and dark."
        )


def _check_levels(plane: Plane, marked: Bool[np.ndarray, "h w"], source: Source, kind: str) -> bool:
    """Tell soft edges (True) from levels that are something else.

    Raises:
        MaskError: nothing is marked though values are held, there are areas of a few levels between
            background and mark, or most pixels are neither.
    """
    top = int(plane.max())
    between = (plane > 0) & (plane < top)
    if top == 0:
        return False
    if not marked.any():
        raise MaskError(
            f"The mask {name(source)} holds the values {_shown(plane)} and marks nothing above {_half(plane, kind)}; give --masks.values "
            "index if they are numbers of classes (of one class, 1 and 255 both are it), or save what is marked as "
            f"{np.iinfo(plane.dtype).max}."
        )
    noise = FAINT * (int(np.iinfo(plane.dtype).max) // 255)
    clear = (plane > noise) & (plane < top - noise)
    if np.count_nonzero(clear) > PICTURE * plane.size:
        raise MaskError(
            f"The mask {name(source)} holds the values {_shown(plane)}, most of them neither background nor mark, so it is a picture or "
            "a map of probabilities; correct --masks.files, or save it with two levels."
        )
    flat = _flat(plane)
    is_level = np.count_nonzero(flat & between) > PLATEAU * np.count_nonzero(between)
    is_level &= len(np.unique(plane)) <= MOST_VALUES
    is_level |= _is_apart(plane, between, top)
    if is_level or np.count_nonzero(flat & clear) > SOLID * np.count_nonzero(clear):
        raise MaskError(
            f"The mask {name(source)} holds the values {_shown(plane)}, areas of more than two levels, and --masks.values is {kind!r}; "
            "give --masks.values index if they are numbers of classes, or save it with two levels."
        )
    return bool(between.any())


def _is_apart(plane: Plane, between: Bool[np.ndarray, "h w"], top: int) -> bool:
    """Tell whether a mask of one level between knows it where no mark is near: an edge never is, a thin mark of another kind is."""
    if len(np.unique(plane[between])) != 1:
        return False
    near = cv2.dilate((plane == top).astype(np.uint8), np.ones((3, 3), np.uint8))
    _, parts = cv2.connectedComponents(between.astype(np.uint8), connectivity=8)
    return np.unique(parts[between]).size > np.unique(parts[between & (near > 0)]).size


def _flat(pixels: Shaped[np.ndarray, "h w *c"]) -> Bool[np.ndarray, "h w *c"]:
    """Tell which pixels are as all around them."""
    box = np.ones((3, 3), np.uint8)
    return cv2.erode(pixels, box) == cv2.dilate(pixels, box)


def _count_faint(plane: Plane, marked: Bool[np.ndarray, "h w"]) -> int:
    """Count marks that nowhere reach the threshold."""
    visible = plane > FAINT * (int(np.iinfo(plane.dtype).max) // 255)
    num, numbers = cv2.connectedComponents(visible.astype(np.uint8), connectivity=8)
    return num - 1 - np.unique(numbers[marked]).size


def _check_colours(source: Source, marked: Bool[np.ndarray, "h w"]) -> None:
    """Refuse colours that are two kinds of marks, and transparency that says more than colour."""
    told = _traits(source)
    if told.colour == "palette" and _is_of_numbers(source):
        raise MaskError(
            f"The mask {name(source)} has a palette of which it uses more than two entries, so they are numbers of classes; give "
            "--masks.values index."
        )
    _check_transparency(source, np.ones_like(marked))
    if told.colour == "rgb":
        pixels = read(source)
        kinds = (pixels > np.iinfo(pixels.dtype).max // 2) @ np.array([1, 2, 4])
        is_flat = _flat(pixels).all(2) & marked
        num = np.sort(np.bincount(kinds[marked], minlength=8))
        if num[-2] > COLOURS * num.sum() or _has_hues(pixels[is_flat]):
            raise MaskError(
                f"The mask {name(source)} marks in more than one colour, and --masks.values {'binary'!r} knows one mark; save each kind "
                "as a file of its own ({kind}), or as grey numbers of classes with --masks.values index."
            )


def _has_hues(pixels: Shaped[np.ndarray, "n 3"]) -> bool:
    """Tell whether colours that are not black are more than one, however bright each is."""
    if not len(pixels):
        return False
    hues = pixels * (255.0 / pixels.max(1, keepdims=True))
    return bool(np.ptp(hues, axis=0).max() > HUE)


def _check_transparency(source: Source, looked_at: Bool[np.ndarray, "h w"]) -> None:
    if _traits(source).has_alpha and ((_plane(source, "alpha") < 255) & looked_at).any():
        raise MaskError(
            f"The mask {name(source)} has transparent pixels, whose colours are no marks; give --masks.values alpha, or save it "
            "without transparency."
        )


def _count(plane: Plane) -> dict[int, int]:
    """Count the pixels of the commonest values."""
    counts = np.bincount(plane.ravel())
    common = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    return {int(value): int(counts[value]) for value in sorted(common) if counts[value]}


def _shown(plane: Plane) -> str:
    values = np.unique(plane)
    more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
    return ", ".join(map(str, values[:MOST_VALUES].tolist())) + more


def _half(plane: Plane, kind: str) -> int:
    return 128 if kind == "alpha" else int(np.iinfo(plane.dtype).max) // 2
