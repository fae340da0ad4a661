"""The manifest: one row per image, read from folders whose names speak or from a table.

Columns: `id` (unique, stable), `image` (path), `label`, `group` (the physical part: never crosses
sets), `split` (a set given by the data, or null), `content` (hash of the file's bytes, with the page that was chosen), one column
`domain.<name>` for each domain (design, printer, exposure, camera...), one `column.<name>` for each
that `data.keep` names, and for each kind of mask its path `mask.<kind>` and key `mask_content.<kind>`. Rows stand in the order of their ids, so that
the order of a table's rows decides nothing.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le, MinLen

from assay.config import Settings, fingerprint
from assay.data.annotated import find_annotations, read_annotations
from assay.data.folder import SPLITS, ImageRow, scan_folder
from assay.data.hashes import EMPTY, content_hashes
from assay.data.hints import say_hints, seem_named
from assay.data.images.entry import MASK, entry_key
from assay.data.spellings import compose, fold_name, refuse_spellings
from assay.data.table import Table, read_table, value_of
from assay.data.walk import show, why_unreadable
from assay.errors import ManifestError

SCHEMA_VERSION = 1


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
    """Field or column that holds the class; empty where masks hold the classes."""
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
    if annotations:
        rows = read_annotations(annotations)
        config = config if config.group else replace(config, group=("group_id",))
    elif reason:
        rows = scan_folder(root, config.patterns, config.label, config.split, config.leave_out)
    else:
        rows = _table_rows(root, config)
    if annotations or reason:
        _say_unasked(config, rows)
    rows.sort(key=lambda row: row.id)
    _refuse_unknown_split(rows, config.split)
    columns = _columns(rows, config)
    hashes = content_hashes([row.image for row in rows], cache)
    columns["content"] = [entry_key(content, config.page) for content in hashes]
    manifest = Manifest(pa.table(columns))
    _check_sets(manifest)
    _refuse_two_labels(manifest)
    if config.label and len(manifest.classes) < 2:
        raise ManifestError(
            f"All {len(manifest)} images have the class {manifest.classes[0]!r}; at least two classes are needed."
        )
    return manifest


def _table_rows(path: Path, config: DataConfig) -> list[ImageRow]:
    conditions = [_condition(text) for text in config.where]
    labels = [config.label] if config.label else []
    needed = (config.image, *labels, *config.group, *config.domains, *config.keep)
    asked = (*needed, *(column for column, _, _ in conditions))
    table = read_table(path, asked, (config.split,) if config.split else ())
    for column, _, value in conditions:
        _refuse_twins(table, column, value)
    chosen = [
        row
        for row in range(len(table))
        if all(
            (compose(table.columns[column][row] or "") == value) == wanted
            for column, wanted, value in conditions
        )
    ]
    if not chosen:
        raise ManifestError(
            f"{show(path)} has {len(table)} row(s) and no row left after data.where={list(config.where)}; add rows, or loosen "
            "the conditions."
        )
    rows: list[ImageRow] = []
    for row, image in zip(chosen, table.images(config.image, chosen), strict=True):
        fields = {name: cell for name, cells in table.columns.items() if (cell := cells[row])}
        for name in needed:
            if name not in fields:
                raise table.refusal(row, name)
        if reason := why_unreadable(image):
            raise ManifestError(
                f"{table.place(row)} names the image {show(image)}, which {reason}; give paths, absolute or relative to the "
                "table."
            )
        rows.append(ImageRow(_id_of(image, fields[config.image], path), image, fields))
    columns = _columns_not_read(table, chosen)
    say_hints(show(path), columns, _drawn(config, rows), not config.group)
    return rows


def _columns_not_read(table: Table, rows: Sequence[int]) -> dict[str, list[str]]:
    """Read what no setting asks for and may give sets or parts; what cannot be read gives neither."""
    columns = {}
    for name in table.names:
        if name not in table.columns and table.names.count(name) == 1 and seem_named(name):
            with suppress(ManifestError):
                cells = read_table(table.path, (name,)).columns[name]
                columns[name] = [cells[row] or "" for row in rows]
    return columns


def _say_unasked(config: DataConfig, rows: list[ImageRow]) -> None:
    """Say which fields of names or entries seem to give sets or parts, and are not asked for."""
    asked = {config.label, config.split, *config.group, *config.domains, *config.keep}
    names = [name for name in rows[0].fields if name not in asked and seem_named(name)]
    columns = {name: [row.fields.get(name, "") for row in rows] for name in names}
    say_hints(show(str(config.root)), columns, _drawn(config, rows), not config.group)


def _drawn(config: DataConfig, rows: list[ImageRow]) -> list[str]:
    """Return the ids of images, where no setting and no name gives them sets."""
    is_given = config.split != DataConfig.split or any(config.split in row.fields for row in rows)
    return [] if is_given else [row.id for row in rows]


def _refuse_twins(table: Table, column: str, value: str) -> None:
    """Refuse cells that a condition may mean, and does not say."""
    places = {compose(cell or ""): row for row, cell in enumerate(table.columns[column])}
    if value and value not in places:  # every row has a value: that may well be asked for
        print(
            f"data.where names {column}={value}, which no row of {show(table.path)} has.",
            file=sys.stderr,
        )
    twins = {
        name: table.place(row)
        for name, row in places.items()
        if fold_name(name) == fold_name(value)
    }
    refuse_spellings(f"column {column!r} of data.where", {value: "data.where"} | twins)


def _id_of(image: Path, name: str, table: Path) -> str:
    """Name an image by its path from the table, unless it is given by an absolute path elsewhere.

    An absolute path below the table is the same image as a relative one.
    """
    folder = os.path.normpath(table.parent)
    if os.path.isabs(name) and not image.is_relative_to(folder):
        return name
    return Path(os.path.relpath(image, folder)).as_posix()


def _condition(text: str) -> tuple[str, bool, str]:
    """Read COLUMN=VALUE or COLUMN!=VALUE: the column, whether equality is wanted, and the value."""
    match = re.fullmatch(r"(.+?)(!?=)(.*)", text)
    if match is None:
        raise ManifestError(
            f"data.where has {text!r}; allowed: COLUMN=VALUE and COLUMN!=VALUE, such as kind=image."
        )
    return match[1], match[2] == "=", compose(match[3])


def _columns(rows: list[ImageRow], config: DataConfig) -> dict[str, list[str | None]]:
    labels = [config.label] if config.label else []
    wanted = (*labels, *config.group, *config.domains, *config.keep)
    names = set.intersection(*(set(row.fields) for row in rows))
    for name in wanted:
        if name not in names:
            raise ManifestError(
                f"No field {name!r} in the images' names or columns; there are: {', '.join(sorted(names))}."
            )
    for name in (*labels, *config.group, *config.domains):
        _refuse_no_value(name, {row.fields[name]: row.id for row in rows})
    # the prefix of a column, and the field that it is made of
    sources = [("label", name) for name in labels]
    sources += [(f"domain.{name}", name) for name in config.domains]
    sources += [(f"column.{name}", name) for name in config.keep]
    fields = {column: [row.fields[name] for row in rows] for column, name in sources}
    groups = _groups(rows, config.group)
    for column, cells in fields.items():
        if not column.startswith("column."):
            places = {cell: row.id for cell, row in zip(cells, rows, strict=True)}
            refuse_spellings(column.replace("domain.", "domain "), places)
    columns: dict[str, list[str | None]] = {
        "id": [row.id for row in rows],
        "image": [str(row.image) for row in rows],
        "label": [""] * len(rows),
        "group": [*groups],
        "split": [row.fields.get(config.split) for row in rows],
    }
    return columns | {column: [*map(compose, cells)] for column, cells in fields.items()}


def _refuse_no_value(field: str, places: Mapping[str, str]) -> None:
    """Refuse names of folders and files that say that there is no value, as a cell of a table would."""
    for value, place in places.items():
        if value_of(value) is None:
            raise ManifestError(
                f"{show(place)} has {value!r} as its {field}, which says that there is no value; rename it, or move it out of the data."
            )


def _groups(rows: list[ImageRow], names: Sequence[str]) -> list[str]:
    """Name the part of each row; without names of fields every image is its own."""
    if not names:
        return [row.id for row in rows]
    parts = {tuple(row.fields[name] for name in names): row for row in rows}
    first: dict[str, tuple[str, ...]] = {}
    for part in parts:
        other = first.setdefault("/".join(part), part)
        if other != part:
            raise ManifestError(
                f"The groups {list(other)} and {list(part)} of {', '.join(names)} are both {'/'.join(part)!r}; write one of them "
                "otherwise."
            )
    refuse_spellings("group", {name: parts[part].id for name, part in first.items()})
    return [compose("/".join(row.fields[name] for name in names)) for row in rows]


def _refuse_unknown_split(rows: list[ImageRow], name: str) -> None:
    """Refuse a field of given sets that no image has, but for the default's, which need not be there."""
    if name in ("", DataConfig.split) or any(name in row.fields for row in rows):
        return
    raise ManifestError(
        f"data.split is {name!r}, and no image has such a field or column with a value; there are: {', '.join(sorted(rows[0].fields))}. Name one of "
        "them, or leave it empty to have sets drawn."
    )


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
