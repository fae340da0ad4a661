"""Rows of a table of images: which rows, and whose images."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from assay.data.data_config import DataConfig
from assay.data.folder import ImageRow
from assay.data.spellings import compose, fold_name, refuse_spellings
from assay.data.table import Table, read_table
from assay.data.unasked import say_columns
from assay.data.walk import show, why_unreadable
from assay.errors import ManifestError

Condition = tuple[str, bool, str]
"""A column, whether it is to hold the value, and the value."""


def table_rows(path: Path, config: DataConfig) -> list[ImageRow]:
    """List the images of a table that the conditions keep, with the cells that were asked for.

    Raises:
        ManifestError: as `read_table`, no row is kept, a kept row lacks a value or is listed twice,
            its image is no file, or a condition is none or may mean cells of another spelling.
    """
    conditions = [_condition(text) for text in config.where]
    labels = [config.label] if config.label else []
    needed = (config.image, *labels, *config.group, *config.domains, *config.keep)
    asked = (*needed, *(column for column, _, _ in conditions))
    table = read_table(path, asked, (config.split,) if config.split else ())
    for column, _, value in conditions:
        _refuse_twins(table, column, value)
    chosen = [row for row in range(len(table)) if _meets(table, row, conditions)]
    if not chosen:
        raise ManifestError(
            f"{show(path)} has {len(table)} row(s) and no row left after data.where={list(config.where)}; add rows, or loosen "
            "the conditions."
        )
    images = table.images(config.image, chosen)
    rows = [
        _image_row(table, row, image, config.image, needed)
        for row, image in zip(chosen, images, strict=True)
    ]
    say_columns(table, chosen, rows, config)
    return rows


def _image_row(table: Table, row: int, image: Path, column: str, needed: Sequence[str]) -> ImageRow:
    fields = {name: cell for name, cells in table.columns.items() if (cell := cells[row])}
    for name in needed:
        if name not in fields:
            raise table.refusal(row, name)
    if reason := why_unreadable(image):
        raise ManifestError(
            f"{table.place(row)} names the image {show(image)}, which {reason}; give paths, absolute or relative to the "
            "table."
        )
    return ImageRow(_id_of(image, fields[column], table.path), image, fields)


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


def _condition(text: str) -> Condition:
    """Read COLUMN=VALUE or COLUMN!=VALUE."""
    match = re.fullmatch(r"(.+?)(!?=)(.*)", text)
    if match is None:
        raise ManifestError(
            f"data.where has {text!r}; allowed: COLUMN=VALUE and COLUMN!=VALUE, such as kind=image."
        )
    return match[1], match[2] == "=", compose(match[3])


def _meets(table: Table, row: int, conditions: Sequence[Condition]) -> bool:
    return all(
        (compose(table.columns[column][row] or "") == value) == wanted
        for column, wanted, value in conditions
    )
