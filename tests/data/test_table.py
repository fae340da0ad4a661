import csv
import datetime as dt
import io
import os
import re
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.table import read_table, value_of
from assay.errors import AssayError, ManifestError


def write(folder, content, name="t.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(path, *names):
    return [read_table(path, names).columns[name] for name in names]


@pytest.fixture
def refusal(sentence_of):
    """The one sentence by which a table is refused; it names the file."""

    def text_of(path, *names):
        text = sentence_of(ManifestError, read_table, path, names or ("image",))
        assert str(path) in text
        return text

    return text_of


# CSV


def test_semicolons_as_excel_writes_them_in_europe(tmp_path):
    text = "\ufeffimage;Größe;part\r\nimg/ä 1.png;0,5;007\r\nimg/2.png;1,25;7\r\n"
    path = write(tmp_path, text)
    assert cells(path, "image", "Größe", "part") == [
        ["img/ä 1.png", "img/2.png"],
        ["0,5", "1,25"],
        ["007", "7"],
    ]


@pytest.mark.parametrize("declared", ["sep=;\r\n", '"sep=;"\n'])
def test_excels_own_first_line_says_what_separates(refusal, tmp_path, declared):
    path = write(tmp_path, f"{declared}image;a,b,c,d\nx.png;1\nbad\n")
    assert "line 4 has 1 cells and the header 2" in refusal(path)
    path = write(tmp_path, f"{declared}image;a,b,c,d\nx.png;1\n")
    assert cells(path, "a,b,c,d") == [["1"]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "image\tsize, mm\tlabel, raw\nx,1.png\t0,5\ta\n"),
        ("t.txt", "image\tsize, mm\tb\nx,1.png\t0,5\ta\n"),
        ("t.csv", "image;size, mm;notes, long, with, commas\nx,1.png;0,5;a\n"),
        ("t.csv", '"image","size, mm"\n"x,1.png","0,5"\n'),
    ],
)
def test_the_header_says_what_separates(tmp_path, name, text):
    assert cells(write(tmp_path, text, name), "image", "size, mm") == [["x,1.png"], ["0,5"]]


def test_quotes_hold_newlines_and_rows_keep_their_lines(tmp_path):
    table = read_table(
        write(tmp_path, 'image,note\r\na,"1\r\n2"\r\n\r\n,\r\nb,"say ""hi"""\r\n'), ("note",)
    )
    assert table.columns == {"note": ["1\r\n2", 'say "hi"']}
    assert table.lines == [2, 6]
    assert table.place(1).endswith("t.csv row 2 (line 6)")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("end", [True, False])
def test_any_end_of_line(tmp_path, newline, end):
    text = newline.join(["image,label", "1.png,a", "2.png,b"]) + newline * end
    table = read_table(write(tmp_path, text), ("label",))
    assert (table.columns["label"], table.lines) == (["a", "b"], [2, 3])


# what pandas reads as missing, but for NA and None; then what other programs write, and what nobody sees
MISSING = [
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "-NaN",
    "-nan",
    "1.#IND",
    "1.#QNAN",
]
MISSING += ["<NA>", "N/A", "NULL", "NaN", "n/a", "nan", "null"]
MISSING += ["  ", "NaT", "(null)", "\\N", "\u200b", "\u00a0", "\u3164", "\ufeff nan", "?", "--"]


@pytest.mark.parametrize("cell", MISSING)
def test_what_stands_for_no_value_is_none(tmp_path, cell):
    assert cells(write(tmp_path, f"image,label\n1.png,{cell}\n"), "label") == [[None]]


@pytest.mark.parametrize(
    "cell", ["NA", "None", "none", "0", "007", "1.0", "1e3", "True", " a", "-"]
)
def test_every_other_cell_is_its_text(tmp_path, cell):
    assert cells(write(tmp_path, f"image,label\n1.png,{cell}\n"), "label") == [[cell]]


