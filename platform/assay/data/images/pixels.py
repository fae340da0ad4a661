"""The handle by which training, judging and serving look at pixels."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assay.data.images.decode import to_uint8
from assay.data.images.pyramid import ImagePyramid, cropped_signatures
from assay.data.images.store import Store
from assay.shapes import UInt8

OPEN_ENTRIES = 256
"""Memory maps that one process keeps open."""


@dataclass
class Pixels:
    """Read-only handle on the stored images and masks of a manifest's rows; small to pickle."""

    store: Store
    contents: list[str]
    masks: dict[str, list[str]] = field(default_factory=dict)
    _open: "OrderedDict[str, ImagePyramid]" = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind."""
        return self.__dict__ | {"_open": OrderedDict()}

    def __getitem__(self, row: int) -> ImagePyramid:
        """Return the stored image of a row."""
        return self._open_entry(self.contents[row])

    def mask(self, row: int, kind: str) -> UInt8[np.ndarray, "h w"]:
        """Return a row's mask of one kind: 0, or the number of a class, for every pixel."""
        return self._open_entry(self.masks[kind][row]).pixels[..., 0]

    def _open_entry(self, content: str) -> ImagePyramid:
        entry = self._open.get(content)
        if entry is None:
            entry = self.store.open(content)
            self._open[content] = entry
            if len(self._open) > OPEN_ENTRIES:
                self._open.popitem(last=False)
        return entry

    def signatures(self) -> UInt8[np.ndarray, "rows 32"]:
        """Return the near-duplicate signature of every row."""
        entries = (self[row] for row in range(len(self.contents)))
        return np.stack([np.frombuffer(entry.signature, np.uint8) for entry in entries])

    def cropped_signatures(self) -> UInt8[np.ndarray, "rows crops 32"]:
        """Return the signatures of every row without a margin, by which cropped copies are found."""
        levels = (self[row].levels[-1] for row in range(len(self.contents)))
        return np.stack([cropped_signatures(to_uint8(np.asarray(level))) for level in levels])
