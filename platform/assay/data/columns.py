"""Columns of the manifest: what names and cells say, each name in one spelling."""

from collections.abc import Mapping, Sequence

from assay.data.data_config import DataConfig
from assay.data.folder import ImageRow
from assay.data.spellings import compose, refuse_spellings
from assay.data.table import value_of
from assay.data.walk import show
from assay.errors import ManifestError


def make_columns(rows: Sequence[ImageRow], config: DataConfig) -> dict[str, list[str | None]]:
    """Make the columns of rows, but for their contents; see `assay.data.manifest` for what they are.

    Raises:
        ManifestError: no row has a field that is asked for, a label, group or domain says that there is
            no value or is written in two ways, or two groups read alike.
    """
    _refuse_unknown_split(rows, config.split)
    labels = [config.label] if config.label else []
    _refuse_missing(rows, config)
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


def _refuse_missing(rows: Sequence[ImageRow], config: DataConfig) -> None:
    names = set.intersection(*(set(row.fields) for row in rows))
    labels = (config.label,) if config.label else ()
    asked = {"label": labels, "group": config.group, "domains": config.domains, "keep": config.keep}
    for option, wanted in asked.items():
        for name in wanted:
            if name not in names:
                none = ", or '' where images bear no label" if option == "label" else ""
                raise ManifestError(
                    f"No field {name!r} in the images' names or columns; there are: {', '.join(sorted(names))}. Give one of these as --data.{option}{none}."
                )


def _refuse_no_value(field: str, places: Mapping[str, str]) -> None:
    """Refuse names of folders and files that say that there is no value, as a cell of a table would."""
    for value, place in places.items():
        if value_of(value) is None:
            raise ManifestError(
                f"{show(place)} has {value!r} as its {field}, which says that there is no value; rename it, or move it out of the data."
            )


def _groups(rows: Sequence[ImageRow], names: Sequence[str]) -> list[str]:
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


def _refuse_unknown_split(rows: Sequence[ImageRow], name: str) -> None:
    """Refuse a field of given sets that no image has, but for the default's, which need not be there."""
    if name in ("", DataConfig.split) or any(name in row.fields for row in rows):
        return
    raise ManifestError(
        f"data.split is {name!r}, and no image has such a field or column with a value; there are: {', '.join(sorted(rows[0].fields))}. Name one of "
        "them, or leave it empty to have sets drawn."
    )
