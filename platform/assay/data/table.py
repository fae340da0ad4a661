"""Tables that list images: CSV with commas, semicolons (Excel in Europe) or tabs, and Parquet.

Every cell is text, so that 007 stays one, or no value: null, NaN, and what spreadsheets and programs
write for them. Training, sweeps and `assay predict` all read through `read_table`.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assay.data.spellings import drop_unseen, fold_name
from assay.data.walk import show, why_unreadable
from assay.errors import ManifestError

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
"""Of files that are taken for tables where they stand beside images."""

NO_VALUE = {
    *("", "nan", "-nan", "null", "(null)", "\\n", "nat", "n/a", "<na>", "#na", "#n/a", "#n/a n/a"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "?", "--", "---"),
}
"""Texts, in small letters, that say that there is no value. NA, None and none are values: a country, a class."""

SHEET_ERRORS = {"#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#SPILL!", "#CALC!"}
"""What a spreadsheet writes where a formula failed: there was a value, and it is lost."""

_LISTED = 30
"""Names of columns in a sentence."""

Cells = list[str | None]


@dataclass(frozen=True)
class Table:
    """The columns of a table that were asked for."""

    path: Path
    columns: dict[str, Cells]
    lines: list[int] | None = None
    """Line of the file in which each row begins; none for Parquet."""
    names: tuple[str, ...] = ()
    """All columns of the file."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values())))

    def place(self, row: int) -> str:
        """Name a row (from 0) as a person finds it."""
        line = f" (line {self.lines[row]})" if self.lines else ""
        return f"{show(self.path)} row {row + 1}{line}"

    def images(self, column: str, rows: Sequence[int]) -> list[Path]:
        """Resolve paths, absolute or relative to the table; whether there are such files is not asked.

        Raises:
            ManifestError: a row has none, or two rows have one file.
        """
        first: dict[str, int] = {}
        again: list[tuple[int, str]] = []
        for row in rows:
            name = self.columns[column][row]
            if name is None:
                raise self.refusal(row, column)
            path = _resolve(name, str(self.path.parent))
            if first.setdefault(path, row) != row:
                again.append((row, path))
        if again:
            row, path = again[0]
            times = 1 + sum(other == path for _, other in again)
            raise ManifestError(
                f"{len({path for _, path in again})} image(s) are listed more than once, first {path!r} ({times} times, "
                f"{self.place(first[path])} and row {row + 1}); list each image once."
            )
        return [*map(Path, first)]

    def refusal(self, row: int, column: str) -> ManifestError:
        """Return the error of a row that lacks a value."""
        return ManifestError(
            f"{self.place(row)} has no value in column {column!r}; fill it in or leave the row out."
        )


