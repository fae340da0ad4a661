"""Sets and parts that the data name: columns under other names, unknown sets."""

import pytest

from assay.data.manifest import DataConfig, read_manifest


def test_a_named_field_of_sets_that_nothing_has_is_refused(put, refusal, table_of, tmp_path, cache):
    root = put(tmp_path / "root", "a/1.png", "b/2.png")
    table = table_of(root, "image,label", "a/1.png,a", "b/2.png,b")
    for place, there in ((root, "label, name"), (table, "image, label")):
        text = refusal(DataConfig(root=place, split="fold"), cache)
        assert (
            f"data.split is 'fold', and no image has such a field or column with a value; there are: {there}"
            in text
        )
        assert read_manifest(DataConfig(root=place), cache).declared_sets == [None, None]
        assert read_manifest(DataConfig(root=place, split=""), cache).declared_sets == [None, None]


@pytest.mark.parametrize("name", ["Split", " split", "SPLIT"])
def test_a_given_split_under_another_spelling_is_not_passed_over(
    put, refusal, table_of, tmp_path, cache, name
):
    """Else sets would be drawn, and published test images be learned from."""
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, f"image,label,{name}", "1.png,a,train", "2.png,b,test")
    text = refusal(DataConfig(root=path), cache)
    assert f"has a column {name!r} and none 'split'" in text
    for split, expected in (("", [None, None]), (name, ["train", "test"])):
        manifest = read_manifest(DataConfig(root=path, split=split), cache)
        assert manifest.declared_sets == expected


@pytest.mark.parametrize(
    ("header", "cells", "is_said"),
    [
        ("Set", ("train", "Test"), True),
        ("partition", ("training", ""), True),
        ("set", ("a", "b"), False),
        ("is_test", ("1", "0"), True),
        ("Is Train", ("TRUE", ""), True),
        ("test", ("yes", "no"), True),
        ("test", ("pull", "shear"), False),
        ("is_round", ("1", "0"), False),
        ("view", ("train", "test"), False),
        ("set,split", ("train,train", "test,test"), False),
        ("dataset", ("TRAIN", "TEST"), True),
        ("data_split", ("train", "val"), True),
        ("ml_use", ("TRAIN", "UNASSIGNED"), True),
        ("tvt", ("TRN", "TST"), True),
        ("part_type", ("1", "2"), False),
    ],
)
def test_sets_under_another_name_are_said(
    put, table_of, tmp_path, cache, capsys, header, cells, is_said
):
    """Else sets would be drawn beside a published split that nobody missed."""
    put(tmp_path, "1.png", "2.png")
    lines = [f"{i}.png,{label},{cell}" for i, label, cell in zip("12", "ab", cells, strict=True)]
    path = table_of(tmp_path, f"image,label,{header}", *lines)
    read_manifest(DataConfig(root=path), cache)
    assert ("which are not used" in capsys.readouterr().err) == is_said


def test_an_unknown_set_is_refused(put, refusal, table_of, tmp_path, cache):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,split", "1.png,a,train", "2.png,b,valid")
    text = refusal(DataConfig(root=path), cache)
    assert "'2.png' has split 'valid'" in text
    assert "train, val, test" in text


@pytest.mark.parametrize("pattern", ["{label}/{set}/{name}", "{set}/{label}/{name}"])
def test_sets_in_names_that_no_pattern_takes_are_said(put, tmp_path, cache, capsys, pattern):
    names = [pattern.format(label=c, set=s, name=f"{s}.png") for c in "ab" for s in ("Test", "Val")]
    read_manifest(DataConfig(root=put(tmp_path, *names), patterns=(pattern,)), cache)
    assert "has sets in its column or field 'set'" in capsys.readouterr().err


def test_sets_in_the_paths_of_a_table_are_said(put, table_of, tmp_path, cache, capsys):
    put(tmp_path, "all/train/1.png", "all/test/2.png", "all/3.png")
    lines = ["image,label", "all/train/1.png,a", "all/test/2.png,b", "all/3.png,b"]
    read_manifest(DataConfig(root=table_of(tmp_path, *lines[:3])), cache)
    assert "in the folders of its paths (test, train)" in capsys.readouterr().err
    read_manifest(DataConfig(root=table_of(tmp_path, *lines)), cache)
    read_manifest(DataConfig(root=table_of(tmp_path, *lines[:3]), split=""), cache)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("column", ["part_id", "SerialNo", "Lot", "group", "patient.name"])
def test_parts_that_no_setting_names_are_said(put, table_of, tmp_path, cache, capsys, column):
    """Else images of one part lie in train and test, and the score is no score of new parts."""
    names = [f"{i}.png" for i in range(6)]
    put(tmp_path, *names)
    rows = [f"{name},{'ab'[i // 2 % 2]},P{i // 2}" for i, name in enumerate(names)]
    path = table_of(tmp_path, f"image,label,{column}", *rows)
    read_manifest(DataConfig(root=path), cache)
    text = capsys.readouterr().err
    assert "3 values for 6 images" in text
    assert f"give --data.group {column}," in text
    read_manifest(DataConfig(root=path, group=(column,)), cache)
    read_manifest(DataConfig(root=path, domains=(column,)), cache)
    own = [row.rpartition(",")[0] + f",S{i}" for i, row in enumerate(rows)]
    read_manifest(DataConfig(root=table_of(tmp_path, f"image,label,{column}", *own)), cache)
    assert not capsys.readouterr().err


def test_a_column_that_nobody_asked_for_stops_nothing(put, table_of, tmp_path, cache):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,lot", "1.png,a,#REF!", "2.png,b,#REF!")
    assert len(read_manifest(DataConfig(root=path), cache)) == 2