@pytest.mark.parametrize("cell", ["#REF!", "#DIV/0!", "#NAME?", "#VALUE!"])
@pytest.mark.parametrize("optional", [(), ("label",)])
def test_what_a_spreadsheet_lost_is_refused_by_its_row(tmp_path, cell, optional):
    path = write(tmp_path, f"image,label\n1.png,a\n2.png,{cell}\n")
    with pytest.raises(ManifestError, match=rf"row 2 \(line 3\) has {re.escape(cell)} in column"):
        read_table(path, ("image",) if optional else ("image", "label"), optional)
    assert len(read_table(path, ("image",))) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf\n\n", "it is empty"),
        (b"image,label\n1.png,a,b\n", "line 2 has 3 cells and the header 2"),
        (b"image,label\n\n1.png\n", "line 3 has 1 cells"),
        (b"image;x\n1.png;0;5\n", "line 2 has 3 cells and the header 2; a cell that holds ';'"),
        ("image,label\n1.png,a\n2.png,Prüf\n".encode("latin-1"), "line 3 is no UTF-8 (byte 0xfc)"),
        ("image,label\r1.png,é".encode("cp1252"), "line 2 is no UTF-8 (byte 0xe9)"),
        ("image\tlabel\n1.png\ta\n".encode("utf-16"), "line 1 is UTF-16"),
        ("image\tlabel\n1.png\ta\n".encode("utf-16-be"), "line 1 holds a NUL byte"),
        (b"image,label\n1.png,a\0\n", "line 2 holds a NUL byte"),
        (b'image,label\n1.png,a\n2.png,"b\n', "line 3: unexpected end of data"),
        (b'image,label\n1.png,"a"b\n', "line 2: "),
        (b"image,label\n" + b"x" * 200_000 + b",a\n", "line 2: field larger"),
        (b"PK\x03\x04rest of a workbook", "it is a workbook or an archive"),
        (b'{"image": "1.png", "label": "a"}\n{"image": "2.png", "label": "b"}\n', "it is JSON"),
        (b'\n[\n {"image": "1.png"}]', "it is JSON"),
    ],
)
def test_what_is_no_csv_is_refused_by_line(refusal, tmp_path, content, sentence):
    text = refusal(write(tmp_path, content))
    assert sentence in text
    assert "CSV with a header, or Parquet" in text


def test_a_missing_column_names_those_there_are_up_to_a_length(refusal, tmp_path):
    path = write(tmp_path, "Image, label,\n1.png,a,\n")
    assert "one column 'image'; it has: Image, ' label', ''." in refusal(path)
    many = ",".join(f"c{i}" for i in range(100_000))
    text = refusal(write(tmp_path, f"{many}\n"))
    assert "c29 and 99970 more" in text
    assert len(text) < 500


def test_a_column_that_stands_twice_is_refused_only_where_it_is_asked_for(refusal, tmp_path):
    path = write(tmp_path, "image,a,a,split,split\n1.png,1,2,,\n")
    assert cells(path, "image") == [["1.png"]]
    assert "'a'" in refusal(path, "image", "a")
    with pytest.raises(ManifestError, match="2 columns 'split'"):
        read_table(path, ("image",), ("split",))


def test_a_column_that_may_be_missing(tmp_path):
    path = write(tmp_path, "image\n1.png\n")
    assert read_table(path, ("image",), ("split", "group")).columns == {"image": ["1.png"]}


