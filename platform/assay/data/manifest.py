"""The manifest: one row per image, read from folders whose names speak or from a table.

Columns: `id` (unique, stable), `image` (path), `label`, `group` (the physical part: never crosses
sets), `split` (a set given by the data, or null), `content` (hash of the file's bytes, with the page that was chosen), one column
`domain.<name>` for each domain (design, printer, exposure, camera...), one `column.<name>` for each
that `data.keep` names, and for each kind of mask its path `mask.<kind>` and key `mask_content.<kind>`. Rows stand in the order of their ids, so that
the order of a table's rows decides nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from assay.config import fingerprint
from assay.data.annotated import find_annotations, read_annotations
from assay.data.columns import make_columns

# named again: what a task asks of its data it imports from here
from assay.data.data_config import DataConfig as DataConfig
from assay.data.folder import SPLITS, ImageRow, scan_folder
from assay.data.hashes import EMPTY, content_hashes
from assay.data.images.entry import MASK, entry_key
from assay.data.table_rows import table_rows
from assay.data.unasked import say_fields
from assay.data.walk import show, why_unreadable
from assay.errors import ManifestError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """A checked table of images; see the module's docstring for its columns."""

    table: pa.Table

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self.table.num_rows)

    @cached_property
    def classes(self) -> list[str]:
        """Labels in sorted order, in which a label's index is its truth; none where images bear none."""
        return sorted(set(self.column("label")) - {""})

    @cached_property
    def mask_classes(self) -> list[str]:
        """Names of what masks mark, in the order of their values; none where there are no masks."""
        names = (self.table.schema.metadata or {}).get(b"classes")
        return list(json.loads(names)) if names else []

    @property
    def masks(self) -> dict[str, list[str]]:
        """Keys of the masks in the store, by kind: `label` is trained on, `truth` judged by besides."""
        return {kind: self.column(f"mask_content.{kind}") for kind in self._names("mask_content.")}

    @property
    def files(self) -> dict[str, str]:
        """Path of each content that the store should hold, images and masks."""
        pairs = [("content", "image")]
        pairs += [(f"mask_content.{kind}", f"mask.{kind}") for kind in self.masks]
        files: dict[str, str] = {}
        for content, path in pairs:
            for key, file in zip(self.column(content), self.column(path), strict=True):
                files.setdefault(key, file)
        return files

    @property
    def domains(self) -> list[str]:
        """Names of the domain columns, without their prefix."""
        return self._names("domain.")

    @property
    def columns(self) -> list[str]:
        """Names of the further columns that `data.keep` asked for, without their prefix."""
        return self._names("column.")

    def _names(self, prefix: str) -> list[str]:
        names = self.table.column_names
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def column(self, name: str) -> list[str]:
        """Return one column as a list; for `split`, which may lack values, see `declared_sets`."""
        values: list[str] = self.table[name].to_pylist()
        return values

    @property
    def declared_sets(self) -> list[str | None]:
        """The set that the data names for each row, if any."""
        sets: list[str | None] = self.table["split"].to_pylist()
        return sets

    @cached_property
    def truth(self) -> np.ndarray:
        """Class index of each row (int32); 0 where images bear no label."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index.get(label, 0) for label in self.column("label")], dtype=np.int32)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Manifest":
        """Return a manifest of these rows."""
        return Manifest(self.table.take(pa.array(np.asarray(rows, dtype=np.int64))))

    def with_masks(
        self, masks: Mapping[str, Sequence[Path]], classes: Sequence[str], cache: Path
    ) -> "Manifest":
        """Return this manifest with masks of each kind, one per row; class i is value i + 1 in them."""
        table = self.table
        for kind, paths in masks.items():
            # a key of its own: a file may be an image here and a mask there
            keys = [f"{content}{MASK}" for content in content_hashes(paths, cache)]
            table = table.append_column(f"mask.{kind}", pa.array([str(path) for path in paths]))
            table = table.append_column(f"mask_content.{kind}", pa.array(keys))
        return Manifest(table.replace_schema_metadata({b"classes": json.dumps(list(classes))}))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the data: contents, labels, groups, domains and given sets, in this order.

        Paths do not enter, so that data may be moved; images without groups do by their ids.
        """
        names = [
            c for c in self.table.column_names if c not in ("image", "id") and c[:5] != "mask."
        ]
        what = {"schema": SCHEMA_VERSION, "columns": {n: self.table[n].to_pylist() for n in names}}
        return fingerprint(what | ({"classes": self.mask_classes} if self.masks else {}))


