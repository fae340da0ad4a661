"""Manifests of tables: rows, images, and what is no table."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data.manifest import DataConfig, read_manifest

COLUMNS = {"image": "file", "label": "exposure", "group": ("block",), "domains": ("lamp",)}


@pytest.fixture
def table(put, table_of, tmp_path):
    put(tmp_path, "img/1.jpg", "img/2.jpg", "img/3.png")
    return table_of(
        tmp_path,
        "file,kind,exposure,block,lamp,split",
        "img/1.jpg,image,001,007,red,train",
        "img/2.jpg,image,002,7,NA,",
        "img/3.png,mask,002,7,red,val",
    )


def test_a_table_with_columns_of_other_names(table, cache):
    manifest = read_manifest(DataConfig(root=table, **COLUMNS), cache)
    assert manifest.table.drop_columns(["content", "image"]).to_pylist() == [
        {"id": "img/1.jpg", "label": "001", "group": "007", "split": "train", "domain.lamp": "red"},
        {"id": "img/2.jpg", "label": "002", "group": "7", "split": None, "domain.lamp": "NA"},
        {"id": "img/3.png", "label": "002", "group": "7", "split": "val", "domain.lamp": "red"},
    ]
    assert manifest.column("image") == [
        str(table.parent / name) for name in ("img/1.jpg", "img/2.jpg", "img/3.png")
    ]


def test_where_keeps_rows(refusal, table, cache):
    config = DataConfig(root=table, where=("kind=image",), **COLUMNS)
    assert read_manifest(config, cache).column("id") == ["img/1.jpg", "img/2.jpg"]
    none = DataConfig(root=table, where=("kind=image", "exposure=2"), **COLUMNS)
    text = refusal(none, cache)
    assert "no row left" in text
    assert "exposure=2" in text


def test_a_column_without_a_name_is_no_split(put, table_of, tmp_path, cache):
    """As pandas writes the numbers of rows."""
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, ",image,label", "0,1.png,a", "1,2.png,b")
    assert read_manifest(DataConfig(root=path, split=""), cache).declared_sets == [None, None]


def test_parquet_says_the_same_as_csv(table, tmp_path, cache):
    columns = {
        "file": ["img/1.jpg", "img/2.jpg", "img/3.png"],
        "kind": pa.array(["image", "image", "mask"]).dictionary_encode(),
        "exposure": ["001", "002", "002"],
        "block": ["007", "7", "7"],
        "lamp": ["red", "NA", "red"],
        "split": ["train", None, "val"],
    }
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table(columns), path)
    for where in ((), ("kind=image",)):
        ours, csvs = (
            read_manifest(DataConfig(root=root, where=where, **COLUMNS), cache)
            for root in (path, table)
        )
        assert ours.table == csvs.table
        assert ours.fingerprint == csvs.fingerprint


def test_parquet_numbers_are_classes_by_their_digits(put, tmp_path, cache):
    put(tmp_path, "1.jpg", "2.jpg")
    path = tmp_path / "images.parquet"
    columns = {"image": ["1.jpg", "2.jpg", "none"], "label": [10, 9, 9], "exposure": [1, 1, 2]}
    pq.write_table(pa.table(columns), path)
    manifest = read_manifest(DataConfig(root=path, where=("exposure=1",)), cache)
    assert manifest.classes == ["10", "9"]
    assert manifest.truth.tolist() == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"image": "path"},
        {"label": "class"},
        {"group": ("block", "tile")},
        {"domains": ("camera",)},
        {"where": ("kid=image",)},
    ],
)
def test_a_missing_column_is_named_beside_those_there_are(refusal, table, cache, change):
    text = refusal(DataConfig(root=table, **(COLUMNS | change)), cache)
    name = next(iter(change.values()))
    assert repr(str(name if isinstance(name, str) else name[-1].split("=")[0])) in text
    assert "file, kind, exposure, block, lamp, split" in text


def test_a_doubled_column_is_refused(put, refusal, table_of, tmp_path, cache):
    path = table_of(put(tmp_path, "1.png"), "image,label,label", "1.png,a,b")
    assert "image, label, label" in refusal(DataConfig(root=path), cache)


def test_a_missing_value_is_named_by_row_and_column(put, refusal, table_of, tmp_path, cache):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table_of(tmp_path, "image,label,kind", "1.png,a,x", "2.png,b,image", "3.png,,image")
    text = refusal(DataConfig(root=path, where=("kind=image",)), cache)
    assert "row 3" in text  # of the table, not of what `where` left
    assert "'label'" in text


def test_a_missing_file_is_named(put, refusal, table_of, tmp_path, cache):
    path = table_of(put(tmp_path, "1.png"), "image,label", "1.png,a", "2.png,b")
    assert str(tmp_path / "2.png") in refusal(DataConfig(root=path), cache)


@pytest.mark.parametrize("again", ["1.png", "./1.png", "sub/../1.png", "{folder}/1.png"])
def test_a_doubled_row_is_refused_however_it_is_spelt(
    put, refusal, table_of, tmp_path, cache, again
):
    put(tmp_path, "1.png", "2.png")
    lines = ("1.png,a", "2.png,b", again.format(folder=tmp_path) + ",a")
    text = refusal(DataConfig(root=table_of(tmp_path, "image,label", *lines)), cache)
    assert str(tmp_path / "1.png") in text
    assert "2 times" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("images.parquet", b"no parquet"),
        ("images.csv", b""),
        ("images.csv", b"image,label\n1.png,a,b\n"),
        ("images.csv", b"image,label\n\xff\xfe.png,a\n"),
    ],
)
def test_what_is_no_table_is_refused(refusal, tmp_path, cache, name, content):
    (tmp_path / name).write_bytes(content)
    text = refusal(DataConfig(root=tmp_path / name), cache)
    assert str(tmp_path / name) in text
    assert "CSV with a header, or Parquet" in text


def test_a_column_of_no_text_is_refused(refusal, tmp_path, cache):
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b"x"}], "label": ["a"]}), path)
    text = refusal(DataConfig(root=path), cache)
    assert "'image'" in text
    assert "struct" in text


def test_excels_semicolons_make_the_same_manifest(table, cache):
    comma = read_manifest(DataConfig(root=table, **COLUMNS), cache)
    text = table.read_text().replace(",", ";").replace("\n", "\r\n")
    (table.parent / "excel.csv").write_bytes(text.encode("utf-8-sig"))
    excel = read_manifest(DataConfig(root=table.parent / "excel.csv", **COLUMNS), cache)
    assert excel.table == comma.table


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("img%201.png", "does not exist"),
        ("file:///data/1.png", "does not exist"),
        ("sub", "is a folder"),
        ("gone.png", "is a link to nothing"),
        ("x" * 300, "cannot be looked at"),
    ],
)
def test_an_image_that_is_no_file_is_named_with_its_row(
    put, refusal, table_of, tmp_path, cache, name, reason
):
    put(tmp_path, "1.png", "sub/2.png")
    (tmp_path / "gone.png").symlink_to("nothing")
    text = refusal(
        DataConfig(root=table_of(tmp_path, "image,label", "1.png,a", f"{name},b")), cache
    )
    assert "row 2 (line 3)" in text
    assert reason in text


def test_a_table_of_a_header_alone_is_refused(refusal, table_of, tmp_path, cache):
    text = refusal(DataConfig(root=table_of(tmp_path, "image,label")), cache)
    assert "0 row(s)" in text


def test_ids_are_one_however_a_table_spells_its_paths(put, table_of, tmp_path, cache):
    put(tmp_path, "img/1.png", "img/2.png", "lists/x")
    of_spelling = []
    for spelt in ("../img/{}.png", "./.././img/{}.png", "..\\img\\{}.png"):
        lines = (f"{spelt.format(i)},{i}" for i in "12")
        path = table_of(tmp_path / "lists", "image,label", *lines)
        of_spelling.append(read_manifest(DataConfig(root=path), cache).column("id"))
    assert of_spelling == [["../img/1.png", "../img/2.png"]] * 3