def read_table(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read some columns of a table.

    Args:
        path: the file; Parquet by its first bytes or its suffix, else CSV with a header.
        needed: columns that must be there, once.
        optional: columns that may be missing.

    Raises:
        ManifestError: the file cannot be read, is no such table, or lacks a column; names the line.
    """
    reason = why_unreadable(path)
    if reason:
        raise ManifestError(f"{show(path)} {reason}; give a table (CSV or Parquet).")
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1" or path.suffix.lower() == ".parquet"
        read = _read_parquet if is_parquet else _read_csv
        table = read(path, needed, optional)
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ManifestError(
            f"{show(path)} cannot be read as a table ({reason}); allowed: CSV with a header, or Parquet."
        ) from None
    for name, cells in table.columns.items():
        failed = next((row for row, cell in enumerate(cells) if cell in SHEET_ERRORS), None)
        if failed is not None:
            raise ManifestError(
                f"{table.place(failed)} has {cells[failed]} in column {name!r}, where a formula of the spreadsheet failed; mend it "
                "there, and save the table again."
            )
    return table


def _choose(
    path: Path, names: Sequence[str], needed: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    """Return the place of each column asked for."""
    for name in needed:
        if names.count(name) != 1:
            raise ManifestError(
                f"{show(path)} must have one column {name!r}; it has: {_list(names)}."
            )
    for name in optional:
        twins = [other for other in names if fold_name(other) == fold_name(name)]
        if name not in names and twins:
            raise ManifestError(
                f"{show(path)} has a column {twins[0]!r} and none {name!r}, and may mean it; rename the column, or give its name as it stands."
            )
    wanted = dict.fromkeys((*needed, *(name for name in optional if name in names)))
    for name in wanted:
        if names.count(name) > 1:
            raise ManifestError(
                f"{show(path)} has {names.count(name)} columns {name!r}; rename all but one: {_list(names)}."
            )
    return {name: names.index(name) for name in wanted}


def _list(names: Sequence[str]) -> str:
    shown = [n if n.isprintable() and n == n.strip() != "" else repr(n) for n in names[:_LISTED]]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(shown) + more


def value_of(cell: str) -> str | None:
    """Return what a cell holds; None where it says that there is no value, or nothing that can be seen."""
    return None if drop_unseen(cell).strip().lower() in NO_VALUE else cell


def _resolve(name: str, folder: str) -> str:
    """Return a path without . and .., read as the system reads it; a table from Windows may have backslashes."""
    path = os.path.join(folder, name)
    if "\\" in name and not os.path.lexists(path):
        path = os.path.join(folder, name.replace("\\", "/"))
    plain = os.path.normpath(path)
    # behind a link .. leads elsewhere than its text says
    is_other = ".." in path and os.path.realpath(plain) != os.path.realpath(path)
    return os.path.realpath(path) if is_other and os.path.exists(path) else plain


# CSV


def _read_csv(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Table:
    text, line = _decode(path.read_bytes()), 1
    if re.match(r'\s*[\[{]\s*["\[{]', text):
        raise ValueError("it is JSON; save its rows as CSV UTF-8")
    declared = re.match(r'"?sep=([,;\t|])"?(\r\n|\r|\n)', text)  # Excel's own first line
    if declared:
        text, line = text[declared.end() :], 2
    separators = declared[1] if declared else _separators(path)

    def fit(separator: str) -> tuple[int, int]:
        """Count the columns asked for, and all columns, in the header that a separator makes."""
        try:
            _, header = next(_records(text, separator, line))
        except (csv.Error, ValueError, StopIteration):
            return 0, 0
        return len({*header} & {*needed}), len(header)

    separator = max(separators, key=fit)
    records = _records(text, separator, line)
    _, header = next(records, (0, []))
    if not header:
        raise ValueError("it is empty")
    places = _choose(path, header, needed, optional)
    lines: list[int] = []
    columns: dict[str, Cells] = {name: [] for name in places}
    for line, record in records:
        if len(record) != len(header):
            raise ValueError(
                f"line {line} has {len(record)} cells and the header {len(header)}; a cell that holds {separator!r} needs quotes"
            )
        lines.append(line)
        for name, place in places.items():
            columns[name].append(value_of(record[place]))
    return Table(path, columns, lines, tuple(header))


def _separators(path: Path) -> str:
    """List what may stand between cells; of equal fits the first is taken."""
    return "\t,;" if path.suffix.lower() == ".tsv" else ",;\t"


def _decode(content: bytes) -> str:
    if content.startswith(b"PK\3\4"):
        raise ValueError("it is a workbook or an archive; save its sheet as CSV UTF-8")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("line 1 is UTF-16; save it as CSV UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    nul = content.find(b"\0")
    if nul >= 0:
        raise ValueError(f"line {_line_of(content, nul)} holds a NUL byte; save it as CSV UTF-8")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise ValueError(
            f"line {_line_of(content, error.start)} is no UTF-8 (byte 0x{byte:02x}); save it as CSV UTF-8"
        ) from None


def _line_of(content: bytes, position: int) -> int:
    return len(re.findall(rb"\r\n|\r|\n", content[:position])) + 1


def _records(text: str, separator: str, line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with the line in which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    begin = line
    try:
        for record in reader:
            if any(cell.strip() for cell in record):
                yield begin, record
            begin = line + reader.line_num
    except csv.Error as error:
        raise ValueError(f"line {begin}: {error}") from None


# Parquet


def _read_parquet(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        places = _choose(path, names, needed, optional)
        table = file.read(list(places))
    columns = {name: _texts(path, table[name], name) for name in places}
    return Table(path, columns, names=tuple(names))


def _texts(path: Path, column: pa.ChunkedArray, name: str) -> Cells:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        texts: Cells = pc.cast(column, pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        raise ManifestError(
            f"{show(path)} column {name!r} holds {column.type}; allowed: text, numbers or dates."
        ) from None
    if pa.types.is_floating(column.type):
        exact = 2.0 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1)
        numbers = column.to_pylist()
        texts = [_whole(text, number, exact) for text, number in zip(texts, numbers, strict=True)]
    if pa.types.is_timestamp(column.type):
        texts = _plain_times(texts)
    return [None if text is None else value_of(text) for text in texts]


def _whole(text: str | None, number: float | None, exact: float) -> str | None:
    """Write a whole number without exponent: numbers with nulls among them are often stored as floats.

    From `exact` on a float stands for whole numbers beside it too, which a name cannot tell apart: it keeps its exponent.
    """
    if number is None or not float(number).is_integer():
        return text
    return str(int(number)) if abs(number) < exact else f"{number:.16e}"


def _plain_times(texts: Cells) -> Cells:
    """Leave out fractions that are zero, and the time where all are midnight: a date."""
    plain = [text and re.sub(r"\.0+(?!\d)", "", text) for text in texts]
    midnight = " 00:00:00"
    if all(text is None or text.endswith(midnight) for text in plain):
        return [text and text.removesuffix(midnight) for text in plain]
    return plain