def test_what_is_no_file_is_refused_and_not_opened(refusal, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "no regular file" in refusal(tmp_path / "pipe.csv")
    assert "is a folder" in refusal(tmp_path / "folder.csv")
    assert "does not exist" in refusal(tmp_path / "none.csv")


# Parquet

BERLIN = dt.timezone(dt.timedelta(hours=1))


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array(["01", "1", None, "", "nan"]), ["01", "1", None, None, None]),
        (pa.array([1, -2, None]), ["1", "-2", None]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([1.0, None, 20241128.0, 12345678901.0]), ["1", None, "20241128", "12345678901"]),
        (pa.array([1.0, float("nan"), 0.5, -0.0]), ["1", None, "0.5", "0"]),
        (pa.array([0.1, 3.0], pa.float32()), ["0.1", "3"]),
        # from 2^53 and 2^24 on a float may stand for another whole number
        (pa.array([2.0**53 - 1, 2.0**53]), ["9007199254740991", "9.0071992547409920e+15"]),
        (
            pa.array([2.0**24 - 1, 2.0**24 + 2], pa.float32()),
            ["16777215", "1.6777218000000000e+07"],
        ),
        (pa.array(np.array([0.5, 2], np.float16)), ["0.5", "2"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([Decimal("1.50"), None]), ["1.50", None]),
        (pa.array([dt.date(2026, 1, 2)]), ["2026-01-02"]),
        (pa.array([dt.datetime(2026, 1, 2), None], pa.timestamp("ns")), ["2026-01-02", None]),
        (
            pa.array([dt.datetime(2026, 1, 2), dt.datetime(2026, 1, 2, 3, 4, 5, 600)]),
            ["2026-01-02 00:00:00", "2026-01-02 03:04:05.000600"],
        ),
        (
            pa.array([dt.datetime(2026, 1, 2, 3, tzinfo=BERLIN)], pa.timestamp("us", "UTC")),
            ["2026-01-02 02:00:00Z"],
        ),
        (pa.array([1, 10, 1]).dictionary_encode(), ["1", "10", "1"]),
        (pa.array([1.0, 2.5]).dictionary_encode(), ["1", "2.5"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.array([b"a", None]), ["a", None]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_cells_of_parquet_are_their_plain_text(tmp_path, column, texts):
    pq.write_table(pa.table({"x": column, "image": ["i"] * len(column)}), tmp_path / "t.parquet")
    assert cells(tmp_path / "t.parquet", "x") == [texts]


@pytest.mark.parametrize("column", [[[1]], [{"bytes": b"x"}], [b"\xff"]])
def test_cells_that_are_no_text_are_refused_by_column_and_type(refusal, tmp_path, column):
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet")
    assert "column 'image' holds" in refusal(tmp_path / "t.parquet")


def test_text_that_is_no_utf8_is_refused(refusal, tmp_path):
    latin = pa.Array.from_buffers(pa.binary(), 1, pa.array([b"Pr\xfcf"]).buffers())
    torn = pa.Array.from_buffers(pa.string(), 1, latin.buffers())
    pq.write_table(pa.table({"image": torn}), tmp_path / "t.parquet")
    assert "column 'image'" in refusal(tmp_path / "t.parquet")


def test_parquet_is_known_by_its_bytes_and_columns_not_asked_for_may_be_anything(tmp_path):
    table = pa.table({"image": ["1.png"], "bytes": [[1]], "image.raw": [b"\xff"]})
    pq.write_table(table, tmp_path / "t.pq")
    assert cells(tmp_path / "t.pq", "image") == [["1.png"]]


# Paths


def test_paths_are_relative_to_the_table_however_they_are_spelt(tmp_path):
    (tmp_path / "far" / "img").mkdir(parents=True)
    (tmp_path / "far" / "img" / "2.png").touch()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "link").symlink_to(tmp_path / "far" / "img")
    spelt = ("./1.png", "../3.png", f"{tmp_path}/4.png", "..\\far\\img\\2.png", "link/../img/2.png")
    path = write(tmp_path / "lists", "image\n" + "\n".join(spelt) + "\n")
    with pytest.raises(ManifestError, match="2 times"):  # the last two, behind a link
        read_table(path, ("image",)).images("image", range(5))
    lists = tmp_path / "lists"
    assert read_table(path, ("image",)).images("image", range(4)) == [
        lists / "1.png",
        tmp_path / "3.png",
        tmp_path / "4.png",
        tmp_path / "far" / "img" / "2.png",
    ]


def test_a_name_with_a_backslash_of_its_own_is_taken_as_it_is(tmp_path):
    (tmp_path / "a\\b.png").touch()
    table = read_table(write(tmp_path, "image\na\\b.png\n"), ("image",))
    assert table.images("image", [0]) == [tmp_path / "a\\b.png"]


def test_a_path_twice_is_refused_by_its_rows(tmp_path):
    table = read_table(write(tmp_path, "image\n1.png\n2.png\nx/../1.png\n"), ("image",))
    with pytest.raises(ManifestError, match=r"row 1 \(line 2\) and row 3"):
        table.images("image", range(3))
    assert len(table.images("image", [1, 2])) == 2


# Anything

text = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=60)
@given(
    st.lists(st.lists(text, min_size=3, max_size=3), max_size=8),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
def test_what_pythons_writer_writes_is_read_back(
    tmp_path_factory, rows, separator, end, quoting, bom
):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([["image", "label, x", "größe; y"], *rows])
    content = stream.getvalue().encode("utf-8-sig" if bom else "utf-8")
    path = write(tmp_path_factory.mktemp("t"), content)
    expected = [
        [value_of(cell) for cell in row] for row in rows if any(cell.strip() for cell in row)
    ]
    columns = cells(path, "image", "label, x", "größe; y")
    assert [list(row) for row in zip(*columns, strict=True)] == expected


@settings(max_examples=60)
@given(
    st.one_of(
        st.lists(st.none() | text).map(lambda x: (pa.array(x, pa.string()), str)),
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)).map(
            lambda x: (pa.array(x, pa.int64()), str)
        ),
        st.lists(st.none() | st.integers(1 - 2**53, 2**53 - 1)).map(
            lambda x: (pa.array(x, pa.float64()), lambda v: str(int(v)))
        ),
        st.lists(st.none() | st.booleans()).map(
            lambda x: (pa.array(x, pa.bool_()), lambda v: str(v).lower())
        ),
        st.lists(st.none() | st.dates()).map(
            lambda x: (pa.array(x, pa.date32()), dt.date.isoformat)
        ),
    ),
    st.booleans(),
)
def test_what_pyarrow_writes_is_its_text(tmp_path_factory, typed, encode):
    column, plain = typed
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    pq.write_table(pa.table({"x": column.dictionary_encode() if encode else column}), path)
    values = [None if value is None else plain(value) for value in column.to_pylist()]
    expected = [None if v is None else value_of(v) for v in values]
    assert cells(path, "x") == [expected]


CSV = 'image;"label, x";größe\r\n"a;b.png";"1\n2";0,5\r\nb.png;;\r\n'.encode("utf-8-sig")
SINK = io.BytesIO()
pq.write_table(pa.table({"image": ["a.png", None], "label": pa.array([1.0, None])}), SINK)


@settings(max_examples=200)
@given(
    st.sampled_from([CSV, SINK.getvalue()]),
    st.lists(
        st.tuples(st.integers(0, 10**6), st.binary(max_size=3), st.integers(0, 3)), max_size=4
    ),
    st.none() | st.integers(0, 10**6),
)
def test_damaged_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, content, changes, cut):
    for place, new, removed in changes:
        place %= len(content) + 1
        content = content[:place] + new + content[place + removed :]
    path = write(tmp_path_factory.mktemp("t"), content[: len(content) if cut is None else cut])
    with suppress(AssayError):
        table = read_table(path, ("image",), ("label", "label, x"))
        assert all(len(column) == len(table) for column in table.columns.values())


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("t"), content)
    for start in (b"", b"image\n", b"PAR1"):
        write(path.parent, start + content)
        with suppress(AssayError):
            read_table(path, ("image",))