def read_manifest(config: DataConfig, cache: Path) -> Manifest:
    """Build the manifest that `config` describes; `cache` keeps content hashes between runs.

    Labels, groups, domains and kept columns are composed (NFC).

    Raises:
        ManifestError: the root is missing or empty, a name does not parse, a column or value is
            missing, a class has no image, two rows are the same file, a file is missing or cannot
            be read, a given set has an unknown name, a label, group or domain is written in two
            ways, or one content has two labels.
    """
    root, annotations = _find_root(config)
    if annotations and not config.group:
        config = replace(config, group=("group_id",))
    rows = sorted(_read_rows(root, annotations, config), key=lambda row: row.id)
    columns = make_columns(rows, config)
    hashes = content_hashes([row.image for row in rows], cache)
    columns["content"] = [entry_key(content, config.page) for content in hashes]
    manifest = Manifest(pa.table(columns))
    _check_sets(manifest)
    _refuse_two_labels(manifest)
    if config.label and len(manifest.classes) < 2:
        raise ManifestError(
            f"All {len(manifest)} images have the class {manifest.classes[0]!r}; at least two classes are needed, or --data.label '' where images bear no label."
        )
    return manifest


def _find_root(config: DataConfig) -> tuple[Path, list[Path]]:
    """Return the root and the files of its annotations, and refuse settings that cannot hold of it."""
    root = config.root
    reason = "is not given" if root is None else why_unreadable(root)
    if root is None or reason not in ("", "is a folder"):
        raise ManifestError(
            f"data.root is {root and show(root)}, which {reason}; give an existing folder or table."
        )
    annotations = find_annotations(root)
    if (reason or annotations) and config.where:
        raise ManifestError(
            f"data.where is {list(config.where)} and data.root {show(root)} is a folder or annotations; conditions are for tables: leave them "
            "out, or give a table."
        )
    if config.leave_out and (annotations or not reason):
        raise ManifestError(
            f"data.leave-out is {list(config.leave_out)} and data.root {show(root)} is a table or annotations; folders are left out of folders: "
            "give it none, and leave rows out by data.where."
        )
    return root, annotations


def _read_rows(root: Path, annotations: Sequence[Path], config: DataConfig) -> list[ImageRow]:
    if not annotations and not root.is_dir():
        return table_rows(root, config)
    if annotations:
        rows = read_annotations(annotations)
    else:
        rows = scan_folder(root, config.patterns, config.label, config.split, config.leave_out)
    say_fields(rows, config)
    return rows


def _check_sets(manifest: Manifest) -> None:
    for row, name in zip(manifest.column("id"), manifest.declared_sets, strict=True):
        if name is not None and name not in SPLITS:
            raise ManifestError(
                f"{row!r} has split {name!r}; allowed: {', '.join(SPLITS)}, or empty to have it drawn."
            )


def _refuse_two_labels(manifest: Manifest) -> None:
    """Refuse files of the same bytes and different labels; empty ones are merely damaged."""
    rows = [*zip(*map(manifest.column, ("content", "label", "id")), strict=True)]
    first: dict[str, tuple[str, str]] = {}
    pairs: dict[str, str] = {}
    for content, label, name in rows:
        other_label, other = first.setdefault(content, (label, name))
        if other_label != label and not content.startswith(EMPTY):
            pairs.setdefault(content, f"{other!r} ({other_label}) and {name!r} ({label})")
    if pairs:
        raise ManifestError(
            f"{len(pairs)} file content(s) have two labels, first {next(iter(pairs.values()))}, byte for byte the same; keep the "
            "right one of each."
        )
