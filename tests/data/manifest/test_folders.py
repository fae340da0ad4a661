"""Manifests of folders: names, levels, and what is left out or refused."""

import os
from dataclasses import replace

import pytest

from assay.data.manifest import DataConfig, read_manifest


def test_parts_in_the_seeds_layout(layout, parts, put, tmp_path, cache):
    root = put(tmp_path / "parts", *parts())
    manifest = read_manifest(DataConfig(root=root, **layout), cache)
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


def test_a_level_of_sets_is_taken_as_given(layout, parts, put, tmp_path, cache):
    root = put(tmp_path, *parts(("train/", "val/")))
    manifest = read_manifest(DataConfig(root=root, **layout), cache)
    assert {
        (row["id"].split("/")[0], row["split"], row["label"]) for row in manifest.table.to_pylist()
    } == {(s, s, f"Stratasys-{d}") for s in ("train", "val") for d in (1, 6)}
    assert "Stratasys-1/Clip/003" in manifest.column("group")


def test_some_images_may_have_a_set_and_others_none(put, tmp_path, cache):
    root = put(tmp_path, "A/x.png", "B/x.png", "test/A/y.png", "test/B/y.png")
    manifest = read_manifest(DataConfig(root=root), cache)
    assert manifest.column("id") == ["A/x.png", "B/x.png", "test/A/y.png", "test/B/y.png"]
    assert manifest.declared_sets == [None, None, "test", "test"]


def test_the_authors_other_naming_groups_by_serial(layout, put, tmp_path, cache):
    names = [
        f"Form3-{device}/Clip/SERIAL{serial}_azimuth_{azimuth}_polar_{polar}.png"
        for device, serials in ((1, (5, 6)), (2, (7,)))
        for serial in serials
        for azimuth in (0, 120)
        for polar in (15, 45)
    ]
    manifest = read_manifest(DataConfig(root=put(tmp_path, *names), **layout), cache)
    assert len(manifest) == 12
    assert sorted(set(manifest.column("group"))) == [
        "Form3-1/Clip/SERIAL5",
        "Form3-1/Clip/SERIAL6",
        "Form3-2/Clip/SERIAL7",
    ]


def test_both_namings_may_be_mixed_and_suffixes_are_of_any_case(layout, put, tmp_path, cache):
    root = put(tmp_path, "A/Clip/Device_1_Print_1_1.JPG", "B/Clip/S1_azimuth_0_polar_5.TIFF")
    put(root, "A/notes.txt", "Thumbs.db")
    manifest = read_manifest(DataConfig(root=root, **layout), cache)
    assert manifest.column("group") == ["A/Clip/1", "B/Clip/S1"]


def test_without_groups_every_image_is_its_own_part(put, tmp_path, cache):
    manifest = read_manifest(DataConfig(root=put(tmp_path, "A/1.png", "B/1.png")), cache)
    assert manifest.column("group") == ["A/1.png", "B/1.png"]


def test_images_behind_a_link_count(layout, put, tmp_path, cache):
    put(tmp_path / "elsewhere", "Clip/Device_1_Print_1_1.jpg")
    root = put(tmp_path / "parts", "A/Clip/Device_1_Print_2_1.jpg", "B/Clip/Device_2_Print_2_1.jpg")
    (root / "A" / "Plug").symlink_to(tmp_path / "elsewhere" / "Clip")
    manifest = read_manifest(DataConfig(root=root, **layout), cache)
    assert "A/Plug/1" in manifest.column("group")


def test_a_pattern_may_name_the_set_itself(put, tmp_path, cache):
    root = put(tmp_path, "train/A-1.png", "train/B-1.png", "val/A-2.png")
    config = DataConfig(root=root, patterns=("{split}/{label}-{name}",))
    assert read_manifest(config, cache).declared_sets == ["train", "train", "val"]


def test_domains_above_the_class(put, tmp_path, cache):
    names = [f"{d}/{c}/{i}.jpg" for d in ("dslr", "webcam") for c in ("bike", "mug") for i in "12"]
    config = DataConfig(
        root=put(tmp_path, *names), patterns=("{domain}/{label}/{name}",), domains=("domain",)
    )
    manifest = read_manifest(config, cache)
    assert manifest.classes == ["bike", "mug"]
    assert manifest.column("domain.domain") == ["dslr"] * 4 + ["webcam"] * 4


@pytest.mark.parametrize("stranger", ["A/deep/down/x.png", "x.png", "test/x.png", "valid/A/x.png"])
def test_strangers_are_refused_by_name_and_number(put, refusal, tmp_path, cache, stranger):
    root = put(tmp_path, "A/1.png", "B/1.png", stranger)
    text = refusal(DataConfig(root=root), cache)
    assert "1 of 3 images" in text
    assert repr(stranger.removesuffix(".png")) in text
    assert "{label}/{name}" in text
    assert "--data.patterns" in text


