"""Settings of the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from assay.config import Settings
from assay.data.annotated import find_annotations


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings, section="data"):
    """Where the images are and what their names or columns mean."""

    root: Path | None = None
    """Folder of images, a table (CSV by commas, semicolons or tabs; Parquet) with one row per image, or annotations (JSON, or a folder of train.json, val.json and test.json); none: the embedded set."""
    patterns: Annotated[tuple[str, ...], MinLen(1)] = ("{label}/{name}",)
    """For folders: image paths below root without suffix, {field} for each part of the name."""
    leave_out: tuple[str, ...] = ()
    """For folders: folders below root that hold no images to learn from or judge (masks, say)."""
    image: str = "image"
    """For tables: the column with the image's path, absolute or relative to the table."""
    label: str = "label"
    """Field or column that holds the class; empty where masks hold the classes, or images bear no label."""
    group: tuple[str, ...] = ()
    """Fields or columns that together name the physical part; none: every image is its own part."""
    domains: tuple[str, ...] = ()
    """Fields or columns to report by, and to hold out (design, printer, exposure...)."""
    keep: tuple[str, ...] = ()
    """Further fields or columns that a task asks for (a second label, a time, a batch number)."""
    split: str = "split"
    """Field or column with a given set (train, val, test, test_seen, test_unseen), if there is one; empty: sets are drawn."""
    where: tuple[str, ...] = ()
    """For tables: keep rows with COLUMN=VALUE and COLUMN!=VALUE, e.g. kind=image exposure!=exp0."""
    white: Annotated[float, Ge(0), Le(1e38)] = 0.0
    """For images of more than 8 bits: the value that is shown as white, brighter ones too; 0: chosen by the largest value of the data, and said."""
    on_error: Literal["stop", "skip"] = "stop"
    """Unreadable images: stop, or skip (quarantined, counted and named in the run)."""
    page: Annotated[int, Ge(0), Le(1_000_000)] | None = None
    """Which image of files that hold several (stacks, animations), from 0; none: such are refused."""

    def idle(self) -> dict[str, str]:
        """Name settings without effect, by what stands at root."""
        if self.root is None:
            return {}
        if find_annotations(self.root):
            return dict.fromkeys(("patterns", "image"), "data.root are annotations")
        if self.root.is_dir():
            return {"image": "data.root is a folder"}
        return {"patterns": "data.root is a table"} if self.root.is_file() else {}
