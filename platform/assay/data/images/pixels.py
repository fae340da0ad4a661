"""The handle by which training, judging and serving look at pixels."""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from assay.data.images.entry import remember
from assay.data.images.pyramid import ImagePyramid
from assay.data.images.store import Store
from assay.data.images.white import Range, White
from assay.shapes import UInt8

OPEN_ENTRIES = 256
"""Memory maps that one process keeps open."""


@dataclass(frozen=True)
class Survey:
    """What is known of the images without their pixels at full size."""

    signatures: UInt8[np.ndarray, "rows 32"]
    """For near-duplicates."""
    ranges: list[Range]
    """Of their values."""


@dataclass
class Pixels:
    """Read-only handle on the stored images and masks of a manifest's rows; small to pickle."""

    store: Store
    contents: list[str]
    masks: dict[str, list[str]] = field(default_factory=dict)
    white: White | None = None
    """Of images of more than 8 bits."""
    _open: "OrderedDict[str, ImagePyramid]" = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    _checked: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    """Which tiles of each entry's levels this process compared with their checksums."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind."""
        return self.__dict__ | {"_open": OrderedDict(), "_checked": {}}

    def __getitem__(self, row: int) -> ImagePyramid:
        """Return the stored image of a row."""
        return self._open_entry(self.contents[row])

    def mask(self, row: int, kind: str) -> UInt8[np.ndarray, "h w"]:
        """Return a row's mask of one kind: 0, or the number of a class, for every pixel."""
        return self._open_entry(self.masks[kind][row]).pixels[..., 0]

    def _open_entry(self, content: str) -> ImagePyramid:
        entry = self._open.get(content)
        if entry is None:
            entry = replace(self.store.open(content), white=self.white)
            self._checked[content] = remember(entry, self._checked.get(content))
            self._open[content] = entry
            if len(self._open) > OPEN_ENTRIES:
                self._open.popitem(last=False)
        return entry

    def survey(self) -> Survey:
        """Read what is known of every row's image without its pixels at full size."""
        signatures, ranges = [], []
        for row in range(len(self.contents)):
            entry = self[row]
            signatures.append(np.frombuffer(entry.signature, np.uint8))
            ranges.append(entry.range)
        return Survey(np.stack(signatures), ranges)
