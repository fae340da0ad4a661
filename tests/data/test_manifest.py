import os
import shutil
from dataclasses import replace
from itertools import product

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.config import from_dict
from assay.data.manifest import DataConfig, read_manifest
from assay.errors import ConfigError, ManifestError

PARTS = {
    "patterns": (
        "{label}/{design}/Device_{device}_Print_{print}_{view}",
        "{label}/{design}/{print}_azimuth_{azimuth}_polar_{polar}",
    ),
    "group": ("label", "design", "print"),
    "domains": ("design",),
}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "hashes.sqlite"


def put(root, *names):
    """Files of different contents; the manifest hashes bytes and decodes nothing."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode())
    return root


def parts(levels=("",), suffix=".jpg"):
    return [
        f"{level}Stratasys-{device}/{design}/Device_{device}_Print_{print_}_{view}{suffix}"
        for level in levels
        for device in (1, 6)
        for design in ("Clip", "Plug")
        for print_ in (("001", "002") if level != "val/" else ("003",))
        for view in ("001", "002")
    ]


def table_of(folder, header, *lines):
    path = folder / "images.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def refusal(config, cache):
    with pytest.raises(ManifestError) as caught:
        read_manifest(config, cache)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Folders


def test_parts_in_the_seeds_layout(tmp_path, cache):
    root = put(tmp_path / "parts", *parts())
    manifest = read_manifest(DataConfig(root=root, **PARTS), cache)
    assert len(manifest) == 16
    assert manifest.classes == ["Stratasys-1", "Stratasys-6"]
    assert manifest.domains == ["design"]
    assert set(manifest.declared_sets) == {None}
    names = "id image label group split domain.design content"
    assert manifest.table.column_names == names.split()
    row = manifest.column("id").index("Stratasys-6/Plug/Device_6_Print_001_002.jpg")
    assert manifest.column("group")[row] == "Stratasys-6/Plug/001"
    assert manifest.column("domain.design")[row] == "Plug"
    assert manifest.column("image")[row] == str(
        root / "Stratasys-6/Plug/Device_6_Print_001_002.jpg"
    )
    assert manifest.truth[row] == 1
    # two views of a part are one group, parts of two designs or machines are not
    assert len(set(manifest.column("group"))) == 8
    assert len(set(manifest.column("content"))) == 16


def test_a_level_of_sets_is_taken_as_given(tmp_path, cache):
    root = put(tmp_path, *parts(("train/", "val/")))
    manifest = read_manifest(DataConfig(root=root, **PARTS), cache)
    assert {
        (row["id"].split("/")[0], row["split"], row["label"]) for row in manifest.table.to_pylist()
    } == {(s, s, f"Stratasys-{d}") for s in ("train", "val") for d in (1, 6)}
    assert "Stratasys-1/Clip/003" in manifest.column("group")


def test_some_images_may_have_a_set_and_others_none(tmp_path, cache):
    root = put(tmp_path, "A/x.png", "B/x.png", "test/A/y.png", "test/B/y.png")
    manifest = read_manifest(DataConfig(root=root), cache)
    assert manifest.column("id") == ["A/x.png", "B/x.png", "test/A/y.png", "test/B/y.png"]
    assert manifest.declared_sets == [None, None, "test", "test"]


def test_the_authors_other_naming_groups_by_serial(tmp_path, cache):
    names = [
        f"Form3-{device}/Clip/SERIAL{serial}_azimuth_{azimuth}_polar_{polar}.png"
        for device, serials in ((1, (5, 6)), (2, (7,)))
        for serial in serials
        for azimuth in (0, 120)
        for polar in (15, 45)
    ]
    manifest = read_manifest(DataConfig(root=put(tmp_path, *names), **PARTS), cache)
    assert len(manifest) == 12
    assert sorted(set(manifest.column("group"))) == [
        "Form3-1/Clip/SERIAL5",
        "Form3-1/Clip/SERIAL6",
        "Form3-2/Clip/SERIAL7",
    ]


def test_both_namings_may_be_mixed_and_suffixes_are_of_any_case(tmp_path, cache):
    root = put(tmp_path, "A/Clip/Device_1_Print_1_1.JPG", "B/Clip/S1_azimuth_0_polar_5.TIFF")
    put(root, "A/notes.txt", "Thumbs.db")
    manifest = read_manifest(DataConfig(root=root, **PARTS), cache)
    assert manifest.column("group") == ["A/Clip/1", "B/Clip/S1"]


def test_without_groups_every_image_is_its_own_part(tmp_path, cache):
    manifest = read_manifest(DataConfig(root=put(tmp_path, "A/1.png", "B/1.png")), cache)
    assert manifest.column("group") == ["A/1.png", "B/1.png"]


def test_images_behind_a_link_count(tmp_path, cache):
    put(tmp_path / "elsewhere", "Clip/Device_1_Print_1_1.jpg")
    root = put(tmp_path / "parts", "A/Clip/Device_1_Print_2_1.jpg", "B/Clip/Device_2_Print_2_1.jpg")
    (root / "A" / "Plug").symlink_to(tmp_path / "elsewhere" / "Clip")
    manifest = read_manifest(DataConfig(root=root, **PARTS), cache)
    assert "A/Plug/1" in manifest.column("group")


def test_a_pattern_may_name_the_set_itself(tmp_path, cache):
    root = put(tmp_path, "train/A-1.png", "train/B-1.png", "val/A-2.png")
    config = DataConfig(root=root, patterns=("{split}/{label}-{name}",))
    assert read_manifest(config, cache).declared_sets == ["train", "train", "val"]


def test_domains_above_the_class(tmp_path, cache):
    names = [f"{d}/{c}/{i}.jpg" for d in ("dslr", "webcam") for c in ("bike", "mug") for i in "12"]
    config = DataConfig(
        root=put(tmp_path, *names), patterns=("{domain}/{label}/{name}",), domains=("domain",)
    )
    manifest = read_manifest(config, cache)
    assert manifest.classes == ["bike", "mug"]
    assert manifest.column("domain.domain") == ["dslr"] * 4 + ["webcam"] * 4


@pytest.mark.parametrize("stranger", ["A/deep/down/x.png", "x.png", "test/x.png", "valid/A/x.png"])
def test_strangers_are_refused_by_name_and_number(tmp_path, cache, stranger):
    root = put(tmp_path, "A/1.png", "B/1.png", stranger)
    text = refusal(DataConfig(root=root), cache)
    assert "1 of 3 images" in text
    assert repr(stranger.removesuffix(".png")) in text
    assert "{label}/{name}" in text
    assert "--data.patterns" in text


@pytest.mark.parametrize("level", ["", "train/", "val/"])
def test_an_empty_class_folder_is_refused(tmp_path, cache, level):
    root = put(tmp_path, f"{level}A/1.png", f"{level}B/1.png", f"{level}C/readme.txt")
    assert str(root / level / "C") in refusal(DataConfig(root=root), cache)


def test_an_empty_class_beside_the_sets_is_refused(tmp_path, cache):
    root = put(tmp_path, "train/A/1.png", "train/B/1.png")
    (root / "C").mkdir()
    (root / ".cache").mkdir()
    assert str(root / "C") in refusal(DataConfig(root=root), cache)


def test_a_missing_or_empty_root_is_refused(tmp_path, cache):
    missing = refusal(DataConfig(root=tmp_path / "prats"), cache)
    assert str(tmp_path / "prats") in missing
    assert "does not exist" in missing
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refusal(DataConfig(root=tmp_path / "empty"), cache)


def test_a_field_no_pattern_has_is_refused(tmp_path, cache):
    root = put(tmp_path, "A/1.png", "B/1.png")
    text = refusal(DataConfig(root=root, group=("serial",)), cache)
    assert "'serial'" in text
    assert "label, name" in text


@pytest.mark.parametrize("pattern", ["{label}/{label}", "{1label}/{name}"])
def test_a_pattern_that_makes_no_sense_is_refused(tmp_path, cache, pattern):
    root = put(tmp_path, "A/1.png", "B/1.png")
    assert repr(pattern) in refusal(DataConfig(root=root, patterns=(pattern,)), cache)


def test_one_class_is_too_few(tmp_path, cache):
    text = refusal(DataConfig(root=put(tmp_path, "A/1.png", "A/2.png")), cache)
    assert "All 2 images have the class 'A'" in text


def test_hidden_folders_are_no_classes(tmp_path, cache, capsys):
    root = put(tmp_path, "good/1.png", "scratch/1.png", ".ipynb_checkpoints/1.png")
    put(root, "__MACOSX/good/._1.png", "train/@eaDir/1.png", "lost+found/x")
    manifest = read_manifest(DataConfig(root=root), cache)
    assert manifest.classes == ["good", "scratch"]
    assert "hidden or system entries are left out" in capsys.readouterr().err


def test_what_cannot_be_walked_is_refused(tmp_path, cache):
    root = put(tmp_path, "good/1.png", "scratch/1.png")
    (root / "scratch" / "again").symlink_to(".")
    config = DataConfig(root=root, patterns=("{label}/{name}", "{label}/{s}/{name}"))
    assert str(root / "scratch" / "again") in refusal(config, cache)


def test_a_root_that_is_neither_folder_nor_table_is_refused(tmp_path, cache):
    os.mkfifo(tmp_path / "pipe.csv")
    assert "no regular file" in refusal(DataConfig(root=tmp_path / "pipe.csv"), cache)
    odd = tmp_path / "Pr\udcfcf"
    put(odd, "a/1.png", "b/1.png")
    text = refusal(DataConfig(root=odd), cache)
    assert "no UTF-8" in text
    assert text.encode()


@pytest.mark.parametrize("out", ["..", ".", "", "../other", "sub/../../other", "/", "no"])
def test_what_is_left_out_is_a_folder_below_the_root(tmp_path, cache, out):
    (tmp_path / "other").mkdir()
    root = put(tmp_path / "root", "a/1.png", "b/2.png", "sub/3.png")
    text = refusal(DataConfig(root=root, leave_out=(out,)), cache)
    assert "is to be left out and is no folder below" in text


@pytest.mark.parametrize("out", ["c", "./c/", "a/../c", "c/../c"])
def test_a_folder_is_left_out_however_it_is_spelt(tmp_path, cache, out):
    root = put(tmp_path / "root", "a/1.png", "b/2.png", "c/3.png")
    for folder in (root, root / "a" / ".."):
        assert read_manifest(DataConfig(root=folder, leave_out=(out,)), cache).classes == ["a", "b"]
    table = table_of(root, "image,label", "a/1.png,a", "b/2.png,b")
    text = refusal(DataConfig(root=table, leave_out=(out,)), cache)
    assert "leave rows out by data.where" in text


def test_a_named_field_of_sets_that_nothing_has_is_refused(tmp_path, cache):
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


@pytest.mark.parametrize("name", ["nan", "NULL", " ", "\u200b"])
def test_a_folder_that_names_no_value_is_no_class(tmp_path, cache, name):
    """As programs make them that write str(label) of a row without one."""
    root = put(tmp_path, "a/1.png", "b/2.png", f"{name}/3.png")
    for fields in (
        {},
        {"label": "name", "group": ("label",)},
        {"label": "name", "domains": ("label",)},
    ):
        text = refusal(DataConfig(root=root, **fields), cache)
        assert "as its label, which says that there is no value" in text


def test_a_condition_on_what_no_row_has_is_said(tmp_path, cache, capsys):
    put(tmp_path, "1.png", "2.png")
    table = table_of(tmp_path, "image,label,view", "1.png,a,top", "2.png,b,side")
    assert len(read_manifest(DataConfig(root=table, where=("view!=botom",)), cache)) == 2
    said = capsys.readouterr().err
    assert said == f"data.where names view=botom, which no row of {table} has.\n"
    read_manifest(DataConfig(root=table, where=("view!=back", "view!=")), cache)
    assert capsys.readouterr().err.count("\n") == 1


def test_conditions_on_a_folder_are_refused(tmp_path, cache):
    root = put(tmp_path, "a/1.png", "b/1.png")
    assert "conditions are for tables" in refusal(DataConfig(root=root, where=("label=a",)), cache)


def test_a_field_may_be_called_id_or_image(tmp_path, cache):
    names = [f"{label}/{part}_{view}.png" for label in "ab" for part in "12" for view in "xy"]
    config = {"patterns": ("{label}/{id}_{image}",), "group": ("id",), "domains": ("image",)}
    manifest = read_manifest(DataConfig(root=put(tmp_path, *names), **config), cache)
    assert set(manifest.column("group")) == {"1", "2"}
    assert set(manifest.column("domain.image")) == {"x", "y"}
    path = table_of(tmp_path, "file,label,id", *(f"{name},{name[0]},{name[2]}" for name in names))
    manifest = read_manifest(DataConfig(root=path, image="file", group=("id",)), cache)
    assert set(manifest.column("group")) == {"1", "2"}
    assert manifest.column("id") == names


# One name, one spelling

TWINS = [
    ("Missing_hole", "missing_hole"),
    ("good", "good "),
    ("a b", "a  b"),
    ("Pr\u00fcf", "Pru\u0308f"),
]
TWINS += [("good", "good\u200b"), ("a b", "a\u00a0b"), ("STRASSE", "stra\u00dfe"), ("1", "1.0")]


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_a_class_folder_spelled_in_two_ways_is_refused(tmp_path, cache, one, other):
    root = put(tmp_path, "z/1.png", f"{one}/1.png", f"{other}/2.png")
    text = refusal(DataConfig(root=root), cache)
    assert "label has the values" in text
    shown = ascii if {one, other} == {"Pr\u00fcf", "Pru\u0308f"} else repr
    assert shown(one) in text
    assert shown(other) in text


@pytest.mark.parametrize("column", ["label", "group", "domains"])
@pytest.mark.parametrize(("one", "other"), TWINS)
def test_a_cell_spelled_in_two_ways_is_refused(tmp_path, cache, column, one, other):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table_of(tmp_path, "image,label,x", f"1.png,a,{one}", f"2.png,b,{other}", "3.png,b,z")
    asked = {"label": "x"} if column == "label" else {column: ("x",)}
    text = refusal(DataConfig(root=path, **asked), cache)
    assert "differ in case, spaces, quotes, Unicode form or how a number is written alone" in text
    assert text.count("(at '1.png')") == text.count("(at '2.png')") == 1
    assert text.encode()


def test_names_of_images_without_groups_may_differ_in_case(tmp_path, cache):
    root = put(tmp_path, "a/x.png", "a/X.png", "b/1.jpg", "b/1.JPG")
    assert len(read_manifest(DataConfig(root=root), cache)) == 4


def test_other_names_are_not_taken_for_one(tmp_path, cache):
    root = put(
        tmp_path,
        *(f"{name}/1.png" for name in ("ab", "a b", "a-b", "a_b", "1", "01", "1.1", "1.10")),
    )
    assert len(read_manifest(DataConfig(root=root), cache).classes) == 8


def test_decomposed_names_are_composed_and_found_in_either_form(tmp_path, cache):
    put(tmp_path, "1.png", "2.png", "3.png")
    lines = ["1.png,Pru\u0308f,a", "2.png,gut,a", "3.png,alt,b"]
    path = table_of(tmp_path, "image,label,kind", *lines)
    for form in ("Pru\u0308f", "Pr\u00fcf"):
        config = DataConfig(root=path, where=("kind=a",), keep=("kind",))
        assert read_manifest(config, cache).classes == ["Pr\u00fcf", "gut"]
        rest = DataConfig(root=path, where=(f"label!={form}",))
        assert read_manifest(rest, cache).classes == ["alt", "gut"]


def test_groups_of_several_columns_that_read_alike_are_refused(tmp_path, cache):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,build,part", "1.png,a,1/2,3", "2.png,b,1,2/3")
    text = refusal(DataConfig(root=path, group=("build", "part")), cache)
    assert "['1/2', '3']" in text
    assert "'1/2/3'" in text


# One content, one label


def test_a_content_of_two_labels_is_refused_by_the_first_pair_and_their_number(tmp_path, cache):
    root = put(
        tmp_path / "parts", *(f"{label}/{i}.png" for label in ("good", "scratch") for i in range(6))
    )
    for i in range(4):
        shutil.copy(root / "good" / f"{i}.png", root / "scratch" / f"copy{i}.png")
    for on_error in ("stop", "skip"):
        text = refusal(DataConfig(root=root, on_error=on_error), cache)
        assert "4 file content(s) have two labels" in text
        assert "'good/0.png' (good) and 'scratch/copy0.png' (scratch)" in text
    path = table_of(root, "image,label", "good/0.png,a", "scratch/copy0.png,b", "good/1.png,b")
    assert "'good/0.png' (a) and 'scratch/copy0.png' (b)" in refusal(DataConfig(root=path), cache)


def test_copies_of_one_label_and_empty_files_are_no_contradiction(tmp_path, cache):
    root = put(tmp_path, "a/1.png", "b/1.png")
    shutil.copy(root / "a" / "1.png", root / "a" / "copy.png")
    for label in "ab":
        (root / label / "empty.png").touch()  # damaged, which on_error decides
    assert len(read_manifest(DataConfig(root=root), cache)) == 5
    masks = DataConfig(root=put(tmp_path, "c/1.png"), label="", patterns=("{build}/{layer}",))
    assert len(read_manifest(masks, cache)) == 6


# Tables

COLUMNS = {"image": "file", "label": "exposure", "group": ("block",), "domains": ("lamp",)}


@pytest.fixture
def table(tmp_path):
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


def test_a_folder_of_masks_is_left_out_and_given_sets_are_passed_over(tmp_path, cache):
    images = ("train/good/0.png", "test/good/0.png", "test/bad/0.png", "test/bad/1.png")
    root = put(tmp_path / "bottle", *images, "masks/bad/0.png", "masks/bad/1.png")
    config = DataConfig(root=root, patterns=("{label}/{name}",), leave_out=("masks",))
    manifest = read_manifest(config, cache)
    assert manifest.column("id") == sorted(images)
    assert manifest.declared_sets == ["test", "test", "test", "train"]
    assert set(read_manifest(replace(config, split=""), cache).declared_sets) == {None}
    assert "masks/bad/0" not in refusal(replace(config, leave_out=("other",)), cache)
    assert "--data.leave-out" in refusal(replace(config, patterns=("{label}/x{name}",)), cache)
    assert "other" in refusal(replace(config, leave_out=("masks", "other")), cache)


def test_where_keeps_rows(table, cache):
    config = DataConfig(root=table, where=("kind=image",), **COLUMNS)
    assert read_manifest(config, cache).column("id") == ["img/1.jpg", "img/2.jpg"]
    none = DataConfig(root=table, where=("kind=image", "exposure=2"), **COLUMNS)
    text = refusal(none, cache)
    assert "no row left" in text
    assert "exposure=2" in text


@pytest.mark.parametrize("name", ["Split", " split", "SPLIT"])
def test_a_given_split_under_another_spelling_is_not_passed_over(tmp_path, cache, name):
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
def test_sets_under_another_name_are_said(tmp_path, cache, capsys, header, cells, is_said):
    """Else sets would be drawn beside a published split that nobody missed."""
    put(tmp_path, "1.png", "2.png")
    lines = [f"{i}.png,{label},{cell}" for i, label, cell in zip("12", "ab", cells, strict=True)]
    path = table_of(tmp_path, f"image,label,{header}", *lines)
    read_manifest(DataConfig(root=path), cache)
    assert ("which are not used" in capsys.readouterr().err) == is_said


@pytest.mark.parametrize("pattern", ["{label}/{set}/{name}", "{set}/{label}/{name}"])
def test_sets_in_names_that_no_pattern_takes_are_said(tmp_path, cache, capsys, pattern):
    names = [pattern.format(label=c, set=s, name=f"{s}.png") for c in "ab" for s in ("Test", "Val")]
    read_manifest(DataConfig(root=put(tmp_path, *names), patterns=(pattern,)), cache)
    assert "has sets in its column or field 'set'" in capsys.readouterr().err


def test_sets_in_the_paths_of_a_table_are_said(tmp_path, cache, capsys):
    put(tmp_path, "all/train/1.png", "all/test/2.png", "all/3.png")
    lines = ["image,label", "all/train/1.png,a", "all/test/2.png,b", "all/3.png,b"]
    read_manifest(DataConfig(root=table_of(tmp_path, *lines[:3])), cache)
    assert "in the folders of its paths (test, train)" in capsys.readouterr().err
    read_manifest(DataConfig(root=table_of(tmp_path, *lines)), cache)
    read_manifest(DataConfig(root=table_of(tmp_path, *lines[:3]), split=""), cache)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("column", ["part_id", "SerialNo", "Lot", "group", "patient.name"])
def test_parts_that_no_setting_names_are_said(tmp_path, cache, capsys, column):
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


def test_a_column_that_nobody_asked_for_stops_nothing(tmp_path, cache):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,lot", "1.png,a,#REF!", "2.png,b,#REF!")
    assert len(read_manifest(DataConfig(root=path), cache)) == 2


def test_settings_of_folders_have_no_effect_beside_a_table(table, tmp_path):
    assert set(DataConfig(root=table).idle()) == {"patterns"}
    assert set(DataConfig(root=tmp_path).idle()) == {"image"}
    assert not DataConfig(root=tmp_path / "none").idle()
    with pytest.raises(ConfigError, match=r"data\.patterns has 0 entries"):
        DataConfig(patterns=())


def test_a_column_without_a_name_is_no_split(tmp_path, cache):
    """As pandas writes the numbers of rows."""
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, ",image,label", "0,1.png,a", "1,2.png,b")
    assert read_manifest(DataConfig(root=path, split=""), cache).declared_sets == [None, None]


@pytest.mark.parametrize("sign", ["=", "!="])
def test_rows_that_a_condition_may_mean_are_not_passed_over(tmp_path, cache, sign):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table_of(tmp_path, "image,label,kind", "1.png,a,image", "2.png,b,image", "3.png,b,Image")
    text = refusal(DataConfig(root=path, where=(f"kind{sign}image",)), cache)
    assert "'image' (at " in text
    assert "'Image' (at " in text
    assert "row 3 (line 4)" in text
    assert len(read_manifest(DataConfig(root=path, where=("label!=c",)), cache)) == 3


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


def test_parquet_numbers_are_classes_by_their_digits(tmp_path, cache):
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
def test_a_missing_column_is_named_beside_those_there_are(table, cache, change):
    text = refusal(DataConfig(root=table, **(COLUMNS | change)), cache)
    name = next(iter(change.values()))
    assert repr(str(name if isinstance(name, str) else name[-1].split("=")[0])) in text
    assert "file, kind, exposure, block, lamp, split" in text


def test_a_doubled_column_is_refused(tmp_path, cache):
    path = table_of(put(tmp_path, "1.png"), "image,label,label", "1.png,a,b")
    assert "image, label, label" in refusal(DataConfig(root=path), cache)


def test_a_missing_value_is_named_by_row_and_column(tmp_path, cache):
    put(tmp_path, "1.png", "2.png", "3.png")
    path = table_of(tmp_path, "image,label,kind", "1.png,a,x", "2.png,b,image", "3.png,,image")
    text = refusal(DataConfig(root=path, where=("kind=image",)), cache)
    assert "row 3" in text  # of the table, not of what `where` left
    assert "'label'" in text


def test_a_missing_file_is_named(tmp_path, cache):
    path = table_of(put(tmp_path, "1.png"), "image,label", "1.png,a", "2.png,b")
    assert str(tmp_path / "2.png") in refusal(DataConfig(root=path), cache)


@pytest.mark.parametrize("again", ["1.png", "./1.png", "sub/../1.png", "{folder}/1.png"])
def test_a_doubled_row_is_refused_however_it_is_spelt(tmp_path, cache, again):
    put(tmp_path, "1.png", "2.png")
    lines = ("1.png,a", "2.png,b", again.format(folder=tmp_path) + ",a")
    text = refusal(DataConfig(root=table_of(tmp_path, "image,label", *lines)), cache)
    assert str(tmp_path / "1.png") in text
    assert "2 times" in text


def test_an_unknown_set_is_refused(tmp_path, cache):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,split", "1.png,a,train", "2.png,b,valid")
    text = refusal(DataConfig(root=path), cache)
    assert "'2.png' has split 'valid'" in text
    assert "train, val, test" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("images.parquet", b"no parquet"),
        ("images.csv", b""),
        ("images.csv", b"image,label\n1.png,a,b\n"),
        ("images.csv", b"image,label\n\xff\xfe.png,a\n"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, cache, name, content):
    (tmp_path / name).write_bytes(content)
    text = refusal(DataConfig(root=tmp_path / name), cache)
    assert str(tmp_path / name) in text
    assert "CSV with a header, or Parquet" in text


def test_a_column_of_no_text_is_refused(tmp_path, cache):
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b"x"}], "label": ["a"]}), path)
    text = refusal(DataConfig(root=path), cache)
    assert "'image'" in text
    assert "struct" in text


def test_on_error_is_one_of_two_words():
    with pytest.raises(ConfigError, match="'stop' or 'skip'"):
        from_dict(DataConfig, {"on_error": "ignore"})


def test_excels_semicolons_make_the_same_manifest(table, cache):
    comma = read_manifest(DataConfig(root=table, **COLUMNS), cache)
    text = table.read_text().replace(",", ";").replace("\n", "\r\n")
    (table.parent / "excel.csv").write_bytes(text.encode("utf-8-sig"))
    excel = read_manifest(DataConfig(root=table.parent / "excel.csv", **COLUMNS), cache)
    assert excel.table == comma.table


@pytest.mark.parametrize("empty", ["", "NaN", "  "])
@pytest.mark.parametrize("column", ["label", "group", "domains", "keep"])
def test_a_row_without_a_value_is_refused_by_its_number(tmp_path, cache, empty, column):
    put(tmp_path, "1.png", "2.png")
    path = table_of(tmp_path, "image,label,x", "1.png,a,1", f"2.png,b,{empty}")
    asked = {"label": "x"} if column == "label" else {column: ("x",)}
    text = refusal(DataConfig(root=path, **asked), cache)
    assert "row 2 (line 3) has no value in column 'x'" in text
    numbers = pa.table({"image": ["1.png", "2.png"], "label": ["a", "b"], "x": [1.0, float("nan")]})
    pq.write_table(numbers, tmp_path / "t.parquet")
    text = refusal(DataConfig(root=tmp_path / "t.parquet", **asked), cache)
    assert "row 2 has no value in column 'x'" in text


def test_an_empty_condition_is_of_rows_without_a_value(tmp_path, cache):
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
def test_an_image_that_is_no_file_is_named_with_its_row(tmp_path, cache, name, reason):
    put(tmp_path, "1.png", "sub/2.png")
    (tmp_path / "gone.png").symlink_to("nothing")
    text = refusal(
        DataConfig(root=table_of(tmp_path, "image,label", "1.png,a", f"{name},b")), cache
    )
    assert "row 2 (line 3)" in text
    assert reason in text


def test_a_table_of_a_header_alone_is_refused(tmp_path, cache):
    text = refusal(DataConfig(root=table_of(tmp_path, "image,label")), cache)
    assert "0 row(s)" in text


def test_ids_are_one_however_a_table_spells_its_paths(tmp_path, cache):
    put(tmp_path, "img/1.png", "img/2.png", "lists/x")
    of_spelling = []
    for spelt in ("../img/{}.png", "./.././img/{}.png", "..\\img\\{}.png"):
        lines = (f"{spelt.format(i)},{i}" for i in "12")
        path = table_of(tmp_path / "lists", "image,label", *lines)
        of_spelling.append(read_manifest(DataConfig(root=path), cache).column("id"))
    assert of_spelling == [["../img/1.png", "../img/2.png"]] * 3


# Identity


def fingerprint_of(root, cache, **options):
    return read_manifest(DataConfig(root=root, **(PARTS | options)), cache).fingerprint


def test_the_fingerprint_does_not_depend_on_where_the_data_lies(tmp_path, cache):
    root = put(tmp_path / "here", *parts(("train/", "val/")))
    before = fingerprint_of(root, cache)
    there = shutil.copytree(root, tmp_path / "far" / "there")
    assert fingerprint_of(there, tmp_path / "other" / "cache") == before


@pytest.mark.parametrize("prefix", ["", "./", "{folder}/"])
def test_the_same_table_elsewhere_is_the_same_data(tmp_path, cache, prefix):
    manifests = []
    for name, spelt in (("one", ""), ("two", prefix)):
        folder = put(tmp_path / name, "1.png", "2.png")
        start = spelt.format(folder=folder)
        path = table_of(folder, "image,label", f"{start}1.png,a", f"{start}2.png,b")
        manifests.append(read_manifest(DataConfig(root=path), cache))
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert manifests[0].column("group") == manifests[1].column("group")


def test_the_order_of_a_tables_rows_decides_nothing(tmp_path, cache):
    put(tmp_path, *"abcd")
    lines = ["c,1,x", "a,2,y", "d,1,x", "b,2,y"]
    manifests = [
        read_manifest(
            DataConfig(root=table_of(tmp_path, "image,label,g", *order), group=("g",)), cache
        )
        for order in (lines, sorted(lines), lines[::-1])
    ]
    assert len({m.fingerprint for m in manifests}) == 1
    assert manifests[0].table == manifests[1].table == manifests[2].table
    assert manifests[0].take([3, 0]).fingerprint != manifests[0].take([0, 3]).fingerprint


def test_the_fingerprint_tells_every_kind_of_change(tmp_path, cache):
    names = ["train/A/Clip/Device_1_Print_1_1.jpg", "train/B/Clip/Device_2_Print_1_1.jpg"]

    def of(folder, *renamed, content=b"x", **options):
        root = put(tmp_path / folder, *names)
        for old, new in renamed:
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(root / new)
            if not any((root / "train" / "A").rglob("*.jpg")):
                shutil.rmtree(root / "train" / "A")
        sorted(root.rglob("*.jpg"))[0].write_bytes(content)
        return fingerprint_of(root, cache, **options)

    fingerprints = [
        of("same"),
        of("content", content=b"y"),
        of("label", (names[0], "train/C/Clip/Device_1_Print_1_1.jpg")),
        of("group", (names[0], "train/A/Clip/Device_1_Print_2_1.jpg")),
        of("domain", (names[0], "train/A/Plug/Device_1_Print_1_1.jpg")),
        of("split", (names[0], "val/A/Clip/Device_1_Print_1_1.jpg")),
        of("no domain", domains=()),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert of("again") == fingerprints[0]


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


# Masks


def masked(folder, values):
    """Two images and a mask of each, whose pixels have these values."""
    for i, value in enumerate(values):
        put(folder, f"parts/b{i}/l.png")
        (folder / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"masks/{i}.png"), np.full((8, 8), value, np.uint8))
    config = DataConfig(
        root=folder / "parts", patterns=("{build}/{layer}",), label="", group=("build",)
    )
    manifest = read_manifest(config, folder / "hashes.sqlite")
    paths = [folder / f"masks/{i}.png" for i in range(len(values))]
    return manifest.with_masks({"label": paths}, ["pore", "streak"], folder / "hashes.sqlite")


def test_masks_bring_their_classes_and_their_files(tmp_path):
    manifest = masked(tmp_path, [1, 2])
    assert manifest.mask_classes == ["pore", "streak"]
    assert manifest.classes == []
    assert manifest.truth.tolist() == [0, 0]
    keys = manifest.masks["label"]
    assert [manifest.files[key] for key in keys] == [
        str(tmp_path / f"masks/{i}.png") for i in (0, 1)
    ]
    assert len(manifest.files) == 4
    assert manifest.take([1]).masks == {"label": keys[1:]}
    assert manifest.take([1]).mask_classes == ["pore", "streak"]


def test_what_a_mask_holds_is_part_of_the_data_and_where_it_lies_is_not(tmp_path):
    prints = []
    for name, values in (("a", [1, 2]), ("b", [1, 2]), ("c", [1, 1])):
        (tmp_path / name).mkdir()
        prints.append(masked(tmp_path / name, values).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_file_may_be_an_image_and_a_mask(tmp_path):
    """Their keys differ, so that each is stored as what it is."""
    cv2.imwrite(str(tmp_path / "x.png"), np.ones((8, 8), np.uint8))
    config = DataConfig(root=tmp_path, patterns=("{name}",), label="")
    manifest = read_manifest(config, tmp_path / "hashes.sqlite")
    both = manifest.with_masks(
        {"label": [tmp_path / "x.png"]}, ["pore"], tmp_path / "hashes.sqlite"
    )
    assert both.masks["label"] == [f"{manifest.column('content')[0]}-mask"]


def test_a_page_is_part_of_what_the_data_are(tmp_path, cache):
    put(tmp_path / "parts", "A/x.tif", "B/y.tif")
    config = DataConfig(root=tmp_path / "parts")
    plain, paged = read_manifest(config, cache), read_manifest(replace(config, page=1), cache)
    assert paged.column("content") == [f"{key}-page1" for key in plain.column("content")]
    assert paged.fingerprint != plain.fingerprint
