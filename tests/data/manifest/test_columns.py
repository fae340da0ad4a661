"""Labels, groups and domains: one name has one spelling, and every row a value."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data.manifest import DataConfig, read_manifest


def test_a_field_may_be_called_id_or_image(put, table_of, tmp_path, cache):
    names = [f"{label}/{part}_{view}.png" for label in "ab" for part in "12" for view in "xy"]
    config = {"patterns": ("{label}/{id}_{image}",), "group": ("id",), "domains": ("image",)}
    manifest = read_manifest(DataConfig(root=put(tmp_path, *names), **config), cache)
    assert set(manifest.column("group")) == {"1", "2"}
    assert set(manifest.column("domain.image")) == {"x", "y"}
    path = table_of(tmp_path, "file,label,id", *(f"{name},{name[0]},{name[2]}" for name in names))
    manifest = read_manifest(DataConfig(root=path, image="file", group=("id",)), cache)
    assert set(manifest.column("group")) == {"1", "2"}
    assert manifest.column("id") == names


TWINS = [
    ("Missing_hole", "missing_hole"),
    ("good", "good "),
    ("a b", "a  b"),
    ("Pr\u00fcf", "Pru\u0308f"),
]
TWINS += [("good", "good\u200b"), ("a b", "a\u00a0b"), ("STRASSE", "stra\u00dfe"), ("1", "1.0")]


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_a_class_folder_spelled_in_two_ways_is_refused(put, refusal, tmp_path, cache, one, other):
    root = put(tmp_path, "z/1.png", f"{one}/1.png", f"{other}/2.png")
    text = refusal(DataConfig(root=root), cache)
    assert "label has the values" in text
    shown = ascii if {one, other} == {"Pr\u00fcf", "Pru\u0308f"} else repr
    assert shown(one) in text
    assert shown(other) in text


@pytest.mark.parametrize("column", ["label", "group", "domains"])
@pytest.mark.parametrize(("one", "other"), TWINS)
def test_a_cell_spelled_in_two_ways_is_refused(
    put, refusal, table_of, tmp_path, cache, column, one, other
):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table_of(tmp_path, "image,label,x", f"1.png,a,{one}", f"2.png,b,{other}", "3.png,b,z")
    asked = {"label": "x"} if column == "label" else {column: ("x",)}
    text = refusal(DataConfig(root=path, **asked), cache)
    assert "differ in case, spaces, quotes, Unicode form or how a number is written alone" in text
    assert text.count("(at '1.png')") == text.count("(at '2.png')") == 1
    assert text.encode()


def test_names_of_images_without_groups_may_differ_in_case(put, tmp_path, cache):
    root = put(tmp_path, "a/x.png", "a/X.png", "b/1.jpg", "b/1.JPG")
    assert len(read_manifest(DataConfig(root=root), cache)) == 4


def test_other_names_are_not_taken_for_one(put, tmp_path, cache):
    root = put(
        tmp_path,
        *(f"{name}/1.png" for name in ("ab", "a b", "a-b", "a_b", "1", "01", "1.1", "1.10")),
    )
    assert len(read_manifest(DataConfig(root=root), cache).classes) == 8


def test_decomposed_names_are_composed_and_found_in_either_form(put, table_of, tmp_path, cache):
    put(tmp_path, "1.png", "2.png", "3.png")
    lines = ["1.png,Pru\u0308f,a", "2.png,gut,a", "3.png,alt,b"]
    path = table_of(tmp_path, "image,label,kind", *lines)
    for form in ("Pru\u0308f", "Pr\u00fcf"):
        config = DataConfig(root=path, where=("kind=a",), keep=("kind",))
        assert read_manifest(config, cache).classes == ["Pr\u00fcf", "gut"]
        rest = DataConfig(root=path, where=(f"label!={form}",))
        assert read_manifest(rest, cache).classes == ["alt", "gut"]


def test_groups_of_several_columns_that_read_alike_are_refused(
    put, refusal, table_of, tmp_path, cache
):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,build,part", "1.png,a,1/2,3", "2.png,b,1,2/3")
    text = refusal(DataConfig(root=path, group=("build", "part")), cache)
    assert "['1/2', '3']" in text
    assert "'1/2/3'" in text


@pytest.mark.parametrize("empty", ["", "NaN", "  "])
@pytest.mark.parametrize("column", ["label", "group", "domains", "keep"])
def test_a_row_without_a_value_is_refused_by_its_number(
    put, refusal, table_of, tmp_path, cache, empty, column
):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,x", "1.png,a,1", f"2.png,b,{empty}")
    asked = {"label": "x"} if column == "label" else {column: ("x",)}
    text = refusal(DataConfig(root=path, **asked), cache)
    assert "row 2 (line 3) has no value in column 'x'" in text
    numbers = pa.table({"image": ["1.png", "2.png"], "label": ["a", "b"], "x": [1.0, float("nan")]})
    pq.write_table(numbers, tmp_path / "t.parquet")
    text = refusal(DataConfig(root=tmp_path / "t.parquet", **asked), cache)
    assert "row 2 has no value in column 'x'" in text
