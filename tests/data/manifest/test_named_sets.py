"""Sets that the data name: columns under other names, unknown sets."""

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