@pytest.mark.parametrize("level", ["", "train/", "val/"])
def test_an_empty_class_folder_is_refused(put, refusal, tmp_path, cache, level):
    root = put(tmp_path, f"{level}A/1.png", f"{level}B/1.png", f"{level}C/readme.txt")
    assert str(root / level / "C") in refusal(DataConfig(root=root), cache)


def test_an_empty_class_beside_the_sets_is_refused(put, refusal, tmp_path, cache):
    root = put(tmp_path, "train/A/1.png", "train/B/1.png")
    (root / "C").mkdir()
    (root / ".cache").mkdir()
    assert str(root / "C") in refusal(DataConfig(root=root), cache)


def test_a_missing_or_empty_root_is_refused(refusal, tmp_path, cache):
    missing = refusal(DataConfig(root=tmp_path / "prats"), cache)
    assert str(tmp_path / "prats") in missing
    assert "does not exist" in missing
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refusal(DataConfig(root=tmp_path / "empty"), cache)


def test_a_field_no_pattern_has_is_refused(put, refusal, tmp_path, cache):
    root = put(tmp_path, "A/1.png", "B/1.png")
    text = refusal(DataConfig(root=root, group=("serial",)), cache)
    assert "'serial'" in text
    assert "label, name" in text


@pytest.mark.parametrize("pattern", ["{label}/{label}", "{1label}/{name}"])
def test_a_pattern_that_makes_no_sense_is_refused(put, refusal, tmp_path, cache, pattern):
    root = put(tmp_path, "A/1.png", "B/1.png")
    assert repr(pattern) in refusal(DataConfig(root=root, patterns=(pattern,)), cache)


def test_one_class_is_too_few(put, refusal, tmp_path, cache):
    text = refusal(DataConfig(root=put(tmp_path, "A/1.png", "A/2.png")), cache)
    assert "All 2 images have the class 'A'" in text


def test_hidden_folders_are_no_classes(put, tmp_path, cache, capsys):
    root = put(tmp_path, "good/1.png", "scratch/1.png", ".ipynb_checkpoints/1.png")
    put(root, "__MACOSX/good/._1.png", "train/@eaDir/1.png", "lost+found/x")
    manifest = read_manifest(DataConfig(root=root), cache)
    assert manifest.classes == ["good", "scratch"]
    assert "hidden or system entries are left out" in capsys.readouterr().err


def test_what_cannot_be_walked_is_refused(put, refusal, tmp_path, cache):
    root = put(tmp_path, "good/1.png", "scratch/1.png")
    (root / "scratch" / "again").symlink_to(".")
    config = DataConfig(root=root, patterns=("{label}/{name}", "{label}/{s}/{name}"))
    assert str(root / "scratch" / "again") in refusal(config, cache)


def test_a_root_that_is_neither_folder_nor_table_is_refused(put, refusal, tmp_path, cache):
    os.mkfifo(tmp_path / "pipe.csv")
    assert "no regular file" in refusal(DataConfig(root=tmp_path / "pipe.csv"), cache)
    odd = tmp_path / "Pr\udcfcf"
    put(odd, "a/1.png", "b/1.png")
    text = refusal(DataConfig(root=odd), cache)
    assert "no UTF-8" in text
    assert text.encode()


@pytest.mark.parametrize("out", ["..", ".", "", "../other", "sub/../../other", "/", "no"])
def test_what_is_left_out_is_a_folder_below_the_root(put, refusal, tmp_path, cache, out):
    (tmp_path / "other").mkdir()
    root = put(tmp_path / "root", "a/1.png", "b/2.png", "sub/3.png")
    text = refusal(DataConfig(root=root, leave_out=(out,)), cache)
    assert "is to be left out and is no folder below" in text


@pytest.mark.parametrize("out", ["c", "./c/", "a/../c", "c/../c"])
def test_a_folder_is_left_out_however_it_is_spelt(put, refusal, table_of, tmp_path, cache, out):
    root = put(tmp_path / "root", "a/1.png", "b/2.png", "c/3.png")
    for folder in (root, root / "a" / ".."):
        assert read_manifest(DataConfig(root=folder, leave_out=(out,)), cache).classes == ["a", "b"]
    table = table_of(root, "image,label", "a/1.png,a", "b/2.png,b")
    text = refusal(DataConfig(root=table, leave_out=(out,)), cache)
    assert "leave rows out by data.where" in text


def test_a_folder_of_masks_is_left_out_and_given_sets_are_passed_over(
    put, refusal, tmp_path, cache
):
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


@pytest.mark.parametrize("name", ["nan", "NULL", " ", "\u200b"])
def test_a_folder_that_names_no_value_is_no_class(put, refusal, tmp_path, cache, name):
    """As programs make them that write str(label) of a row without one."""
    root = put(tmp_path, "a/1.png", "b/2.png", f"{name}/3.png")
    for fields in (
        {},
        {"label": "name", "group": ("label",)},
        {"label": "name", "domains": ("label",)},
    ):
        text = refusal(DataConfig(root=root, **fields), cache)
        assert "as its label, which says that there is no value" in text
