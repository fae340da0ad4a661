"""Rows that data.where keeps."""

from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data.manifest import DataConfig, read_manifest
from assay.errors import ManifestError


def test_a_condition_on_what_no_row_has_is_said(put, table_of, tmp_path, cache, capsys):
    put(tmp_path, "1.png", "2.png")
    table = table_of(tmp_path, "image,label,view", "1.png,a,top", "2.png,b,side")
    assert len(read_manifest(DataConfig(root=table, where=("view!=botom",)), cache)) == 2
    printed = capsys.readouterr().err
    assert printed == f"data.where names view=botom, which no row of {table} has.\n"
    read_manifest(DataConfig(root=table, where=("view!=back", "view!=")), cache)
    assert capsys.readouterr().err.count("\n") == 1


def test_conditions_on_a_folder_are_refused(put, refusal, tmp_path, cache):
    root = put(tmp_path, "a/1.png", "b/1.png")
    assert "conditions are for tables" in refusal(DataConfig(root=root, where=("label=a",)), cache)


@pytest.mark.parametrize("sign", ["=", "!="])
def test_rows_that_a_condition_may_mean_are_not_passed_over(
    put, refusal, table_of, tmp_path, cache, sign
):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table_of(tmp_path, "image,label,kind", "1.png,a,image", "2.png,b,image", "3.png,b,Image")
    text = refusal(DataConfig(root=path, where=(f"kind{sign}image",)), cache)
    assert "'image' (at " in text
    assert "'Image' (at " in text
    assert "row 3 (line 4)" in text
    assert len(read_manifest(DataConfig(root=path, where=("label!=c",)), cache)) == 3


def test_an_empty_condition_is_of_rows_without_a_value(put, table_of, tmp_path, cache):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table_of(tmp_path, "image,label,x", "1.png,a,", "2.png,b,", "3.png,b,bad")
    pq.write_table(
        pa.table(
            {"image": ["1.png", "2.png", "3.png"], "label": [*"abb"], "x": [None, None, "bad"]}
        ),
        tmp_path / "t.parquet",
    )
    for root in (path, tmp_path / "t.parquet"):
        assert len(read_manifest(DataConfig(root=root, where=("x=",)), cache)) == 2
        assert len(read_manifest(DataConfig(root=root, where=("x!=bad",)), cache)) == 2


def test_where_keeps_and_leaves_out_rows(tmp_path):
    table = tmp_path / "list.csv"
    lines = ["image,label,kind"]
    for i, (label, kind) in enumerate(product("abc", ("image", "mask"))):
        (tmp_path / f"{i}.png").write_bytes(bytes([i]))
        lines.append(f"{i}.png,{label},{kind}")
    table.write_text("\n".join(lines))
    config = DataConfig(root=table, where=("kind=image", "label!=c"))
    manifest = read_manifest(config, tmp_path / "hashes.sqlite")
    assert manifest.column("label") == ["a", "b"]
    with pytest.raises(ManifestError, match="COLUMN!=VALUE"):
        read_manifest(DataConfig(root=table, where=("kind",)), tmp_path / "hashes.sqlite")
