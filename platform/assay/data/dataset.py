"""What a task is given of the data: classes, truth, group, domains and kept columns by row; pixels and masks.

One object goes to a task's `__init__`, `order` and `prepare`, so that a domain, a group or a second
label is at hand wherever something is computed from rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from assay.data.images.pixels import Pixels
from assay.data.manifest import Manifest
from assay.errors import ConfigError
from assay.shapes import Int32, Int64


@dataclass(frozen=True)
class Column:
    """A text for every row, as the number of its value."""

    values: tuple[str, ...]
    """Distinct texts, sorted."""
    codes: Int32[np.ndarray, " rows"]
    """Index into `values` of each row."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Column":
        """Give the distinct texts numbers, in sorted order."""
        values = tuple(sorted(set(texts)))
        index = {value: code for code, value in enumerate(values)}
        return cls(values, np.array([index[text] for text in texts], dtype=np.int32))


@dataclass(frozen=True)
class Dataset:
    """The rows of a manifest as a task sees them; small to pickle."""

    classes: tuple[str, ...]
    """Names of the labels; empty where images bear none."""
    truth: Int32[np.ndarray, " rows"]
    """Index into `classes` of each row; 0 where images bear no label, or one that nobody may see."""
    mask_classes: tuple[str, ...]
    """Names of what masks mark; class i has value i + 1 in them. Empty where there are no masks."""
    group: Column
    """The physical part of each row."""
    domains: Mapping[str, Column]
    """Design, printer, exposure and the like, by name."""
    columns: Mapping[str, Column]
    """What `data.keep` names: a second label, a time, a batch number."""
    train: Int64[np.ndarray, " train"]
    """Row numbers of train, for what is fitted to them: weights of classes, constants."""
    pixels: Pixels
    """Images and masks by row."""
    unlabelled: Int64[np.ndarray, " unlabelled"] = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )
    """Row numbers of test images that training sees, without their labels (see `SplitConfig.unlabelled`)."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.truth)

    def domain(self, name: str) -> Column:
        """Return the domain column of a name; of none the only one there is.

        Raises:
            ConfigError: there is none, or it is not clear which.
        """
        names = list(self.domains)
        if not names:
            raise ConfigError(
                "The images have no domain, such as the printer or the line; "
                "name the part of their path or the column that tells it by --data.domains."
            )
        if name not in names and (name or len(names) > 1):
            raise ConfigError(
                f"domains.column is {name!r}, and the domains are {', '.join(names)}; name one of these."
            )
        return self.domains[name or names[0]]

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        pixels: Pixels,
        train: Int64[np.ndarray, " train"] | None = None,
        unlabelled: Int64[np.ndarray, " unlabelled"] | None = None,
    ) -> "Dataset":
        """Give the texts of a manifest numbers; without `train` nothing can be fitted, and labels of `unlabelled` are taken away."""
        none, truth = np.zeros(0, np.int64), manifest.truth.copy()
        unlabelled = none if unlabelled is None else unlabelled
        truth[unlabelled] = 0
        return cls(
            classes=tuple(manifest.classes),
            truth=truth,
            mask_classes=tuple(manifest.mask_classes),
            group=Column.of(manifest.column("group")),
            domains={
                name: Column.of(manifest.column(f"domain.{name}")) for name in manifest.domains
            },
            columns={
                name: Column.of(manifest.column(f"column.{name}")) for name in manifest.columns
            },
            train=none if train is None else train,
            pixels=pixels,
            unlabelled=unlabelled,
        )
