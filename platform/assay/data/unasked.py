"""Columns and fields that no setting asks for, and may give sets or parts."""

from collections.abc import Sequence
from contextlib import suppress

from assay.data.data_config import DataConfig
from assay.data.folder import ImageRow
from assay.data.hints import say_hints, seem_named
from assay.data.table import Table, read_table
from assay.data.walk import show
from assay.errors import ManifestError


def say_columns(
    table: Table, chosen: Sequence[int], rows: Sequence[ImageRow], config: DataConfig
) -> None:
    """Say which columns of a table seem to give sets or parts, by the cells of its chosen rows."""
    columns = {}
    for name in table.names:
        if name not in table.columns and table.names.count(name) == 1 and seem_named(name):
            with suppress(ManifestError):  # what cannot be read gives neither
                cells = read_table(table.path, (name,)).columns[name]
                columns[name] = [cells[row] or "" for row in chosen]
    say_hints(show(table.path), columns, _drawn(config, rows), not config.group)


def say_fields(rows: Sequence[ImageRow], config: DataConfig) -> None:
    """Say which fields of names or entries seem to give sets or parts."""
    asked = {config.label, config.split, *config.group, *config.domains, *config.keep}
    names = [name for name in rows[0].fields if name not in asked and seem_named(name)]
    columns = {name: [row.fields.get(name, "") for row in rows] for name in names}
    say_hints(show(str(config.root)), columns, _drawn(config, rows), not config.group)


def _drawn(config: DataConfig, rows: Sequence[ImageRow]) -> list[str]:
    """Return the ids of images, where no setting and no name gives them sets."""
    is_given = config.split != DataConfig.split or any(config.split in row.fields for row in rows)
    return [] if is_given else [row.id for row in rows]
