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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from annotated_types import Ge, Le

from assay.config import Settings, fingerprint
from assay.data.hashes import content_hashes
from assay.data.images.decode import SUFFIXES
from assay.data.images.entry import MASK, entry_key
from assay.errors import ManifestError

SCHEMA_VERSION = 1


SPLITS = ("train", "val", "test", "test_seen", "test_unseen")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings, section="data"):
    """Where the images are and what their names or columns mean."""

    root: Path | None = None
    """Folder of images, or a .csv / .parquet table with one row per image; none: the embedded set."""
    patterns: tuple[str, ...] = ("{label}/{name}",)
    """For folders: image paths below root without suffix, {field} for each part of the name."""
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
    """Field or column with a given set (train, val, test, test_seen, test_unseen), if there is one."""
    where: tuple[str, ...] = ()
    """For tables: keep rows with COLUMN=VALUE and COLUMN!=VALUE, e.g. kind=image exposure!=exp0."""
    white: Annotated[float, Ge(0), Le(1e38)] = 0.0
    """For images of more than 8 bits: the value that is shown as white, brighter ones too; 0: chosen by the largest value of the data, and said."""
    on_error: Literal["stop", "skip"] = "stop"
    """Unreadable images: stop, or skip (quarantined, counted and named in the run)."""
    page: Annotated[int, Ge(0)] | None = None
    """Which image of files that hold several (stacks, animations), from 0; none: such are refused."""


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

    Raises:
        ManifestError: the root is missing or empty, a name does not parse, a column or value is
            missing, a class has no image, two rows are the same file, a file is missing, or a
            given set has an unknown name.
    """
    root = config.root
    if root is None or not root.exists():
        raise ManifestError(
            f"data.root is {str(root)!r}, which does not exist; give an existing folder or table."
        )
    rows = _scan_folder(root, config) if root.is_dir() else _read_table(root, config)
    rows.sort(key=lambda row: row["id"])
    columns = _columns(rows, config)
    hashes = content_hashes([Path(row["image"]) for row in rows], cache)
    columns["content"] = [entry_key(content, config.page) for content in hashes]
    manifest = Manifest(pa.table(columns))
    _check(manifest)
    if config.label and len(manifest.classes) < 2:
        raise ManifestError(
            f"All {len(manifest)} images have the class {manifest.classes[0]!r}; at least two classes are needed."
        )
    return manifest


def _pattern_regex(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    try:
        return re.compile(
            "".join(f"(?P<{p}>[^/]+?)" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
        )
    except re.error as error:
        raise ManifestError(
            f"data.patterns has {pattern!r} ({error}); give each {{field}} once, by a name of letters."
        ) from None


def _scan_folder(root: Path, config: DataConfig) -> list[dict[str, str]]:
    files = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )
    if not files:
        raise ManifestError(
            f"{root} holds no image ({', '.join(sorted(SUFFIXES))}); point data.root at a folder that does."
        )
    regexes = [_pattern_regex(p) for p in config.patterns]
    rows: list[dict[str, str]] = []
    strangers: list[str] = []
    for file in files:
        path = file.relative_to(root)
        name = path.with_suffix("").as_posix()
        first, _, rest = name.partition("/")
        declared = {config.split: first} if first in SPLITS else {}
        inner = rest if declared else name
        match = next(
            # a pattern that names the set itself sees the whole name
            (
                m
                for r in regexes
                if (m := r.fullmatch(name if config.split in r.groupindex else inner))
            ),
            None,
        )
        if match is None:
            strangers.append(name)
            continue
        rows.append(declared | match.groupdict() | {"id": path.as_posix(), "image": str(file)})
    if strangers:
        raise ManifestError(
            f"{len(strangers)} of {len(files)} images under {root} fit no pattern, first {strangers[0]!r}; "
            f"allowed: {' or '.join(config.patterns)}, with or without a first folder train, val or test. "
            "Rename or move them, or give --data.patterns."
        )
    _refuse_empty_classes(root, config, rows)
    return rows


def _refuse_empty_classes(root: Path, config: DataConfig, rows: list[dict[str, str]]) -> None:
    if not all(p.startswith("{" + (config.label or "?") + "}/") for p in config.patterns):
        return
    sets = [root / name for name in SPLITS if (root / name).is_dir()]
    labels = {row[config.label] for row in rows}
    folders = {d for top in (root, *sets) for d in top.iterdir() if d.is_dir()}
    for folder in sorted(folders.difference(sets)):
        if folder.name not in labels and not folder.name.startswith("."):
            raise ManifestError(
                f"The class folder {folder} holds no image; add images or remove the folder."
            )


def _read_table(path: Path, config: DataConfig) -> list[dict[str, str]]:
    conditions = [_condition(text) for text in config.where]
    labels = [config.label] if config.label else []
    needed = (config.image, *labels, *config.group, *config.domains, *config.keep)
    table = _open_table(path)
    optional = [config.split] if config.split in table.column_names else []
    columns = {
        name: _texts(path, table, name)
        for name in dict.fromkeys([*needed, *optional, *(column for column, _, _ in conditions)])
    }
    rows: list[dict[str, str]] = []
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        record = dict(zip(columns, values, strict=True))
        if any((record[column] == value) != wanted for column, wanted, value in conditions):
            continue
        missing = [name for name in needed if not record[name]]
        if missing:
            raise ManifestError(
                f"{path} row {number} has no value in column {missing[0]!r}; fill it in or leave the row out."
            )
        row = {name: value for name, value in record.items() if value}
        image = os.path.normpath(path.parent / row[config.image])
        inside = Path(image).is_relative_to(os.path.normpath(path.parent))
        # an absolute path below the table is the same image as a relative one
        row["id"] = os.path.relpath(image, path.parent) if inside else row[config.image]
        row["image"] = image
        rows.append(row)
    if not rows:
        raise ManifestError(
            f"{path} has no row left after data.where={list(config.where)}; loosen the conditions."
        )
    return rows


def _condition(text: str) -> tuple[str, bool, str]:
    """Read COLUMN=VALUE or COLUMN!=VALUE: the column, whether equality is wanted, and the value."""
    match = re.fullmatch(r"(.+?)(!?=)(.*)", text)
    if match is None:
        raise ManifestError(
            f"data.where has {text!r}; allowed: COLUMN=VALUE and COLUMN!=VALUE, such as kind=image."
        )
    return match[1], match[2] == "=", match[3]


def _open_table(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path)
        with pacsv.open_csv(path) as reader:
            names = reader.schema.names
        # as text: a serial number 007 must stay one
        as_text = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        return pacsv.read_csv(path, convert_options=as_text)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{path} cannot be read as a table ({error}); allowed: CSV with a header, or Parquet."
        ) from None


def _texts(path: Path, table: pa.Table, column: str) -> list[str | None]:
    if table.column_names.count(column) != 1:
        raise ManifestError(
            f"{path} must have one column {column!r}; it has: {', '.join(table.column_names)}."
        )
    try:
        texts: list[str | None] = pc.cast(table[column], pa.string()).to_pylist()
    except pa.ArrowException:
        raise ManifestError(
            f"{path} column {column!r} holds {table[column].type}; allowed: text, numbers or dates."
        ) from None
    return texts


def _columns(rows: list[dict[str, str]], config: DataConfig) -> dict[str, list[str | None]]:
    labels = [config.label] if config.label else []
    wanted = (*labels, *config.group, *config.domains, *config.keep)
    names = set.intersection(*(set(row) for row in rows))
    for name in wanted:
        if name not in names:
            raise ManifestError(
                f"No field {name!r} in the images' names or columns; there are: {', '.join(sorted(names))}."
            )
    columns: dict[str, list[str | None]] = {
        "id": [row["id"] for row in rows],
        "image": [row["image"] for row in rows],
        "label": [row[config.label] if config.label else "" for row in rows],
        "group": ["/".join(row[g] for g in config.group) or row["id"] for row in rows],
        "split": [row.get(config.split) for row in rows],
    }
    columns |= {f"domain.{name}": [row[name] for row in rows] for name in config.domains}
    return columns | {f"column.{name}": [row[name] for row in rows] for name in config.keep}


def _check(manifest: Manifest) -> None:
    doubled = [(i, n) for i, n in Counter(manifest.column("image")).items() if n > 1]
    if doubled:
        raise ManifestError(
            f"{len(doubled)} image(s) are listed more than once, first {doubled[0][0]!r} ({doubled[0][1]} times); "
            "list each image once."
        )
    for row, name in zip(manifest.column("id"), manifest.declared_sets, strict=True):
        if name is not None and name not in SPLITS:
            raise ManifestError(
                f"{row!r} has split {name!r}; allowed: {', '.join(SPLITS)}, or empty to have it drawn."
            )
